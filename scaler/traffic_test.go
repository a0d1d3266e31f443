package scaler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

// create makes a service as the API does, and waits until all that follows has
// happened.
func (h *host) create(name string, settings ...string) {
	h.t.Helper()
	if _, err := h.Registry().Create(svc(h.t, name, settings...), revisions.OwnerAPI); err != nil {
		h.t.Fatal(err)
	}
	synctest.Wait()
}

// change changes a service as the API does.
func (h *host) change(name string, change func(*servingv1.Service)) {
	h.t.Helper()
	want := h.Registry().State(name).ServiceObject()
	change(want)
	if _, err := h.Registry().Update(want, revisions.OwnerAPI); err != nil {
		h.t.Fatal(err)
	}
	synctest.Wait()
}

func (h *host) deploy(name, image string) {
	h.t.Helper()
	h.change(name, func(svc *servingv1.Service) { svc.Spec.Template.Spec.Containers[0].Image = image })
}

// traffic sends requests of hello to "hello-00001=50", "latest=50" or, with a
// tag, "hello-00002=0#next".
func (h *host) traffic(targets ...string) {
	h.t.Helper()
	h.change("hello", func(svc *servingv1.Service) {
		svc.Spec.Traffic = nil
		for _, text := range targets {
			var t servingv1.TrafficTarget
			var percent int64
			text, tag, _ := strings.Cut(text, "#")
			name, n, _ := strings.Cut(text, "=")
			if _, err := fmt.Sscan(n, &percent); err != nil {
				h.t.Fatal(err)
			}
			latest := name == "latest"
			t.Percent, t.Tag, t.LatestRevision = &percent, tag, &latest
			if !latest {
				t.RevisionName = name
			}
			svc.Spec.Traffic = append(svc.Spec.Traffic, t)
		}
	})
}

// spread makes n requests and counts them by revision.
func (h *host) spread(n int) map[string]int {
	h.t.Helper()
	all := make(map[string]int)
	for range n {
		all[h.served("hello")]++
	}
	return all
}

// condition is the revision's condition Ready in words.
func (h *host) condition(revision string) string {
	h.t.Helper()
	c := h.Registry().Revision(revision).ReadyCondition()
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message))
}

// What the API makes serves when it has proved itself; requests do not wait for
// that.
func TestAServiceOfTheAPIProvesItself(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Plan(pooltest.Plan{ReadyAfter: 10 * time.Second})
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		began := time.Now()
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, ErrNotReady) || time.Since(began) > 0 {
			t.Fatalf("got %v after %s", err, time.Since(began))
		}
		equal(t, "running", h.running(), map[string]int{"hello-00001": 1})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		equal(t, "served by", h.served("hello"), "hello-00001")
		equal(t, "condition", h.condition("hello-00001"), "True")
		equal(t, "events", h.told("hello-00001"), []string{"created", "image_resolved", "ready"})
		equal(t, "starts", rt.Attempts(), 1)
	})
}

// F34: a deploy that fails leaves the traffic where it is, and its revision says
// why in Knative's words.
func TestADeployOfTheAPIThatFails(t *testing.T) {
	for _, test := range []struct {
		name  string
		plan  pooltest.Plan
		image error
		after time.Duration
		want  string
	}{
		{"no image", pooltest.Plan{}, fmt.Errorf("%w: not found", instancepool.ErrImage), time.Second, `False ContainerMissing Unable to fetch image "app:2":`},
		{"it exits", pooltest.Plan{ReadyAfter: time.Hour, ExitAfter: time.Second, ExitCode: 3, Log: "panic: no config\n"}, nil, time.Minute, "False ExitCode3 Container failed with: panic: no config"},
		{"it waits", pooltest.Plan{ReadyAfter: time.Hour, Log: "waiting for the database\n"}, nil, 5 * time.Minute, "False ContainerUnhealthy not ready in time: not started within 5m0s; its last output: waiting for the database"},
		{"it never listens", pooltest.Plan{ReadyAfter: time.Hour}, nil, 5 * time.Minute, "False ContainerUnhealthy not ready in time: not started within 5m0s"},
		{"it takes longer than it may", pooltest.Plan{ReadyAfter: 40 * time.Second}, nil, 30 * time.Second, "False ProgressDeadlineExceeded revision hello-00002 was not ready within 30s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
				h := boot(t, rt)
				synctest.Wait()
				h.create("hello", "min-scale=1")
				rt.Plan(test.plan)
				if test.image != nil {
					rt.Image(func(context.Context, string) (string, error) { return "", test.image })
				}
				h.change("hello", func(svc *servingv1.Service) {
					svc.Spec.Template.Spec.Containers[0].Image = "app:2"
					if test.after == 30*time.Second {
						svc.Spec.Template.Annotations[serving.ProgressDeadlineAnnotationKey] = "30s"
					}
				})
				time.Sleep(test.after)
				synctest.Wait()
				if got := h.condition("hello-00002"); !strings.HasPrefix(got, test.want) {
					t.Errorf("condition: %s", got)
				}
				equal(t, "served by", h.served("hello"), "hello-00001")
				equal(t, "roles", h.roles("hello"), map[string]string{"hello-00001": "serving", "hello-00002": "failed"})
				time.Sleep(time.Hour)
				equal(t, "served by", h.served("hello"), "hello-00001")
				if h.running()["hello-00002"] > 0 {
					t.Error("what has failed runs on")
				}
				attempts := rt.Attempts()
				time.Sleep(time.Hour)
				equal(t, "attempts since", rt.Attempts(), attempts)

				rt.Plan(pooltest.Plan{})
				rt.Image(func(context.Context, string) (string, error) { return "sha256:3", nil })
				h.deploy("hello", "app:3")
				equal(t, "served by", h.served("hello"), "hello-00003")
				equal(t, "roles", h.roles("hello"), map[string]string{"hello-00003": "serving"})
			})
		})
	}
}

func TestSplit(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		h.deploy("hello", "app:2")
		h.traffic("hello-00001=25", "latest=75")
		all := h.spread(4000)
		if n := all["hello-00001"]; n < 850 || n > 1150 || all["hello-00002"] != 4000-n {
			t.Errorf("served by %v", all)
		}
		equal(t, "roles", h.roles("hello"), map[string]string{"hello-00001": "serving", "hello-00002": "serving"})
		// Each scales by its own: one whose share ends drains.
		h.traffic("hello-00001=100")
		equal(t, "served by", h.spread(100), map[string]int{"hello-00001": 100})
		equal(t, "running", h.running(), map[string]int{"hello-00001": 1})
	})
}

func TestTags(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		h.traffic("hello-00001=100")
		h.deploy("hello", "app:2")
		equal(t, "served by", h.served("hello"), "hello-00001")
		h.traffic("hello-00001=100", "hello-00002=0#next")
		equal(t, "served by", h.spread(1000), map[string]int{"hello-00001": 1000})
		by := func(r Request) string {
			t.Helper()
			r.Service = "hello"
			lease, err := h.Scaler.Acquire(t.Context(), r)
			if err != nil {
				return err.Error()
			}
			defer lease.Release()
			return lease.Revision().Name
		}
		equal(t, "by tag", by(Request{Tag: "next"}), "hello-00002")
		equal(t, "by a tag that may be unknown", by(Request{Tag: "next", AnyTag: true}), "hello-00002")
		equal(t, "by an unknown tag", by(Request{Tag: "none"}), "no such tag: none of service hello")
		equal(t, "by one that may be unknown", by(Request{Tag: "none", AnyTag: true}), "hello-00001")
		h.traffic("hello-00001=100")
		equal(t, "by a tag that was removed", by(Request{Tag: "next"}), "no such tag: next of service hello")
	})
}

// noTarget is for tests that count instances: none is started ahead of need.
const noTarget = revisions.ConcurrencyTargetAnnotation + "=disabled"

// load holds n requests to hello until the returned function is called.
func (h *host) load(n int) (release func()) {
	h.t.Helper()
	leases := make([]*instancepool.Lease, n)
	for i := range leases {
		leases[i] = h.need("hello")
	}
	return func() {
		for _, l := range leases {
			l.Release()
		}
		synctest.Wait()
	}
}

// A rollback under load meets no queue: the revision of before is brought up to
// the load first.
func TestRollbackUnderLoad(t *testing.T) {
	for _, test := range []struct {
		name, before, to string
		brought          map[string]int
	}{
		{"all of it", "hello-00002=100", "hello-00001=100", map[string]int{"hello-00001": 4, "hello-00002": 4}},
		{"a part", "hello-00002=100", "hello-00002=60 hello-00001=40", map[string]int{"hello-00001": 2, "hello-00002": 4}},
		{"to what had a tag", "hello-00002=100 hello-00001=0#old", "hello-00001=100", map[string]int{"hello-00001": 4, "hello-00002": 4}},
		{"as much as there may be", "hello-00002=100", "hello-00003=100", map[string]int{"hello-00003": 2, "hello-00002": 4}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
				h := boot(t, rt)
				synctest.Wait()
				h.create("hello", "concurrency=10", noTarget)
				h.deploy("hello", "app:2")
				h.change("hello", func(svc *servingv1.Service) {
					svc.Spec.Template.Spec.Containers[0].Image = "app:3"
					svc.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/max-scale": "2", revisions.ConcurrencyTargetAnnotation: "disabled"}
				})
				h.traffic(strings.Fields(test.before)...)
				release := h.load(35)
				rt.Plan(pooltest.Plan{ReadyAfter: 10 * time.Second})
				h.traffic(strings.Fields(test.to)...)
				time.Sleep(9 * time.Second)
				equal(t, "served by, before it is up to it", h.spread(100), map[string]int{"hello-00002": 100})
				time.Sleep(time.Second)
				synctest.Wait()
				equal(t, "running at the swap", h.running(), test.brought)
				if all := h.spread(100); all["hello-00002"] == 100 {
					t.Errorf("served by %v", all)
				}
				release()
			})
		})
	}
}

// While nothing of it can be started the traffic stays, and moves when that has
// changed; when only a part can, that has to do.
func TestRollbackThatCannotStart(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello", "concurrency=10", noTarget)
		h.deploy("hello", "app:2")
		release := h.load(35)
		rt.Plan(pooltest.Plan{StartErr: instancepool.ErrUnavailable})
		h.traffic("hello-00001=100")
		time.Sleep(5 * time.Minute)
		equal(t, "served by", h.served("hello"), "hello-00002")
		equal(t, "condition", h.condition("hello-00001"), "True")
		rt.Plan(pooltest.Plan{})
		time.Sleep(2 * time.Minute)
		equal(t, "served by", h.served("hello"), "hello-00001")
		release()
		equal(t, "roles", h.roles("hello"), map[string]string{"hello-00001": "serving"})
	})
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello", "concurrency=10", noTarget)
		h.deploy("hello", "app:2")
		release := h.load(35)
		var started atomic.Int64
		rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			if started.Add(1) > 2 {
				return pooltest.Plan{Hang: true}
			}
			return pooltest.Plan{}
		})
		h.traffic("hello-00001=100")
		equal(t, "served by", h.served("hello"), "hello-00002")
		time.Sleep(warmTimeout)
		synctest.Wait()
		equal(t, "served by", h.served("hello"), "hello-00001")
		release()
	})
}

// routesReady is hello's condition RoutesReady in words.
func (h *host) routesReady() string {
	h.t.Helper()
	c := h.Registry().State("hello").Service.Status.GetCondition(servingv1.ServiceConditionRoutesReady)
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message))
}

// seen is what a watch of hello tells from a version on: each RoutesReady, without
// repetition.
func (h *host) seen(since uint64) []string {
	h.t.Helper()
	w, err := h.Registry().Watch(since)
	if err != nil {
		h.t.Fatal(err)
	}
	all, err := w.Next(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var texts []string
	for _, c := range all {
		if c.Revision == nil {
			r := c.State.Service.Status.GetCondition(servingv1.ServiceConditionRoutesReady)
			texts = append(texts, strings.TrimSpace(fmt.Sprintf("%s %s", r.Status, r.Reason)))
		}
	}
	return slices.Compact(texts)
}

const (
	notMigrated = "Unknown TrafficNotMigrated Traffic is not yet migrated: "
	warming     = notMigrated + "revision hello-00001 is being brought up for the load"
)

// two makes hello with two revisions, of which the second serves.
func (h *host) two() {
	h.t.Helper()
	synctest.Wait()
	h.create("hello", "concurrency=10", noTarget)
	h.deploy("hello", "app:2")
	equal(h.t, "after a deploy", h.routesReady(), "True")
}

// A service is ready when its requests get where they should, and not before.
func TestStatusOfARollbackUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.two()
		release := h.load(35)
		rt.Plan(pooltest.Plan{ReadyAfter: 10 * time.Second})
		since := h.Registry().Version()
		h.traffic("hello-00001=100")
		equal(t, "at once", h.routesReady(), warming)
		time.Sleep(9 * time.Second)
		equal(t, "before it is up to it", h.routesReady(), warming)
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "served by", h.served("hello"), "hello-00001")
		equal(t, "then", h.routesReady(), "True")
		equal(t, "seen", h.seen(since), []string{"Unknown TrafficNotMigrated", "True"})
		version := h.Registry().Version()
		release()
		time.Sleep(time.Hour)
		equal(t, "versions since", h.Registry().Version(), version)
	})
}

// What needs no instances is done, and said to be, when the answer is there.
func TestStatusOfAMoveWithoutLoad(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.two()
		time.Sleep(time.Hour)
		equal(t, "running", h.running(), map[string]int{})
		rt.Plan(pooltest.Plan{Hang: true})
		for _, to := range []string{"hello-00001=100", "hello-00001=50 latest=50#next", "latest=100"} {
			want := h.Registry().State("hello").ServiceObject()
			h.traffic(strings.Fields(to)...)
			equal(t, to, h.routesReady(), "True")
			want.ResourceVersion = ""
			st, err := h.Registry().Update(want, revisions.OwnerAPI) // and back
			if err != nil {
				t.Fatal(err)
			}
			if c := st.Service.Status.GetCondition(servingv1.ServiceConditionRoutesReady); !c.IsTrue() {
				t.Errorf("back from %s: %v", to, c)
			}
		}
	})
}

// While the target cannot start the status says why; it is ready when that has
// changed, when there is no load any more, or when the move is taken back.
func TestStatusOfARollbackThatCannotStart(t *testing.T) {
	exits := pooltest.Plan{ReadyAfter: time.Hour, ExitAfter: time.Second, ExitCode: 3, Log: "panic: no config\nat 1\n"}
	const again = notMigrated + "revision hello-00001 cannot be brought up for the load, and is tried again: "
	for _, test := range []struct {
		name, why string
		plan      pooltest.Plan
		end       func(h *host, release func())
		served    string
	}{
		{"it comes up", "Container failed with: panic: no config\nat 1", exits, func(h *host, _ func()) { h.rt.Plan(pooltest.Plan{}) }, "hello-00001"},
		{"the load goes", "Container failed with: panic: no config\nat 1", exits, func(h *host, release func()) {
			release()
			time.Sleep(2 * time.Minute)
			equal(h.t, "without load", h.routesReady(), "True")
			h.rt.Plan(pooltest.Plan{})
		}, "hello-00001"},
		{"it is taken back", "Container failed with: panic: no config\nat 1", exits, func(h *host, _ func()) { h.traffic("hello-00002=100") }, "hello-00002"},
		{"another move", "Container failed with: panic: no config\nat 1", exits, func(h *host, _ func()) {
			h.rt.Plan(pooltest.Plan{ReadyAfter: 10 * time.Second})
			h.deploy("hello", "app:3")
			h.traffic("hello-00003=100")
			c := h.Registry().State("hello").Service.Status.GetCondition(servingv1.ServiceConditionRoutesReady)
			if !c.IsUnknown() {
				h.t.Errorf("meanwhile: %v", c)
			}
		}, "hello-00003"},
		{"the engine is away", "the container engine does not answer", pooltest.Plan{StartErr: instancepool.ErrUnavailable}, func(h *host, _ func()) { h.rt.Plan(pooltest.Plan{}) }, "hello-00001"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
				h := boot(t, rt)
				h.two()
				release := h.load(5) // of 10 that one instance takes
				rt.Plan(test.plan)
				since := h.Registry().Version()
				h.traffic("hello-00001=100")
				time.Sleep(2 * time.Second)
				equal(t, "after the first attempt", h.routesReady(), again+test.why)
				time.Sleep(10 * time.Minute)
				equal(t, "after others", h.routesReady(), again+test.why)
				equal(t, "served by", h.served("hello"), "hello-00002")
				equal(t, "condition", h.condition("hello-00001"), "True")
				equal(t, "seen", h.seen(since), []string{"Unknown TrafficNotMigrated"})
				if n := (h.Registry().Version() - since) / 2; n > 5 {
					t.Errorf("%d versions for it", n)
				}
				test.end(h, release)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				equal(t, "in the end", h.routesReady(), "True")
				equal(t, "served by", h.served("hello"), test.served)
				release()
			})
		})
	}
}

// A failure is told until it is over, not at the next move as well.
func TestStatusOfTheNextRollback(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.two()
		defer h.load(5)()
		rt.Plan(pooltest.Plan{StartErr: instancepool.ErrUnavailable})
		h.traffic("hello-00001=100", "hello-00002=0#next")
		if got := h.routesReady(); !strings.HasPrefix(got, notMigrated+"revision hello-00001 cannot") {
			t.Errorf("while the engine is away: %s", got)
		}
		rt.Plan(pooltest.Plan{})
		time.Sleep(2 * time.Minute)
		equal(t, "after that", h.routesReady(), "True")
		h.traffic("hello-00002=100", "hello-00001=0#old")
		equal(t, "back", h.routesReady(), "True")
		defer h.load(30)()
		rt.Plan(pooltest.Plan{Hang: true})
		h.traffic("hello-00001=100")
		equal(t, "the next time", h.routesReady(), warming)
	})
}

// Deploys are ready when they serve; the status of a gradual rollout is the rollout's.
func TestStatusOfDeploys(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		rt.Plan(pooltest.Plan{ReadyAfter: 10 * time.Second})
		since := h.Registry().Version()
		h.create("hello")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		equal(t, "seen of the first", h.seen(since), []string{"Unknown RevisionMissing", "Unknown TrafficNotMigrated", "True"})
		defer h.load(1)()
		since = h.Registry().Version()
		h.deploy("hello", "app:2")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		equal(t, "seen of the second", h.seen(since), []string{"True", "Unknown TrafficNotMigrated", "True"})
		equal(t, "served by", h.served("hello"), "hello-00002")

		h.change("hello", func(svc *servingv1.Service) { svc.Annotations[serving.RolloutDurationKey] = "10s" })
		h.deploy("hello", "app:3")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		const rolling = "Unknown TrafficNotMigrated Traffic is not yet migrated to the latest revision."
		equal(t, "of a rollout", h.routesReady(), rolling)
		since = h.Registry().Version()
		time.Sleep(9 * time.Second)
		synctest.Wait()
		equal(t, "of its last step but one", h.routesReady(), rolling)
		if n := (h.Registry().Version() - since) / 2; n != 9 {
			t.Errorf("%d versions for 9 steps", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "at its end", h.routesReady(), "True")
	})
}

// What Caddy's config moves is no other.
func TestStatusOfADeclaredMove(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		declared := func(image string, first, latest int64) *servingv1.Service {
			v := svc(t, "hello", "concurrency=10", noTarget, image)
			yes, no := true, false
			v.Spec.Traffic = nil
			if first > 0 {
				v.Spec.Traffic = append(v.Spec.Traffic, servingv1.TrafficTarget{RevisionName: "hello-00001", Percent: &first, LatestRevision: &no})
			}
			v.Spec.Traffic = append(v.Spec.Traffic, servingv1.TrafficTarget{Percent: &latest, LatestRevision: &yes})
			return v
		}
		h.declare(1, declared("app:1", 0, 100))
		equal(t, "of the first", h.routesReady(), "True")
		h.served("hello")
		h.declare(2, declared("app:2", 50, 50))
		equal(t, "of a split", h.routesReady(), "True")
		defer h.load(40)()
		rt.Plan(pooltest.Plan{ReadyAfter: 10 * time.Second})
		h.declare(3, declared("app:2", 100, 0))
		equal(t, "of a move under load", h.routesReady(), warming)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		equal(t, "when it is done", h.routesReady(), "True")
		equal(t, "served by", h.spread(20), map[string]int{"hello-00001": 20})
	})
}

// A process that begins routes by what is wanted, and changes no status for that.
func TestStatusAfterARestart(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		d := new(disk)
		h := bootFrom(t, rt, d)
		h.two()
		release := h.load(5)
		rt.Plan(pooltest.Plan{Hang: true})
		h.traffic("hello-00001=100")
		equal(t, "at the end", h.routesReady(), warming)
		h.close(Keep)
		kept, err := d.Load(t.Context(), "fairway/services/hello.json")
		if err != nil || !strings.Contains(string(kept), warming[len("Unknown TrafficNotMigrated "):]) {
			t.Errorf("%s is kept, %v", kept, err)
		}
		release()

		rt.Plan(pooltest.Plan{})
		for range 2 {
			h = &host{t: t, rt: rt}
			h.Scaler = New(Options{Runtime: rt, Observer: h, StartLimit: 4, Probe: rt.Probe})
			if err := h.Registry().Open(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			version := h.Registry().Version()
			equal(t, "before it is followed", h.routesReady(), "True")
			h.Start()
			synctest.Wait()
			equal(t, "since", h.routesReady(), "True")
			equal(t, "versions", h.Registry().Version(), version)
			equal(t, "served by", h.served("hello"), "hello-00001")
			h.close(Stop)
		}
	})
}

// A service that is deleted while its traffic waits leaves nothing to the next one
// of its name.
func TestStatusAfterADelete(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.two()
		release := h.load(5)
		rt.Plan(pooltest.Plan{Hang: true})
		h.traffic("hello-00001=100")
		h.remove("hello")
		rt.Plan(pooltest.Plan{})
		h.create("hello")
		equal(t, "of the next", h.routesReady(), "True")
		time.Sleep(5 * time.Minute)
		equal(t, "later", h.routesReady(), "True")
		release()
	})
}

// Who may send requests does not wait for where they go.
func TestIngressDoesNotWaitForTraffic(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.two()
		defer h.load(5)()
		rt.Plan(pooltest.Plan{StartErr: instancepool.ErrUnavailable})
		h.traffic("hello-00001=100")
		ingress := func(value string) {
			h.change("hello", func(svc *servingv1.Service) { svc.Annotations[revisions.IngressAnnotation] = value })
		}
		ingress("internal")
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, ErrInternal) {
			t.Errorf("from outside: %v", err)
		}
		lease, err := h.Scaler.Acquire(t.Context(), Request{Service: "hello", Inside: true})
		if err != nil || lease.Revision().Name != "hello-00002" {
			t.Fatalf("from inside: %v, %v", lease, err)
		}
		lease.Release()
		if got := h.routesReady(); !strings.HasPrefix(got, notMigrated) {
			t.Errorf("meanwhile: %s", got)
		}
		ingress("all")
		equal(t, "served by", h.served("hello"), "hello-00002")
		rt.Plan(pooltest.Plan{})
		time.Sleep(2 * time.Minute)
		equal(t, "served by", h.served("hello"), "hello-00001")
	})
}

// What is scaled to nothing by hand needs no instances for a move.
func TestManualZeroDoesNotWaitForTraffic(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.two()
		release := h.load(5)
		rt.Plan(pooltest.Plan{Hang: true})
		h.change("hello", func(svc *servingv1.Service) {
			percent, no := int64(100), false
			svc.Spec.Traffic = []servingv1.TrafficTarget{{RevisionName: "hello-00001", Percent: &percent, LatestRevision: &no}}
			svc.Annotations[revisions.ScalingModeAnnotation] = "manual"
			svc.Annotations[revisions.ManualCountAnnotation] = "0"
		})
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, ErrDisabled) {
			t.Errorf("got %v", err)
		}
		equal(t, "status", h.routesReady(), "True")
		release()
		time.Sleep(time.Minute)
		equal(t, "running", h.running(), map[string]int{})
		rt.Plan(pooltest.Plan{})
		h.change("hello", func(svc *servingv1.Service) { svc.Annotations[revisions.ManualCountAnnotation] = "1" })
		equal(t, "served by", h.served("hello"), "hello-00001")
	})
}

// What the API has is not the config's, until the API has removed it.
func TestTheConfigTakesWhatTheAPILeaves(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		h.declare(1, svc(t, "hello", "app:2"))
		equal(t, "told", h.told(""), []string{"failed"})
		equal(t, "owner", h.Registry().State("hello").Owner, revisions.OwnerAPI)
		equal(t, "served by", h.served("hello"), "hello-00001")
		h.remove("hello")
		st := h.Registry().State("hello")
		equal(t, "owner", st.Owner, revisions.OwnerConfig)
		equal(t, "image", st.Latest().Spec().Image, "app:2")
		equal(t, "served by", h.served("hello"), "hello-00002")
		h.withdraw(1)
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, ErrUnknownService) {
			t.Errorf("without the config: %v", err)
		}
	})
}

// A registry that fails once fails no deploy.
func TestARegistryIsAskedTwice(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		var asked atomic.Int64
		rt.Image(func(context.Context, string) (string, error) {
			if asked.Add(1) == 1 {
				return "", fmt.Errorf("%w: 502", instancepool.ErrImage)
			}
			return "sha256:1", nil
		})
		h.create("hello")
		equal(t, "asked", asked.Load(), 1)
		equal(t, "condition", h.condition("hello-00001"), "Unknown ResolvingDigests")
		time.Sleep(resolveRetry)
		synctest.Wait()
		equal(t, "asked", asked.Load(), 2)
		equal(t, "condition", h.condition("hello-00001"), "True")
	})
}

// While the engine does not answer a deploy waits, as long as it may, and says
// what for.
func TestADeployThatWaitsForTheEngine(t *testing.T) {
	for name, annotation := range map[string]string{"instances": "initial-scale=1", "images": "initial-scale=0"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
				h := boot(t, rt)
				synctest.Wait()
				away := fmt.Errorf("%w: connection refused", instancepool.ErrUnavailable)
				engine := func(err error) {
					rt.Plan(pooltest.Plan{StartErr: err})
					rt.Image(func(context.Context, string) (string, error) { return "sha256:1", err })
				}
				engine(away)
				h.create("hello", annotation)
				const waiting = "Unknown ResourcesUnavailable resolving image app:1: the container engine does not answer: connection refused"
				time.Sleep(5 * time.Second)
				equal(t, "condition", h.condition("hello-00001"), waiting)
				time.Sleep(9 * time.Minute)
				equal(t, "condition", h.condition("hello-00001"), waiting)
				engine(nil)
				time.Sleep(5 * time.Second)
				equal(t, "condition", h.condition("hello-00001"), "True")
				equal(t, "served by", h.served("hello"), "hello-00001")

				engine(away)
				h.deploy("hello", "app:2")
				time.Sleep(9 * time.Minute)
				equal(t, "served by", h.served("hello"), "hello-00001")
				time.Sleep(time.Minute + time.Second)
				equal(t, "condition", h.condition("hello-00002"), "False ProgressDeadlineExceeded revision hello-00002 was not ready within 10m0s")
			})
		})
	}
}

// A gradual rollout takes its steps, and ends.
func TestGradualRollout(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		h.change("hello", func(svc *servingv1.Service) { svc.Annotations[serving.RolloutDurationKey] = "99s" })
		h.deploy("hello", "app:2")
		for _, step := range []struct{ sleep, low, high int }{{0, 0, 40}, {49, 400, 600}, {49, 960, 1000}, {1, 1000, 1000}} {
			time.Sleep(time.Duration(step.sleep) * time.Second)
			synctest.Wait()
			if n := h.spread(1000)["hello-00002"]; n < step.low || n > step.high {
				t.Errorf("%d of 1000, want %d to %d", n, step.low, step.high)
			}
		}
		equal(t, "roles", h.roles("hello"), map[string]string{"hello-00002": "serving"})
	})
}

// A deleted service is unknown at once; its requests end.
func TestDeleteDrains(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		lease := h.need("hello")
		rt.Plan(pooltest.Plan{ReadyAfter: time.Hour})
		h.deploy("hello", "app:2")
		if _, err := h.Registry().Delete("hello", revisions.OwnerAPI, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, ErrUnknownService) {
			t.Errorf("got %v", err)
		}
		equal(t, "running while a request is in it", h.running(), map[string]int{"hello-00001": 1})
		rt.Plan(pooltest.Plan{})
		h.create("hello")
		equal(t, "another one", h.served("hello"), "hello-00003")
		lease.Release()
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"hello-00003": 1})
	})
}

// Services of the API and of Caddy's config live side by side.
func TestConfigAndAPI(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.declare(1, svc(t, "declared"))
		h.create("hello")
		h.declare(2, svc(t, "declared"), svc(t, "hello", "app:9"))
		equal(t, "served by", h.served("hello"), "hello-00001")
		h.withdraw(1)
		h.withdraw(2)
		equal(t, "served by", h.served("hello"), "hello-00001")
		if _, err := h.Acquire(t.Context(), "declared"); !errors.Is(err, ErrUnknownService) {
			t.Errorf("got %v", err)
		}
	})
}

// A declared service whose revision's name is taken is withdrawn like any other.
func TestWithdrawOfATakenName(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		h.create("hello-world")
		named := svc(t, "hello")
		named.Spec.Template.Name = "hello-world-00001"
		h.declare(1, named)
		equal(t, "known", h.Registry().Known("hello"), true)
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, ErrNotReady) {
			t.Errorf("got %v", err)
		}
		h.withdraw(1)
		equal(t, "known", h.Registry().Known("hello"), false)
	})
}

// disk is a store in memory that outlives a host.
type disk struct{ values sync.Map }

func (d *disk) Store(_ context.Context, key string, value []byte) error {
	d.values.Store(key, slices.Clone(value))
	return nil
}

func (d *disk) Load(_ context.Context, key string) ([]byte, error) {
	if v, ok := d.values.Load(key); ok {
		return v.([]byte), nil
	}
	return nil, fs.ErrNotExist
}

func (d *disk) Delete(_ context.Context, key string) error {
	d.values.Range(func(k, _ any) bool {
		if k == key || strings.HasPrefix(k.(string), key+"/") {
			d.values.Delete(k)
		}
		return true
	})
	return nil
}

func (d *disk) List(_ context.Context, prefix string, _ bool) ([]string, error) {
	var keys []string
	d.values.Range(func(k, _ any) bool {
		if strings.HasPrefix(k.(string), prefix+"/") {
			keys = append(keys, k.(string))
		}
		return true
	})
	return keys, nil
}

// bootFrom is boot with records.
func bootFrom(t testing.TB, rt *pooltest.Runtime, d *disk) *host {
	t.Helper()
	h := &host{t: t, rt: rt}
	h.Scaler = New(Options{Runtime: rt, Observer: h, StartLimit: 4, Probe: rt.Probe})
	if err := h.Registry().Open(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	h.Start()
	synctest.Wait()
	return h
}

func (h *host) close(ending Ending) {
	h.t.Helper()
	if err := h.Close(context.Background(), ending); err != nil {
		h.t.Error(err)
	}
}

// F38, F39: after a restart the same processes get the same shares, and a deploy
// that was interrupted goes on.
func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		d := new(disk)
		h := bootFrom(t, rt, d)
		h.create("hello")
		h.deploy("hello", "app:2")
		h.traffic("hello-00001=50", "latest=50", "hello-00001=0#old")
		h.spread(20)
		rt.Plan(pooltest.Plan{ReadyAfter: time.Minute})
		h.deploy("hello", "app:3")
		time.Sleep(10 * time.Second)
		before := h.running()
		equal(t, "running", before, map[string]int{"hello-00001": 1, "hello-00002": 1, "hello-00003": 1})
		h.close(Keep)

		h = bootFrom(t, rt, d)
		defer h.close(Stop)
		all := h.spread(1000)
		if n := all["hello-00001"]; n < 400 || n > 600 || all["hello-00002"] != 1000-n {
			t.Errorf("served by %v", all)
		}
		lease, err := h.Scaler.Acquire(t.Context(), Request{Service: "hello", Tag: "old"})
		if err != nil || lease.Revision().Name != "hello-00001" {
			t.Fatalf("by tag: %v, %v", lease, err)
		}
		lease.Release()
		time.Sleep(49 * time.Second)
		synctest.Wait()
		equal(t, "on trial", h.condition("hello-00003")[:len("Unknown")], "Unknown")
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "condition", h.condition("hello-00003"), "True")
		all = h.spread(1000)
		if n := all["hello-00001"]; n < 400 || n > 600 || all["hello-00003"] != 1000-n {
			t.Errorf("served by %v", all)
		}
		equal(t, "running", h.running(), map[string]int{"hello-00001": 1, "hello-00003": 1})
	})
}

// The end of a service is told once, when its last instance is gone, and not while
// another has its name.
func TestTheEndOfAServiceIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		lease, err := h.Scaler.Acquire(t.Context(), Request{Service: "hello"})
		if err != nil {
			t.Fatal(err)
		}
		h.deploy("hello", "app:2") // the first revision drains
		h.remove("hello")
		h.create("hello")
		lease.Release()
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "told while there is another", h.told(""), nil)

		if lease, err = h.Scaler.Acquire(t.Context(), Request{Service: "hello"}); err != nil {
			t.Fatal(err)
		}
		h.remove("hello")
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "told while it has a request", h.told(""), nil)
		lease.Release()
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "told at last", h.told(""), []string{"removed"})
	})
}

// A restart without instances: what was ready need not prove itself again, what
// had failed is not tried again, and what had not been tried yet is.
func TestRestartFromNothing(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		d := new(disk)
		h := bootFrom(t, rt, d)
		h.create("hello")
		rt.Plan(pooltest.Plan{ReadyAfter: time.Hour, ExitAfter: time.Second, ExitCode: 1})
		h.deploy("hello", "app:2")
		time.Sleep(time.Minute)
		synctest.Wait()
		rt.Plan(pooltest.Plan{ReadyAfter: time.Minute})
		h.create("new")
		h.close(Stop)

		attempts := rt.Attempts()
		rt.Plan(pooltest.Plan{})
		h = bootFrom(t, rt, d)
		defer h.close(Stop)
		equal(t, "starts", rt.Attempts()-attempts, 1)
		equal(t, "served by", h.served("new"), "new-00001")
		equal(t, "served by", h.served("hello"), "hello-00001")
		if got := h.condition("hello-00002"); !strings.HasPrefix(got, "False ExitCode1") {
			t.Errorf("condition: %s", got)
		}
	})
}

// Records of what Caddy's config does not declare any more are forgotten, once
// there is a config, with all that runs of it; those of the API are not.
func TestRestartWithAnotherConfig(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		d := new(disk)
		h := bootFrom(t, rt, d)
		h.declare(1, svc(t, "kept", "min-scale=1"), svc(t, "dropped", "min-scale=1"))
		h.create("hello")
		h.served("hello")
		h.close(Keep)

		h = bootFrom(t, rt, d)
		equal(t, "running before there is a config", len(rt.Running()), 3)
		h.declare(1, svc(t, "kept", "min-scale=1"))
		equal(t, "running", h.running(), map[string]int{"kept-00001": 1, "hello-00001": 1})
		equal(t, "starts", rt.Attempts(), 3)
		equal(t, "services", h.Registry().Names(), []string{"hello", "kept"})
		h.close(Stop)
		var keys []string
		d.values.Range(func(k, _ any) bool {
			keys = append(keys, k.(string))
			return true
		})
		slices.Sort(keys)
		equal(t, "records", keys, []string{
			"fairway/revisions/hello/hello-00001.json", "fairway/revisions/kept/kept-00001.json",
			"fairway/services/hello.json", "fairway/services/kept.json",
		})
	})
}

// F35, F36: deploys, traffic, deletes and declarations of one service at the same
// time, while instances fail. In the end it is what was said last, and nothing
// else runs.
func TestEverySourceAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		d := new(disk)
		h := bootFrom(t, rt, d)
		rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			plan := pooltest.Plan{StartTime: rand.N(time.Second), ReadyAfter: rand.N(time.Second), StopTime: rand.N(time.Second)}
			switch rand.IntN(8) {
			case 0:
				plan.Unready = true
			case 1:
				plan.ExitAfter = rand.N(20 * time.Second)
			}
			return plan
		})
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		var served atomic.Int64
		do := func(pause time.Duration, f func()) {
			all.Go(func() {
				for ctx.Err() == nil {
					time.Sleep(rand.N(pause))
					f()
				}
			})
		}
		unexpected := func(err error) {
			if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		}
		present := func() *servingv1.Service {
			if st := h.Registry().State("hello"); st != nil && st.Service != nil && st.Owner == revisions.OwnerAPI {
				return st.ServiceObject()
			}
			return nil
		}
		var n atomic.Int64
		for range 20 {
			do(time.Second, func() {
				patience, cancel := context.WithTimeout(t.Context(), rand.N(10*time.Second))
				defer cancel()
				if lease, err := h.Acquire(patience, "hello"); err == nil {
					served.Add(1)
					time.Sleep(rand.N(time.Second))
					lease.Release()
				}
			})
		}
		for range 2 {
			do(10*time.Second, func() {
				_, err := h.Registry().Create(svc(t, "hello", fmt.Sprint("app:", n.Add(1))), revisions.OwnerAPI)
				unexpected(err)
			})
			do(5*time.Second, func() {
				if want := present(); want != nil {
					want.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("app:", n.Add(1))
					_, err := h.Registry().Update(want, revisions.OwnerAPI)
					unexpected(err)
				}
			})
		}
		do(5*time.Second, func() {
			want, st := present(), h.Registry().State("hello")
			if want == nil || st == nil || len(st.Revisions) == 0 {
				return
			}
			some, rest, latest := int64(rand.IntN(101)), int64(0), true
			rest = 100 - some
			want.Spec.Traffic = []servingv1.TrafficTarget{
				{RevisionName: st.Revisions[rand.IntN(len(st.Revisions))].Name, Percent: &some, Tag: "some"},
				{LatestRevision: &latest, Percent: &rest},
			}
			_, err := h.Registry().Update(want, revisions.OwnerAPI)
			unexpected(err)
		})
		do(2*time.Minute, func() {
			_, err := h.Registry().Delete("hello", revisions.OwnerAPI, nil)
			unexpected(err)
		})
		all.Go(func() {
			for owner := 0; ctx.Err() == nil; owner++ {
				time.Sleep(rand.N(time.Minute))
				if err := h.Declare(owner, []*servingv1.Service{svc(t, "hello", fmt.Sprint("config:", owner))}); err != nil {
					t.Error(err)
				}
				time.Sleep(rand.N(time.Minute))
				h.Withdraw(owner)
			}
		})
		do(20*time.Second, func() {
			if running := rt.Running(); len(running) > 0 {
				running[rand.IntN(len(running))].Kill(1)
			}
			h.Status()
		})
		time.Sleep(5 * time.Minute)
		stop()
		all.Wait()
		if served.Load() < 50 {
			t.Errorf("%d requests were served: this tests nothing", served.Load())
		}

		rt.Plan(pooltest.Plan{})
		if _, err := h.Registry().Delete("hello", revisions.OwnerAPI, nil); err != nil {
			unexpected(err)
		}
		h.create("hello", "app:last", "min-scale=2")
		time.Sleep(10 * time.Minute)
		st := h.Registry().State("hello")
		equal(t, "revisions", len(st.Revisions), 1)
		equal(t, "running", h.running(), map[string]int{st.Latest().Name: 2})
		equal(t, "served by", h.served("hello"), st.Latest().Name)
		h.close(Keep)
		h = bootFrom(t, rt, d)
		equal(t, "served by", h.served("hello"), st.Latest().Name)
		equal(t, "revisions", h.Registry().RevisionNames(), []string{st.Latest().Name})
		h.close(Stop)
		equal(t, "running in the end", maps.Collect(maps.All(h.running())), map[string]int{})
	})
}

// The images of all containers are pinned when the revision is made.
func TestEveryImageIsPinned(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Image(func(_ context.Context, name string) (string, error) { return "sha256:" + name, nil })
		h := boot(t, rt)
		v := svc(t, "hello")
		c := &v.Spec.Template.Spec.Containers
		(*c)[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
		*c = append(*c, corev1.Container{Name: "proxy", Image: "proxy:1"})
		h.declare(1, v)
		rev := h.Registry().Revision("hello-00001")
		if rev.Digest() != "sha256:app:1" || rev.ImageDigest("proxy:1") != "sha256:proxy:1" {
			t.Errorf("pinned to %q and %q", rev.Digest(), rev.ImageDigest("proxy:1"))
		}
	})
}
