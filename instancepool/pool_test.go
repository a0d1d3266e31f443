package instancepool_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

// testPool is a pool on instances that do what the test says.
type testPool struct {
	*instancepool.Pool
	t  testing.TB
	rt *pooltest.Runtime

	keep atomic.Int64 // what the load of late is said to need

	mu     sync.Mutex
	events []instancepool.Event
}

// revision returns one with Cloud Run's defaults and this concurrency.
func revision(concurrency int) *revisions.Revision {
	return revisions.New("hello", "hello-00001", 1, &revisions.Spec{
		Port: revisions.Port{Number: 8080}, Concurrency: concurrency,
		Timeout: 5 * time.Minute, IdleTimeout: 15 * time.Minute, QueueDepth: 10_000,
		Health: []revisions.Health{{Container: "app", Startup: &revisions.Probe{Port: 8080, Attempt: time.Second, Total: 4 * time.Minute}}},
	})
}

// start returns a pool for rev that is drained when the test ends, which then
// must leave nothing behind.
func start(t testing.TB, rev *revisions.Revision) *testPool {
	t.Helper()
	return startWith(t, rev, func(*instancepool.Options, *pooltest.Runtime) {})
}

// startWith is start with other options.
func startWith(t testing.TB, rev *revisions.Revision, change func(*instancepool.Options, *pooltest.Runtime)) *testPool {
	t.Helper()
	p := &testPool{t: t, rt: pooltest.NewRuntime()}
	rev.Pin(rev.Spec().Image, "sha256:0123")
	opts := instancepool.Options{
		Start: p.rt.Start, Probe: p.rt.Probe,
		Decide: func(s instancepool.Snapshot) instancepool.Decision {
			d := asNeeded(s)
			d.Keep = int(p.keep.Load())
			return d
		},
		Observe: func(e instancepool.Event) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.events = append(p.events, e)
		},
	}
	change(&opts, p.rt)
	p.Pool = instancepool.New(rev, opts)
	t.Cleanup(func() {
		p.Drain(0)
		p.Wait()
		p.check()
	})
	return p
}

// asNeeded starts instances for all that wait, and for the minimum.
func asNeeded(s instancepool.Snapshot) instancepool.Decision {
	n := (s.Waiting - s.Free - s.Starting*s.Concurrency + s.Concurrency - 1) / s.Concurrency
	n = max(n, max(s.Min-s.Unready, s.Floor)-s.Ready-s.Starting)
	if s.Max > 0 {
		n = min(n, s.Max-s.Ready-s.Starting-s.Suspect-s.Unready)
	}
	return instancepool.Decision{Start: n, Reason: "demand"}
}

// check fails the test when the pool's books are wrong.
func (p *testPool) check() {
	p.t.Helper()
	if err := p.Check(); err != nil {
		p.t.Fatal(err)
	}
}

// call is one request's Acquire.
type call struct {
	done  chan struct{}
	lease *instancepool.Lease
	err   error
	at    time.Time // it was answered
}

// ask acquires a lease in the background.
func (p *testPool) ask(ctx context.Context) *call {
	c := &call{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.lease, c.err = p.Acquire(ctx)
		c.at = time.Now()
	}()
	return c
}

// askTimes does so n times, one after the other.
func (p *testPool) askTimes(n int) []*call {
	calls := make([]*call, n)
	for i := range calls {
		calls[i] = p.ask(p.t.Context())
		synctest.Wait()
	}
	return calls
}

func (c *call) answered() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// need acquires a lease, which must succeed.
func (p *testPool) need() *instancepool.Lease {
	p.t.Helper()
	lease, err := p.Acquire(p.t.Context())
	if err != nil {
		p.t.Fatalf("Acquire: %v", err)
	}
	return lease
}

// instance is the runtime's side of a lease.
func (p *testPool) instance(l *instancepool.Lease) *pooltest.Instance {
	p.t.Helper()
	i := p.rt.Instance(l.Instance().ID())
	if i == nil {
		p.t.Fatalf("there never was an instance %s", l.Instance().ID())
	}
	return i
}

func (p *testPool) states() []instancepool.State {
	var all []instancepool.State
	for _, i := range p.Status().Instances {
		all = append(all, i.State)
	}
	return all
}

func isStartError(t testing.TB, err error) *instancepool.StartError {
	t.Helper()
	e, ok := errors.AsType[*instancepool.StartError](err)
	if !ok {
		t.Fatalf("got %v, want a *StartError", err)
	}
	return e
}

func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// F12, F14: exactly as many instances as the requests need, all at once.
func TestBurstStartsWhatItNeeds(t *testing.T) {
	for _, test := range []struct{ requests, concurrency, most, starts int }{
		{1, 80, 0, 1},
		{80, 80, 0, 1},
		{81, 80, 0, 2},
		{1000, 80, 100, 13},
		{1000, 80, 5, 5},
		{100, 1, 20, 20},
		{100, 1, 0, 100},
	} {
		t.Run(fmt.Sprintf("%d requests at concurrency %d, max %d", test.requests, test.concurrency, test.most), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rev := revision(test.concurrency)
				rev.Spec().MaxInstances = test.most
				p := start(t, rev)
				p.rt.Plan(pooltest.Plan{StartTime: 100 * time.Millisecond, ReadyAfter: 50 * time.Millisecond})
				served := 0
				var mu sync.Mutex
				for range test.requests {
					go func() {
						lease := p.need()
						if !lease.Cold && lease.Waited == 0 {
							t.Error("a request of a burst from zero did not wait")
						}
						time.Sleep(time.Millisecond)
						lease.Release()
						mu.Lock()
						defer mu.Unlock()
						served++
					}()
				}
				synctest.Wait()
				equal(t, "starts at once", p.rt.Attempts(), test.starts)
				time.Sleep(time.Second)
				mu.Lock()
				equal(t, "served", served, test.requests)
				mu.Unlock()
				equal(t, "starts in all", p.rt.Attempts(), test.starts)
			})
		})
	}
}

func TestWaitersAreServedInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances = 1
		p := start(t, rev)
		lease := p.need()
		calls := p.askTimes(20)
		for n, c := range calls {
			lease.Release()
			synctest.Wait()
			if !c.answered() {
				t.Fatalf("the slot did not go to waiter %d", n)
			}
			if n+1 < len(calls) && calls[n+1].answered() {
				t.Fatalf("waiter %d got a slot that is not there", n+1)
			}
			lease = c.lease
			p.check()
		}
		lease.Release()
	})
}

func TestQueueDepth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances, rev.Spec().QueueDepth = 1, 3
		p := start(t, rev)
		lease := p.need()
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			p.ask(ctx)
		}
		synctest.Wait()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, instancepool.ErrQueueFull) {
			t.Fatalf("the fourth in a queue of three: %v", err)
		}
		cancel()
		synctest.Wait()
		next := p.ask(t.Context())
		synctest.Wait()
		equal(t, "waiting", p.Status().Waiting, 1)
		lease.Release()
		<-next.done
		next.lease.Release()
	})
}

// F24: a request never waits, nor goes to the busier instance, while another is idle.
func TestNoRequestQueuesWhileASlotIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances = 2
		p := start(t, rev)
		if err := p.Await(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			a, b := p.need(), p.need()
			if a.Instance() == b.Instance() {
				t.Fatal("both requests went to one instance")
			}
			if a.Waited+b.Waited > 0 {
				t.Fatal("a request waited")
			}
			a.Release()
			b.Release()
		}
	})
}

func TestTheInstanceUsedLastIsTakenFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		if err := p.Await(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		a, b, c := p.need(), p.need(), p.need()
		for _, l := range []*instancepool.Lease{a, c, b} {
			l.Release()
		}
		for _, last := range []*instancepool.Lease{b, c, a} {
			if got := p.need(); got.Instance() != last.Instance() {
				t.Fatalf("took %s, %s was used last", got.Instance().ID(), last.Instance().ID())
			}
		}
	})
}

// Requests gather on few instances, so that the others may go idle, but no
// instance is filled to the brim while others have little to do.
// Requests are gathered on as few instances as can take them, unless they use more
// CPU than one is to use, or there is a soft limit: then on as many more as are there.
func TestRequestsGather(t *testing.T) {
	type step struct {
		more int
		want []int
	}
	for name, test := range map[string]struct {
		cpu   time.Duration // that one request uses in a second
		soft  int
		part  float64 // of its CPU that an instance is to use
		steps []step
	}{
		"with CPU to spare": {10 * time.Millisecond, 0, 0, []step{
			{7, []int{0, 0, 7}}, {7, []int{0, 4, 10}}, {7, []int{1, 10, 10}}, {9, []int{10, 10, 10}},
		}},
		"without": {200 * time.Millisecond, 0, 0, []step{
			{4, []int{0, 1, 3}}, {5, []int{3, 3, 3}}, {3, []int{4, 4, 4}}, {18, []int{10, 10, 10}},
		}},
		"when each uses more than an instance should": {time.Second, 0, 0, []step{
			{3, []int{1, 1, 1}}, {3, []int{2, 2, 2}},
		}},
		"with a target for the CPU": {200 * time.Millisecond, 0, 0.9, []step{
			{4, []int{0, 0, 4}}, {8, []int{4, 4, 4}},
		}},
		"with a soft limit": {0, 5, 0, []step{
			{6, []int{0, 1, 5}}, {9, []int{5, 5, 5}}, {3, []int{6, 6, 6}}, {12, []int{10, 10, 10}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rev := revision(10)
				rev.Spec().CPU, rev.Spec().Scaling.Soft, rev.Spec().Scaling.CPU = 1, test.soft, test.part
				p := start(t, rev)
				if err := p.Await(t.Context(), 3); err != nil {
					t.Fatal(err)
				}
				const busy = 5
				var leases []*instancepool.Lease
				for range busy {
					leases = append(leases, p.need())
				}
				for range 2 {
					if found, active := p.Measure(); len(found) != 3 || !active {
						t.Fatalf("Measure() = %+v, %t", found, active)
					}
					time.Sleep(time.Second)
					p.rt.Instances()[0].Replan(func(pl *pooltest.Plan) { pl.Usage.CPU += busy * test.cpu })
				}
				p.Measure()
				for _, l := range leases {
					l.Release()
				}
				loads := func() []int {
					var all []int
					for _, i := range p.Status().Instances {
						all = append(all, i.InFlight)
					}
					slices.Sort(all)
					return all
				}
				for _, step := range test.steps {
					for range step.more {
						p.need()
					}
					equal(t, "requests in each instance", loads(), step.want)
					p.check()
				}
			})
		})
	}
}

// The CPU that instances use is told to whoever decides, in the mean of a minute.
func TestMeasuredCPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told instancepool.Snapshot // Decide is called by this goroutine, from Measure
		p := startWith(t, revision(1), func(o *instancepool.Options, _ *pooltest.Runtime) {
			decide := o.Decide
			o.Decide = func(s instancepool.Snapshot) instancepool.Decision {
				told = s
				return decide(s)
			}
		})
		lease := p.need()
		synctest.Wait()
		for range 120 {
			p.Measure()
			time.Sleep(5 * time.Second)
			p.instance(lease).Replan(func(pl *pooltest.Plan) { pl.Usage.CPU += 4 * time.Second })
		}
		p.Measure()
		if told.CPU < 0.79 || told.CPU > 0.81 {
			t.Errorf("CPU: %.3f processors, want 0.8", told.CPU)
		}
		lease.Release()
		// And is no load any more when it was long ago, whether it has been measured or not.
		time.Sleep(10 * time.Minute)
		told.CPU = 1
		p.need().Release()
		p.Wake()
		if told.CPU > 1e-3 {
			t.Errorf("CPU after ten minutes: %.3f processors", told.CPU)
		}
	})
}

// What is frozen need not be measured: it cannot have changed.
func TestMeasure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(1))
		p.rt.Plan(pooltest.Plan{Usage: instancepool.Usage{Memory: 30 << 20}})
		p.need().Release()
		found, active := p.Measure()
		if len(found) != 1 || found[0].Memory != 30<<20 || !active {
			t.Fatalf("Measure() = %+v, %t", found, active)
		}
		time.Sleep(moment)
		if found, active = p.Measure(); len(found) != 1 || active {
			t.Errorf("once it is frozen: Measure() = %+v, %t", found, active)
		}
		if found, active = p.Measure(); len(found) != 0 || active {
			t.Errorf("since it is frozen: Measure() = %+v, %t", found, active)
		}
		equal(t, "memory", p.Status().Instances[0].Usage.Memory, int64(30<<20))
	})
}

func TestCancelledWaitersLeaveAtOnce(t *testing.T) { // F21
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(80))
		p.rt.Plan(pooltest.Plan{StartTime: time.Minute})
		ctx, cancel := context.WithCancelCause(t.Context())
		calls := make([]*call, 5000)
		for i := range calls {
			calls[i] = p.ask(ctx)
		}
		synctest.Wait()
		equal(t, "waiting", p.Status().Waiting, len(calls))
		gaveUp := errors.New("the client gave up")
		cancel(gaveUp)
		synctest.Wait()
		equal(t, "waiting", p.Status().Waiting, 0)
		for _, c := range calls {
			if !errors.Is(c.err, gaveUp) {
				t.Fatalf("Acquire returned %v", c.err)
			}
		}
		p.check()
		time.Sleep(2 * time.Minute)
		equal(t, "instances that are ready for the next", len(p.rt.Running()), 63)
	})
}

// A request that ends in the very moment in which it gets a slot gives it back.
func TestCancelInTheMomentOfTheGrant(t *testing.T) {
	rev := revision(1)
	rev.Spec().MaxInstances = 1
	p := start(t, rev)
	granted, cancelled := 0, 0
	for range 5000 {
		lease := p.need()
		ctx, cancel := context.WithCancel(t.Context())
		c := p.ask(ctx)
		for p.Status().Waiting == 0 {
			runtime.Gosched()
		}
		var both sync.WaitGroup
		both.Go(cancel)
		both.Go(lease.Release)
		both.Wait()
		<-c.done
		if c.err == nil {
			granted++
			c.lease.Release()
		} else {
			cancelled++
		}
		p.check()
		if s := p.Status(); s.InFlight != 0 {
			t.Fatalf("a slot is lost: %+v", s)
		}
	}
	t.Logf("%d got the slot, %d left", granted, cancelled)
}

func TestAWaiterHasTheRequestsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances, rev.Spec().Timeout = 1, 8*time.Second
		p := start(t, rev)
		lease := p.need()
		began := time.Now()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, instancepool.ErrTimeout) {
			t.Fatalf("got %v", err)
		}
		equal(t, "after", time.Since(began), rev.Spec().Timeout)
		equal(t, "waiting", p.Status().Waiting, 0)
		lease.Release()
		p.need().Release()
	})
}

// A request that comes back, as it could not be sent, has no time of its own
// again.
func TestARequestsTimeCountsFromItsArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances, rev.Spec().Timeout, rev.Spec().ResponseStart = 1, 8*time.Second, 6*time.Second
		p := start(t, rev)
		lease := p.need()
		arrived := time.Now()
		time.Sleep(4 * time.Second)
		if _, err := p.AcquireOn(t.Context(), "", arrived); !errors.Is(err, instancepool.ErrTimeout) {
			t.Errorf("AcquireOn: %v", err)
		}
		if took := time.Since(arrived); took != 6*time.Second {
			t.Errorf("it took %s in all", took)
		}
		lease.Release()
	})
}

// After a restart it is not known what a start takes, and who waits for a busy
// instance does not wait for one.
func TestARequestIsPendingAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances = 1
		p := start(t, rev)
		p.Adopt(p.rt.Leave("hello-00001-abcde", rev, pooltest.Plan{}))
		lease := p.need()
		began := time.Now()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, instancepool.ErrNoInstance) {
			t.Errorf("got %v", err)
		}
		equal(t, "after", time.Since(began), 10*time.Second)
		lease.Release()
	})
}

// Starts that are kept back, by others or for want of room, are given up when nobody
// waits any more; those that have begun are not.
func TestStartsAreWithdrawn(t *testing.T) {
	for name, minimum := range map[string]int{"all": 0, "but for the minimum": 3} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rev := revision(1)
				rev.Spec().MinInstances = minimum
				turns := make(chan struct{}, 2) // start at the same time
				p := startWith(t, rev, func(o *instancepool.Options, rt *pooltest.Runtime) {
					o.Turn = func(ctx context.Context, _ string) (func(), error) {
						select {
						case turns <- struct{}{}:
							return func() { <-turns }, nil
						case <-ctx.Done():
							return nil, ctx.Err()
						}
					}
				})
				p.rt.Plan(pooltest.Plan{StartTime: time.Second})
				ctx, cancel := context.WithCancel(t.Context())
				var calls []*call
				for range 20 {
					calls = append(calls, p.ask(ctx))
				}
				synctest.Wait()
				equal(t, "wanted", len(p.states()), 20)
				cancel()
				for _, c := range calls {
					<-c.done
				}
				time.Sleep(10 * time.Second)
				equal(t, "started", p.rt.Attempts(), max(2, minimum))
				equal(t, "running", len(p.rt.Running()), max(2, minimum))

				calls = p.askTimes(6) // which those that run serve, before others could
				time.Sleep(100 * time.Millisecond)
				for served := true; served; {
					served = false
					for _, c := range calls {
						if c.answered() && c.lease != nil {
							c.lease.Release()
							c.lease, served = nil, true
							synctest.Wait()
						}
					}
				}
				time.Sleep(10 * time.Second)
				if n := p.rt.Attempts(); n > max(2, minimum)+2 {
					t.Errorf("%d instances were started, though the first served all", n)
				}
			})
		})
	}
}

// What an earlier process has left is not given up for having nobody who waits for it.
func TestAdoptedInstancesAreNotWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		p := start(t, rev)
		p.Adopt(p.rt.Leave("hello-00001-abcde", rev, pooltest.Plan{ReadyAfter: time.Minute}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		time.Sleep(2 * time.Minute)
		equal(t, "running", len(p.rt.Running()), 1)
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready})
	})
}

// That there was no room says nothing of the revision, and is forgotten.
func TestWantOfRoomPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := false
		p := startWith(t, revision(1), func(o *instancepool.Options, rt *pooltest.Runtime) {
			o.Prepare = func(context.Context) error {
				if full {
					return instancepool.ErrNoRoom
				}
				return nil
			}
		})
		lease := p.need()
		full = true
		c := p.ask(t.Context())
		synctest.Wait()
		lease.Release()
		<-c.done
		if c.err != nil {
			t.Fatal(c.err)
		}
		if f := p.Failure(); f == nil || !f.Passing() {
			t.Errorf("at first: %v", f)
		}
		time.Sleep(20 * time.Second)
		if f := p.Failure(); f != nil {
			t.Errorf("later: %v", f)
		}
		full = false
		p.rt.Plan(pooltest.Plan{StartTime: time.Second})
		calls := p.askTimes(3)
		for _, c := range calls {
			<-c.done
			c.lease.Release()
		}
		equal(t, "started, all at once", p.rt.Parallel(), 3)
		c.lease.Release()
	})
}

// A request waits for an instance for ten seconds, or for as long as 3.5 of its
// service's starts take.
func TestARequestIsPendingForSoLong(t *testing.T) {
	for startup, want := range map[time.Duration]time.Duration{
		time.Second: 10 * time.Second, 4 * time.Second: 14 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			rev := revision(1)
			rev.Spec().MaxInstances = 1
			p := start(t, rev)
			p.rt.Plan(pooltest.Plan{StartTime: startup})
			lease := p.need()
			began := time.Now()
			_, err := p.Acquire(t.Context())
			if !errors.Is(err, instancepool.ErrNoInstance) || !strings.Contains(err.Error(), want.String()) {
				t.Fatalf("got %v", err)
			}
			equal(t, "after", time.Since(began), want)
			equal(t, "waiting", p.Status().Waiting, 0)
			lease.Release()
			p.need().Release()
		})
	}
}

// The first start of a slow app may take as long as its probe lets it.
func TestTheFirstRequestOfASlowApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		p.rt.Plan(pooltest.Plan{ReadyAfter: 3 * time.Minute})
		lease := p.need()
		equal(t, "waited", lease.Waited, 3*time.Minute)
		lease.Release()
	})
}

func TestAcquireOnAnEndedContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("too late")
		cancel(cause)
		if _, err := p.Acquire(ctx); !errors.Is(err, cause) {
			t.Fatalf("got %v", err)
		}
		synctest.Wait()
		equal(t, "starts", p.rt.Attempts(), 0)
	})
}

func TestOnlyTheFirstReleaseCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(2))
		a, b := p.need(), p.need()
		a.Release()
		a.Release()
		equal(t, "in flight", p.Status().InFlight, 1)
		p.check()
		b.Release()
	})
}

// F04: the idle time counts from the end of the last request.
func TestIdleTimeCountsFromTheLastRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(10)
		rev.Spec().IdleTimeout = 10 * time.Second
		p := start(t, rev)
		for range 50 { // five times the idle time
			lease := p.need()
			time.Sleep(500 * time.Millisecond)
			lease.Release()
			time.Sleep(500 * time.Millisecond)
		}
		equal(t, "starts", p.rt.Attempts(), 1)
		time.Sleep(rev.Spec().IdleTimeout - 500*time.Millisecond - time.Nanosecond)
		synctest.Wait()
		equal(t, "running just before", len(p.rt.Running()), 1)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		equal(t, "running after", len(p.rt.Running()), 0)
		equal(t, "instances known", len(p.Status().Instances), 0)
	})
}

// An instance's age counts from its start, whatever it has become since.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(10))
		p.rt.Plan(pooltest.Plan{StartTime: time.Second, ReadyAfter: time.Minute})
		began := time.Now()
		lease := make(chan *instancepool.Lease)
		go func() { lease <- p.need() }()
		age := func() string {
			i := p.Status().Instances[0]
			return fmt.Sprint(i.State, " since ", i.Since.Sub(began), ", born ", i.Born.Sub(began))
		}
		synctest.Wait()
		equal(t, "at first", age(), "starting since 0s, born 0s")
		held := <-lease
		equal(t, "then", age(), "ready since 1m1s, born 1s")
		held.Release()
	})
}

func TestAnInstanceInUseIsNeverIdle(t *testing.T) { // F01, F02
	synctest.Test(t, func(t *testing.T) {
		rev := revision(10)
		rev.Spec().IdleTimeout = 10 * time.Second
		p := start(t, rev)
		stream := p.need()
		time.Sleep(time.Hour)
		equal(t, "running", len(p.rt.Running()), 1)
		stream.Release()
		time.Sleep(rev.Spec().IdleTimeout)
		synctest.Wait()
		equal(t, "running", len(p.rt.Running()), 0)
	})
}

// F03: a request at the very end of the idle time gets an instance that is not
// being stopped.
func TestIdleTimeoutAgainstARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().IdleTimeout = time.Second
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{StopTime: 3 * time.Millisecond})
		cold := 0
		for range 10_000 {
			time.Sleep(rev.Spec().IdleTimeout + time.Duration(rand.IntN(5)-2)*time.Millisecond)
			lease := p.need()
			if lease.Cold {
				cold++
			}
			time.Sleep(time.Millisecond)
			if i := p.instance(lease); i.Stops() > 0 {
				t.Fatal("a request was sent to an instance that is being stopped")
			}
			lease.Release()
		}
		if cold < 100 || cold > 9_900 {
			t.Fatalf("%d of 10000 requests were cold: the boundary was not met", cold)
		}
	})
}

func TestMinimumIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MinInstances, rev.Spec().IdleTimeout = 2, 10*time.Second
		p := start(t, rev)
		p.Wake()
		synctest.Wait()
		equal(t, "running", len(p.rt.Running()), 2)
		var leases []*instancepool.Lease
		for range 5 {
			leases = append(leases, p.need())
		}
		for _, l := range leases {
			l.Release()
		}
		time.Sleep(time.Hour)
		equal(t, "running after an idle hour", len(p.rt.Running()), 2)
		p.rt.Running()[0].Kill(1)
		synctest.Wait()
		equal(t, "running after a crash", len(p.rt.Running()), 2)
	})
}

// F19: a revision that cannot start costs one start per back-off, however many
// ask, and each of them is told at once when to come again.
func TestFailedStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(80))
		p.rt.Plan(pooltest.Plan{ReadyAfter: 100 * time.Millisecond, ExitAfter: 50 * time.Millisecond, ExitCode: 3, Log: "no such table\n"})
		calls := make([]*call, 80)
		for i := range calls {
			calls[i] = p.ask(t.Context())
		}
		for _, c := range calls {
			<-c.done
			e := isStartError(t, c.err)
			equal(t, "reason", e.Reason, "ExitCode3")
			equal(t, "log", e.Log, "no such table\n")
			equal(t, "retry after", e.RetryAfter, time.Second)
		}
		attempts := 1
		equal(t, "starts", p.rt.Attempts(), attempts)
		for _, next := range []int{2, 4, 8, 16, 32, 60, 60} {
			for { // ask until one is told of a new failure
				synctest.Wait()
				_, err := p.Acquire(t.Context())
				wait := isStartError(t, err).RetryAfter
				if p.rt.Attempts() > attempts {
					attempts++
					equal(t, "starts", p.rt.Attempts(), attempts)
					equal(t, "retry after", wait, seconds(next))
					break
				}
				time.Sleep(wait / 2)
				_, err = p.Acquire(t.Context())
				equal(t, "retry after", isStartError(t, err).RetryAfter, wait-wait/2)
				equal(t, "starts in the back-off", p.rt.Attempts(), attempts)
				time.Sleep(wait - wait/2)
			}
		}
		if got := p.Failure(); got == nil || got.Reason != "ExitCode3" {
			t.Fatalf("Failure() = %v", got)
		}
		if p.Proven() {
			t.Fatal("a revision that never was ready is proven")
		}
	})
}

// While what is left of a failed start is stopped, which may take the whole
// grace, nobody starts the next as if nothing had happened.
func TestFailedStartCountsBeforeItIsCleanedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		p.rt.Plan(pooltest.Plan{Unready: true, IgnoreTerm: true})
		_, err := p.Acquire(t.Context())
		e := isStartError(t, err)
		equal(t, "reason", e.Reason, "ContainerUnhealthy")
		equal(t, "retry after", e.RetryAfter, time.Second)
		for range 100 {
			_, err := p.Acquire(t.Context())
			isStartError(t, err)
		}
		equal(t, "starts", p.rt.Attempts(), 1)
	})
}

// Instances that are started together and fail together are one failure; then
// one is tried alone, and the rest follow when that one is ready.
func TestABurstThatFailsIsOneFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		p.rt.Plan(pooltest.Plan{ReadyAfter: time.Second, Unready: true})
		calls := make([]*call, 20)
		for i := range calls {
			calls[i] = p.ask(t.Context())
		}
		for _, c := range calls {
			<-c.done
			equal(t, "retry after", isStartError(t, c.err).RetryAfter, time.Second)
		}
		equal(t, "starts", p.rt.Attempts(), 20)

		time.Sleep(time.Second)
		p.rt.Plan(pooltest.Plan{ReadyAfter: time.Second})
		for i := range calls {
			calls[i] = p.ask(t.Context())
		}
		synctest.Wait()
		equal(t, "starts after the back-off", p.rt.Attempts(), 21)
		for _, c := range calls {
			<-c.done
			if c.err != nil {
				t.Fatal(c.err)
			}
		}
		equal(t, "starts in all", p.rt.Attempts(), 40)
		if p.Failure() != nil || !p.Proven() {
			t.Fatalf("ready, but Failure() = %v, Proven() = %t", p.Failure(), p.Proven())
		}
	})
}

func TestOldFailuresAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		p.rt.Plan(pooltest.Plan{Unready: true})
		for _, step := range []struct{ pause, want time.Duration }{
			{0, time.Second},
			{time.Second, 2 * time.Second},
			{2 * time.Minute, 4 * time.Second},
			{2*time.Minute + time.Second, time.Second},
		} {
			time.Sleep(step.pause)
			_, err := p.Acquire(t.Context())
			equal(t, "retry after", isStartError(t, err).RetryAfter, step.want)
		}
	})
}

// A start that takes minutes to fail is no reason to forget the one before.
func TestSlowFailuresAreNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		p.rt.Plan(pooltest.Plan{Unready: true, ReadyAfter: 4 * time.Minute})
		for _, want := range []int{1, 2, 4} {
			_, err := p.Acquire(t.Context())
			equal(t, "retry after", isStartError(t, err).RetryAfter, seconds(want))
			time.Sleep(seconds(want))
		}
	})
}

func TestAStartThatHangsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		p.Revision().Spec().Timeout = time.Hour
		p.rt.Plan(pooltest.Plan{Hang: true})
		began := time.Now()
		_, err := p.Acquire(t.Context())
		e := isStartError(t, err)
		if !strings.Contains(e.Error(), "not started within 5m0s") {
			t.Fatalf("got %v", e)
		}
		equal(t, "after", time.Since(began), 5*time.Minute)
	})
}

// An engine that does not answer is nobody's fault: requests wait for it.
func TestOutage(t *testing.T) {
	down := pooltest.Plan{StartErr: fmt.Errorf("dialling: %w", instancepool.ErrUnavailable)}
	t.Run("short", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.Plan(down)
			calls := p.askTimes(20)
			time.Sleep(8 * time.Second)
			if n := p.rt.Attempts(); n > 20+10 {
				t.Fatalf("%d starts in 8 seconds", n)
			}
			p.rt.Plan(pooltest.Plan{})
			for _, c := range calls {
				<-c.done
				if c.err != nil {
					t.Fatal(c.err)
				}
			}
			p.check()
		})
	})
	t.Run("long, twice", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.Plan(down)
			for range 2 {
				began := time.Now()
				_, err := p.Acquire(t.Context())
				if e := isStartError(t, err); e.Reason != "ResourcesUnavailable" || !errors.Is(e, instancepool.ErrUnavailable) {
					t.Fatalf("got %q, %v", e.Reason, e)
				}
				if waited := time.Since(began); waited < 10*time.Second || waited > 12*time.Second {
					t.Fatalf("gave up after %s", waited)
				}
				time.Sleep(time.Hour)
			}
		})
	})
	t.Run("while awaited", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.Plan(down)
			time.AfterFunc(time.Minute, func() { p.rt.Plan(pooltest.Plan{}) })
			if err := p.Await(t.Context(), 3); err != nil {
				t.Fatal(err)
			}
			equal(t, "running", len(p.rt.Running()), 3)
		})
	})
}

func TestACrashedInstanceIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances = 1
		p := start(t, rev)
		lease := p.need()
		waiter := p.ask(t.Context())
		synctest.Wait()
		time.Sleep(9 * time.Second)
		p.instance(lease).Kill(139)
		<-waiter.done
		if waiter.err != nil {
			t.Fatal(waiter.err)
		}
		if waiter.lease.Instance() == lease.Instance() {
			t.Fatal("the waiter got a slot of the instance that has crashed")
		}
		lease.Release()
		waiter.lease.Release()
		synctest.Wait() // for the stop of the crashed one
		p.check()
		equal(t, "in flight", p.Status().InFlight, 0)
		equal(t, "stops of the crashed one", p.rt.Instances()[0].Stops(), 1)
	})
}

// One early end may be the fault of a single request; the second in a row is
// the revision's, and backs off.
func TestEarlyExits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		p.rt.Plan(pooltest.Plan{ExitAfter: 5 * time.Second, ExitCode: 7})
		p.need().Release()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		p.need().Release() // by another one, at once
		equal(t, "starts", p.rt.Attempts(), 2)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		p.rt.Plan(pooltest.Plan{})
		_, err := p.Acquire(t.Context())
		e := isStartError(t, err)
		equal(t, "reason", e.Reason, "ExitCode7")
		equal(t, "retry after", e.RetryAfter, 2*time.Second)
		time.Sleep(e.RetryAfter)
		p.need().Release()
		if p.Failure() != nil {
			t.Fatalf("Failure() = %v after a success", p.Failure())
		}
	})
}

func TestLateExitsDoNotBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1))
		for range 10 {
			lease := p.need()
			time.Sleep(20 * time.Second)
			p.instance(lease).Kill(1)
			lease.Release()
			synctest.Wait()
		}
	})
}

func TestSuspect(t *testing.T) {
	setup := func(t *testing.T, most int) (*testPool, *instancepool.Lease) {
		rev := revision(2)
		rev.Spec().MaxInstances = most
		p := start(t, rev)
		return p, p.need()
	}
	t.Run("passes its probe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, lease := setup(t, 1)
			lease.Suspect()
			synctest.Wait()
			again := p.need()
			if again.Instance() != lease.Instance() {
				t.Fatal("it was replaced")
			}
			lease.Release()
			again.Release()
			p.check()
		})
	})
	t.Run("does not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, lease := setup(t, 2)
			p.instance(lease).Break()
			lease.Suspect()
			lease.Release()
			again := p.need()
			if again.Instance() == lease.Instance() {
				t.Fatal("a request went to an instance that does not accept connections")
			}
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), 1)
			again.Release()
			p.check()
		})
	})
	t.Run("counts for the maximum", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, lease := setup(t, 1)
			p.slowProbe(lease, 2*time.Second)
			lease.Suspect()
			waiter := p.ask(t.Context())
			synctest.Wait()
			equal(t, "states", p.states(), []instancepool.State{instancepool.Suspect})
			p.check()
			<-waiter.done
			if waiter.err != nil || waiter.lease.Cold {
				t.Fatalf("%+v, %v", waiter.lease, waiter.err)
			}
			equal(t, "starts", p.rt.Attempts(), 1)
			lease.Release()
			waiter.lease.Release()
		})
	})
}

// slowProbe makes the next probe of an instance take d.
func (p *testPool) slowProbe(l *instancepool.Lease, d time.Duration) {
	i := p.instance(l)
	i.ReadyAt(time.Now().Add(d))
}

func TestDrain(t *testing.T) {
	t.Run("requests in flight finish", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			a, b := p.need(), p.need()
			idle := p.need()
			idle.Release()
			p.Drain(time.Minute)
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), 2)
			if _, err := p.Acquire(t.Context()); !errors.Is(err, instancepool.ErrDraining) {
				t.Fatalf("Acquire: %v", err)
			}
			if err := p.Await(t.Context(), 1); !errors.Is(err, instancepool.ErrDraining) {
				t.Fatalf("Await: %v", err)
			}
			time.Sleep(10 * time.Second)
			a.Release()
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), 1)
			b.Release()
			<-p.Done()
			p.stoppedOnce()
		})
	})
	t.Run("waiters are served by what is ready", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rev := revision(1)
			rev.Spec().MaxInstances = 1
			p := start(t, rev)
			lease := p.need()
			waiters := p.askTimes(3)
			p.Drain(time.Minute)
			for _, w := range waiters {
				lease.Release()
				<-w.done
				if w.err != nil {
					t.Fatal(w.err)
				}
				lease = w.lease
			}
			lease.Release()
			<-p.Done()
			p.stoppedOnce()
		})
	})
	t.Run("waiters go elsewhere when nothing is ready", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.Plan(pooltest.Plan{ReadyAfter: time.Minute})
			waiter := p.ask(t.Context())
			synctest.Wait()
			p.Drain(time.Minute)
			<-waiter.done
			if !errors.Is(waiter.err, instancepool.ErrDraining) {
				t.Fatalf("got %v", waiter.err)
			}
			began := time.Now()
			<-p.Done()
			equal(t, "the start went on for", time.Since(began), 0)
			p.stoppedOnce()
			if f := p.Failure(); f != nil {
				t.Fatalf("an unwanted start counts as failed: %v", f)
			}
		})
	})
	t.Run("waiters go elsewhere when the last instance crashes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rev := revision(1)
			rev.Spec().MaxInstances = 1
			p := start(t, rev)
			lease := p.need()
			waiter := p.ask(t.Context())
			synctest.Wait()
			p.Drain(time.Minute)
			p.instance(lease).Kill(1)
			<-waiter.done
			if !errors.Is(waiter.err, instancepool.ErrDraining) {
				t.Fatalf("got %v", waiter.err)
			}
			<-p.Done()
			equal(t, "starts", p.rt.Attempts(), 1)
			lease.Release()
		})
	})
	t.Run("the deadline ends everything", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rev := revision(1)
			rev.Spec().MaxInstances = 1
			p := start(t, rev)
			lease := p.need()
			waiter := p.ask(t.Context())
			synctest.Wait()
			p.Drain(9 * time.Second)
			began := time.Now()
			<-waiter.done
			if !errors.Is(waiter.err, instancepool.ErrDraining) {
				t.Fatalf("got %v", waiter.err)
			}
			<-p.Done()
			equal(t, "ended after", time.Since(began), 9*time.Second)
			p.stoppedOnce()
			lease.Release()
			p.check()
			equal(t, "in flight", p.Status().InFlight, 0)
		})
	})
	t.Run("twice, the second without patience", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			lease := p.need()
			p.Drain(time.Minute)
			p.Drain(0)
			began := time.Now()
			<-p.Done()
			equal(t, "ended after", time.Since(began), 0)
			p.Drain(time.Minute)
			p.stoppedOnce()
			lease.Release()
		})
	})
	t.Run("an instance that ignores SIGTERM", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.Plan(pooltest.Plan{IgnoreTerm: true})
			p.need().Release()
			began := time.Now()
			p.Drain(time.Minute)
			<-p.Done()
			equal(t, "ended after", time.Since(began), instancepool.DefaultStopGrace)
			p.stoppedOnce()
		})
	})
	t.Run("an empty pool", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.Drain(time.Minute)
			<-p.Done()
		})
	})
}

// stoppedOnce checks that each instance there was has ended by exactly one stop.
func (p *testPool) stoppedOnce() {
	p.t.Helper()
	synctest.Wait()
	for _, i := range p.rt.Instances() {
		if i.Stops() != 1 {
			p.t.Errorf("%s was stopped %d times", i.ID(), i.Stops())
		}
	}
	if n := len(p.rt.Running()); n > 0 {
		p.t.Errorf("%d instances run", n)
	}
}

func TestDismiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances = 1
		p := start(t, rev)
		lease := p.need()
		waiters := p.askTimes(3)
		p.Drain(time.Minute)
		p.Dismiss()
		for _, w := range waiters {
			<-w.done
			if !errors.Is(w.err, instancepool.ErrDraining) {
				t.Fatalf("got %v", w.err)
			}
		}
		equal(t, "running", len(p.rt.Running()), 1)
		lease.Release()
		<-p.Done()
	})
}

func TestDetachLeavesInstancesRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().MaxInstances, rev.Spec().IdleTimeout = 3, time.Second
		p := start(t, rev)
		busy, idle, suspect := p.need(), p.need(), p.need()
		waiter := p.ask(t.Context())
		synctest.Wait()
		p.slowProbe(suspect, time.Second)
		suspect.Suspect()
		idle.Release() // goes to the waiter
		synctest.Wait()
		last := p.ask(t.Context())
		synctest.Wait()
		p.Detach()
		<-last.done
		if waiter.err != nil || !errors.Is(last.err, instancepool.ErrDraining) {
			t.Fatalf("%v, %v", waiter.err, last.err)
		}
		if _, err := p.Acquire(t.Context()); !errors.Is(err, instancepool.ErrDraining) {
			t.Fatalf("Acquire: %v", err)
		}
		busy.Release()
		suspect.Release()
		waiter.lease.Release()
		p.Drain(time.Second)
		time.Sleep(time.Hour)
		equal(t, "running", len(p.rt.Running()), 3)
		for _, i := range p.rt.Instances() {
			equal(t, "stops", i.Stops(), 0)
		}
	})
}

func TestDetachDuringAStart(t *testing.T) {
	for _, plan := range []pooltest.Plan{{StartTime: time.Hour}, {ReadyAfter: time.Hour}, {Hang: true}} {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.Plan(plan)
			waiter := p.ask(t.Context())
			synctest.Wait()
			began := time.Now()
			p.Detach()
			equal(t, "it took", time.Since(began), 0)
			<-waiter.done
			if !errors.Is(waiter.err, instancepool.ErrDraining) {
				t.Fatalf("got %v", waiter.err)
			}
			for _, i := range p.rt.Instances() {
				equal(t, "stops", i.Stops(), 0)
			}
		})
	}
}

func TestAwait(t *testing.T) {
	t.Run("as many as are wanted, not longer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rev := revision(1)
			rev.Spec().IdleTimeout = time.Minute
			p := start(t, rev)
			p.rt.Plan(pooltest.Plan{ReadyAfter: time.Second})
			if err := p.Await(t.Context(), 3); err != nil {
				t.Fatal(err)
			}
			equal(t, "states", p.states(), []instancepool.State{instancepool.Ready, instancepool.Ready, instancepool.Ready})
			if err := p.Await(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			equal(t, "starts", p.rt.Attempts(), 3)
			time.Sleep(time.Minute)
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), 0)
		})
	})
	t.Run("not more than the service's share", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.Bound(0, 1)
			if err := p.Await(t.Context(), 3); err != nil {
				t.Fatal(err)
			}
			equal(t, "starts", p.rt.Attempts(), 1)
			p.Bound(0, 3)
			p.rt.Plan(pooltest.Plan{Hang: true})
			time.AfterFunc(time.Second, func() { p.Bound(0, 1) })
			if err := p.Await(t.Context(), 3); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("what was suspected counts when it is back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rev := revision(1)
			rev.Spec().MaxInstances = 1
			p := start(t, rev)
			lease := p.need()
			p.instance(lease).ReadyAt(time.Now().Add(time.Second))
			lease.Suspect()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := p.Await(ctx, 1); err != nil {
				t.Fatal(err)
			}
			lease.Release()
		})
	})
	t.Run("not more than the maximum", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rev := revision(1)
			rev.Spec().MaxInstances = 2
			p := start(t, rev)
			if err := p.Await(t.Context(), 5); err != nil {
				t.Fatal(err)
			}
			equal(t, "starts", p.rt.Attempts(), 2)
		})
	})
	t.Run("the first failure", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
				return pooltest.Plan{Unready: p.rt.Attempts() == 2, ReadyAfter: time.Duration(p.rt.Attempts()) * time.Second}
			})
			began := time.Now()
			isStartError(t, p.Await(t.Context(), 3))
			equal(t, "after", time.Since(began), 2*time.Second)
		})
	})
	t.Run("its context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, revision(1))
			p.rt.Plan(pooltest.Plan{ReadyAfter: time.Hour})
			late := errors.New("not within a minute")
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, late)
			defer cancel()
			if err := p.Await(ctx, 1); !errors.Is(err, late) {
				t.Fatalf("got %v", err)
			}
		})
	})
}

func TestAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().IdleTimeout = time.Minute
		p := start(t, rev)
		found := p.rt.Leave("hello-00001-abcde", rev, pooltest.Plan{})
		if !p.Adopt(found) {
			t.Fatal("not adopted")
		}
		lease := p.need()
		equal(t, "instance", lease.Instance().ID(), found.ID())
		equal(t, "starts", p.rt.Attempts(), 0)
		lease.Release()
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "stops", found.Stops(), 1)
		for _, e := range p.eventsOf(found.ID()) {
			if !e.Adopted || e.PID != found.PID() {
				t.Errorf("%+v", e)
			}
		}
		p.Drain(0)
		if p.Adopt(p.rt.Leave("hello-00001-fghij", rev, pooltest.Plan{})) {
			t.Fatal("a pool that drains has adopted an instance")
		}
	})
}

func (p *testPool) eventsOf(id string) []instancepool.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.events), func(e instancepool.Event) bool { return e.Instance != id })
}

func TestEvents(t *testing.T) {
	type line struct {
		State  string
		Reason string
		Took   time.Duration
	}
	for _, test := range []struct {
		name string
		plan pooltest.Plan
		use  func(*testPool)
		want []line
	}{{
		name: "idle",
		plan: pooltest.Plan{StartTime: time.Second, ReadyAfter: time.Second, StopTime: time.Second},
		use:  func(p *testPool) { p.need().Release() },
		want: []line{{"starting", "demand", 0}, {"ready", "probe succeeded", 2 * time.Second}, {"draining", "idle", 0}, {"stopped", "idle", time.Second}},
	}, {
		name: "crash",
		plan: pooltest.Plan{ExitAfter: time.Minute},
		use:  func(p *testPool) { p.need() },
		want: []line{{"starting", "demand", 0}, {"ready", "probe succeeded", 0}, {"failed", "exited", time.Minute}},
	}, {
		name: "failed start",
		plan: pooltest.Plan{Unready: true, ReadyAfter: time.Second},
		use:  func(p *testPool) { _, _ = p.Acquire(p.t.Context()) },
		want: []line{{"starting", "demand", 0}, {"failed", "start failed", time.Second}},
	}, {
		name: "not wanted any more",
		plan: pooltest.Plan{ReadyAfter: time.Minute},
		use:  func(p *testPool) { p.ask(p.t.Context()); synctest.Wait(); p.Drain(time.Minute) },
		want: []line{{"starting", "demand", 0}, {"stopped", "not wanted any more", 0}},
	}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, revision(1))
				p.rt.Plan(test.plan)
				test.use(p)
				time.Sleep(time.Hour)
				var got []line
				for _, e := range p.eventsOf(p.rt.Instances()[0].ID()) {
					got = append(got, line{e.State.String(), e.Reason, e.Took})
				}
				equal(t, "events", got, test.want)
			})
		})
	}
}

// F13, F25, F27: whatever happens, an instance never has more requests than its
// limit, every request is answered, and in the end all slots are back.
func TestSlotsAreExact(t *testing.T) {
	for _, concurrency := range []int{1, 10, 80} {
		t.Run(fmt.Sprintf("concurrency %d", concurrency), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rev := revision(concurrency)
				rev.Spec().MaxInstances, rev.Spec().IdleTimeout = 7, 200*time.Millisecond
				p := start(t, rev)
				random := func(most time.Duration) time.Duration { return rand.N(most) }
				p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
					plan := pooltest.Plan{StartTime: random(50 * time.Millisecond), ReadyAfter: random(50 * time.Millisecond), StopTime: random(50 * time.Millisecond)}
					switch rand.IntN(10) {
					case 0:
						plan.ExitAfter = random(time.Second)
					case 1:
						plan.StartErr = errors.New("not this time")
					case 2:
						plan.StartErr = instancepool.ErrUnavailable
					case 3:
						plan.Unready = true
					}
					return plan
				})
				var answered, served atomic.Int64
				inUse := new(sync.Map) // instance → *atomic.Int64
				const clients, each = 200, 50
				var all sync.WaitGroup
				for range clients {
					all.Go(func() {
						for range each {
							time.Sleep(random(100 * time.Millisecond))
							ctx, cancel := context.WithTimeout(t.Context(), random(2*time.Second))
							lease, err := p.Acquire(ctx)
							answered.Add(1)
							if e, ok := errors.AsType[*instancepool.StartError](err); ok {
								time.Sleep(e.RetryAfter)
							}
							if err == nil {
								served.Add(1)
								v, _ := inUse.LoadOrStore(lease.Instance(), new(atomic.Int64))
								n := v.(*atomic.Int64)
								if now := n.Add(1); now > int64(concurrency) {
									t.Errorf("%d requests in one instance", now)
								}
								time.Sleep(random(20 * time.Millisecond))
								if rand.IntN(100) == 0 {
									lease.Suspect()
								}
								n.Add(-1)
								lease.Release()
							}
							cancel()
						}
					})
				}
				stop := make(chan struct{})
				var disturbance sync.WaitGroup
				disturbance.Go(func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(random(100 * time.Millisecond)):
						}
						p.check()
						if running := p.rt.Running(); len(running) > 0 && rand.IntN(5) == 0 {
							running[rand.IntN(len(running))].Kill(1)
						}
					}
				})
				all.Wait()
				close(stop)
				disturbance.Wait()
				equal(t, "answered", answered.Load(), clients*each)
				t.Logf("%d of %d served by %d instances", served.Load(), answered.Load(), len(p.rt.Instances()))
				if served.Load() < clients*each/4 {
					t.Error("hardly any request was served: this tests nothing")
				}
				p.check()
				s := p.Status()
				equal(t, "waiting and in flight", s.Waiting+s.InFlight, 0)
				p.Drain(time.Minute)
				<-p.Done()
				p.stoppedOnce()
			})
		})
	}
}

// F15, F32: the same without a clock, as fast as the machine can, with a drain
// in the middle: no waiter is forgotten.
func TestSlotsAreExactInParallel(t *testing.T) {
	for range 20 {
		rev := revision(3)
		rev.Spec().MaxInstances = 4
		p := start(t, rev)
		inUse := new(sync.Map)
		var clients sync.WaitGroup
		for c := range 16 {
			clients.Go(func() {
				for n := range 200 {
					ctx, cancel := context.WithCancel(context.Background())
					if n%5 == 0 {
						go cancel()
					}
					lease, err := p.Acquire(ctx)
					switch {
					case err == nil:
						v, _ := inUse.LoadOrStore(lease.Instance(), new(atomic.Int64))
						if now := v.(*atomic.Int64).Add(1); now > 3 {
							t.Errorf("%d requests in one instance", now)
						}
						runtime.Gosched()
						switch {
						case n%50 == c:
							lease.Suspect()
						case n == 150 && c == 0:
							p.Drain(time.Minute)
						}
						v.(*atomic.Int64).Add(-1)
						lease.Release()
						lease.Release()
					case errors.Is(err, instancepool.ErrDraining), errors.Is(err, context.Canceled):
					default:
						t.Error(err)
					}
					cancel()
				}
			})
		}
		clients.Wait()
		p.Drain(time.Minute)
		<-p.Done()
		p.Wait()
		p.check()
		for _, i := range p.rt.Instances() {
			if i.Stops() != 1 {
				t.Errorf("%s was stopped %d times", i.ID(), i.Stops())
			}
		}
	}
}

func BenchmarkAcquireRelease(b *testing.B) {
	for _, instances := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("%d instances", instances), func(b *testing.B) {
			rev := revision(80)
			p := start(b, rev)
			if err := p.Await(b.Context(), instances); err != nil {
				b.Fatal(err)
			}
			ctx := b.Context()
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				lease, err := p.Acquire(ctx)
				if err != nil {
					b.Fatal(err)
				}
				lease.Release()
			}
		})
		b.Run(fmt.Sprintf("%d instances in parallel", instances), func(b *testing.B) {
			p := start(b, revision(80))
			if err := p.Await(b.Context(), instances); err != nil {
				b.Fatal(err)
			}
			ctx := b.Context()
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					lease, err := p.Acquire(ctx)
					if err != nil {
						b.Error(err)
						return
					}
					lease.Release()
				}
			})
		})
	}
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// told are all events.
func (p *testPool) told() []instancepool.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}
