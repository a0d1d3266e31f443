package instancepool_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
)

func TestPreparedInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		startups, want := new(instancepool.Startups), 2
		p := startWith(t, revision(1), func(o *instancepool.Options, rt *pooltest.Runtime) {
			o.Ahead, o.Prepared, o.Startups = rt.Prepare, func() int { return want }, startups
		})
		p.rt.Plan(pooltest.Plan{StartTime: 100 * time.Millisecond, PreparedStart: 15 * time.Millisecond})
		if err := p.Prepare(t.Context()); err != nil || p.rt.Prepared() != 0 {
			t.Fatalf("something is prepared of a revision that has not been ready: %v", err)
		}
		lease := p.need()
		equal(t, "waited", lease.Waited, 100*time.Millisecond)
		for range 3 {
			if err := p.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		equal(t, "prepared", p.rt.Prepared(), 2)
		equal(t, "wants more", p.WantsPrepared(), false)
		equal(t, "states", p.states(), []instancepool.State{instancepool.Ready, instancepool.Warmed, instancepool.Warmed})
		name := p.Status().Instances[1].ID
		second := p.need()
		equal(t, "waited for a prepared one", second.Waited, 15*time.Millisecond)
		equal(t, "it keeps its name", second.Instance().ID(), name)
		equal(t, "what a start takes from nothing", startups.Mean(), 100*time.Millisecond)
		equal(t, "wants more", p.WantsPrepared(), true)
		spares := p.Spares()
		if len(spares) != 1 || !spares[0].Prepared || !p.Evict(spares[0].ID, "its room is needed") {
			t.Fatalf("there is one to give up: %v", spares)
		}
		synctest.Wait()
		equal(t, "prepared", p.rt.Prepared(), 0)
		if len(p.Spares()) > 0 || p.Evict(spares[0].ID, "again") {
			t.Fatal("there is none left to give up")
		}
		equal(t, "wants more at once", p.WantsPrepared(), false)
		time.Sleep(time.Minute)
		equal(t, "wants more later", p.WantsPrepared(), true)
		for range 2 {
			if err := p.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		want = 1 // the settings have changed
		p.TrimPrepared()
		synctest.Wait()
		equal(t, "prepared, with other settings", p.rt.Prepared(), 1)
		p.Evict(p.Spares()[0].ID, "its room is needed")
		time.Sleep(time.Minute)
		if err := p.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		lease.Release()
		second.Release()
		p.Drain(0)
		<-p.Done()
		synctest.Wait() // what is prepared goes on its own
		equal(t, "prepared, once drained", p.rt.Prepared(), 0)
	})
}

// What was prepared may have broken meanwhile: then an instance is started as if
// there had been none.
func TestAPreparedInstanceThatCannotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWith(t, revision(1), func(o *instancepool.Options, rt *pooltest.Runtime) {
			o.Ahead, o.Prepared = rt.Prepare, func() int { return 1 }
		})
		p.rt.Plan(pooltest.Plan{PreparedErr: errors.New("its init was killed")})
		lease := p.need()
		if err := p.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.need().Release()
		lease.Release()
		equal(t, "running", len(p.rt.Running()), 2)
	})
}

// One that is being prepared when the pool lets go is not left behind.
func TestDetachDiscardsWhatIsPrepared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWith(t, revision(1), func(o *instancepool.Options, rt *pooltest.Runtime) {
			o.Ahead, o.Prepared = rt.Prepare, func() int { return 2 }
		})
		p.rt.Plan(pooltest.Plan{StartTime: time.Second})
		p.need().Release()
		if err := p.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		go func() { _ = p.Prepare(t.Context()) }()
		synctest.Wait()
		p.Detach()
		equal(t, "prepared", p.rt.Prepared(), 0)
		equal(t, "running", len(p.rt.Running()), 1)
	})
}
