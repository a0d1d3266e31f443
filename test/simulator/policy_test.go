package simulator

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

// at is a service whose requests come at these times, in seconds, and take takes.
func at(concurrency int, takes time.Duration, times ...float64) service {
	s := service{name: "s", concurrency: concurrency, startup: time.Second}
	for _, t := range times {
		s.requests = append(s.requests, request{seconds(t), takes})
	}
	return s
}

func TestClairvoyant(t *testing.T) {
	r := clairvoyant(at(2, 10*time.Second, 0, 1, 2, 30))
	// Two instances while three requests are there, from 2 to 10 s; one from 0 to 12
	// and from 30 to 40.
	if want := 30 * time.Second; r.existing != want || r.unfrozen != want || r.most != 2 || len(r.waits) != 4 {
		t.Errorf("%+v, want %s", r, want)
	}
}

// Knative: from zero at once, and back to zero 60 s and 30 s after the last request.
func TestKPAScalesToZero(t *testing.T) {
	r := knative(at(1, 100*time.Millisecond, 0.5))
	if r.starts != 1 || r.waits[0] != time.Second {
		t.Errorf("%d starts, wait %s", r.starts, r.waits[0])
	}
	if lived := r.existing; lived < 88*time.Second || lived > 96*time.Second {
		t.Errorf("the pod lived for %s, want about 90s", lived)
	}
}

func TestKPADesired(t *testing.T) {
	for _, test := range []struct {
		name        string
		concurrency int
		stable      float64 // mean of the minute but for its last 6 seconds
		panic       float64 // of these
		ready       float64
		want        int
	}{
		{"as much as is there", 10, 7, 7, 1, 1},
		{"a little more", 10, 7.1, 7.1, 1, 2},
		{"the minute's mean counts", 10, 20, 28, 3, 3},
		{"a panic", 10, 7, 70, 1, 10},
		{"no panic below twice as much", 10, 14, 20, 2, 3},
		{"it halves at most", 1, 0.7, 0.7, 20, 10},
		{"to nothing from one", 10, 0, 0, 1, 0},
	} {
		k := &kpa{f: newFleet(service{concurrency: test.concurrency}), target: kpaUtilization * float64(test.concurrency)}
		for i := range kpaStable {
			if i < kpaStable-kpaPanic {
				k.buckets = append(k.buckets, test.stable)
			} else {
				k.buckets = append(k.buckets, test.panic)
			}
		}
		if got := k.desired(test.ready); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

// In a panic the number does not fall, for a minute.
func TestKPAPanicStays(t *testing.T) {
	var many []float64
	for range 100 {
		many = append(many, 1)
	}
	r := knative(at(1, time.Second, append(many, 20)...))
	if r.most < 50 {
		t.Errorf("%d pods at most for 100 requests at once", r.most)
	}
	if r.existing < time.Duration(r.most)*50*time.Second {
		t.Errorf("%d pods existed for %s together", r.most, r.existing)
	}
}

func TestReactive(t *testing.T) {
	r := reactive(recent, 10*time.Second, time.Second)(at(1, 2*time.Second, 0, 0, 20))
	// Two of 1 s start, 2 s service and 10 s idle; then one again.
	if r.starts != 3 || r.existing != 3*13*time.Second || r.freezes != 3 || r.unfrozen != 3*4*time.Second {
		t.Errorf("%+v", r)
	}
	if r = perRequest(10 * time.Second)(at(10, time.Second, 0, 0, 0)); r.starts != 3 {
		t.Errorf("%d starts for three requests", r.starts)
	}
}

// pooled runs a service on Fairway's own pool, which starts and stops instances as
// reactive does.
func pooled(t *testing.T, s service, keep time.Duration) (r result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		rt := pooltest.NewRuntime()
		rt.Plan(pooltest.Plan{StartTime: s.startup, FreezeTime: freezeTakes, ThawTime: thawTakes})
		rev := revisions.New(s.name, s.name+"-00001", 1, &revisions.Spec{
			Concurrency: s.concurrency, IdleTimeout: keep, Throttled: true, Timeout: time.Hour, QueueDepth: 1 << 20,
		})
		pool := instancepool.New(rev, instancepool.Options{
			Start: rt.Start, Probe: rt.Probe,
			Decide: func(s instancepool.Snapshot) instancepool.Decision {
				missing := s.Waiting - s.Free - s.Starting*s.Concurrency
				return instancepool.Decision{Start: max(0, (missing+s.Concurrency-1)/s.Concurrency)}
			},
		})
		r = play(trace{services: []service{s}}, rt, func(string) (*instancepool.Lease, error) { return pool.Acquire(context.Background()) })
		pool.Drain(0)
		pool.Wait()
	})
	return r
}

// Which instance gets a request decides how many can be frozen, and how long those
// that are left over are needed. All else is the same.
func TestWhichInstance(t *testing.T) {
	if testing.Short() {
		t.Skip()
	}
	const keep, grace = 90 * time.Second, 50 * time.Millisecond
	var rows []row
	total := make(map[string]result)
	for _, tr := range traces() {
		if len(tr.services) > 1 || tr.name == "case-1" { // where there is one instance, or hundreds to choose from
			continue
		}
		for name, pick := range map[string]func([]*instance) *instance{
			"first": first, "recent": recent, "least loaded": leastLoaded, "round robin": roundRobin, "random": atRandom(random(tr.name)),
		} {
			r := forEachService(tr, reactive(pick, keep, grace))
			rows = append(rows, row{tr.name, name, r})
			sum := total[name]
			sum.add(result{existing: r.existing, unfrozen: r.unfrozen, waits: r.waits})
			total[name] = sum
		}
		for _, s := range tr.services {
			r := pooled(t, s, keep)
			rows = append(rows, row{tr.name, "Fairway's pool", r})
			sum := total["Fairway's pool"]
			sum.add(result{existing: r.existing, unfrozen: r.unfrozen, waits: r.waits})
			total["Fairway's pool"] = sum
		}
	}
	for name, r := range total {
		rows = append(rows, row{"all", name, r})
	}
	t.Logf("\n%s", table(t, rows))
	for name, other := range total {
		if name == "first" || name == "recent" || name == "Fairway's pool" {
			continue
		}
		if best := total["Fairway's pool"]; best.existing > other.existing || best.unfrozen > other.unfrozen || best.wait(0.99) > other.wait(0.99)+grace {
			t.Errorf("Fairway's pool: existing %.0f s, unfrozen %.0f s, p99 %s; %s: %.0f s, %.0f s, %s",
				best.existing.Seconds(), best.unfrozen.Seconds(), best.wait(0.99), name, other.existing.Seconds(), other.unfrozen.Seconds(), other.wait(0.99))
		}
	}
}
