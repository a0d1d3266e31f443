package scaler

import (
	"math"
	"testing"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// What is measured of a service tells whether another instance would help those
// who wait.
func TestDecideByWhatIsMeasured(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name  string
		s     instancepool.Snapshot
		want  int
		again bool
	}{
		// F14.
		{"a burst from zero", instancepool.Snapshot{Concurrency: 1, Waiting: 100, Max: 20, Held: 300 * ms, Startup: 100 * ms}, 20, false},
		{"a burst on one", instancepool.Snapshot{Concurrency: 1, Waiting: 100, InFlight: 1, Ready: 1, Max: 20, Held: 300 * ms, Startup: 100 * ms}, 19, false},
		{"a busy instance is sooner", instancepool.Snapshot{Concurrency: 1, Waiting: 1, InFlight: 1, Ready: 1, Held: 20 * ms, Startup: 100 * ms}, 0, true},
		{"a new instance is sooner", instancepool.Snapshot{Concurrency: 1, Waiting: 1, InFlight: 1, Ready: 1, Held: 200 * ms, Startup: 100 * ms}, 1, true},
		{"the queue is too long for the busy ones", instancepool.Snapshot{Concurrency: 1, Waiting: 12, InFlight: 2, Ready: 2, Held: 20 * ms, Startup: 100 * ms}, 4, true},
		{"it has waited longer than it should have", instancepool.Snapshot{Concurrency: 1, Waiting: 1, InFlight: 1, Ready: 1, Held: 20 * ms, Startup: 100 * ms, Oldest: 40 * ms}, 1, true},
		{"and others are on their way", instancepool.Snapshot{Concurrency: 1, Waiting: 2, InFlight: 1, Ready: 1, Starting: 1, Held: 20 * ms, Startup: 100 * ms, Oldest: 80 * ms}, 0, true},
		{"quick requests need few instances", instancepool.Snapshot{Concurrency: 1, Waiting: 100, Held: 5 * ms, Startup: 100 * ms}, 8, false},
		{"slow ones need one each", instancepool.Snapshot{Concurrency: 1, Waiting: 10, Held: time.Minute, Startup: 100 * ms}, 10, false},
		{"those that start will serve some", instancepool.Snapshot{Concurrency: 10, Waiting: 60, Starting: 4, Held: 50 * ms, Startup: 100 * ms}, 0, false},
		{"nothing is known of how long a request takes", instancepool.Snapshot{Concurrency: 1, Waiting: 7, InFlight: 3, Ready: 3, Startup: 100 * ms}, 7, false},
	} {
		spec := &revisions.Spec{Concurrency: test.s.Concurrency, CPU: 1}
		got := decide(test.s, spec, 4, relaxed)
		if got.Start != test.want || got.Again > 0 != test.again {
			t.Errorf("%s: decide(%+v) = %+v, want %d, again: %t", test.name, test.s, got, test.want, test.again)
		}
	}
}

func TestDecideAhead(t *testing.T) {
	half := revisions.Scaling{Concurrency: 5, CPU: 0.5}
	for _, test := range []struct {
		name string
		s    instancepool.Snapshot
		of   revisions.Scaling
		want int
		why  string
		keep int
	}{
		{"within the target", instancepool.Snapshot{InFlight: 5, Ready: 1, Load: [2]float64{5, 5}}, half, 0, "", 1},
		{"above it", instancepool.Snapshot{InFlight: 8, Ready: 1, Load: [2]float64{6, 1}}, half, 1, whyTarget, 2},
		{"it was above, but is over", instancepool.Snapshot{InFlight: 1, Ready: 1, Load: [2]float64{9, 9}}, half, 0, "", 2},
		{"a queue is not a load", instancepool.Snapshot{InFlight: 10, Waiting: 90, Starting: 9, Ready: 1, Load: [2]float64{90, 9}}, half, 0, "", 18},
		{"without a target a queue that stays is", instancepool.Snapshot{InFlight: 10, Waiting: 20, Ready: 1, Recent: 30, Held: time.Millisecond, Startup: time.Second}, revisions.Scaling{CPU: 0.5}, 2, whyTarget, 0},
		{"nothing is going on", instancepool.Snapshot{Load: [2]float64{9, 9}}, half, 0, "", 2},
		{"off", instancepool.Snapshot{InFlight: 9, Ready: 1, Load: [2]float64{9, 9}}, revisions.Scaling{CPU: 0.5}, 0, "", 2},
		{"it grows", instancepool.Snapshot{InFlight: 9, Ready: 1, Recent: 8, Growth: 2, Startup: time.Second}, revisions.Scaling{CPU: 0.5}, 1, whyTarget, 0},
		{"one is on its way", instancepool.Snapshot{InFlight: 8, Ready: 1, Starting: 1, Load: [2]float64{6, 1}}, half, 0, "", 2},
		{"never above the maximum", instancepool.Snapshot{InFlight: 30, Ready: 3, Max: 3, Load: [2]float64{30, 30}}, half, 0, "", 6},
		{"what is not ready takes no load", instancepool.Snapshot{InFlight: 8, Ready: 1, Unready: 1, Load: [2]float64{6, 1}}, half, 1, whyUnready, 2},
		{"by CPU", instancepool.Snapshot{InFlight: 1, Ready: 1, CPU: 0.9, Load: [2]float64{1, 1}}, half, 1, whyTarget, 2},
		{"CPU is off", instancepool.Snapshot{InFlight: 1, Ready: 1, CPU: 0.9, Load: [2]float64{1, 1}}, revisions.Scaling{Concurrency: 5}, 0, "", 1},
		{"a long window keeps more", instancepool.Snapshot{Ready: 3, Load: [2]float64{1, 14}}, revisions.Scaling{Concurrency: 5, Window: 10 * time.Minute}, 0, "", 3},
		{"none by hand", instancepool.Snapshot{Waiting: 3, InFlight: 1, Max: -1, Load: [2]float64{9, 9}}, half, 0, "", 2},
		{"activation", instancepool.Snapshot{Waiting: 1}, revisions.Scaling{Concurrency: 5, Activation: 3}, 3, whyWaiting, 0},
		{"activation is for none only", instancepool.Snapshot{Waiting: 1, InFlight: 10, Ready: 1}, revisions.Scaling{Concurrency: 5, Activation: 3}, 1, whyWaiting, 0},
	} {
		test.s.Concurrency = 10
		spec := &revisions.Spec{Concurrency: 10, CPU: 1, Scaling: test.of}
		got := decide(test.s, spec, 4, relaxed)
		if got.Start != test.want || got.Reason != test.why || got.Keep != test.keep {
			t.Errorf("%s: decide(%+v) = %+v, want %d because of %q, keep %d", test.name, test.s, got, test.want, test.why, test.keep)
		}
	}
}

// Whatever there is, no more than the maximum is started, and no more than wait.
func FuzzDecide(f *testing.F) {
	f.Add(100, 1, 0, 0, 1, 20, int64(300e6), int64(100e6), int64(0))
	f.Fuzz(func(t *testing.T, waiting, inFlight, ready, starting, concurrency, most int, held, startup, oldest int64) {
		bound := func(n, highest int) int { return max(0, min(n, highest)) }
		concurrency = max(1, bound(concurrency, 1000))
		ready, starting = bound(ready, 1000), bound(starting, 1000)
		s := instancepool.Snapshot{
			Waiting: bound(waiting, 1e6), InFlight: bound(inFlight, ready*concurrency), Ready: ready, Starting: starting,
			Concurrency: concurrency, Max: bound(most, 1000),
			Held: time.Duration(held), Startup: time.Duration(startup), Oldest: time.Duration(oldest),
		}
		if s.Held < 0 || s.Startup < 0 || s.Oldest < 0 {
			return
		}
		d := decide(s, &revisions.Spec{Concurrency: concurrency, CPU: 1}, 4, relaxed)
		if d.Start < 0 || d.Again < 0 || s.Max > 0 && d.Start > 0 && d.Start+ready+starting > s.Max || d.Start > s.Waiting {
			t.Errorf("decide(%+v) = %+v", s, d)
		}
		if s.Waiting > 0 && ready+starting == 0 && d.Start == 0 {
			t.Errorf("decide(%+v) starts nothing, and nothing else will", s)
		}
	})
}

// relaxed allows any number of starts.
func relaxed() int { return math.MaxInt }
