package instancepool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

// liveness and readiness are checks by a command, which names them.
func liveness(period time.Duration, failures int) revisions.Check {
	return revisions.Check{
		Probe:    revisions.Probe{Kind: revisions.ProbeExec, Command: []string{"live"}, Attempt: time.Second},
		Liveness: true, Period: period, Failures: failures, Successes: 1,
	}
}

func readiness(period time.Duration, failures, successes int) revisions.Check {
	return revisions.Check{
		Probe:  revisions.Probe{Kind: revisions.ProbeExec, Command: []string{"ready"}, Attempt: time.Second},
		Period: period, Failures: failures, Successes: successes,
	}
}

// checked is revision with checks.
func checked(concurrency int, checks ...revisions.Check) *revisions.Revision {
	rev := revision(concurrency)
	rev.Spec().Health[0].Checks = checks
	return rev
}

// failing are the checks that fail, by their names; it is a Plan's Exec.
type failing struct{ live, ready atomic.Bool }

func (f *failing) exec(_ context.Context, _ string, command []string) error {
	if command[0] == "live" && f.live.Load() || command[0] == "ready" && f.ready.Load() {
		return errors.New("it is not well")
	}
	return nil
}

func (p *testPool) awaitState(want ...instancepool.State) {
	p.t.Helper()
	synctest.Wait()
	equal(p.t, "states", p.states(), want)
	p.check()
}

// An instance whose liveness probe fails so many times in a row is killed, with
// what it has in flight, and replaced: at once if it is of the minimum.
func TestLivenessReplaces(t *testing.T) {
	for _, minimum := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			rev := checked(2, liveness(10*time.Second, 3))
			rev.Spec().MinInstances = minimum
			p := start(t, rev)
			var sick failing
			p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
				if len(p.rt.Instances()) > 0 {
					return pooltest.Plan{}
				}
				return pooltest.Plan{Exec: sick.exec, StopTime: 5 * time.Second, Log: "deadlock\n"}
			})
			lease := p.need()
			time.Sleep(time.Minute + time.Second)
			i := p.instance(lease)
			equal(t, "probes in a minute", i.Execs("app"), 6)
			sick.live.Store(true)
			time.Sleep(20 * time.Second)
			sick.live.Store(false)
			time.Sleep(10 * time.Second) // two failures, and a success
			sick.live.Store(true)
			time.Sleep(29*time.Second - time.Millisecond)
			synctest.Wait()
			select {
			case <-lease.Instance().Exited():
				t.Fatal("it has been ended before three failures in a row")
			default:
			}
			time.Sleep(time.Second)
			<-lease.Instance().Exited()
			equal(t, "exit code", i.Exit().Code, 137) // SIGKILL, not its five seconds after SIGTERM
			lease.Release()
			synctest.Wait()
			equal(t, "instances, the replacement included", len(p.rt.Instances()), 1+minimum)
			events := p.eventsOf(i.ID())
			failed, last := events[len(events)-2], events[len(events)-1]
			equal(t, "told", failed.State, instancepool.Failed)
			equal(t, "it holds what it holds", failed.Holds, true)
			equal(t, "reason", failed.Reason, "liveness probe failed")
			for _, part := range []string{"the liveness probe (exec live) failed 3 times in a row: it is not well", "deadlock"} {
				if !strings.Contains(failed.Err.Error(), part) {
					t.Errorf("it says %q, which lacks %q", failed.Err, part)
				}
			}
			equal(t, "told in the end", last.State, instancepool.Stopped)
			equal(t, "reason", last.Reason, "liveness probe failed")
			again := p.need()
			equal(t, "replaced", p.instance(again) != i, true)
			again.Release()
			p.check()
		})
	}
}

// What fails again and again soon after its start is started ever less often.
func TestLivenessIsLimitedLikeACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := checked(1, liveness(time.Second, 1))
		rev.Spec().MinInstances = 1
		p := start(t, rev)
		var sick failing
		sick.live.Store(true)
		p.rt.Plan(pooltest.Plan{Exec: sick.exec})
		p.Wake()
		time.Sleep(time.Minute)
		synctest.Wait()
		// At 0, 1, then after pauses of 1, 2, 4, 8, 16 and 32 s, a second each.
		if n := p.rt.Attempts(); n < 5 || n > 8 {
			t.Errorf("%d starts in a minute", n)
		}
		if f := p.Failure(); f == nil || f.Reason != "LivenessProbeFailed" {
			t.Errorf("the failure is %v", f)
		}
	})
}

// Liveness and readiness are asked from when the instance is ready: its start is
// the first success.
func TestChecksBeginAfterTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := readiness(10*time.Second, 1, 1)
		late.Delay = 5 * time.Minute
		p := start(t, healthOf(1, revisions.Health{Container: "app", Startup: execProbe("app", 4*time.Minute), Checks: []revisions.Check{liveness(10*time.Second, 1)}}, revisions.Health{Container: "late", Checks: []revisions.Check{late}}))
		var sick failing
		sick.live.Store(true)
		p.rt.Plan(pooltest.Plan{ReadyAfter: 3 * time.Minute, Exec: sick.exec})
		c := p.ask(t.Context())
		time.Sleep(3*time.Minute - time.Second)
		sick.live.Store(false)
		<-c.done
		lease := c.lease
		i := p.instance(lease)
		equal(t, "probes before it is ready", i.Execs("app"), 0)
		time.Sleep(9 * time.Second)
		equal(t, "probes before a period has passed", i.Execs("app"), 0)
		time.Sleep(2 * time.Second)
		equal(t, "probes", i.Execs("app"), 1)
		time.Sleep(time.Minute)
		equal(t, "probes before the delay is over", i.Execs("late"), 0)
		time.Sleep(time.Minute)
		equal(t, "probes after the delay", i.Execs("late"), 2)
		lease.Release()
	})
}

// An instance that is not ready goes on with what it has, gets nothing new, counts
// as one, and comes back.
func TestReadinessLoss(t *testing.T) {
	for _, most := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			rev := checked(3, readiness(time.Second, 2, 3))
			rev.Spec().MaxInstances = most
			p := start(t, rev)
			var sick failing
			p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
				if len(p.rt.Instances()) > 0 {
					return pooltest.Plan{}
				}
				return pooltest.Plan{Exec: sick.exec}
			})
			held := p.need()
			first := p.instance(held)
			time.Sleep(500 * time.Millisecond)
			sick.ready.Store(true)
			time.Sleep(time.Second)
			p.awaitState(instancepool.Ready) // once is not enough
			time.Sleep(time.Second)
			p.awaitState(instancepool.Unready)
			c := p.ask(t.Context())
			synctest.Wait()
			equal(t, "a new request is served", c.answered(), most == 2)
			if most == 2 {
				equal(t, "by another instance", p.instance(c.lease) != first, true)
				c.lease.Release()
			}
			equal(t, "starts", p.rt.Attempts(), most)
			preferred := p.Status().Instances[0].ID
			if most == 2 { // even a client's own instance gets nothing new
				l, err := p.AcquireOn(t.Context(), preferred, time.Time{})
				if err != nil || p.instance(l) == first {
					t.Fatalf("AcquireOn: %v", err)
				}
				l.Release()
			}
			select {
			case <-held.Instance().Exited():
				t.Fatal("it was ended")
			default:
			}
			sick.ready.Store(false)
			time.Sleep(2 * time.Second)
			equal(t, "after two successes", p.Status().Instances[0].State, instancepool.Unready)
			time.Sleep(time.Second)
			synctest.Wait()
			equal(t, "after three", p.Status().Instances[0].State, instancepool.Ready)
			p.check()
			<-c.done
			if most == 1 {
				equal(t, "the one that waited got its slot", p.instance(c.lease) == first, true)
				c.lease.Release()
			}
			held.Release()
			var states []string
			for _, e := range p.eventsOf(first.ID()) {
				states = append(states, e.State.String()+": "+e.Reason)
				if e.State == instancepool.Ready && len(states) > 3 && e.Phases != nil {
					t.Error("to be ready again is no start")
				}
			}
			equal(t, "events", states, []string{
				"starting: demand", "ready: probe succeeded",
				"unready: the readiness probe (exec ready) failed 2 times in a row: it is not well",
				"ready: readiness probe succeeded again",
			})
		})
	}
}

// Requests that were to wait for a slot of an instance have it decided anew when
// that gets unready.
func TestWaitersOfAnUnreadyInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWith(t, checked(1, readiness(time.Second, 1, 1)), func(o *instancepool.Options, _ *pooltest.Runtime) {
			o.Decide = func(s instancepool.Snapshot) instancepool.Decision {
				if s.Waiting > 0 && s.Ready+s.Starting == 0 {
					return instancepool.Decision{Start: 1}
				}
				return instancepool.Decision{}
			}
		})
		var sick failing
		p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			if len(p.rt.Instances()) > 0 {
				return pooltest.Plan{}
			}
			return pooltest.Plan{Exec: sick.exec}
		})
		held := p.need()
		c := p.ask(t.Context())
		time.Sleep(500 * time.Millisecond)
		sick.ready.Store(true)
		synctest.Wait()
		equal(t, "answered while there is an instance to wait for", c.answered(), false)
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "answered since it is not ready", c.answered(), true)
		held.Release()
		c.lease.Release()
	})
}

// The same when it goes for the sake of others, if there may be no more than one.
func TestWaitersOfAnUnreadyInstanceThatIsEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := checked(1, readiness(time.Second, 1, 1))
		rev.Spec().MaxInstances = 1
		p := start(t, rev)
		var sick failing
		p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			if len(p.rt.Instances()) > 0 {
				return pooltest.Plan{}
			}
			return pooltest.Plan{Exec: sick.exec}
		})
		p.need().Release()
		sick.ready.Store(true)
		time.Sleep(2 * time.Second)
		p.awaitState(instancepool.Unready)
		c := p.ask(t.Context())
		synctest.Wait()
		equal(t, "answered", c.answered(), false)
		if spares := p.Spares(); len(spares) != 1 || !p.Evict(spares[0].ID, "its room is needed") {
			t.Fatalf("spares: %v", spares)
		}
		synctest.Wait()
		equal(t, "answered by another", c.answered(), true)
		c.lease.Release()
	})
}

// One that does not get ready again is stopped when it has had no request for the
// idle timeout, unless it is of the minimum: probes are no use of it.
func TestAnUnreadyInstanceIsStoppedInTheEnd(t *testing.T) {
	for _, minimum := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			rev := checked(1, readiness(time.Second, 1, 1))
			rev.Spec().MinInstances, rev.Spec().Throttled = minimum, true
			p := start(t, rev)
			var sick failing
			p.rt.Plan(pooltest.Plan{Exec: sick.exec})
			lease := p.need()
			sick.ready.Store(true)
			time.Sleep(2 * time.Second)
			p.awaitState(instancepool.Unready)
			lease.Release()
			time.Sleep(15*time.Minute - time.Second)
			p.awaitState(instancepool.Unready)
			equal(t, "freezes of what nobody would thaw", p.rt.Instances()[0].Freezes(), 0)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			equal(t, "running", len(p.rt.Running()), minimum)
			equal(t, "starts", p.rt.Attempts(), 1)
			p.check()
		})
	}
}

// The time that an instance was not ready does not make it any younger.
func TestReadinessIsNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, checked(1, readiness(time.Second, 1, 1)))
		var sick failing
		p.rt.Plan(pooltest.Plan{Exec: sick.exec})
		p.need().Release()
		for range 14 {
			time.Sleep(30 * time.Second)
			sick.ready.Store(true)
			time.Sleep(30 * time.Second)
			sick.ready.Store(false)
		}
		time.Sleep(59 * time.Second)
		p.awaitState(instancepool.Ready)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		equal(t, "running after 15 minutes", len(p.rt.Running()), 0)
		equal(t, "requests", p.Load(), 0)
	})
}

// A frozen instance is not asked; what was due is asked when it has been thawed
// for a request, and does not keep it awake.
func TestAFrozenInstanceIsNotProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := checked(1, liveness(10*time.Second, 1), readiness(10*time.Second, 1, 1))
		rev.Spec().Throttled, rev.Spec().IdleTimeout = true, 24*time.Hour
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{Exec: func(context.Context, string, []string) error {
			if p.rt.Instances()[0].Frozen() {
				t.Error("a frozen instance was asked")
				return errors.New("it is frozen")
			}
			return nil
		}})
		p.need().Release()
		i := p.rt.Instances()[0]
		time.Sleep(time.Hour)
		p.awaitState(instancepool.Frozen)
		equal(t, "probes", i.Execs("app"), 0)
		equal(t, "freezes", i.Freezes(), 1)
		for n := range 3 {
			p.need().Release()
			time.Sleep(freezeGrace)
			p.awaitState(instancepool.Frozen)
			equal(t, "probes", i.Execs("app"), 2*(n+1))
			equal(t, "freezes", i.Freezes(), n+2)
			time.Sleep(time.Hour)
		}
		for range 9 { // within a period nothing is due
			p.need().Release()
			time.Sleep(time.Second)
		}
		equal(t, "probes of requests in a row", i.Execs("app"), 8)
	})
}

// freezeGrace is just longer than an instance is left awake after a request.
const freezeGrace = 51 * time.Millisecond

// An instance is frozen when the probe that is under way has ended, and not long
// after.
func TestFreezingWaitsForAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := checked(1, liveness(10*time.Second, 3))
		rev.Spec().Throttled = true
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{Exec: func(ctx context.Context, _ string, _ []string) error {
			select {
			case <-time.After(900 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
		lease := p.need()
		i := p.instance(lease)
		time.Sleep(10*time.Second + 100*time.Millisecond)
		lease.Release()
		time.Sleep(799 * time.Millisecond)
		p.awaitState(instancepool.Ready)
		time.Sleep(2 * time.Millisecond)
		p.awaitState(instancepool.Frozen)
		// A probe that hangs keeps it awake for its timeout.
		i.Replan(func(plan *pooltest.Plan) {
			plan.Exec = func(ctx context.Context, _ string, _ []string) error { <-ctx.Done(); return ctx.Err() }
		})
		time.Sleep(time.Minute)
		p.need().Release()
		time.Sleep(20 * time.Second)
		p.awaitState(instancepool.Ready) // and is a failure, which is to be known
		time.Sleep(2 * time.Second)
		synctest.Wait()
		equal(t, "running after three failures", len(p.rt.Running()), 0)
	})
}

// An instance that has failed a probe stays awake until it is known how it is.
func TestADoubtfulInstanceIsNotFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := checked(1, liveness(10*time.Second, 3))
		rev.Spec().Throttled = true
		p := start(t, rev)
		var sick failing
		p.rt.Plan(pooltest.Plan{Exec: sick.exec})
		p.need().Release()
		time.Sleep(time.Minute)
		p.awaitState(instancepool.Frozen)
		sick.live.Store(true)
		p.need().Release()
		time.Sleep(9 * time.Second)
		p.awaitState(instancepool.Ready)
		sick.live.Store(false)
		time.Sleep(time.Second + time.Millisecond)
		p.awaitState(instancepool.Frozen)
		equal(t, "probes", p.rt.Instances()[0].Execs("app"), 2)
	})
}

// Any container's checks are the instance's.
func TestChecksOfSidecars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := healthOf(1,
			revisions.Health{Container: "app", Checks: []revisions.Check{readiness(time.Second, 1, 1)}},
			revisions.Health{Container: "proxy", Checks: []revisions.Check{readiness(time.Second, 1, 1), liveness(10*time.Second, 1)}},
		)
		rev.Spec().MaxInstances = 1
		p := start(t, rev)
		var app, proxy failing
		p.rt.Plan(pooltest.Plan{Exec: func(ctx context.Context, container string, command []string) error {
			if container == "app" {
				return app.exec(ctx, container, command)
			}
			return proxy.exec(ctx, container, command)
		}})
		lease := p.need()
		time.Sleep(500 * time.Millisecond)
		for _, step := range []struct {
			of   *failing
			sick bool
			want instancepool.State
		}{
			{&proxy, true, instancepool.Unready},
			{&app, true, instancepool.Unready},
			{&proxy, false, instancepool.Unready},
			{&app, false, instancepool.Ready},
		} {
			step.of.ready.Store(step.sick)
			time.Sleep(time.Second)
			synctest.Wait()
			equal(t, "state", p.states(), []instancepool.State{step.want})
		}
		proxy.live.Store(true)
		<-lease.Instance().Exited()
		synctest.Wait()
		events := p.eventsOf(lease.Instance().ID())
		if told := events[len(events)-2]; told.Err == nil || !strings.Contains(told.Err.Error(), "the liveness probe of container proxy (exec live) failed once") {
			t.Errorf("it was told %v", told)
		}
		lease.Release()
	})
}

// An instance may become unready while it is not known whether it can be dialled.
func TestSuspectAndUnready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := checked(2, readiness(time.Second, 1, 1))
		rev.Spec().MaxInstances = 1
		p := start(t, rev)
		var sick failing
		p.rt.Plan(pooltest.Plan{Exec: sick.exec})
		lease := p.need()
		time.Sleep(500 * time.Millisecond)
		sick.ready.Store(true)
		p.instance(lease).ReadyAt(time.Now().Add(2 * time.Second))
		lease.Suspect()
		time.Sleep(time.Second)
		p.awaitState(instancepool.Suspect)
		time.Sleep(1100 * time.Millisecond) // it has been dialled, and not asked again since
		p.awaitState(instancepool.Unready)
		lease.Suspect() // it gets no requests as it is
		p.awaitState(instancepool.Unready)
		sick.ready.Store(false)
		time.Sleep(time.Second)
		p.awaitState(instancepool.Ready)
		lease.Release()
	})
}

// An unready instance is the first to go, and keeps no revision from its end.
func TestAnUnreadyInstanceGoes(t *testing.T) {
	for name, end := range map[string]func(*testPool){
		"evicted": func(p *testPool) {
			if spares := p.Spares(); len(spares) != 1 || !p.Evict(spares[0].ID, "its room is needed") {
				p.t.Error("it is not spare")
			}
		},
		"scaled to none": func(p *testPool) {
			p.Bound(0, -1)
			time.Sleep(10 * time.Second)
		},
		"retired": func(p *testPool) { p.Drain(time.Hour) },
		"closed":  func(p *testPool) { p.Drain(0) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, checked(1, readiness(time.Second, 1, 1)))
				var sick failing
				p.rt.Plan(pooltest.Plan{Exec: sick.exec})
				p.need().Release()
				sick.ready.Store(true)
				time.Sleep(2 * time.Second)
				p.awaitState(instancepool.Unready)
				end(p)
				synctest.Wait()
				equal(t, "running", len(p.rt.Running()), 0)
				p.check()
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // the one of the minimum stays
		rev := checked(1, readiness(time.Second, 1, 1))
		rev.Spec().MinInstances = 1
		p := start(t, rev)
		var sick failing
		p.rt.PlanFor(func(instancepool.StartSpec) pooltest.Plan {
			if len(p.rt.Instances()) > 0 {
				return pooltest.Plan{}
			}
			return pooltest.Plan{Exec: sick.exec}
		})
		p.need().Release()
		sick.ready.Store(true)
		time.Sleep(2 * time.Second)
		if len(p.Spares()) > 0 {
			t.Error("the only one can be evicted")
		}
		p.need().Release()
		p.awaitState(instancepool.Unready, instancepool.Ready)
		if spares := p.Spares(); len(spares) != 1 || spares[0].ID != p.rt.Instances()[0].ID() {
			t.Errorf("Spares() = %v; it is %s that is not ready", spares, p.rt.Instances()[0].ID())
		}
	})
}

// What lets go of the instances does not wait for their probes.
func TestDetachWithChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, checked(1, liveness(10*time.Second, 1)))
		p.rt.Plan(pooltest.Plan{Exec: func(ctx context.Context, _ string, _ []string) error { <-ctx.Done(); return ctx.Err() }})
		p.need().Release()
		time.Sleep(10*time.Second + 100*time.Millisecond)
		equal(t, "probes", p.rt.Instances()[0].Execs("app"), 1)
		p.Detach()
		equal(t, "running", len(p.rt.Running()), 1)
		time.Sleep(time.Hour)
		equal(t, "probes", p.rt.Instances()[0].Execs("app"), 1)
		p.rt.Instances()[0].Kill(0)
	})
}

// Requests come, probes fail and succeed, instances are frozen, thawed, found
// unreachable and killed, all at the same time.
func TestChecksUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := checked(3, liveness(700*time.Millisecond, 4), readiness(300*time.Millisecond, 2, 2))
		rev.Spec().Throttled, rev.Spec().MaxInstances = true, 4
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{
			StartTime: 50 * time.Millisecond, FreezeTime: time.Millisecond, ThawTime: time.Millisecond,
			Exec: func(ctx context.Context, _ string, command []string) error {
				select {
				case <-time.After(time.Duration(rand.IntN(20)) * time.Millisecond):
				case <-ctx.Done():
					return ctx.Err()
				}
				if rand.IntN(3) == 0 {
					return errors.New("not now")
				}
				return nil
			},
		})
		var wg sync.WaitGroup
		var served atomic.Int64
		for range 8 {
			wg.Go(func() {
				for range 200 {
					time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
					lease, err := p.Acquire(t.Context())
					if err != nil {
						continue // the replacement of what has been killed too often
					}
					time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
					if rand.IntN(20) == 0 {
						lease.Suspect()
					}
					lease.Release()
					served.Add(1)
					if err := p.Check(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if served.Load() < 800 {
			t.Errorf("%d of 1600 requests were served", served.Load())
		}
		p.Drain(time.Minute)
		<-p.Done()
		equal(t, "running", len(p.rt.Running()), 0)
	})
}
