package instancepool_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

// execProbe is a startup probe by a command, which in these tests only names it.
func execProbe(name string, total time.Duration) *revisions.Probe {
	return &revisions.Probe{Kind: revisions.ProbeExec, Command: []string{name}, Attempt: time.Second, Total: total}
}

// healthOf returns a revision with such containers.
func healthOf(concurrency int, health ...revisions.Health) *revisions.Revision {
	rev := revision(concurrency)
	rev.Spec().Health = health
	return rev
}

// startProbed is start with the revision's own startup probes.
func startProbed(t *testing.T, rev *revisions.Revision) *testPool {
	return startWith(t, rev, func(o *instancepool.Options, rt *pooltest.Runtime) {
		o.Probe, o.Ahead, o.Prepared = nil, rt.Prepare, func() int { return 1 }
	})
}

// fromThen returns what commands do that fail until so long after now, each by its
// name.
func fromThen(after map[string]time.Duration) func(context.Context, string, []string) error {
	began := time.Now()
	return func(_ context.Context, _ string, command []string) error {
		if time.Since(began) < after[command[0]] {
			return errors.New(command[0] + " is not up")
		}
		return nil
	}
}

// A container's process is started once those have started that it depends on; the
// others do not wait. The instance is ready when all are.
func TestContainersAreStartedInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProbed(t, healthOf(1,
			revisions.Health{Container: "db", Startup: execProbe("db", time.Minute)},
			revisions.Health{Container: "proxy", After: []string{"db"}},
			revisions.Health{Container: "app", After: []string{"db", "proxy"}, Startup: execProbe("app", time.Minute)},
			revisions.Health{Container: "cache", Startup: execProbe("cache", time.Minute)},
		))
		p.rt.Plan(pooltest.Plan{Exec: fromThen(map[string]time.Duration{"db": 5 * time.Second, "app": 8 * time.Second, "cache": 20 * time.Second})})
		c := p.ask(t.Context())
		time.Sleep(19 * time.Second)
		synctest.Wait()
		i := p.rt.Instances()[0]
		equal(t, "db", i.ContainerStarted("db"), 0)
		equal(t, "cache", i.ContainerStarted("cache"), 0)
		if at := i.ContainerStarted("proxy"); at < 5*time.Second || at > 6*time.Second {
			t.Errorf("proxy was started after %s", at)
		}
		equal(t, "app after proxy", i.ContainerStarted("app"), i.ContainerStarted("proxy"))
		if c.answered() {
			t.Fatal("it is ready before its cache is")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !c.answered() || c.err != nil {
			t.Fatalf("answered: %t, %v", c.answered(), c.err)
		}

		// The same from what is prepared: nothing of it runs before.
		if err := p.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.rt.Plan(pooltest.Plan{})
		again := p.need()
		if p.instance(again).ContainerStarted("app") < 0 {
			t.Error("the prepared instance is not whole")
		}
		c.lease.Release()
		again.Release()
	})
}

// The delay of a probe counts from the start of its own container.
func TestTheDelayOfAContainerThatWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := execProbe("app", time.Minute)
		app.Delay = 3 * time.Second
		p := startProbed(t, healthOf(1,
			revisions.Health{Container: "db", Startup: execProbe("db", time.Minute)},
			revisions.Health{Container: "app", After: []string{"db"}, Startup: app},
		))
		p.rt.Plan(pooltest.Plan{Exec: fromThen(map[string]time.Duration{"db": 10 * time.Second})})
		lease := p.need()
		if lease.Waited < p.instance(lease).ContainerStarted("app")+app.Delay {
			t.Errorf("the app, started after %s, was asked after %s", p.instance(lease).ContainerStarted("app"), lease.Waited)
		}
		lease.Release()
	})
}

func TestAContainerThatDoesNotStart(t *testing.T) {
	for name, test := range map[string]struct {
		plan pooltest.Plan
		want []string
	}{
		"its probe fails": {
			pooltest.Plan{Exec: func(_ context.Context, container string, _ []string) error { return errors.New("down: " + container) }},
			[]string{"the startup probe of container db (exec db) failed for 7s: down: db"},
		},
		"the other's start fails": {pooltest.Plan{ContainerErr: errors.New("no such file")}, []string{"container app: no such file"}},
		"one ends":                {pooltest.Plan{ExitAfter: time.Second, ExitCode: 3, Exec: fromThen(map[string]time.Duration{"db": time.Hour})}, []string{"the container exited with code 3"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startProbed(t, healthOf(1,
					revisions.Health{Container: "db", Startup: execProbe("db", 7*time.Second)},
					revisions.Health{Container: "app", After: []string{"db"}},
				))
				if name == "one ends" {
					test.plan.Exec = fromThen(map[string]time.Duration{"db": time.Hour})
				}
				p.rt.Plan(test.plan)
				_, err := p.Acquire(t.Context())
				for _, want := range test.want {
					if !strings.Contains(isStartError(t, err).Error(), want) {
						t.Errorf("got %v; want it to say %s", err, want)
					}
				}
				synctest.Wait()
				i := p.rt.Instances()[0]
				equal(t, "the app was started", i.ContainerStarted("app") >= 0, false)
				equal(t, "stops", i.Stops(), 1)
			})
		})
	}
}

// A request that finds the instance unreachable has it probed again: nothing is
// started twice by that.
func TestASuspectWithSeveralContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProbed(t, healthOf(1,
			revisions.Health{Container: "db"}, revisions.Health{Container: "app", After: []string{"db"}, Startup: execProbe("app", time.Minute)},
		))
		lease := p.need()
		time.Sleep(time.Minute)
		lease.Suspect()
		lease.Release()
		synctest.Wait()
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready})
		equal(t, "app was started after", p.rt.Instances()[0].ContainerStarted("app"), 0)
	})
}
