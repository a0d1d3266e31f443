package simulation

import (
	"testing"
	"time"
)

// burst is a service whose requests come at these times, in seconds.
func burst(concurrency int, takes time.Duration, at ...float64) Service {
	s := Service{Name: "s", Concurrency: concurrency, Startup: time.Second}
	for _, t := range at {
		s.Arrivals = append(s.Arrivals, Arrival{seconds(t), takes})
	}
	return s
}

// on runs a policy on one service.
func on(s Service, newServer func(*clock, *meter, Service) server) *Result {
	return run(Trace{Length: time.Minute, Services: []Service{s}}, newServer)
}

func TestKPADesired(t *testing.T) {
	for _, test := range []struct {
		name               string
		concurrency, ready int
		stable, panicked   float64
		want               int
	}{
		{"nothing, of none", 10, 0, 0, 0, 0},
		{"70 % of the slots are used", 10, 1, 7, 7, 1},
		{"a little more", 10, 1, 7.1, 7.1, 2},
		{"from none: 100 / 56", 80, 0, 100, 100, 2},
		{"from none: 100 / 7", 10, 0, 100, 100, 15},
		{"80 at concurrency 1: 80 / 0.7", 1, 100, 80, 80, 115},
		{"a burst below twice the pods: the minute's mean counts", 10, 3, 20, 35, 3},
		{"a burst of twice the pods: 36 / 7", 10, 3, 20, 36, 6},
		{"a burst that is over", 10, 6, 40, 0, 6},
		{"no more than a thousandfold", 1, 1, 1400, 1400, 1000},
		{"no less than half", 1, 20, 0.7, 0.7, 10},
		{"half of an odd number", 1, 5, 0.7, 0.7, 2},
		{"none, of one", 10, 1, 0, 0, 0},
		{"one, of three", 10, 3, 0, 0, 1},
	} {
		var p panicking
		if got := p.desired(time.Minute, test.concurrency, test.ready, test.stable, test.panicked); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

// A panic lasts until the load has not been too much for longer than the stable
// window, and the number of pods does not fall in it.
func TestKPAPanic(t *testing.T) {
	var p panicking
	for _, step := range []struct {
		at               time.Duration
		ready            int
		stable, panicked float64
		want             int
	}{
		{2 * time.Second, 1, 1, 7, 1},     // ⌈7/7⌉ is not twice one
		{4 * time.Second, 1, 2, 14, 2},    // it is now
		{6 * time.Second, 2, 5, 70, 10},   // still over twice as much
		{8 * time.Second, 10, 8, 90, 13},  // 13 are not twice ten: it began at 6 s
		{40 * time.Second, 13, 10, 0, 13}, // the stable mean wants two
		{66 * time.Second, 13, 3, 0, 13},
		{68 * time.Second, 13, 3, 0, 6}, // half, and then what the mean wants
		{70 * time.Second, 6, 3, 0, 3},
		{72 * time.Second, 3, 3, 0, 1},
	} {
		if got := p.desired(step.at, 10, step.ready, step.stable, step.panicked); got != step.want {
			t.Errorf("at %s: %d, want %d", step.at, got, step.want)
		}
	}
}

func TestKPAFromZeroAndBack(t *testing.T) {
	r := on(burst(1, 100*time.Millisecond, 0.5), knative(kpaGrace))
	if r.Starts != 1 || r.Waits[0] != time.Second {
		t.Errorf("%d starts, a wait of %s; want one start at once", r.Starts, r.Waits[0])
	}
	// The request is over at 1.6 s. The first tick with a minute of nothing before it is
	// at 62 s; the grace ends 30 s later. The pod began at 0.5 s.
	if want := 91500 * time.Millisecond; r.Existing != want || r.Unfrozen != want {
		t.Errorf("the pod existed for %s, want %s", r.Existing, want)
	}
}

// A request within the grace finds its pod, and the grace begins anew after it.
func TestKPAGraceIsLeft(t *testing.T) {
	r := on(burst(1, 100*time.Millisecond, 0.5, 80.5), knative(kpaGrace))
	if r.Starts != 1 || r.Wait(0.5) != 0 {
		t.Errorf("%d starts, waits %v", r.Starts, r.Waits)
	}
	// 80.6 s, the minute after it until the tick at 142 s, and 30 s: 171.5 s after 0.5 s.
	if want := 171500 * time.Millisecond; r.Existing != want {
		t.Errorf("the pod existed for %s, want %s", r.Existing, want)
	}
}

// A hundred requests at once: one pod at once, and at the next tick as many as the
// panic window wants.
func TestKPABurst(t *testing.T) {
	at := make([]float64, 100)
	for n := range at {
		at[n] = 0.1
	}
	r := on(burst(10, 10*time.Second, at...), knative(kpaGrace))
	// At 2 s (90 + 100) / 2 / 7 = 13.6, which is 14; at 6 s (90 + 5 × 100) / 6 / 7 = 14.05.
	if r.Most != 15 || r.Starts != 15 {
		t.Errorf("%d pods at most, %d starts; want 15", r.Most, r.Starts)
	}
	// The first ten wait for the first pod, all others for the tick and a start.
	if r.Wait(0.1) != time.Second || r.Wait(0.11) != 2900*time.Millisecond || r.Wait(1) != 2900*time.Millisecond {
		t.Errorf("waits: %s, %s, %s", r.Wait(0.1), r.Wait(0.11), r.Wait(1))
	}
}

// Pods of concurrency up to 3 are filled in their order, others get requests in turn.
func TestKPAPicks(t *testing.T) {
	for _, test := range []struct {
		concurrency int
		want        *picked
	}{{3, &picked{first: 3, second: 1}}, {4, &picked{first: 2, second: 2}}} {
		f := knative(kpaGrace)(new(clock), newMeter(Trace{}), Service{Concurrency: test.concurrency}).(*fleet)
		first, second := &instance{ready: true}, &instance{ready: true}
		f.instances = []*instance{first, second}
		for range 4 {
			f.serve(request{takes: time.Second, done: func() {}})
		}
		if got := (picked{first.inFlight, second.inFlight}); got != *test.want {
			t.Errorf("concurrency %d: %+v, want %+v", test.concurrency, got, *test.want)
		}
	}
}

type picked struct{ first, second int }
