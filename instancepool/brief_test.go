package instancepool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
)

// visit asks as a browser does that comes back a second after it was sent away, and
// returns how often it was.
func (p *testPool) visit(brief time.Duration) (*instancepool.Lease, int, error) {
	for pages := 0; ; pages++ {
		lease, err := p.AcquireBriefly(p.t.Context(), "", time.Time{}, brief)
		if !errors.Is(err, instancepool.ErrStarting) {
			return lease, pages, err
		}
		if pages == 1000 {
			p.t.Fatal("sent away for ever")
		}
		time.Sleep(time.Second)
	}
}

// Who is sent away meets the instance of the start that the first visit has caused.
func TestABriefVisitIsSeenThrough(t *testing.T) {
	for _, test := range []struct {
		what        string
		start, idle time.Duration
		pages       int
	}{
		{what: "a fast start", start: 499 * time.Millisecond, idle: time.Minute},
		{what: "a slow start", start: 2200 * time.Millisecond, idle: time.Minute, pages: 2},
		{what: "a short idle timeout", start: 600 * time.Millisecond, idle: 100 * time.Millisecond, pages: 1},
	} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rev := revision(1)
				rev.Spec().IdleTimeout = test.idle
				p := start(t, rev)
				p.rt.Plan(pooltest.Plan{StartTime: test.start})
				lease, pages, err := p.visit(500 * time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				equal(t, "pages", pages, test.pages)
				equal(t, "starts", p.rt.Attempts(), 1)
				lease.Release()
				p.check()
			})
		})
	}
}

// An instance that nobody comes back for is kept for a moment, also when others
// need its memory, and then stopped as any other.
func TestNobodyComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().IdleTimeout = time.Second
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{StartTime: 2 * time.Second})
		if _, err := p.AcquireBriefly(t.Context(), "", time.Time{}, time.Second); !errors.Is(err, instancepool.ErrStarting) {
			t.Fatal(err)
		}
		equal(t, "waiting", p.Status().Waiting, 0)
		time.Sleep(9 * time.Second)
		if spares := p.Spares(); len(spares) > 0 {
			t.Errorf("%v may be stopped for others", spares)
		}
		equal(t, "running", len(p.rt.Running()), 1)
		time.Sleep(2 * time.Second)
		equal(t, "running in the end", len(p.rt.Running()), 0)
	})
}

// F20: who comes back hears of a start that fails, whenever it does.
func TestABriefVisitHearsOfAFailure(t *testing.T) {
	for _, after := range []time.Duration{100 * time.Millisecond, 600 * time.Millisecond, time.Second, 1400 * time.Millisecond, 30 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(t, revision(1))
				p.rt.Plan(pooltest.Plan{StartTime: after, StartErr: errors.New("broken")})
				_, pages, err := p.visit(500 * time.Millisecond)
				isStartError(t, err)
				if most := int(after/(1500*time.Millisecond)) + 1; pages > most {
					t.Errorf("%d pages; want %d at most", pages, most)
				}
				// Nor is anybody sent away before it has got ready again.
				time.Sleep(time.Minute)
				_, pages, err = p.visit(time.Millisecond)
				isStartError(t, err)
				equal(t, "pages after a failure", pages, 0)
				time.Sleep(time.Minute)
				p.rt.Plan(pooltest.Plan{StartTime: time.Second})
				lease, pages, err := p.visit(time.Millisecond)
				if err != nil || pages != 0 {
					t.Fatalf("%d pages, %v", pages, err)
				}
				lease.Release()
			})
		})
	}
}

// A busy instance is waited for, as long as by anybody else.
func TestABriefVisitWaitsForABusyInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		p := start(t, rev)
		first := p.need()
		p.rt.Plan(pooltest.Plan{StartTime: time.Minute})
		time.AfterFunc(5*time.Second, first.Release)
		began := time.Now()
		lease, pages, err := p.visit(time.Millisecond)
		if err != nil || pages != 0 || lease.Instance() != first.Instance() || time.Since(began) != 5*time.Second {
			t.Fatalf("%d pages, %v, after %s", pages, err, time.Since(began))
		}
		second := p.ask(t.Context())
		began = time.Now()
		_, _, err = p.visit(time.Millisecond)
		if !errors.Is(err, instancepool.ErrNoInstance) || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %s; want what anybody gets", err, time.Since(began))
		}
		<-second.done
		lease.Release()
	})
}

// The first in the queue keeps its place when the one behind it is sent away.
func TestABriefVisitAmongOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, revision(2))
		p.rt.Plan(pooltest.Plan{StartTime: 3 * time.Second})
		patient := p.ask(t.Context())
		synctest.Wait()
		lease, pages, err := p.visit(500 * time.Millisecond)
		if err != nil || pages != 2 {
			t.Fatalf("%d pages, %v", pages, err)
		}
		<-patient.done
		if patient.err != nil || patient.lease.Instance() != lease.Instance() {
			t.Errorf("%v, %v", patient.lease, patient.err)
		}
		equal(t, "starts", p.rt.Attempts(), 1)
		patient.lease.Release()
		lease.Release()
	})
}

// While an image is fetched the reason says so.
func TestABriefVisitWhileAnImageIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rev := revision(1)
		rev.Spec().Image = "app:1"
		fetch := make(chan struct{})
		rt := pooltest.NewRuntime()
		p := instancepool.New(rev, instancepool.Options{
			Prepare: func(context.Context) error {
				<-fetch
				rev.Pin("app:1", "sha256:0123")
				return nil
			},
			Start: rt.Start, Probe: rt.Probe,
			Decide: func(s instancepool.Snapshot) instancepool.Decision {
				return instancepool.Decision{Start: s.Waiting - s.Starting}
			},
		})
		defer p.Wait()
		defer p.Drain(0)
		rt.Plan(pooltest.Plan{StartTime: time.Minute})
		for _, want := range []string{"an instance is starting: its image is being fetched", "an instance is starting"} {
			_, err := p.AcquireBriefly(t.Context(), "", time.Time{}, time.Second)
			if !errors.Is(err, instancepool.ErrStarting) || err.Error() != want {
				t.Errorf("%v; want %s", err, want)
			}
			if !rev.Pinned() {
				close(fetch)
				synctest.Wait()
			}
		}
	})
}
