package simulation

import (
	"context"
	"fmt"
	"maps"
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
)

const (
	// What a freeze and a thaw of a container take.
	freezeTakes = 400 * time.Microsecond
	thawTakes   = time.Millisecond
	// Starts do not keep one another waiting, as they do not in the other policies
	// either, though they would on a real host.
	startLimit = 10_000
)

// likeKnative keeps instances as long as Knative does, and starts none ahead of need.
var likeKnative = map[string]string{
	"autoscaling.knative.dev/window":                             "60s",
	"autoscaling.knative.dev/scale-to-zero-pod-retention-period": "30s",
	revisions.IdleTimeoutAnnotation:                              "90s",
	revisions.ConcurrencyTargetAnnotation:                        "disabled",
}

// host is an engine that notes what becomes of its instances.
type host struct {
	instancepool.Runtime
	fake  *pooltest.Runtime
	began time.Time

	mu    sync.Mutex // guards meter
	meter *meter
}

func (h *host) note(f func(m *meter, now time.Duration)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.meter, time.Since(h.began))
}

func (h *host) Start(ctx context.Context, spec instancepool.StartSpec) (instancepool.Handle, error) {
	h.note((*meter).started)
	i, err := h.Runtime.Start(ctx, spec)
	if err != nil {
		h.note(func(m *meter, now time.Duration) { m.ended(now, false) })
		return nil, err
	}
	return &guest{Instance: i.(*pooltest.Instance), host: h}, nil
}

func (h *host) probe(ctx context.Context, i instancepool.Handle) error {
	return h.fake.Probe(ctx, i.(*guest).Instance)
}

// guest is an instance of a host.
type guest struct {
	*pooltest.Instance
	host *host
	end  sync.Once
}

func (g *guest) Freeze(ctx context.Context) error {
	was := g.Frozen()
	err := g.Instance.Freeze(ctx)
	if !was && g.Frozen() {
		g.host.note((*meter).froze)
	}
	return err
}

func (g *guest) Thaw(ctx context.Context) error {
	was := g.Frozen()
	err := g.Instance.Thaw(ctx)
	if was && !g.Frozen() {
		g.host.note((*meter).thawed)
	}
	return err
}

func (g *guest) Stop(ctx context.Context, grace time.Duration) error {
	was := g.Frozen()
	err := g.Instance.Stop(ctx, grace)
	g.end.Do(func() { g.host.note(func(m *meter, now time.Duration) { m.ended(now, was) }) })
	return err
}

// fairway plays a trace on Fairway's own scaler and pools.
func fairway(t *testing.T, tr Trace, annotations map[string]string) (made *Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake := pooltest.NewRuntime()
		startup := make(map[string]time.Duration)
		var services []*servingv1.Service
		for _, s := range tr.Services {
			startup[s.Name] = s.Startup
			services = append(services, declared(t, s, annotations))
		}
		fake.PlanFor(func(spec instancepool.StartSpec) pooltest.Plan {
			return pooltest.Plan{StartTime: startup[spec.Revision.Service], FreezeTime: freezeTakes, ThawTime: thawTakes}
		})
		h := &host{Runtime: fake, fake: fake, meter: newMeter(tr)}
		sc := scaler.New(scaler.Options{
			Runtime: h, Observer: quiet{}, Probe: h.probe, StartLimit: startLimit,
			Limits: scaler.Limits{Memory: -1},
		})
		sc.Start()
		if err := sc.Declare(t, services); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if fake.Attempts() > 0 {
			t.Fatalf("%d instances were started without a request", fake.Attempts())
		}
		h.began = time.Now()
		var players sync.WaitGroup
		for _, s := range tr.Services {
			players.Go(func() { h.play(sc, s) })
		}
		players.Wait()
		for len(fake.Running()) > 0 { // what is kept in vain counts
			time.Sleep(time.Second)
		}
		if err := sc.Close(context.Background(), scaler.Stop); err != nil {
			t.Fatal(err)
		}
		h.note((*meter).note)
		made = h.meter.result
		var existed, unfrozen time.Duration
		for _, i := range fake.Instances() {
			lived, ran := i.Lived()
			took := startup[i.Revision().Service]
			existed, unfrozen = existed+lived+took, unfrozen+ran+took
		}
		if existed != made.Existing || unfrozen != made.Unfrozen {
			t.Errorf("instances existed for %s, %s of it not frozen; noted were %s and %s", existed, unfrozen, made.Existing, made.Unfrozen)
		}
	})
	return made
}

// declared is a service as a config would have it.
func declared(t *testing.T, s Service, annotations map[string]string) *servingv1.Service {
	t.Helper()
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: s.Name}}
	svc.Spec.Template.Annotations = map[string]string{
		"autoscaling.knative.dev/max-scale":     "1000", // Knative has no maximum
		"autoscaling.knative.dev/initial-scale": "0",    // a deployment is not part of a trace
	}
	maps.Copy(svc.Spec.Template.Annotations, annotations)
	concurrency := int64(s.Concurrency)
	svc.Spec.Template.Spec.ContainerConcurrency = &concurrency
	svc.Spec.Template.Spec.Containers = []corev1.Container{{Image: "app"}}
	svc, err := revisions.Prepare(svc)
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// play sends the requests of a service and returns when the last has ended.
func (h *host) play(sc *scaler.Scaler, s Service) {
	var requests sync.WaitGroup
	for _, c := range s.Clients {
		requests.Go(func() {
			time.Sleep(time.Until(h.began.Add(c.From)))
			for n := 0; time.Since(h.began) < c.To; n++ {
				next := time.Now().Add(c.Every)
				h.request(sc, s.Name, c.Takes[n])
				time.Sleep(time.Until(next))
			}
		})
	}
	for _, a := range s.Arrivals {
		time.Sleep(time.Until(h.began.Add(a.At)))
		requests.Go(func() { h.request(sc, s.Name, a.Takes) })
	}
	requests.Wait()
}

func (h *host) request(sc *scaler.Scaler, service string, takes time.Duration) {
	h.note((*meter).came)
	defer h.note((*meter).left)
	came := time.Now()
	lease, err := sc.Acquire(context.Background(), scaler.Request{Service: service})
	if err != nil {
		h.note(func(m *meter, _ time.Duration) { m.rejected() })
		return
	}
	waited := time.Since(came)
	h.note(func(m *meter, _ time.Duration) { m.admitted(waited) })
	time.Sleep(takes)
	lease.Release()
}

type quiet struct{}

func (quiet) Instance(instancepool.Event)   {}
func (quiet) Revision(scaler.RevisionEvent) {}

// differ says by how much two results of a trace differ that should be the same.
func differ(a, b *Result) string {
	return fmt.Sprintf("existing %.6f, unfrozen %.6f, p50 wait %s, p99 %s, p99.9 %s, %d starts, %d freezes",
		ratio(a.Existing, b.Existing)-1, ratio(a.Unfrozen, b.Unfrozen)-1, a.Wait(0.5)-b.Wait(0.5), a.Wait(0.99)-b.Wait(0.99), a.Wait(0.999)-b.Wait(0.999),
		a.Starts-b.Starts, a.Freezes-b.Freezes)
}
