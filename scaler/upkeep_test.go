package scaler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
)

const (
	mib = 1 << 20
	// limit is the memory of an instance that says nothing of it.
	limit = 512 * mib
)

// bootOn is boot on a host of that size, all of which is for instances.
func bootOn(t testing.TB, rt *pooltest.Runtime, memory int64) *host {
	t.Helper()
	h := &host{t: t, rt: rt}
	h.Scaler = New(Options{Runtime: rt, Observer: h, StartLimit: 4, Probe: rt.Probe, Limits: Limits{Memory: memory}})
	t.Cleanup(func() {
		if err := h.Close(context.Background(), Stop); err != nil {
			t.Error(err)
		}
	})
	h.Start()
	synctest.Wait()
	return h
}

// F59: a start that does not fit stops the instance, of whatever service, that has
// been idle for longest; never one in use, never one of a minimum.
func TestAStartMakesRoom(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 4*limit)
		h.declare(1, svc(t, "kept", "min-scale=1"), svc(t, "old"), svc(t, "new"), svc(t, "used"), svc(t, "one"), svc(t, "more"))
		used := h.need("used")
		h.need("old").Release()
		time.Sleep(time.Second)
		h.need("new").Release()
		time.Sleep(time.Second)
		h.need("one").Release() // for which old goes
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"kept-00001": 1, "used-00001": 1, "new-00001": 1, "one-00001": 1})
		h.need("more").Release()
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"kept-00001": 1, "used-00001": 1, "one-00001": 1, "more-00001": 1})
		equal(t, "evictions", h.Budget().Evictions, 2)
		used.Release()
	})
}

// Without anything that can go a start waits, and is told why in the end.
func TestThereIsNoRoom(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, limit)
		h.declare(1, svc(t, "first"), svc(t, "second"))
		busy := h.need("first")
		began := time.Now()
		_, err := h.Acquire(t.Context(), "second")
		if !errors.Is(err, instancepool.ErrNoRoom) || !strings.Contains(err.Error(), "512 MiB") {
			t.Fatalf("got %v", err)
		}
		equal(t, "after", time.Since(began), roomPatience)
		time.AfterFunc(5*time.Second, busy.Release)
		time.Sleep(2 * time.Second) // the next start is tried soon, however often it failed
		began = time.Now()
		h.need("second").Release()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a start that waits for room took %s after there was some", took-3*time.Second)
		}
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"second-00001": 1})
	})
}

// The CPU can be bounded too: then the limits of all may not add up to more. What
// is only prepared has none to give.
func TestThereIsNoCPU(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Size(instancepool.Capacity{Memory: 100 * limit, CPU: 1})
		h := bootOn(t, rt, 100*limit)
		h.Limit(Limits{Memory: 100 * limit, CPUPart: 2})
		h.declare(1, svc(t, "old", "run.fairway/prepared=1"), svc(t, "new"), svc(t, "more"))
		h.need("old").Release()
		time.Sleep(time.Minute) // another is prepared
		h.need("new").Release()
		time.Sleep(time.Second)
		more := h.need("more") // for which old goes
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"new-00001": 1, "more-00001": 1})
		equal(t, "evictions", h.Budget().Evictions, 1)
		equal(t, "budget", h.Budget().CPU, 2)
		equal(t, "used", h.Budget().UsedCPU, 2)

		h.Limit(Limits{Memory: 100 * limit, CPU: 0.5})
		if _, err := h.Acquire(t.Context(), "old"); !errors.Is(err, instancepool.ErrNoRoom) || !strings.Contains(err.Error(), "it may use 1 CPUs, and all instances together 0.5 CPUs") {
			t.Fatalf("got %v", err)
		}
		more.Release()
		h.Limit(Limits{Memory: 100 * limit})
		time.Sleep(time.Minute)
		h.need("old").Release()
		equal(t, "budget", h.Budget().CPU, 0)
	})
}

func TestAnInstanceTooLargeForTheHost(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, limit-1)
		h.declare(1, svc(t, "hello"))
		began := time.Now()
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, instancepool.ErrNoRoom) {
			t.Fatalf("got %v", err)
		}
		equal(t, "after", time.Since(began), time.Duration(0))
	})
}

// Instances count with what they hold, once that is known.
func TestInstancesCountWithWhatTheyHold(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 3*limit)
		rt.Plan(pooltest.Plan{Usage: instancepool.Usage{Memory: 30 * mib}})
		for i := range 20 {
			name := fmt.Sprint("app-", i)
			h.declare(i, svc(t, name))
			h.need(name).Release()
			time.Sleep(2 * measureEvery)
		}
		equal(t, "running", len(h.running()), 20)
		equal(t, "evictions", h.Budget().Evictions, 0)
		equal(t, "used", h.Budget().Used, int64(20*30*mib))
	})
}

// What others use of the host is not there for instances.
func TestTheHostIsNotDrivenIntoOOM(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Size(instancepool.Capacity{Memory: 100 * limit, Available: limit / 2, CPU: 4})
		h := bootOn(t, rt, 0)
		equal(t, "total", h.Budget().Total, int64(90*limit))
		h.declare(1, svc(t, "hello"))
		time.AfterFunc(time.Second, func() { rt.Size(instancepool.Capacity{Memory: 100 * limit, Available: 2 * limit, CPU: 4}) })
		began := time.Now()
		h.need("hello").Release()
		if took := time.Since(began); took < time.Second || took > 1200*time.Millisecond {
			t.Errorf("it was started after %s", took)
		}
	})
}

// What is promised to instances that start is not there for others, though the host
// still has it.
func TestPromisesAreKept(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		rt.Size(instancepool.Capacity{Memory: 100 * limit, Available: 3 * limit / 2, CPU: 4})
		h := bootOn(t, rt, 0)
		rt.Plan(pooltest.Plan{Usage: instancepool.Usage{Memory: limit / 4}})
		h.declare(1, svc(t, "one"), svc(t, "two"))
		one := h.need("one")
		began := time.Now()
		two := h.need("two") // when it is known what one holds
		if took := time.Since(began); took < time.Second || took > 2*measureEvery {
			t.Errorf("it was started after %s", took)
		}
		one.Release()
		two.Release()
	})
}

// Instances that run may come to hold more than all of them may: then what is idle goes,
// as far as need be.
func TestInstancesThatGrow(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 4*limit)
		rt.Plan(pooltest.Plan{Usage: instancepool.Usage{Memory: limit / 2}})
		var busy *instancepool.Lease
		for i := range 6 {
			name := fmt.Sprint("app-", i)
			h.declare(i, svc(t, name))
			if busy = h.need(name); i < 5 {
				busy.Release()
			}
			time.Sleep(2 * measureEvery)
		}
		equal(t, "running", len(rt.Running()), 6)
		rt.Instance(busy.Instance().ID()).Replan(func(p *pooltest.Plan) { p.Usage.Memory = 5 * limit / 2 })
		time.Sleep(2 * measureEvery)
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"app-2-00001": 1, "app-3-00001": 1, "app-4-00001": 1, "app-5-00001": 1})
		equal(t, "evictions", h.Budget().Evictions, 2)
		busy.Release()
	})
}

// F23: what waits for more room than there is keeps nobody from what there is, unless it
// is about to get it.
func TestASmallStartPassesALargeOne(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 2*limit)
		h.declare(1, svc(t, "busy"), svc(t, "large", "memory=1Gi"), svc(t, "small", "memory=128Mi"), svc(t, "same", "memory=1Gi"))
		busy := h.need("busy")
		waiting := make(chan error, 2)
		for _, name := range []string{"large", "same"} {
			go func() {
				lease, err := h.Acquire(t.Context(), name)
				if err == nil {
					lease.Release()
				}
				waiting <- err
			}()
			synctest.Wait()
		}
		began := time.Now()
		h.need("small").Release()
		equal(t, "the small one waited", time.Since(began), time.Duration(0))
		time.Sleep(time.Second)
		busy.Release()
		if err := <-waiting; err != nil {
			t.Errorf("the large one: %v", err)
		}
		if err := <-waiting; err != nil {
			t.Errorf("the one after it: %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		equal(t, "evictions", h.Budget().Evictions, 3)
	})
}

// Instances that an earlier process has left count with what they hold from the
// beginning: the first start afterwards stops none of them in vain.
func TestAdoptedInstancesCountWithWhatTheyHold(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		plan := pooltest.Plan{Usage: instancepool.Usage{Memory: 30 * mib}}
		for i := range 20 {
			name := fmt.Sprint("app-", i)
			rt.Leave(name+"-00001-abcde", madeOf(t, svc(t, name), 1), plan)
		}
		h := bootOn(t, rt, 3*limit)
		var all []*servingv1.Service
		for i := range 21 {
			all = append(all, svc(t, fmt.Sprint("app-", i)))
		}
		h.declare(1, all...)
		equal(t, "used", h.Budget().Used, int64(20*30*mib))
		h.need("app-20").Release()
		synctest.Wait()
		equal(t, "running", len(rt.Running()), 21)
	})
}

// The budget's books are right whatever becomes of instances.
func TestTheBudgetForgets(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 10*limit)
		h.declare(1, svc(t, "hello", "concurrency=1"))
		rt.Leave("x", h.Registry().State("hello").Latest(), pooltest.Plan{})
		l := h.need("hello")
		rt.Instance(l.Instance().ID()).Kill(1) // crashes
		l.Release()
		synctest.Wait()
		rt.Plan(pooltest.Plan{StartErr: errors.New("no")})
		h.declare(2, svc(t, "hello", "app:2")) // fails
		rt.Plan(pooltest.Plan{Unready: true})
		h.declare(3, svc(t, "hello", "app:3")) // fails later
		rt.Plan(pooltest.Plan{})
		h.declare(4, svc(t, "hello", "app:4"))
		h.need("hello").Release()
		for owner := range 5 {
			h.withdraw(owner)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		equal(t, "used", h.Budget().Used, int64(0))
		equal(t, "held", len(h.budget.held)+len(h.budget.promised)+len(h.budget.leaving)+len(h.budget.queue), 0)
		equal(t, "promised", h.budget.promises, int64(0))
	})
}

// Prepared instances are made when the host is quiet, and given up first.
func TestPreparedInstances(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 2*limit)
		rt.Plan(pooltest.Plan{StartTime: 100 * time.Millisecond, PreparedStart: 15 * time.Millisecond})
		h.declare(1, svc(t, "hello", "concurrency=1", "run.fairway/prepared=2", noTarget), svc(t, "other"))
		first := h.need("hello")
		equal(t, "prepared while it starts", rt.Prepared(), 0)
		time.Sleep(5 * time.Second)
		equal(t, "prepared", rt.Prepared(), 2)
		equal(t, "used", h.Budget().Used, int64(limit+2*preparedMemory))
		h.need("other").Release()
		equal(t, "prepared, when memory is short", rt.Prepared(), 0)
		first.Release()
	})
}

// What has been ready before a restart is prepared after it, before anybody asks.
func TestPreparedAfterARestart(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		d := new(disk)
		h := bootFrom(t, rt, d)
		h.create("hello", "run.fairway/prepared=2")
		h.need("hello").Release()
		time.Sleep(time.Hour) // it is stopped, and what is prepared stays
		equal(t, "prepared", rt.Prepared(), 2)
		h.close(Stop)
		equal(t, "prepared, after the end", rt.Prepared(), 0)
		again := pooltest.NewRuntime()
		h = bootFrom(t, again, d)
		defer h.close(Stop)
		time.Sleep(time.Minute)
		equal(t, "prepared, after a restart", again.Prepared(), 2)
		equal(t, "running, after a restart", len(again.Running()), 0)
	})
}

// Instances that are prepared start in their turn too.
func TestPreparedStartsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 0)
		rt.Plan(pooltest.Plan{StartTime: time.Second, PreparedStart: 500 * time.Millisecond})
		h.declare(1, svc(t, "hello", "concurrency=1", "run.fairway/prepared=8", noTarget))
		h.need("hello").Release()
		time.Sleep(time.Minute)
		equal(t, "prepared", rt.Prepared(), 8)
		began := time.Now()
		var all sync.WaitGroup
		for range 9 { // one runs, and four start at a time
			all.Go(func() {
				lease := h.need("hello")
				time.Sleep(time.Minute)
				lease.Release()
			})
		}
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if n := len(rt.Running()); n != 5 {
			t.Errorf("%d run after %s", n, time.Since(began))
		}
		all.Wait()
	})
}

func TestManualScaling(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 0)
		h.create("hello", "concurrency=1")
		scale := func(settings map[string]string) {
			h.change("hello", func(svc *servingv1.Service) { svc.Annotations = settings })
		}
		running := func(want int) {
			t.Helper()
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			equal(t, "running", h.running()["hello-00001"], want)
		}
		running(0)
		scale(map[string]string{"run.googleapis.com/scalingMode": "manual", "run.googleapis.com/manualInstanceCount": "3"})
		running(3)
		scale(map[string]string{"run.googleapis.com/scalingMode": "manual", "run.googleapis.com/manualInstanceCount": "0"})
		running(0)
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, ErrDisabled) {
			t.Errorf("got %v", err)
		}
		scale(map[string]string{"run.googleapis.com/minScale": "2", "run.googleapis.com/maxScale": "4"})
		running(2)
		var busy []*instancepool.Lease
		for range 4 {
			busy = append(busy, h.need("hello"))
		}
		if _, err := h.Acquire(t.Context(), "hello"); !errors.Is(err, instancepool.ErrNoInstance) {
			t.Errorf("got %v", err)
		}
		for _, l := range busy {
			l.Release()
		}
		scale(nil)
		running(0)
	})
}

// What is set of a service as a whole is shared by traffic, not multiplied.
func TestBoundsAreShared(t *testing.T) {
	for _, test := range []struct {
		n      int
		shares []int
		want   []int
	}{
		{3, []int{50, 50}, []int{2, 1}},
		{4, []int{25, 75}, []int{1, 3}},
		{1, []int{10, 90}, []int{0, 1}},
		{10, []int{33, 33, 34}, []int{3, 3, 4}},
		{5, []int{0, 100, 0}, []int{0, 5, 0}},
		{5, []int{0, 0}, []int{0, 0}},
		{0, []int{100}, []int{0}},
		{2, nil, []int{}},
	} {
		equal(t, fmt.Sprintf("%d by %v", test.n, test.shares), divide(test.n, test.shares), test.want)
	}
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 0)
		h.create("hello")
		h.deploy("hello", "app:2")
		h.change("hello", func(svc *servingv1.Service) {
			svc.Annotations = map[string]string{"run.googleapis.com/scalingMode": "manual", "run.googleapis.com/manualInstanceCount": "3"}
		})
		h.traffic("hello-00001=50", "hello-00002=50")
		time.Sleep(time.Hour)
		synctest.Wait()
		equal(t, "running", len(rt.Running()), 3)
	})
}

// Requests that use the CPU are spread over the instances that are started for its
// sake, though each could have all of them.
func TestWorkIsSpread(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		const clients, parts, part = 10, 5, 10 * time.Millisecond
		h := bootOn(t, rt, 0)
		h.declare(1, svc(t, "hello", "max-scale=4"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		inFlight, served := make(map[string]int), make(map[string]int)
		var all sync.WaitGroup
		for range clients {
			all.Go(func() {
				for ctx.Err() == nil {
					lease := h.need("hello")
					id := lease.Instance().ID()
					mu.Lock()
					inFlight[id]++
					mu.Unlock()
					for range parts { // of its time, which it shares with the others there
						mu.Lock()
						others := inFlight[id]
						mu.Unlock()
						time.Sleep(time.Duration(others) * part)
						rt.Instance(id).Replan(func(p *pooltest.Plan) { p.Usage.CPU += part })
					}
					mu.Lock()
					inFlight[id]--
					served[id]++
					mu.Unlock()
					lease.Release()
				}
			})
		}
		time.Sleep(10 * time.Minute)
		mu.Lock()
		clear(served)
		mu.Unlock()
		time.Sleep(time.Minute)
		cancel()
		all.Wait()
		sum := 0
		for _, n := range served {
			sum += n
		}
		equal(t, "instances", len(rt.Running()), 4)
		for _, i := range rt.Running() {
			if n := served[i.ID()]; n < sum/8 {
				t.Errorf("one instance of four has served %d of %d requests", n, sum)
			}
		}
	})
}

// A service's minimum is shared by traffic.
func TestTheMinimumIsShared(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 0)
		h.create("hello")
		h.deploy("hello", "app:2")
		h.change("hello", func(svc *servingv1.Service) {
			svc.Annotations = map[string]string{"run.googleapis.com/minScale": "4"}
		})
		h.traffic("hello-00001=25", "hello-00002=75")
		time.Sleep(time.Hour)
		synctest.Wait()
		equal(t, "running", h.running(), map[string]int{"hello-00001": 1, "hello-00002": 3})
	})
}

// A start that would not fit either if all that is idle went leaves it alone; and what
// has only just become idle does not go for the sake of others.
func TestNothingIsEvictedInVain(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 3*limit-mib)
		rt.Plan(pooltest.Plan{Usage: instancepool.Usage{Memory: 30 * mib}})
		h.declare(1, svc(t, "small"), svc(t, "tiny"))
		for _, name := range []string{"small", "tiny"} {
			h.need(name).Release()
			time.Sleep(2 * measureEvery)
		}
		rt.Plan(pooltest.Plan{})
		h.declare(2, svc(t, "busy", "concurrency=1", noTarget), svc(t, "large"))
		first, second := h.need("busy"), h.need("busy")
		if _, err := h.Acquire(t.Context(), "large"); !errors.Is(err, instancepool.ErrNoRoom) {
			t.Fatalf("got %v", err)
		}
		equal(t, "evictions", h.Budget().Evictions, 0)
		equal(t, "running", h.running(), map[string]int{"small-00001": 1, "tiny-00001": 1, "busy-00001": 2})
		time.Sleep(2 * time.Second) // until a start is tried again
		second.Release()
		began := time.Now()
		h.need("large").Release()
		if took := time.Since(began); took < 50*time.Millisecond {
			t.Errorf("what has been idle for %s has gone", took)
		}
		synctest.Wait()
		equal(t, "running in the end", h.running(), map[string]int{"small-00001": 1, "tiny-00001": 1, "busy-00001": 1, "large-00001": 1})
		equal(t, "evictions in the end", h.Budget().Evictions, 1)
		first.Release()
	})
}

// A deploy waits for room, and says so; unless there can never be enough.
func TestADeployWaitsForRoom(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 2*limit)
		h.create("hello", "concurrency=1")
		h.create("busy", "concurrency=1")
		busy := []*instancepool.Lease{h.need("busy"), h.need("busy")}
		h.deploy("hello", "app:2")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := h.condition("hello-00002"); !strings.HasPrefix(got, "Unknown") || !strings.Contains(got, "no room") {
			t.Errorf("while there is no room: %s", got)
		}
		busy[0].Release()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		equal(t, "when there is", h.condition("hello-00002"), "True")
		busy[1].Release()

		h.Limit(Limits{Memory: limit / 2})
		h.deploy("hello", "app:3")
		synctest.Wait()
		if got := h.condition("hello-00003"); !strings.HasPrefix(got, "False") || !strings.Contains(got, "it may use 512 MiB, and all instances together 256 MiB") {
			t.Errorf("too large: %s", got)
		}
	})
}

// What cannot be prepared for one service is for the others.
func TestPreparationGoesOnWithOthers(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, 10*limit)
		settings := []string{"concurrency=1", "run.fairway/prepared=1", noTarget}
		breaks := func(service string) {
			rt.PlanFor(func(s instancepool.StartSpec) pooltest.Plan {
				if s.Revision.Service == service {
					return pooltest.Plan{AheadErr: errors.New("the secret is gone")}
				}
				return pooltest.Plan{}
			})
		}
		h.declare(1, svc(t, "one", settings...), svc(t, "two", settings...))
		for _, broken := range []string{"one", "two"} { // whichever is looked at first
			breaks(broken)
			for _, name := range []string{"one", "two"} {
				h.need(name).Release() // for which what is prepared is used
			}
			time.Sleep(time.Minute)
			equal(t, "prepared while "+broken+" cannot be", rt.Prepared(), 1)
			time.Sleep(20 * time.Minute) // until all is stopped
		}
		breaks("")
		time.Sleep(time.Minute)
		equal(t, "prepared, when it works again", rt.Prepared(), 2)
	})
}

// What an instance that has failed holds is not given to others before it has ended.
func TestRoomIsFreeWhenAFailedInstanceHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := bootOn(t, rt, limit)
		var sick atomic.Bool
		rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			return pooltest.Plan{KillTime: 10 * time.Second, Exec: func(context.Context, string, []string) error {
				if sick.Load() {
					return errors.New("sick")
				}
				return nil
			}}
		})
		h.create("hello", noTarget)
		h.change("hello", func(svc *servingv1.Service) {
			svc.Spec.Template.Spec.Containers[0].LivenessProbe = &corev1.Probe{
				PeriodSeconds: 10, FailureThreshold: 1,
				ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}},
			}
		})
		time.Sleep(time.Hour)
		lease := h.need("hello")
		sick.Store(true)
		time.Sleep(15 * time.Second)
		synctest.Wait()
		equal(t, "running", len(rt.Running()), 1)
		equal(t, "used while it is being killed", h.Budget().Used, int64(limit))
		sick.Store(false)
		lease.Release()
		time.Sleep(time.Hour)
		synctest.Wait()
		equal(t, "used in the end", h.Budget().Used, int64(0))
	})
}
