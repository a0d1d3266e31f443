package simulator

import (
	"context"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
	"github.com/fairway-run/fairway/test/chart"
)

// What a freeze and a thaw take.
const (
	freezeTakes = 400 * time.Microsecond
	thawTakes   = time.Millisecond
)

// likeKnative has an instance kept for as long as Knative keeps it, and, like
// Knative's of those traces, none started ahead of need.
var likeKnative = map[string]string{
	"autoscaling.knative.dev/window":                             "60s",
	"autoscaling.knative.dev/scale-to-zero-pod-retention-period": "30s",
	revisions.ConcurrencyTargetAnnotation:                        "disabled",
}

// fairway runs a trace on Fairway's own scaler and pools.
func fairway(t *testing.T, tr trace, annotations map[string]string) (r result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		rt := pooltest.NewRuntime()
		startup := make(map[string]time.Duration)
		wanted := make([]*servingv1.Service, 0, len(tr.services))
		for _, s := range tr.services {
			startup[s.name] = s.startup
			wanted = append(wanted, knativeService(t, s, annotations))
		}
		rt.PlanFor(func(spec instancepool.StartSpec) pooltest.Plan {
			return pooltest.Plan{StartTime: startup[spec.Revision.Service], FreezeTime: freezeTakes, ThawTime: thawTakes}
		})
		// How long a start takes does not depend here on how many there are.
		sc := scaler.New(scaler.Options{Runtime: rt, Observer: quiet{}, Probe: rt.Probe, StartLimit: 10_000, Limits: scaler.Limits{Memory: -1}})
		sc.Start()
		if err := sc.Declare(tr.name, wanted); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r = play(tr, rt, func(service string) (*instancepool.Lease, error) {
			return sc.Acquire(context.Background(), scaler.Request{Service: service})
		})
		if err := sc.Close(context.Background(), scaler.Stop); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// play sends the requests of a trace to whoever gives leases on rt's instances.
func play(tr trace, rt *pooltest.Runtime, acquire func(service string) (*instancepool.Lease, error)) result {
	w := &world{rt: rt, acquire: acquire}
	stop := w.sample()
	startup := make(map[string]time.Duration)
	var services sync.WaitGroup
	for _, s := range tr.services {
		startup[s.name] = s.startup
		services.Go(func() { w.play(s) })
	}
	services.Wait()
	w.requests.Wait()
	for len(rt.Running()) > 0 { // what is kept counts too
		time.Sleep(time.Second)
	}
	stop()
	for _, i := range rt.Instances() {
		existed, unfrozen := i.Lived()
		took := startup[i.Revision().Service]
		w.result.existing += existed + took
		w.result.unfrozen += unfrozen + took
		w.result.freezes += i.Freezes()
	}
	w.result.starts = rt.Attempts()
	return w.result
}

func knativeService(t *testing.T, s service, annotations map[string]string) *servingv1.Service {
	t.Helper()
	concurrency := int64(s.concurrency)
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: s.name}}
	svc.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/max-scale": "1000"}
	maps.Copy(svc.Spec.Template.Annotations, annotations)
	svc.Spec.Template.Spec.ContainerConcurrency = &concurrency
	svc.Spec.Template.Spec.Containers = []corev1.Container{{Image: "app"}}
	svc, err := revisions.Prepare(svc)
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// world is a run of a trace.
type world struct {
	rt       *pooltest.Runtime
	acquire  func(service string) (*instancepool.Lease, error)
	requests sync.WaitGroup

	mu     sync.Mutex // guards all below
	active int
	result result
}

// play sends the requests of a service.
func (w *world) play(s service) {
	began := time.Now()
	for _, q := range s.requests {
		time.Sleep(time.Until(began.Add(q.at)))
		w.requests.Go(func() {
			lease, err := w.acquire(s.name)
			w.mu.Lock()
			if err != nil {
				w.result.rejected++
				w.mu.Unlock()
				return
			}
			w.result.waits = append(w.result.waits, lease.Waited)
			w.active++
			w.mu.Unlock()
			time.Sleep(q.takes)
			lease.Release()
			w.mu.Lock()
			w.active--
			w.mu.Unlock()
		})
	}
}

// sample looks at all instances once a second, until the returned function is
// called.
func (w *world) sample() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			running := w.rt.Running()
			s := sample{existing: len(running)}
			for _, i := range running {
				if !i.Frozen() {
					s.unfrozen++
				}
			}
			w.mu.Lock()
			s.requests = w.active
			w.result.samples = append(w.result.samples, s)
			w.result.most = max(w.result.most, s.existing)
			w.mu.Unlock()
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

type quiet struct{}

func (quiet) Instance(instancepool.Event)   {}
func (quiet) Revision(scaler.RevisionEvent) {}

// charts is where to draw a chart of each trace; empty: none are.
var charts = flag.String("charts", "", "a `directory` to draw charts of the traces in")

func TestAgainstKnative(t *testing.T) {
	var rows []row
	var ours, theirs result
	for _, tr := range traces() {
		k := forEachService(tr, knative)
		c := forEachService(tr, clairvoyant)
		f := fairway(t, tr, likeKnative)
		rows = append(rows, row{tr.name, "Fairway", f}, row{tr.name, "KPA", k},
			row{tr.name, "one per request", forEachService(tr, perRequest(90*time.Second))}, row{tr.name, "clairvoyant", c})
		ours.add(result{waits: f.waits, existing: f.existing, unfrozen: f.unfrozen, starts: f.starts, rejected: f.rejected, freezes: f.freezes})
		theirs.add(result{waits: k.waits, existing: k.existing, unfrozen: k.unfrozen, starts: k.starts})
		if ratio := ratio(f.unfrozen, c.unfrozen); tr.steady && ratio > 1.3 {
			t.Errorf("%s: unfrozen instance-seconds are %.2f of the clairvoyant bound, want 1.3 at most", tr.name, ratio)
		}
		if *charts != "" {
			file := filepath.Join(*charts, strings.ReplaceAll(tr.name, " ", "-")+".svg")
			if err := os.WriteFile(file, drawn(tr.name, f, k), 0o644); err != nil { //nolint:gosec // for all to see
				t.Error(err)
			}
		}
		if f.rejected > 0 {
			t.Errorf("%s: %d requests were rejected", tr.name, f.rejected)
		}
	}
	rows = append(rows, row{"all", "Fairway", ours}, row{"all", "KPA", theirs})
	t.Logf("\n%s", table(t, rows))
	existing, unfrozen := ratio(ours.existing, theirs.existing), ratio(ours.unfrozen, theirs.unfrozen)
	t.Logf("of KPA's: existing %.3f, unfrozen %.3f", existing, unfrozen)
	if existing > 0.8 || unfrozen > 0.5 {
		t.Errorf("existing instance-seconds are %.2f of KPA's and unfrozen ones %.2f, want 0.8 and 0.5 at most", existing, unfrozen)
	}
	if our, their := ours.wait(0.99), theirs.wait(0.99); our > their {
		t.Errorf("the 99th percentile of the waits is %s, KPA's %s", our, their)
	}
}

// chartPoints is how many points a chart's line has at most.
const chartPoints = 600

// drawn is a chart of what Fairway and Knative make of a trace.
func drawn(title string, ours, theirs result) []byte {
	line := func(r result, color string, value func(sample) int) chart.Line {
		l := chart.Line{Color: color, Width: 1}
		// A point is the most of its time: there is no room for each second.
		each := 1 + len(r.samples)/chartPoints
		for i := 0; i < len(r.samples); i += each {
			most := 0
			for _, s := range r.samples[i:min(i+each, len(r.samples))] {
				most = max(most, value(s))
			}
			l.Points = append(l.Points, chart.Point{At: time.Duration(i+1) * time.Second, Value: float64(most)})
		}
		return l
	}
	plot := func(name string, value func(sample) int) chart.Plot {
		return chart.Plot{Name: name, Lines: []chart.Line{
			line(theirs, "#d93025", value), line(ours, "#1a73e8", value),
		}}
	}
	end := time.Duration(max(len(ours.samples), len(theirs.samples))) * time.Second
	return chart.SVG(title+" (blue: Fairway, red: Knative)", end,
		chart.Plot{Name: "requests in instances", Lines: []chart.Line{line(ours, "#1e8e3e", func(s sample) int { return s.requests })}},
		plot("instances", func(s sample) int { return s.existing }),
		plot("instances that are not frozen", func(s sample) int { return s.unfrozen }))
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

func table(t *testing.T, rows []row) string {
	t.Helper()
	var b strings.Builder
	if err := printTable(&b, rows); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
