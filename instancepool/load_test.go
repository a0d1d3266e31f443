package instancepool

import (
	"math"
	"testing"
	"time"
)

func TestLoad(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type change struct {
		after             time.Duration
		inFlight, waiting int // until then
		done              int // requests that end then
	}
	for _, test := range []struct {
		name        string
		changes     []change
		short, long float64
		held        time.Duration
	}{
		{"nothing", nil, 0, 0, 0},
		{"one request of two seconds, now", []change{{2 * time.Second, 1, 0, 1}}, 2. / 60, 2. / 600, 2 * time.Second},
		{"ten for a minute", []change{{time.Minute, 10, 0, 30}}, 10, 1, 20 * time.Second},
		{"those that wait count, and hold no slot", []change{{time.Minute, 2, 3, 10}}, 5, 0.5, 12 * time.Second},
		{"of an hour only the last counts", []change{{time.Hour, 8, 0, 0}, {time.Minute, 2, 0, 0}}, 2, 7.4, 0},
		{"a change within a part", []change{{500 * time.Millisecond, 4, 0, 0}, {59500 * time.Millisecond, 0, 0, 0}}, 2. / 60, 2. / 600, 0},
		{"half a minute of nothing", []change{{30 * time.Second, 6, 0, 0}, {30 * time.Second, 0, 0, 0}}, 3, 0.3, 0},
		{"two minutes of nothing", []change{{30 * time.Second, 6, 0, 0}, {2 * time.Minute, 0, 0, 0}}, 0, 0.3, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, now := newLoad(began), began
			for _, c := range test.changes {
				now = now.Add(c.after)
				l.advance(now, c.inFlight, c.waiting)
				for range c.done {
					l.finish()
				}
			}
			short, long := l.short.mean(), l.long.mean()
			if math.Abs(short-test.short) > 0.2 || math.Abs(long-test.long) > 0.2 {
				t.Errorf("means %.3f and %.3f, want %.3f and %.3f", short, long, test.short, test.long)
			}
			if held := l.service(); held != test.held {
				t.Errorf("held %s, want %s", held, test.held)
			}
		})
	}
}

// What was long ago fades from the mean time of a request.
func TestHeldFollows(t *testing.T) {
	now := time.Now()
	l := newLoad(now)
	for i := range 5000 {
		took := time.Second
		if i >= 4000 {
			took = 100 * time.Millisecond
		}
		now = now.Add(took)
		l.advance(now, 1, 0)
		l.finish()
	}
	if held := l.service(); held < 100*time.Millisecond || held > 150*time.Millisecond {
		t.Errorf("held %s after a thousand requests of 100ms", held)
	}
}

func TestTrend(t *testing.T) {
	for _, test := range []struct {
		name string
		load func(second int) int
		want float64
	}{
		{"none", func(int) int { return 50 }, 0},
		{"a ramp", func(s int) int { return 10 * s }, 10},
		{"a ramp, down", func(s int) int { return 500 - 10*s }, 0},
		{"a step, two seconds ago", func(s int) int { return 100 * min(1, max(0, s-27)) }, 0},
		{"a step, five seconds ago", func(s int) int { return 100 * min(1, max(0, s-24)) }, 0},
		{"a step, eight seconds ago", func(s int) int { return 100 * min(1, max(0, s-21)) }, 0},
		{"a step of which a few came late", func(s int) int { return min(97, max(0, s-24)*97) + min(3, max(0, s-27)*3) }, 0},
		{"chance", func(s int) int { return 100 + (s*7919)%13 }, 0},
		{"hardly any", func(s int) int { return s / 10 }, 0},
	} {
		began := time.Now()
		l := newLoad(began)
		for second := range 30 {
			l.advance(began.Add(time.Duration(second+1)*time.Second), test.load(second), 0)
		}
		if _, growth := l.trend(); math.Abs(growth-test.want) > 0.01 {
			t.Errorf("%s: it grows by %.2f per second, want %.2f", test.name, growth, test.want)
		}
	}
}

func TestLoadOfNothingTakesNoMemory(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLoad(now)
	if n := testing.AllocsPerRun(100, func() {
		now = now.Add(time.Minute)
		l.advance(now, 0, 0)
		if l.short.mean() != 0 || l.long.mean() != 0 || l.short.lastParts(trendParts, 0) != 0 {
			t.Error("there is a load")
		}
	}); n != 0 || l.short.sums != nil || l.long.sums != nil {
		t.Errorf("%v allocations, %d and %d parts", n, len(l.short.sums), len(l.long.sums))
	}
	// The first one counts from when it was there.
	l.advance(now.Add(30*time.Second), 2, 0)
	if got := l.short.mean(); math.Abs(got-1) > 0.1 {
		t.Errorf("2 for half of the last minute are %.2f", got)
	}
}
