package scaler

import (
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

func TestStrain(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		s := newStrain(rt)
		step := func(busy float64, after time.Duration, want int) {
			t.Helper()
			rt.Busy(busy)
			time.Sleep(after)
			equal(t, "allowed", s.allows(), want)
		}
		step(1, time.Hour, math.MaxInt) // nothing is known yet
		step(0.9, strainOver, math.MaxInt)
		step(1, strainOver, 0)
		step(0, strainOver-1, 0)          // too soon to tell
		step(0.9, strainOver+1, 1)        // for it is the mean since it was last looked at
		step(0.9, strainOver, 2)          // not used up before it is again
		step(0.96, strainOver, 0)         // now
		step(0.9, strainOver, 0)          // still
		step(0.5, strainOver, 1)          // and so on
		step(0.5, strainOver, 2)          //
		step(0.5, 3*time.Second, 4)       // for each look
		step(1, 3*time.Second, 0)         //
		step(1, time.Minute, math.MaxInt) // nobody has asked for long
		equal(t, "strained for", s.total(), 3*strainOver+3*time.Second)

		for range 100 {
			step(0, strainOver, math.MaxInt)
		}
		step(1, strainOver, 0)
		step(0, strainOver, 1)
		for range 100 {
			time.Sleep(strainOver)
			if s.allows() < 1 {
				t.Fatal("the bound has overflown")
			}
		}
		step(1, strainOver, 0)
		s.worked = func() (busy, idle time.Duration, err error) { return 0, 0, errors.New("no /proc") }
		step(1, strainOver, math.MaxInt)
	})
	if got := newStrain(struct{ instancepool.Runtime }{}).allows(); got != math.MaxInt {
		t.Errorf("an engine that does not know how busy its host is allows %d", got)
	}
}

func TestDecideUnderStrain(t *testing.T) {
	const ms = time.Millisecond
	spec := &revisions.Spec{Concurrency: 1, CPU: 1, Scaling: revisions.Scaling{Concurrency: 0.6, CPU: 0.6}}
	full := instancepool.Snapshot{Concurrency: 1, InFlight: 30, Ready: 30, Load: [2]float64{30, 30}, Held: 25 * ms, Startup: 100 * ms}
	with := func(s instancepool.Snapshot, change func(*instancepool.Snapshot)) instancepool.Snapshot {
		change(&s)
		return s
	}
	queue := with(full, func(s *instancepool.Snapshot) { s.Waiting, s.Oldest = 100, time.Second })
	for _, test := range []struct {
		name    string
		s       instancepool.Snapshot
		allowed int
		want    int
		why     string
		again   time.Duration
	}{
		{"above the target", full, math.MaxInt, 20, whyTarget, 0},
		{"above the target, strained", full, 0, 0, "", strainOver},
		{"above the target, relieved", full, 2, 2, whyTarget, strainOver},
		{"a queue", queue, math.MaxInt, 30, whyWaiting, 100 * ms},
		{"a queue, strained", queue, 0, 1, whyWaiting, strainOver},
		{"a queue, strained, one starts", with(queue, func(s *instancepool.Snapshot) { s.Starting = 1 }), 0, 0, "", strainOver},
		{"a queue, relieved", queue, 4, 4, whyWaiting, strainOver},
		{"nothing is there", instancepool.Snapshot{Concurrency: 1, Waiting: 100, Max: 20}, 0, 20, whyWaiting, 0},
		{"the minimum lacks", instancepool.Snapshot{Concurrency: 1, Min: 5, Ready: 1}, 0, 4, whyMinimum, 0},
		{"a deploy", instancepool.Snapshot{Concurrency: 1, Floor: 5, Ready: 1}, 0, 4, whyDeploy, 0},
		{"the maximum is there", with(full, func(s *instancepool.Snapshot) { s.Max = 30 }), 0, 0, "", 0},
	} {
		got := decide(test.s, spec, 4, func() int { return test.allowed })
		if got.Start != test.want || got.Reason != test.why || got.Again != test.again {
			t.Errorf("%s: decide(%+v) = %+v, want %d, because of %q, again after %s", test.name, test.s, got, test.want, test.why, test.again)
		}
	}
}

// What takes long because the processors are used up takes longer with each instance
// that starts, and would have more of them start without end.
func TestNothingStartsAheadOnABusyHost(t *testing.T) {
	const requests = 12
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.Plan(pooltest.Plan{StartTime: 100 * time.Millisecond})
		h.declare(1, svc(t, "hello", "concurrency=1"))
		rt.Busy(1)
		var leases []*instancepool.Lease
		for range requests {
			leases = append(leases, h.need("hello"))
		}
		instances := func() int { return h.running()["hello-00001"] }
		equal(t, "instances", instances(), requests)
		time.Sleep(2 * time.Minute)
		equal(t, "instances", instances(), requests)
		if got := h.Budget().Strained; got < time.Minute {
			t.Errorf("it was strained for %s", got)
		}
		rt.Busy(0.5)
		time.Sleep(10 * time.Second)
		equal(t, "instances", instances(), requests*10/6)
		for _, lease := range leases {
			lease.Release()
		}
		synctest.Wait()
	})
}

// The host is not quiet while its processors are used up.
func TestNothingIsPreparedOnABusyHost(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.Busy(1)
		h.declare(1, svc(t, "other"), svc(t, "hello", "run.fairway/prepared=2"))
		other := h.need("other")
		time.Sleep(3 * measureEvery)
		h.need("hello").Release()
		time.Sleep(5 * time.Second)
		equal(t, "prepared", rt.Prepared(), 0)
		rt.Busy(0)
		time.Sleep(5 * time.Second)
		equal(t, "prepared, when it is quiet", rt.Prepared(), 2)
		other.Release()
	})
}
