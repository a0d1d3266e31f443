package instancepool_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

func TestRhythm(t *testing.T) {
	times := func(n int, d time.Duration) []time.Duration {
		all := make([]time.Duration, n)
		for i := range all {
			all[i] = d
		}
		return all
	}
	join := func(all ...[]time.Duration) (joined []time.Duration) {
		for _, some := range all {
			joined = append(joined, some...)
		}
		return joined
	}
	day := join(times(50, 2*time.Minute), times(5, 14*time.Hour), times(3, 62*time.Hour))
	for _, test := range []struct {
		name   string
		pauses []time.Duration
		lasted time.Duration
		due    time.Duration // 0: nothing is expected
		vain   bool          // to wait for a quarter of an hour
	}{
		{"nothing is known", nil, 0, 0, false},
		{"twice is not a rhythm", times(2, time.Minute), 0, 0, false},
		{"a heartbeat", times(30, time.Minute), 0, time.Minute, false},
		{"once an hour", times(5, time.Hour), 10 * time.Second, time.Hour, true},
		{"it is late already", times(5, time.Minute), 2 * time.Minute, 0, false},
		{"once it was otherwise", join(times(9, time.Hour), times(1, 3*time.Minute)), 10 * time.Second, 0, false},
		{"often it is otherwise", join(times(6, time.Hour), times(4, 3*time.Hour)), 0, time.Hour, true},
		{"at random", []time.Duration{6 * time.Second, 20 * time.Second, time.Minute, 3 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour}, 0, 0, false},
		{"office hours: by day", day, 10 * time.Second, 2 * time.Minute, false},
		{"office hours: in the evening", day, 15 * time.Minute, 14 * time.Hour, true},
		{"office hours: at the weekend", day, 20 * time.Hour, 62 * time.Hour, false},
		{"pauses that say nothing", times(100, time.Second), 0, 0, false},
		{"pauses longer than anybody waits", times(100, 30*24*time.Hour), 0, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var r instancepool.Rhythm
			for _, p := range test.pauses {
				r.Note(p)
			}
			rest, ok := r.Next(test.lasted)
			if ok != (test.due > 0) {
				t.Fatalf("Next = %+v, %t", rest, ok)
			}
			if vain := r.InVain(test.lasted, 15*time.Minute); vain != test.vain {
				t.Errorf("InVain = %t, want %t", vain, test.vain)
			}
			if ok && (rest.From > test.due || rest.To < test.due || rest.To-rest.From > test.due/8) {
				t.Errorf("due from %s to %s, want about %s", rest.From, rest.To, test.due)
			}
		})
	}
}

// What was long ago fades: a service that changes its rhythm is believed.
func TestRhythmChanges(t *testing.T) {
	var r instancepool.Rhythm
	for range 1000 {
		r.Note(time.Hour)
	}
	for range 200 {
		r.Note(10 * time.Minute)
	}
	rest, ok := r.Next(0)
	if !ok || rest.From > 10*time.Minute || rest.To < 10*time.Minute {
		t.Errorf("Next = %+v, %t", rest, ok)
	}
}

// VainAt is the first moment of which InVain is true.
func TestVainAt(t *testing.T) {
	const by = 15 * time.Minute
	random := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 300 {
		var r instancepool.Rhythm
		kinds := []time.Duration{7 * time.Second, time.Minute, 5 * time.Minute, 14 * time.Minute, time.Hour, 20 * time.Hour}
		for range random.IntN(40) {
			r.Note(time.Duration(float64(kinds[random.IntN(1+random.IntN(len(kinds)))]) * (0.8 + 0.4*random.Float64())))
		}
		lasted := time.Duration(random.Int64N(int64(by)))
		at, vain := r.VainAt(lasted, by)
		if vain {
			found++
			if at < lasted || !r.InVain(at+time.Millisecond, by) {
				t.Errorf("after %s it is said to be in vain at %s, and is not", lasted, at)
			}
		}
		for now := lasted; now < by && (!vain || now < at-time.Millisecond); now += time.Second {
			if r.InVain(now, by) {
				t.Fatalf("after %s it is said to be in vain at %s (%t), and is at %s", lasted, at, vain, now)
			}
		}
	}
	if found < 20 || found > 280 {
		t.Errorf("%d of 300 are in vain", found)
	}
}
