package scaler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

func TestDecide(t *testing.T) {
	for _, test := range []struct {
		name string
		s    instancepool.Snapshot
		want int
	}{
		{"nothing to do", instancepool.Snapshot{Concurrency: 80}, 0},
		{"one request", instancepool.Snapshot{Concurrency: 80, Waiting: 1}, 1},
		{"as many as fit into one", instancepool.Snapshot{Concurrency: 80, Waiting: 80}, 1},
		{"one more", instancepool.Snapshot{Concurrency: 80, Waiting: 81}, 2},
		{"one for each", instancepool.Snapshot{Concurrency: 1, Waiting: 20}, 20},
		{"some are on their way", instancepool.Snapshot{Concurrency: 10, Waiting: 95, Starting: 3}, 7},
		{"enough are on their way", instancepool.Snapshot{Concurrency: 10, Waiting: 30, Starting: 3}, 0},
		{"slots are free", instancepool.Snapshot{Concurrency: 10, Waiting: 12, Free: 5}, 1},
		{"no more than the maximum", instancepool.Snapshot{Concurrency: 1, Waiting: 100, Max: 20, Ready: 5, Starting: 5}, 10},
		{"the maximum is there", instancepool.Snapshot{Concurrency: 1, Waiting: 100, Max: 20, Ready: 20}, 0},
		{"more than the maximum, by adoption", instancepool.Snapshot{Concurrency: 1, Waiting: 1, Max: 1, Ready: 2}, 0},
		{"a suspect may come back", instancepool.Snapshot{Concurrency: 1, Waiting: 1, Max: 1, Suspect: 1}, 0},
		{"a suspect serves nobody now", instancepool.Snapshot{Concurrency: 1, Waiting: 1, Max: 2, Suspect: 1}, 1},
		{"one that is not ready serves nobody now", instancepool.Snapshot{Concurrency: 1, Waiting: 1, Max: 2, Unready: 1}, 1},
		{"one that is not ready counts for the maximum", instancepool.Snapshot{Concurrency: 1, Waiting: 1, Max: 1, Unready: 1}, 0},
		{"and for the minimum", instancepool.Snapshot{Concurrency: 80, Min: 2, Ready: 1, Unready: 1}, 0},
		{"but not for a deploy", instancepool.Snapshot{Concurrency: 80, Floor: 2, Ready: 1, Unready: 1}, 1},
		{"the minimum", instancepool.Snapshot{Concurrency: 80, Min: 3, Ready: 1, Starting: 1}, 1},
		{"more waits than the minimum serves", instancepool.Snapshot{Concurrency: 1, Min: 2, Waiting: 5}, 5},
		{"the minimum serves all that wait", instancepool.Snapshot{Concurrency: 80, Min: 2, Waiting: 5}, 2},
	} {
		spec := &revisions.Spec{Concurrency: test.s.Concurrency, CPU: 1}
		if got := decide(test.s, spec, 4, relaxed); got.Start != test.want {
			t.Errorf("%s: decide(%+v) = %+v, want %d", test.name, test.s, got, test.want)
		}
	}
}

// host is a Scaler on a fake engine.
type host struct {
	*Scaler
	t  testing.TB
	rt *pooltest.Runtime

	mu     sync.Mutex
	events []RevisionEvent
}

func (h *host) Instance(instancepool.Event) {}

func (h *host) Revision(e RevisionEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

// told returns the kinds of the events of a revision.
func (h *host) told(revision string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var kinds []string
	for _, e := range h.events {
		if e.Revision == revision {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds
}

// boot returns a host on rt that is closed, and everything stopped, when the
// test ends.
func boot(t testing.TB, rt *pooltest.Runtime) *host {
	t.Helper()
	h := &host{t: t, rt: rt}
	h.Scaler = New(Options{Runtime: rt, Observer: h, StartLimit: 4, Probe: rt.Probe})
	t.Cleanup(func() {
		if err := h.Close(context.Background(), Stop); err != nil {
			t.Error(err)
		}
	})
	h.Start()
	return h
}

// svc returns a prepared service. Each of settings is an annotation of its
// template, "min-scale=2", or, where there is no "=", its image.
func svc(t testing.TB, name string, settings ...string) *servingv1.Service {
	t.Helper()
	v := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}}
	image, annotations := "app:1", make(map[string]string)
	var limits corev1.ResourceList
	for _, s := range settings {
		key, value, ok := strings.Cut(s, "=")
		switch {
		case !ok:
			image = s
		case key == "concurrency":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			v.Spec.Template.Spec.ContainerConcurrency = &n
		case key == "timeout":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			v.Spec.Template.Spec.TimeoutSeconds = &n
		case key == "memory":
			limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(value)}
		case strings.Contains(key, "/"):
			annotations[key] = value
		default:
			annotations["autoscaling.knative.dev/"+key] = value
		}
	}
	v.Spec.Template.Annotations = annotations
	v.Spec.Template.Spec.Containers = []corev1.Container{{Image: image, Resources: corev1.ResourceRequirements{Limits: limits}}}
	v, err := revisions.Prepare(v)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// declare makes services wanted and waits until all that follows has happened.
func (h *host) declare(owner any, services ...*servingv1.Service) {
	h.t.Helper()
	if err := h.Declare(owner, services); err != nil {
		h.t.Fatal(err)
	}
	synctest.Wait()
}

func (h *host) withdraw(owner any) {
	h.Withdraw(owner)
	synctest.Wait()
}

// Acquire is Scaler.Acquire for a request without a tag.
func (h *host) Acquire(ctx context.Context, name string) (*instancepool.Lease, error) {
	return h.Scaler.Acquire(ctx, Request{Service: name})
}

// need acquires a lease, which must succeed.
func (h *host) need(name string) *instancepool.Lease {
	h.t.Helper()
	lease, err := h.Acquire(h.t.Context(), name)
	if err != nil {
		h.t.Fatalf("Acquire(%s): %v", name, err)
	}
	return lease
}

// served makes one request and returns the revision that it went to.
func (h *host) served(name string) string {
	h.t.Helper()
	lease := h.need(name)
	defer lease.Release()
	return lease.Revision().Name
}

// running counts running instances by revision.
func (h *host) running() map[string]int {
	all := make(map[string]int)
	for _, i := range h.rt.Running() {
		all[i.Revision().Name]++
	}
	return all
}

func (h *host) statusOf(name string) ServiceStatus {
	h.t.Helper()
	for _, s := range h.Status() {
		if s.Name == name {
			return s
		}
	}
	h.t.Fatalf("no service %s", name)
	return ServiceStatus{}
}

func (h *host) roles(name string) map[string]string {
	h.t.Helper()
	all := make(map[string]string)
	for _, r := range h.statusOf(name).Revisions {
		all[r.Revision.Name] = r.Role
	}
	return all
}

func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// bubble runs test in a bubble, on a fresh engine.
func bubble(t *testing.T, test func(t *testing.T, rt *pooltest.Runtime)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, pooltest.NewRuntime()) })
}

func TestFirstRevision(t *testing.T) {
	for _, test := range []struct {
		name, setting string
		running       map[string]int
		told          []string
	}{
		{"starts with its first request", "max-scale=5", map[string]int{}, []string{"created", "image_resolved"}},
		{"proves itself at once", "initial-scale=1", map[string]int{"hello-00001": 1}, []string{"created", "image_resolved", "ready"}},
		{"has its minimum at once", "min-scale=3", map[string]int{"hello-00001": 3}, []string{"created", "image_resolved", "ready"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
				h := boot(t, rt)
				h.declare(1, svc(t, "hello", test.setting))
				equal(t, "running", h.running(), test.running)
				equal(t, "events", h.told("hello-00001"), test.told)
				equal(t, "served by", h.served("hello"), "hello-00001")
			})
		})
	}
}

func TestSwap(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		old := h.need("hello")
		rt.Plan(pooltest.Plan{ReadyAfter: 10 * time.Second})
		h.declare(2, svc(t, "hello", "app:2"))
		h.withdraw(1)
		time.Sleep(9 * time.Second)
		equal(t, "served by, before it is ready", h.served("hello"), "hello-00001")
		equal(t, "roles", h.roles("hello"), map[string]string{"hello-00001": "serving", "hello-00002": "next"})
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "served by, since", h.served("hello"), "hello-00002")
		equal(t, "roles", h.roles("hello"), map[string]string{"hello-00001": "draining", "hello-00002": "serving"})
		equal(t, "running while one request is in the old one", h.running(), map[string]int{"hello-00001": 1, "hello-00002": 1})
		old.Release()
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"hello-00002": 1})
		equal(t, "events", h.told("hello-00001"), []string{"created", "image_resolved", "draining", "retired"})
		equal(t, "events", h.told("hello-00002"), []string{"created", "image_resolved", "promoted", "ready"})
	})
}

// The new revision takes over with as many instances as the load needs.
func TestSwapUnderLoadMeetsNoQueue(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello", "concurrency=10"))
		for range 35 {
			h.need("hello")
		}
		h.declare(2, svc(t, "hello", "app:2", "concurrency=10"))
		equal(t, "running", h.running(), map[string]int{"hello-00001": 4, "hello-00002": 4})
	})
}

// F31, F32: under load no request is lost at a swap, and once one was served by
// a revision none that comes later is served by an older one.
func TestSwapsUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			return pooltest.Plan{StartTime: rand.N(time.Second), ReadyAfter: rand.N(time.Second), StopTime: rand.N(time.Second)}
		})
		h.declare(0, svc(t, "hello", "concurrency=10"))
		var newest atomic.Int64
		ctx, stop := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		for range 100 {
			clients.Go(func() {
				for ctx.Err() == nil {
					seen := newest.Load()
					lease, err := h.Acquire(t.Context(), "hello")
					if err != nil {
						t.Error(err)
						return
					}
					g := lease.Revision().Generation
					if g < seen {
						t.Errorf("served by generation %d after %d", g, seen)
					}
					for n := newest.Load(); g > n && !newest.CompareAndSwap(n, g); n = newest.Load() {
					}
					time.Sleep(rand.N(100 * time.Millisecond))
					if i := rt.Instance(lease.Instance().ID()); i.Stops() > 0 {
						t.Errorf("%s was stopped while it had a request", i.ID())
					}
					lease.Release()
					time.Sleep(rand.N(100 * time.Millisecond))
				}
			})
		}
		for n := range 20 {
			time.Sleep(rand.N(5 * time.Second))
			h.declare(n+1, svc(t, "hello", "concurrency=10", fmt.Sprintf("app:%d", n+2)))
			h.withdraw(n)
		}
		time.Sleep(10 * time.Second)
		stop()
		clients.Wait()
		synctest.Wait()
		equal(t, "newest", newest.Load(), 21)
		equal(t, "revisions that run", len(h.running()), 1)
	})
}

// F34: bad, worse, good in a row. Traffic stays until the good one is ready.
func TestACandidateThatFails(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		h.served("hello")

		rt.Plan(pooltest.Plan{Unready: true, Log: "panic: no config\n", IgnoreTerm: true})
		h.declare(2, svc(t, "hello", "app:bad"))
		equal(t, "served by", h.served("hello"), "hello-00001")
		equal(t, "roles", h.roles("hello"), map[string]string{"hello-00001": "serving", "hello-00002": "failed"})
		st := h.statusOf("hello")
		equal(t, "latest", st.Latest.Name, "hello-00002")
		if st.Failure == nil || !strings.Contains(st.Failure.Error(), "panic: no config") {
			t.Fatalf("the failure is reported as %v", st.Failure)
		}
		equal(t, "events", h.told("hello-00002"), []string{"created", "image_resolved", "failed"})
		time.Sleep(time.Minute)
		equal(t, "running", h.running(), map[string]int{"hello-00001": 1})

		rt.Plan(pooltest.Plan{StartErr: errors.New("no such command")})
		h.declare(3, svc(t, "hello", "app:worse"))
		time.Sleep(time.Minute)
		equal(t, "served by", h.served("hello"), "hello-00001")

		rt.Plan(pooltest.Plan{})
		h.declare(4, svc(t, "hello", "app:good"))
		equal(t, "served by", h.served("hello"), "hello-00004")
		time.Sleep(time.Hour)
		equal(t, "roles", h.roles("hello"), map[string]string{"hello-00004": "serving"})
	})
}

// The same spec once more is another try.
func TestAFailedCandidateIsTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		rt.Plan(pooltest.Plan{Unready: true})
		h.declare(2, svc(t, "hello", "app:2"))
		equal(t, "served by", h.roles("hello")["hello-00002"], "failed")
		rt.Plan(pooltest.Plan{})
		h.declare(3, svc(t, "hello", "app:2"))
		equal(t, "served by", h.served("hello"), "hello-00002")
	})
}

func TestACandidateThatTakesForeverFails(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		rt.Image(func(ctx context.Context, _ string) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		})
		h.declare(2, svc(t, "hello", "app:2"))
		time.Sleep(revisions.DefaultProgressDeadline)
		synctest.Wait()
		if err := h.statusOf("hello").Failure; err == nil {
			t.Fatal("it did not fail")
		}
		equal(t, "served by", h.served("hello"), "hello-00001")
	})
}

// What cannot serve protects nobody: its successor need not prove itself.
func TestAnUnprovenFirstRevisionIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.Plan(pooltest.Plan{Unready: true})
		h.declare(1, svc(t, "hello"))
		if _, err := h.Acquire(t.Context(), "hello"); err == nil {
			t.Fatal("served")
		}
		synctest.Wait() // until that is noted
		rt.Plan(pooltest.Plan{})
		h.declare(2, svc(t, "hello", "app:2"))
		equal(t, "running", h.running(), map[string]int{})
		equal(t, "served by", h.served("hello"), "hello-00002")
	})
}

// A reload that keeps a service changes nothing, and one that fails is undone.
func TestOwners(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare("first", svc(t, "hello"), svc(t, "other"))
		h.served("hello")
		h.served("other")
		pids := func() []int {
			var all []int
			for _, i := range rt.Running() {
				all = append(all, i.PID())
			}
			return all
		}
		before := pids()

		h.declare("same", svc(t, "hello"), svc(t, "other"))
		h.withdraw("first")
		time.Sleep(time.Minute)
		equal(t, "pids after a reload", pids(), before)
		equal(t, "starts", rt.Attempts(), 2)

		rt.Plan(pooltest.Plan{ReadyAfter: time.Minute})
		h.declare("fails", svc(t, "hello", "app:2"), svc(t, "added"))
		h.withdraw("fails")
		equal(t, "pids after a failed reload", pids(), before)
		equal(t, "latest", h.statusOf("hello").Latest.Name, "hello-00001")
		if _, err := h.Acquire(t.Context(), "added"); !errors.Is(err, ErrUnknownService) {
			t.Fatalf("a service that was taken back: %v", err)
		}

		rt.Plan(pooltest.Plan{})
		h.declare("changed", svc(t, "hello", "app:3"))
		h.withdraw("same")
		equal(t, "served by", h.served("hello"), "hello-00003")
		if _, err := h.Acquire(t.Context(), "other"); !errors.Is(err, ErrUnknownService) {
			t.Fatalf("a service that nobody wants: %v", err)
		}
		equal(t, "running", h.running(), map[string]int{"hello-00003": 1})
	})
}

// A reload that fails after its revision has taken over is undone as well.
func TestWithdrawBringsThePreviousRevisionBack(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare("old", svc(t, "hello"))
		old := h.need("hello")
		h.declare("new", svc(t, "hello", "app:2"))
		equal(t, "served by", h.served("hello"), "hello-00002")
		h.withdraw("new")
		equal(t, "served by", h.served("hello"), "hello-00001")
		starts := rt.Attempts()
		rt.Plan(pooltest.Plan{ReadyAfter: time.Hour})
		h.declare("newer", svc(t, "hello", "app:3"))
		old.Release() // the first pool of revision 1 ends; it serves from its second
		synctest.Wait()
		h.withdraw("newer")
		equal(t, "latest", h.statusOf("hello").Latest.Name, "hello-00001")
		equal(t, "served by", h.served("hello"), "hello-00001")
		equal(t, "starts", rt.Attempts(), starts+1)
		equal(t, "running", h.running(), map[string]int{"hello-00001": 1})
	})
}

func TestARemovedServiceDrainsAndComesBackAsAnother(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello", "max-scale=1", "concurrency=1"))
		lease := h.need("hello")
		waiter := make(chan error)
		go func() {
			_, err := h.Acquire(t.Context(), "hello")
			waiter <- err
		}()
		synctest.Wait()
		h.Withdraw(1)
		if err := <-waiter; !errors.Is(err, ErrRemoved) {
			t.Fatalf("a waiter got %v", err)
		}
		synctest.Wait()
		equal(t, "running while it has a request", h.running(), map[string]int{"hello-00001": 1})
		h.declare(2, svc(t, "hello", "max-scale=1", "concurrency=1"))
		equal(t, "served by", h.served("hello"), "hello-00002")
		lease.Release()
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"hello-00002": 1})
	})
}

func TestDeclareTwice(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		if err := h.Declare(1, []*servingv1.Service{svc(t, "hello"), svc(t, "hello")}); err == nil {
			t.Fatal("one service twice is no error")
		}
		if err := h.Close(t.Context(), Keep); err != nil {
			t.Fatal(err)
		}
		if err := h.Declare(1, nil); err == nil {
			t.Fatal("declaring to a closed engine is no error")
		}
	})
}

// made returns revision n of hello as an earlier process made it, from settings,
// and as a later one reads it from what an instance carries.
func made(t *testing.T, n int, settings ...string) *revisions.Revision {
	t.Helper()
	return madeOf(t, svc(t, "hello", settings...), n)
}

// madeOf is made of any service.
func madeOf(t *testing.T, service *servingv1.Service, n int) *revisions.Revision {
	t.Helper()
	g := revisions.NewRegistry(revisions.Options{})
	g.Reserve(service.Name, int64(n-1))
	rev, _, err := g.Apply(service, revisions.OwnerConfig)
	if err != nil {
		t.Fatal(err)
	}
	rev.Pin(rev.Spec().Image, "sha256:0123")
	b, err := json.Marshal(rev)
	if err != nil {
		t.Fatal(err)
	}
	read := new(revisions.Revision)
	if err := json.Unmarshal(b, read); err != nil {
		t.Fatal(err)
	}
	return read
}

// F38: after a restart the same processes serve.
func TestAdoption(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		found := rt.Leave("hello-00007-aaaaa", made(t, 7), pooltest.Plan{})
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		lease := h.need("hello")
		equal(t, "instance", lease.Instance().ID(), found.ID())
		equal(t, "revision", lease.Revision().Name, "hello-00007")
		lease.Release()
		equal(t, "starts", rt.Attempts(), 0)

		h.declare(2, svc(t, "hello", "app:2"))
		equal(t, "served by", h.served("hello"), "hello-00008")
		equal(t, "running", h.running(), map[string]int{"hello-00008": 1})
	})
}

// With a changed config the adopted revision serves until the new one is ready.
func TestAdoptionWithAChange(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Leave("hello-00007-aaaaa", made(t, 7), pooltest.Plan{})
		rt.Plan(pooltest.Plan{ReadyAfter: time.Minute})
		h := boot(t, rt)
		h.declare(1, svc(t, "hello", "app:2"))
		equal(t, "served by", h.served("hello"), "hello-00007")
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "served by", h.served("hello"), "hello-00008")
	})
}

func TestAdoptionOfTwoRevisions(t *testing.T) {
	for _, test := range []struct {
		name    string
		newer   pooltest.Plan
		config  string
		served  string
		running map[string]int
	}{
		{"the newer proves itself", pooltest.Plan{}, "app:2", "hello-00008", map[string]int{"hello-00008": 1}},
		{"the newer does not", pooltest.Plan{Unready: true}, "app:2", "hello-00007", map[string]int{"hello-00007": 1}},
		{"the older is wanted", pooltest.Plan{}, "app:1", "hello-00009", map[string]int{"hello-00009": 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
				rt.Leave("hello-00008-aaaaa", made(t, 8, "app:2"), test.newer)
				rt.Plan(test.newer)
				rt.Leave("hello-00007-aaaaa", made(t, 7), pooltest.Plan{})
				h := boot(t, rt)
				h.declare(1, svc(t, "hello", test.config))
				time.Sleep(time.Minute)
				equal(t, "served by", h.served("hello"), test.served)
				equal(t, "running", h.running(), test.running)
			})
		})
	}
}

// F10: what was Fairway's and is not configured any more is stopped, but not
// before there is a config.
func TestFoundInstancesThatNobodyWants(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		found := rt.Leave("hello-00007-aaaaa", made(t, 7), pooltest.Plan{})
		h := boot(t, rt)
		time.Sleep(time.Minute)
		equal(t, "stops before the first config", found.Stops(), 0)
		h.declare(1, svc(t, "other"))
		equal(t, "stops", found.Stops(), 1)
		h.declare(2, svc(t, "hello"))
		equal(t, "served by", h.served("hello"), "hello-00008")
	})
}

// An engine that does not answer at boot holds up nobody for longer than 5
// seconds; what it then turns out to run joins its revision or is stopped, and
// what this process has started meanwhile is not taken for an earlier one's.
func TestEngineUnavailableAtBoot(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.FailList(instancepool.ErrUnavailable)
		joins := rt.Leave("hello-00001-aaaaa", made(t, 1), pooltest.Plan{})
		stale := rt.Leave("hello-00007-aaaaa", made(t, 7, "app:0"), pooltest.Plan{})
		h := boot(t, rt)
		h.declare(1, svc(t, "hello", "min-scale=1"), svc(t, "removed"))
		began := time.Now()
		equal(t, "served by", h.served("hello"), "hello-00001")
		equal(t, "after", time.Since(began), loadPatience)
		removed := h.need("removed")
		h.declare(2, svc(t, "hello", "min-scale=1"))
		h.withdraw(1)

		rt.FailList(nil)
		time.Sleep(2 * loadRetry)
		equal(t, "stops of the stale one", stale.Stops(), 1)
		equal(t, "stops of what joins", joins.Stops(), 1) // another template: no minimum
		equal(t, "running", h.running(), map[string]int{"hello-00001": 1, "removed-00001": 1})
		equal(t, "instances known", len(h.statusOf("hello").Revisions[0].Instances), 1)
		removed.Release()
		h.declare(3, svc(t, "hello", "app:new"))
		equal(t, "served by", h.served("hello"), "hello-00008")
	})
}

func TestFoundLateAndJoining(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.FailList(instancepool.ErrUnavailable)
		late := rt.Leave("hello-00001-aaaaa", made(t, 1), pooltest.Plan{})
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		time.Sleep(loadPatience)
		h.served("hello")
		rt.FailList(nil)
		time.Sleep(2 * loadRetry)
		equal(t, "stops", late.Stops(), 0)
		equal(t, "instances known", len(h.statusOf("hello").Revisions[0].Instances), 2)
	})
}

// A request that comes before it is known what runs waits for that.
func TestAcquireWaitsForTheLoad(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.FailList(instancepool.ErrUnavailable)
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.Acquire(ctx, "hello"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		rt.FailList(nil)
		began := time.Now()
		h.served("hello")
		if took := time.Since(began); took > loadRetry {
			t.Fatalf("waited %s", took)
		}
		if _, err := h.Acquire(t.Context(), "unheard-of"); !errors.Is(err, ErrUnknownService) {
			t.Fatalf("got %v", err)
		}
	})
}

// A request that waited in vain for a revision goes to the one that has taken
// its place.
func TestAcquireFollowsTheRoute(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.Plan(pooltest.Plan{ReadyAfter: time.Hour})
		h.declare(1, svc(t, "hello"))
		served := make(chan string)
		go func() { served <- h.served("hello") }()
		synctest.Wait()
		rt.Plan(pooltest.Plan{})
		h.declare(2, svc(t, "hello", "app:2"))
		equal(t, "served by", <-served, "hello-00002")
	})
}

// A request's time is not counted anew when its revision has been replaced.
func TestATimeoutIsFinal(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello", "concurrency=1", "max-scale=1", "timeout=8"))
		busy := h.need("hello")
		failed := make(chan error)
		go func() {
			_, err := h.Acquire(t.Context(), "hello")
			failed <- err
		}()
		time.Sleep(5 * time.Second)
		rt.Plan(pooltest.Plan{ReadyAfter: 2 * time.Second})
		h.declare(2, svc(t, "hello", "app:2", "timeout=60"))
		if err := <-failed; !errors.Is(err, instancepool.ErrTimeout) {
			t.Fatalf("got %v", err)
		}
		busy.Release()
	})
}

// What is left of a failed candidate is waited for as well.
func TestCloseWaitsForAFailedCandidate(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		rt.Plan(pooltest.Plan{Unready: true, IgnoreTerm: true})
		h.declare(2, svc(t, "hello", "app:2"))
		equal(t, "running", h.running(), map[string]int{"hello-00002": 1})
		if err := h.Close(t.Context(), Stop); err != nil {
			t.Fatal(err)
		}
		equal(t, "running", h.running(), map[string]int{})
	})
}

// So is an instance that was found and that nobody wants.
func TestCloseWaitsForWhatIsDiscarded(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Leave("hello-00007-aaaaa", made(t, 7), pooltest.Plan{StopTime: 5 * time.Second})
		h := boot(t, rt)
		h.declare(1, svc(t, "other"))
		if err := h.Close(t.Context(), Stop); err != nil {
			t.Fatal(err)
		}
		equal(t, "running", h.running(), map[string]int{})
	})
}

func TestDismiss(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.Plan(pooltest.Plan{ReadyAfter: time.Hour})
		h.declare(1, svc(t, "hello"))
		failed := make(chan error)
		go func() {
			_, err := h.Acquire(t.Context(), "hello")
			failed <- err
		}()
		synctest.Wait()
		h.Dismiss()
		if err := <-failed; !errors.Is(err, ErrRemoved) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestClose(t *testing.T) {
	type outcome struct {
		Running int
		Took    time.Duration
		Failed  bool
	}
	for _, test := range []struct {
		name     string
		ending   Ending
		request  time.Duration // how long the one in flight still takes
		patience time.Duration
		want     outcome
	}{
		{"keep", Keep, time.Hour, time.Minute, outcome{Running: 5}},
		{"drain", Drain, 30 * time.Second, time.Minute, outcome{Took: 30 * time.Second}},
		{"drain, out of time", Drain, time.Hour, time.Minute, outcome{Running: 2, Took: time.Minute, Failed: true}},
		{"stop", Stop, time.Hour, time.Minute, outcome{Took: 10 * time.Second}},
		{"stop, out of time", Stop, time.Hour, time.Second, outcome{Running: 3, Took: time.Second, Failed: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
				h := boot(t, rt)
				// The busy one ignores SIGTERM; so does the failed candidate.
				rt.Plan(pooltest.Plan{IgnoreTerm: test.ending == Stop})
				h.declare(1, svc(t, "busy"), svc(t, "removed"))
				busy, removed := h.need("busy"), h.need("removed")
				rt.Plan(pooltest.Plan{})
				h.declare(2, svc(t, "busy"), svc(t, "idle"), svc(t, "trial"))
				h.served("idle")
				h.withdraw(1) // "removed" drains
				h.served("trial")
				rt.Plan(pooltest.Plan{ReadyAfter: time.Hour, IgnoreTerm: test.ending == Stop})
				h.declare(3, svc(t, "busy"), svc(t, "idle"), svc(t, "trial", "app:2"))
				equal(t, "running", len(rt.Running()), 5)

				time.AfterFunc(test.request, busy.Release)
				time.AfterFunc(test.request, removed.Release)
				ctx, cancel := context.WithTimeout(context.Background(), test.patience)
				defer cancel()
				began := time.Now()
				err := h.Close(ctx, test.ending)
				got := outcome{Running: len(rt.Running()), Took: time.Since(began), Failed: err != nil}
				equal(t, "outcome", got, test.want)
				if !rt.Closed() {
					t.Error("the engine was not let go of")
				}
				if _, err := h.Acquire(t.Context(), "busy"); !errors.Is(err, ErrUnknownService) {
					t.Errorf("Acquire after Close: %v", err)
				}
			})
		})
	}
}

// F23: a service whose starts hang does not hold up the others.
func TestASlowStartDelaysNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.PlanFor(func(s instancepool.StartSpec) pooltest.Plan {
			if s.Revision.Service == "slow" {
				return pooltest.Plan{Hang: true}
			}
			return pooltest.Plan{StartTime: 100 * time.Millisecond}
		})
		h.declare(1, svc(t, "slow", "concurrency=1"), svc(t, "one"), svc(t, "two"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _, _ = h.Acquire(ctx, "slow") }()
		synctest.Wait()
		began := time.Now()
		h.served("one")
		equal(t, "beside one that hangs", time.Since(began), 100*time.Millisecond)
		for range 12 { // three times the limit
			go func() { _, _ = h.Acquire(ctx, "slow") }()
		}
		synctest.Wait()
		began = time.Now()
		h.served("two")
		if took := time.Since(began); took > 4*startTurn {
			t.Fatalf("behind a crowd that hangs: %s", took)
		}
	})
}

func TestStartLimit(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.Plan(pooltest.Plan{StartTime: 100 * time.Millisecond})
		h.declare(1, svc(t, "hello", "initial-scale=20"))
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		equal(t, "running", len(rt.Running()), 20)
		equal(t, "starts at the same time", rt.Parallel(), 4)
	})
}

func TestOnePullForAllThatNeedIt(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		var pulls atomic.Int64
		rt.Image(func(context.Context, string) (string, error) {
			pulls.Add(1)
			time.Sleep(time.Minute)
			return "sha256:4567", nil
		})
		h := boot(t, rt)
		h.declare(1, svc(t, "hello", "concurrency=1"))
		var clients sync.WaitGroup
		for range 20 {
			clients.Go(func() { h.served("hello") })
		}
		clients.Wait()
		equal(t, "pulls", pulls.Load(), 1)
		equal(t, "digest", h.statusOf("hello").Serving.Digest(), "sha256:4567")
	})
}

// TestPullIsShown: while an image is fetched, the status and one event tell so.
func TestPullIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := pooltest.NewRuntime()
		arrived := make(chan struct{})
		rt.Progress(instancepool.Progress{Done: 1, Total: 9}, instancepool.Progress{Done: 5, Total: 9})
		rt.Image(func(context.Context, string) (string, error) {
			<-arrived
			return "sha256:0123", nil
		})
		h := boot(t, rt)
		h.declare("config", svc(t, "hello"))
		pulling := func() *instancepool.Progress { return h.Status()[0].Revisions[0].Pulling }
		if p := pulling(); p == nil || *p != (instancepool.Progress{Done: 5, Total: 9}) {
			t.Errorf("while the image is fetched: %+v", p)
		}
		close(arrived)
		synctest.Wait()
		if p := pulling(); p != nil {
			t.Errorf("when it is there: %+v", p)
		}
		want := []string{"created", "image_pulling", "image_resolved"}
		if got := h.told("hello-00001"); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

// Instances are started while those of an earlier process are still being looked for.
func TestFindBesideClaims(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		s := New(Options{Runtime: rt, Observer: &host{t: t, rt: rt}})
		rev := revisions.New("hello", "hello-00001", 1, &revisions.Spec{})
		var left []instancepool.Handle
		for i := range 100 {
			left = append(left, rt.Leave(fmt.Sprint("hello-00001-", i), rev, pooltest.Plan{}))
		}
		var claims sync.WaitGroup
		claims.Go(func() {
			for i := range 1000 {
				s.claim(fmt.Sprint(i))
			}
		})
		s.find(left)
		claims.Wait()
		if err := s.Close(context.Background(), Keep); err != nil {
			t.Error(err)
		}
	})
}

func TestAnImageThatCannotBeHad(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Image(func(context.Context, string) (string, error) {
			return "", fmt.Errorf("%w: not found", instancepool.ErrImage)
		})
		h := boot(t, rt)
		h.declare(1, svc(t, "hello"))
		_, err := h.Acquire(t.Context(), "hello")
		e, ok := errors.AsType[*instancepool.StartError](err)
		if !ok || e.Reason != "ContainerMissing" || !strings.Contains(e.Error(), "app:1") {
			t.Fatalf("got %v", err)
		}
		equal(t, "starts", rt.Attempts(), 0)
	})
}

// F35: deploys, removals, requests and crashes at the same time. In the end the
// last config is what runs, and nothing else does.
func TestEverythingAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			plan := pooltest.Plan{StartTime: rand.N(time.Second), ReadyAfter: rand.N(time.Second), StopTime: rand.N(time.Second)}
			switch rand.IntN(8) {
			case 0:
				plan.Unready = true
			case 1:
				plan.ExitAfter = rand.N(20 * time.Second)
			case 2:
				plan.StartErr = instancepool.ErrUnavailable
			}
			return plan
		})
		names := []string{"a", "b", "c", "d"}
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		var served atomic.Int64
		for n := range 40 {
			all.Go(func() {
				for ctx.Err() == nil {
					patience, cancel := context.WithTimeout(t.Context(), rand.N(time.Minute))
					lease, err := h.Acquire(patience, names[n%len(names)])
					cancel()
					if err == nil {
						served.Add(1)
						if want := names[n%len(names)]; lease.Revision().Service != want {
							t.Errorf("a request for %s went to %s", want, lease.Revision().Service)
						}
						time.Sleep(rand.N(time.Second))
						lease.Release()
					}
					time.Sleep(rand.N(2 * time.Second))
				}
			})
		}
		for owner := range 3 {
			all.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					var services []*servingv1.Service
					for _, name := range names {
						if rand.IntN(4) > 0 {
							services = append(services, svc(t, name, "concurrency=3", fmt.Sprintf("app:%d", rand.IntN(3)), fmt.Sprintf("min-scale=%d", rand.IntN(2))))
						}
					}
					me := fmt.Sprint(owner, "-", n)
					if err := h.Declare(me, services); err != nil {
						t.Error(err)
					}
					time.Sleep(rand.N(20 * time.Second))
					h.Withdraw(me)
				}
			})
		}
		all.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(rand.N(10 * time.Second))
				if running := rt.Running(); len(running) > 0 {
					running[rand.IntN(len(running))].Kill(1)
				}
				h.Status()
			}
		})
		time.Sleep(10 * time.Minute)
		stop()
		all.Wait()
		t.Logf("%d requests served by %d instances", served.Load(), len(rt.Instances()))
		if served.Load() < 100 {
			t.Error("hardly any request was served: this tests nothing")
		}
		time.Sleep(10 * time.Minute)
		equal(t, "services", len(h.Status()), 0)
		equal(t, "running when nobody wants anything", h.running(), map[string]int{})
		for _, i := range rt.Instances() {
			if i.Stops() != 1 {
				t.Errorf("%s was stopped %d times", i.ID(), i.Stops())
			}
		}

		rt.Plan(pooltest.Plan{})
		h.declare("last", svc(t, "a", "min-scale=2"))
		equal(t, "running", len(rt.Running()), 2)
		if !slices.Contains(h.told(h.statusOf("a").Serving.Name), "ready") {
			t.Error("nobody was told that it is ready")
		}
	})
}
