package simulation

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestClairvoyant(t *testing.T) {
	// One instance from 0 to 12 s and from 30 to 40 s, and from 2 to 10 s, while there
	// are three requests, another.
	r := on(burst(2, 10*time.Second, 0, 1, 2, 30), clairvoyant)
	if want := 30 * time.Second; r.Existing != want || r.Unfrozen != want || r.Most != 2 || len(r.Waits) != 4 || r.Wait(1) != 0 {
		t.Errorf("%+v, want %s", r, want)
	}
}

func TestPerRequest(t *testing.T) {
	// Each waits for its own start, and each instance is idle for ten seconds; the first
	// takes all three.
	r := on(burst(10, time.Second, 0, 0, 0), perRequest(10*time.Second))
	if r.Starts != 3 || r.Wait(0) != time.Second || r.Existing != 12*time.Second+2*11*time.Second {
		t.Errorf("%+v", r)
	}
}

func TestReactive(t *testing.T) {
	r := on(burst(1, 2*time.Second, 0, 0, 20), reactive(always(gathered), time.Second))
	// Of the first two, which start for 1 s and serve for 2 s, one is too many 10 s
	// later. The other is thawed at 20 s and kept for 90 s after 22.001 s.
	if r.Starts != 2 || r.Existing != 13*time.Second+112001*time.Millisecond {
		t.Errorf("%d starts, existing for %s", r.Starts, r.Existing)
	}
	if r.Freezes != 3 || r.Unfrozen != 2*4*time.Second+3001*time.Millisecond {
		t.Errorf("%d freezes, unfrozen for %s", r.Freezes, r.Unfrozen)
	}
	if r.Wait(0) != time.Millisecond {
		t.Errorf("the shortest wait is %s, want that for a thaw", r.Wait(0))
	}
}

// A client that waits sends less: its next request is due a second after the last,
// or when that is done.
func TestClosedLoop(t *testing.T) {
	takes := []time.Duration{100 * time.Millisecond, 1500 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond}
	s := Service{Concurrency: 1, Startup: 2 * time.Second, Clients: []Client{{From: time.Second, To: 6 * time.Second, Every: time.Second, Takes: takes}}}
	// At 1 s, done at 3.1 s; at 3.1 s, done at 4.6 s; at 4.6 s; at 5.6 s; not at 6.6 s.
	r := on(s, reactive(always(gathered), -1))
	if len(r.Waits) != 4 || r.Wait(1) != 2*time.Second || r.Wait(0.75) != 0 {
		t.Errorf("waits: %v", r.Waits)
	}
}

func TestRejected(t *testing.T) {
	at := make([]float64, queueDepth+10)
	if r := on(burst(1, time.Millisecond, at...), knative(kpaGrace)); r.Rejected != 10 || len(r.Waits) != queueDepth {
		t.Errorf("%d were rejected and %d served", r.Rejected, len(r.Waits))
	}
}

func TestDeterminism(t *testing.T) {
	tr := spiky(10 * time.Minute)
	for name, policy := range map[string]func(*clock, *meter, Service) server{
		"KPA": knative(kpaGrace), "per request": perRequest(time.Minute), "clairvoyant": clairvoyant,
		"reactive": reactive(randomly("test"), time.Second),
	} {
		if !reflect.DeepEqual(run(tr, policy), run(tr, policy)) {
			t.Errorf("%s does not do the same each time", name)
		}
	}
}

func always(p picker) func() picker { return func() picker { return p } }

func randomly(seed string) func() picker { return func() picker { return atRandom(random(seed)) } }

// Which instance gets a request decides how many can be frozen, and how long those
// that are left over are kept. All else is the same.
func TestWhichInstance(t *testing.T) {
	report := new(Report)
	others := []string{"least loaded", "round robin", "random"}
	for _, tr := range Traces(full) {
		for _, p := range []struct {
			name string
			pick func() picker
		}{
			{"gathered", always(gathered)},
			{"fullest", always(fullest)},
			{"oldest", always(oldest)},
			{others[0], always(leastLoaded)},
			{others[1], always(roundRobin)},
			{others[2], randomly(tr.Name)},
		} {
			report.Add(tr.Name, p.name, run(tr, reactive(p.pick, freezeGrace)))
		}
	}
	logTable(t, report)
	ours := report.Total("gathered")
	for _, other := range others {
		if their := report.Total(other); ours.Existing > their.Existing || ours.Unfrozen > their.Unfrozen {
			t.Errorf("existing %.0f s, unfrozen %.0f s; %s: %.0f s, %.0f s", ours.Existing.Seconds(), ours.Unfrozen.Seconds(),
				other, their.Existing.Seconds(), their.Unfrozen.Seconds())
		}
	}
}

// freezeGrace is Fairway's.
const freezeGrace = 50 * time.Millisecond

// The sooner an idle instance is frozen, the less it runs in vain, and the more often
// a request waits for a thaw.
func TestFreezeGrace(t *testing.T) {
	report := new(Report)
	graces := []time.Duration{0, 10 * time.Millisecond, freezeGrace, 200 * time.Millisecond, time.Second, 5 * time.Second, -1}
	for _, tr := range Traces(full) {
		for _, grace := range graces {
			report.Add(tr.Name, graceName(grace), run(tr, reactive(always(gathered), grace)))
		}
	}
	logTable(t, report)
	for n := range len(graces) - 1 {
		if sooner, later := report.Total(graceName(graces[n])), report.Total(graceName(graces[n+1])); sooner.Unfrozen > later.Unfrozen || sooner.Freezes < later.Freezes {
			t.Errorf("frozen after %s: unfrozen for %.0f s, %d freezes; after %s: %.0f s, %d", graces[n], sooner.Unfrozen.Seconds(), sooner.Freezes,
				graces[n+1], later.Unfrozen.Seconds(), later.Freezes)
		}
	}
}

func graceName(d time.Duration) string {
	if d < 0 {
		return "never frozen"
	}
	return fmt.Sprint("frozen after ", d)
}

func logTable(t *testing.T, r *Report) {
	t.Helper()
	var b strings.Builder
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", b.String())
}
