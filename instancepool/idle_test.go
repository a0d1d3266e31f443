package instancepool_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
)

// Of idle instances that the average load does not need none is kept; the last one
// is, until the idle timeout.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := throttled(1)
		rev.Spec().Scaling.Window, rev.Spec().IdleTimeout = time.Minute, 90*time.Second
		p := start(t, rev)
		p.keep.Store(4)
		var leases []*instancepool.Lease
		for range 5 {
			leases = append(leases, p.need())
		}
		for _, l := range leases {
			l.Release()
		}
		running := func(want int) {
			t.Helper()
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), want)
		}
		time.Sleep(9 * time.Second)
		running(5)
		time.Sleep(2 * time.Second)
		running(4)
		p.keep.Store(0) // the load is over
		time.Sleep(10 * time.Second)
		running(1)
		time.Sleep(68 * time.Second)
		running(1)
		time.Sleep(2 * time.Second)
		running(0)
	})
}

// A service whose requests come every five minutes has its instance just before
// each, and none in between.
func TestAnExpectedRequestFindsAnInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := throttled(1)
		rev.Spec().IdleTimeout = 2 * time.Minute
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{StartTime: time.Second})
		cold := 0
		var existed time.Duration
		for beat := range 20 {
			if beat == 10 {
				cold = 0
				existed, _ = p.lived()
			}
			lease := p.need()
			if lease.Cold {
				cold++
			}
			if beat > 10 && !strings.HasPrefix(p.Status().Instances[0].Why, "a request is expected 4m") {
				t.Errorf("it is there because of %q", p.Status().Instances[0].Why)
			}
			time.Sleep(100 * time.Millisecond)
			lease.Release()
			time.Sleep(5*time.Minute - 100*time.Millisecond)
		}
		equal(t, "cold starts once the rhythm is known", cold, 0)
		after, _ := p.lived()
		if per := (after - existed) / 10; per > time.Minute {
			t.Errorf("an instance existed for %s of every 5m", per)
		}
		// When nobody comes any more it is stopped, and does not come back.
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		equal(t, "running", len(p.rt.Running()), 0)
		starts := p.rt.Attempts()
		time.Sleep(24 * time.Hour)
		equal(t, "starts for nobody", p.rt.Attempts()-starts, 0)
	})
}

// lived is how long all instances existed, and how long they could run.
func (p *testPool) lived() (existed, unfrozen time.Duration) {
	for _, i := range p.rt.Instances() {
		e, u := i.Lived()
		existed, unfrozen = existed+e, unfrozen+u
	}
	return existed, unfrozen
}

// Without a rhythm, an instance is kept for its idle timeout.
func TestAtRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(1))
		for _, pause := range []time.Duration{time.Minute, 7 * time.Minute, 20 * time.Second, 3 * time.Minute, 12 * time.Minute, 40 * time.Second, 14 * time.Minute} {
			p.need().Release()
			time.Sleep(pause)
		}
		equal(t, "starts", p.rt.Attempts(), 1)
	})
}

func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(1))
		running := func(want int) {
			t.Helper()
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), want)
		}
		p.Bound(2, 3)
		running(2)
		time.Sleep(time.Hour)
		running(2)
		calls := p.askTimes(5)
		running(3)
		for _, c := range calls {
			<-c.done
			c.lease.Release()
			synctest.Wait()
		}
		p.Bound(1, 1)
		time.Sleep(time.Hour)
		running(1)
		p.Bound(0, -1)
		time.Sleep(time.Hour)
		running(0)
	})
}

// The last idle instance is not looked at again and again: nothing can become of
// it before its idle timeout.
func TestAnIdleInstanceIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := throttled(1)
		rev.Spec().Scaling.Window, rev.Spec().IdleTimeout = time.Minute, time.Hour
		var looks atomic.Int64 // Decide is asked at each
		p := startWith(t, rev, func(o *instancepool.Options, _ *pooltest.Runtime) {
			decide := o.Decide
			o.Decide = func(s instancepool.Snapshot) instancepool.Decision {
				looks.Add(1)
				return decide(s)
			}
		})
		p.need().Release()
		time.Sleep(keptAtLeast + time.Second)
		before := looks.Load()
		time.Sleep(59 * time.Minute)
		if n := looks.Load() - before; n != 0 {
			t.Errorf("it was looked at %d times", n)
		}
		equal(t, "running", len(p.rt.Running()), 1)
		time.Sleep(time.Minute)
		equal(t, "running", len(p.rt.Running()), 0)
	})
}

// keptAtLeast is how long every instance is kept.
const keptAtLeast = 10 * time.Second

// What was left alone is looked at when there may be fewer instances than before.
func TestAnIdleInstanceIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := throttled(1)
		rev.Spec().Scaling.Window, rev.Spec().IdleTimeout = time.Minute, time.Hour
		p := start(t, rev)
		running := func(want int) {
			t.Helper()
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), want)
		}
		p.need().Release()
		time.Sleep(10 * time.Minute)
		running(1)
		if err := p.Await(t.Context(), 2); err != nil { // another one has come
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		running(1)
		p.Bound(2, 0)
		time.Sleep(10 * time.Minute)
		running(2)
		p.Bound(1, 0)
		time.Sleep(6 * time.Second)
		running(1)
		time.Sleep(2 * time.Hour)
		running(1)
		p.Bound(0, -1)
		time.Sleep(6 * time.Second)
		running(0)
	})
}

// What is no use says nothing of how many instances there are to be.
func TestWhatIsNoUseIsNoLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told instancepool.Snapshot // Decide is called by this goroutine
		p := startWith(t, revision(2), func(o *instancepool.Options, _ *pooltest.Runtime) {
			decide := o.Decide
			o.Decide = func(s instancepool.Snapshot) instancepool.Decision {
				told = s
				return decide(s)
			}
		})
		lease := p.need()
		time.Sleep(100 * time.Millisecond)
		lease.Release()
		quiet, err := p.AcquireAwake()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		quiet.Release()
		p.Wake()
		equal(t, "a request takes", told.Held, 100*time.Millisecond)
		if told.Load[0] > 0.01 {
			t.Errorf("the load is %.3f", told.Load[0])
		}
	})
}

// What is no use neither starts, thaws nor keeps an instance.
func TestAcquireAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(2)
		rev.Spec().IdleTimeout = 15 * time.Minute
		p := start(t, rev)
		if _, err := p.AcquireAwake(); !errors.Is(err, instancepool.ErrAsleep) {
			t.Fatalf("of none: %v", err)
		}
		synctest.Wait()
		equal(t, "running", len(p.rt.Running()), 0)
		p.need().Release()
		released := time.Now()
		for range 14 {
			time.Sleep(time.Minute)
			lease, err := p.AcquireAwake()
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "in flight", p.Status().InFlight, 1)
			if lease.Instance().ID() == "" {
				t.Error("no instance")
			}
			lease.Release()
			lease.Release() // counts once
			equal(t, "in flight", p.Status().InFlight, 0)
		}
		// One that lasts beyond the end of the idle time.
		lease, err := p.AcquireAwake()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		equal(t, "running", len(p.rt.Running()), 1)
		lease.Release()
		time.Sleep(time.Second)
		equal(t, "running, "+time.Since(released).String()+" after the last use", len(p.rt.Running()), 0)
	})
}
