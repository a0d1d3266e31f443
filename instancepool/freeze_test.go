package instancepool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

// moment is longer than an instance may be idle without being frozen.
const moment = 100 * time.Millisecond

// throttled is revision with CPU during requests only.
func throttled(concurrency int) *revisions.Revision {
	rev := revision(concurrency)
	rev.Spec().Throttled = true
	return rev
}

func TestAnIdleInstanceIsFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(2))
		p.rt.Plan(pooltest.Plan{FreezeTime: time.Millisecond, ThawTime: 2 * time.Millisecond})
		first, second := p.need(), p.need()
		i := p.instance(first)
		first.Release()
		time.Sleep(time.Hour) // a stream, a WebSocket
		if i.Frozen() {
			t.Fatal("it is frozen with a request in flight")
		}
		second.Release()
		time.Sleep(moment)
		synctest.Wait()
		if !i.Frozen() {
			t.Fatal("it is not frozen without a request")
		}
		equal(t, "states", p.states(), []instancepool.State{instancepool.Frozen})
		p.check()
		time.Sleep(time.Minute)
		again := p.need()
		if i.Frozen() || p.instance(again) != i {
			t.Fatal("the request has not got the thawed instance")
		}
		equal(t, "waited", again.Waited, 2*time.Millisecond)
		equal(t, "cold", again.Cold, false)
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready})
		p.check()
		again.Release()
		time.Sleep(moment)
		equal(t, "freezes", i.Freezes(), 2)
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		equal(t, "running", len(p.rt.Running()), 0)
	})
}

func TestAnInstanceThatPaysForItsCPUIsNotFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(1)) // cpu-throttling: false
		lease := p.need()
		lease.Release()
		time.Sleep(time.Minute)
		equal(t, "freezes", p.instance(lease).Freezes(), 0)
	})
}

// Between a request that is admitted and an instance that is being frozen there is
// no moment in which the request meets ice.
func TestFreezingNeverMeetsARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := throttled(3)
		rev.Spec().MaxInstances = 2
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{FreezeTime: 700 * time.Microsecond, ThawTime: 300 * time.Microsecond})
		r := rand.New(rand.NewPCG(1, 2))
		for range 10_000 {
			var wg sync.WaitGroup
			for range 4 {
				before, during := time.Duration(r.IntN(3000))*time.Microsecond, time.Duration(r.IntN(1000))*time.Microsecond
				wg.Go(func() {
					time.Sleep(before)
					lease, err := p.Acquire(t.Context())
					if err != nil {
						t.Errorf("Acquire: %v", err)
						return
					}
					if p.instance(lease).Frozen() {
						t.Errorf("instance %s is frozen", lease.Instance().ID())
					}
					time.Sleep(during)
					lease.Release()
				})
			}
			wg.Wait()
			// The next ones come around the time of the freeze.
			time.Sleep(49 * time.Millisecond)
		}
		p.check()
		freezes := 0
		for _, i := range p.rt.Instances() {
			freezes += i.Freezes()
		}
		if freezes < 1000 {
			t.Errorf("only %d freezes: nothing was tested", freezes)
		}
	})
}

// F64: a thaw that fails, or hangs, is a failed instance; its request goes to
// another.
func TestAThawThatFails(t *testing.T) {
	for name, plan := range map[string]pooltest.Plan{
		"at once": {ThawErr: errors.New("no such cgroup")},
		"never":   {ThawTime: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, throttled(2))
				lease := p.need()
				first := p.instance(lease)
				lease.Release()
				time.Sleep(moment)
				first.Replan(func(pl *pooltest.Plan) { *pl = plan })
				one, two := p.ask(t.Context()), p.ask(t.Context())
				<-one.done
				<-two.done
				if one.err != nil || two.err != nil {
					t.Fatalf("got %v and %v", one.err, two.err)
				}
				if p.instance(one.lease) == first || p.instance(two.lease) == first {
					t.Error("a request got the instance that does not thaw")
				}
				if waited := one.lease.Waited; waited > 3*time.Second {
					t.Errorf("it took %s", waited)
				}
				one.lease.Release()
				two.lease.Release()
				synctest.Wait()
				p.check()
				equal(t, "stops", first.Stops(), 1)
				for _, e := range p.told() {
					if e.Instance == first.ID() && e.State == instancepool.Stopped && strings.Contains(e.Reason, "does not thaw") {
						return
					}
				}
				t.Errorf("nobody was told why: %+v", p.told())
			})
		})
	}
}

// What cannot be frozen runs on, and is left alone for a while.
func TestAFreezeThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(1))
		p.rt.Plan(pooltest.Plan{FreezeErr: errors.New("read-only file system")})
		p.need().Release()
		time.Sleep(30 * time.Second)
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready})
		warned := 0
		for _, e := range p.told() {
			if e.State == instancepool.Frozen && e.Err != nil {
				warned++
			}
		}
		equal(t, "warnings", warned, 1)
		p.rt.Instances()[0].Replan(func(pl *pooltest.Plan) { pl.FreezeErr = nil })
		time.Sleep(time.Minute)
		p.need().Release()
		time.Sleep(moment)
		equal(t, "states", p.states(), []instancepool.State{instancepool.Frozen})
	})
}

// An instance that is awake is preferred to one that would have to be thawed, as
// long as it is not loaded.
func TestAFrozenInstanceIsTheSecondChoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(10))
		var leases []*instancepool.Lease
		for range 20 {
			leases = append(leases, p.need())
		}
		equal(t, "running", len(p.rt.Running()), 2)
		for _, l := range leases[1:] {
			l.Release()
		}
		busy := p.instance(leases[0])
		time.Sleep(moment)
		for range 9 {
			equal(t, "the busy one is asked", p.instance(p.need()) == busy, true)
		}
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready, instancepool.Frozen})
		equal(t, "the full one is spared", p.instance(p.need()) == busy, false)
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready, instancepool.Ready})
		p.check()
	})
}

func TestAWaiterOfAFrozenSlotCanLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(1))
		p.rt.Plan(pooltest.Plan{ThawTime: time.Second})
		p.need().Release()
		time.Sleep(moment)
		ctx, cancel := context.WithCancel(t.Context())
		c := p.ask(ctx)
		synctest.Wait()
		cancel()
		<-c.done
		if c.err == nil { // it may have its slot: then it gives it back as always
			c.lease.Release()
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		p.check()
		equal(t, "in flight", p.Status().InFlight, 0)
	})
}

// Whoever leaves while an instance is being frozen, too soon for it to be thawed, has
// woken nothing: it sleeps on, and serves the next.
func TestLeavingAnInstanceThatIsBeingFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(1))
		p.rt.Plan(pooltest.Plan{FreezeTime: time.Second, ThawTime: time.Second})
		p.need().Release()
		time.Sleep(moment)
		ctx, cancel := context.WithTimeout(t.Context(), moment)
		defer cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		frozen := func() {
			t.Helper()
			time.Sleep(5 * time.Second)
			synctest.Wait()
			p.check()
			equal(t, "states", p.states(), []instancepool.State{instancepool.Frozen})
			equal(t, "frozen", p.rt.Running()[0].Frozen(), true)
		}
		frozen()
		lease := p.need()
		equal(t, "frozen, with a request", p.instance(lease).Frozen(), false)
		lease.Release()
		frozen()
		time.Sleep(time.Hour)
		equal(t, "running after the idle timeout", len(p.rt.Running()), 0)
	})
}

// An earlier process may have left it frozen.
func TestAFrozenInstanceIsAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := throttled(1)
		p := start(t, rev)
		i := p.rt.Leave("hello-00001-abcde", rev, pooltest.Plan{})
		if err := i.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !p.Adopt(i) {
			t.Fatal("it is not adopted")
		}
		synctest.Wait()
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready})
		lease := p.need()
		equal(t, "the adopted one serves", p.instance(lease) == i, true)
		lease.Release()
	})
}

// A frozen instance is stopped like any other.
func TestStoppingAFrozenInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(1))
		p.need().Release()
		time.Sleep(moment)
		spares := p.Spares()
		if len(spares) != 1 || spares[0].ID != p.rt.Instances()[0].ID() || time.Since(spares[0].Since) != moment {
			t.Fatalf("Spares() = %v", spares)
		}
		id := spares[0].ID
		if !p.Evict(id, "its room is needed") || p.Evict(id, "again") {
			t.Fatal("it is evicted once")
		}
		synctest.Wait()
		equal(t, "running", len(p.rt.Running()), 0)
		p.check()
		lease := p.need()
		if len(p.Spares()) > 0 || p.Evict(lease.Instance().ID(), "x") {
			t.Error("an instance in use is not idle")
		}
		lease.Release()
	})
}

// A thaw that hangs fails once for all that wait for it, and nobody waits for it longer
// than for its request.
func TestAThawThatFailsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(10))
		p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			if len(p.rt.Instances()) > 0 {
				return pooltest.Plan{}
			}
			return pooltest.Plan{ThawTime: time.Hour}
		})
		p.need().Release()
		time.Sleep(moment)
		began := time.Now()
		calls := p.askTimes(9)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		impatient := p.ask(ctx)
		for _, c := range calls {
			<-c.done
			if c.err != nil {
				t.Fatal(c.err)
			}
			if took := c.at.Sub(began); took > 2100*time.Millisecond {
				t.Errorf("a request waited %s for one thaw", took)
			}
			c.lease.Release()
		}
		<-impatient.done
		if impatient.lease != nil || impatient.at.Sub(began) > time.Second+moment {
			t.Errorf("the request that was over got %v after %s", impatient.err, impatient.at.Sub(began))
		}
	})
}

// Who may wake nothing waits for no thaw either.
func TestAcquireAwakeDuringAThaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, throttled(10))
		p.rt.Plan(pooltest.Plan{ThawTime: time.Second})
		p.need().Release()
		time.Sleep(moment)
		c := p.ask(t.Context())
		synctest.Wait()
		if l, err := p.AcquireAwake(); !errors.Is(err, instancepool.ErrAsleep) {
			t.Errorf("got %v, %v from an instance that is being thawed", l, err)
		}
		<-c.done
		l, err := p.AcquireAwake()
		if err != nil {
			t.Fatal(err)
		}
		l.Release()
		c.lease.Release()
	})
}
