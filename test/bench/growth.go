package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
)

const (
	// growthRounds is how often each side is measured, in turn with the other.
	growthRounds = 9
	// growthDeploys and growthRequests are those of one round.
	growthDeploys  = 30
	growthRequests = 20_000
)

// The bounds that growth checks.
const (
	growthOpen  = 5 * time.Second
	growthBytes = 20_000
	growthRatio = 1.2
)

// growth compares a host of many services with a host of one: what its start
// takes, what a revision occupies, and what a deploy and a request cost. Both
// keep their records in Caddy's file storage, and no container runs.
func growth(ctx context.Context, s *settings, _ *host) (err error) {
	services, revs := s.services, s.revisions
	if services < 1 || revs < services {
		return fmt.Errorf("%d revisions of %d services cannot be", revs, services)
	}
	dir, err := os.MkdirTemp("", "fairway-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	each := max(1, revs/services)
	began := time.Now()
	one, many := filepath.Join(dir, "one"), filepath.Join(dir, "many")
	if err := errors.Join(populate(one, 1, each), populate(many, services, each)); err != nil {
		return err
	}
	if err := settleDisk(many); err != nil {
		return err
	}
	fmt.Printf("growth: %d services of %d revisions each, written in %s\n", services, each, time.Since(began).Round(time.Second))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go answer(listener)
	small, err := openHost(ctx, one, listener.Addr().String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, small.Close(ctx, scaler.Keep)) }()
	heap := heapNow()
	big, err := openHost(ctx, many, listener.Addr().String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, big.Close(ctx, scaler.Keep)) }()
	perRevision := float64(heapNow()-heap) / float64(services*each)
	if problems := big.Registry().Problems(); len(problems) > 0 {
		return fmt.Errorf("%d records could not be read, such as %w", len(problems), problems[0])
	}
	if n := len(big.Registry().RevisionNames()); n != services*each {
		return fmt.Errorf("%d revisions were read, not %d", n, services*each)
	}
	if err := big.serve(ctx); err != nil {
		return err
	}
	if err := small.serve(ctx); err != nil {
		return err
	}

	var deploys, requests [2][]float64
	for range growthRounds {
		for side, h := range []*growthHost{small, big} {
			took, err := h.deploy(ctx, growthDeploys)
			if err != nil {
				return err
			}
			deploys[side] = append(deploys[side], took)
			if took, err = h.requests(ctx, growthRequests); err != nil {
				return err
			}
			requests[side] = append(requests[side], took)
		}
	}
	var g goals
	g.row("open, files cached", big.opened.Round(time.Millisecond).String(), "<= "+growthOpen.String(), big.opened <= growthOpen)
	g.row("memory per revision", fmt.Sprintf("%.0f B", perRevision), fmt.Sprintf("< %d B", growthBytes), perRevision < growthBytes)
	ratio := func(name, unit string, all [2][]float64) {
		a, b := median(all[0]), median(all[1])
		g.row(name, fmt.Sprintf("%.0f : %.0f %s, ratio %.2f", a, b, unit, b/a), fmt.Sprintf("<= %.1f", growthRatio), b/a <= growthRatio)
	}
	ratio("deploy, 1 : many", "µs", deploys)
	ratio("request, 1 : many", "ns", requests)
	fmt.Printf("%-24s %28s\n", "all routed after", big.routed.Round(time.Millisecond))
	return g.err()
}

// heapNow is what is in use.
func heapNow() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// settleDisk writes what waits to be written, and reads what is in dir: a start is
// measured, and not the disk, which after a restart of the machine comes on top.
func settleDisk(dir string) error {
	syscall.Sync()
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			_, err = os.ReadFile(path)
		}
		return err
	})
}

// unsynced is Caddy's file storage without its waits for the disk, which would
// make the preparation last for hours on some.
type unsynced struct{ certmagic.FileStorage }

func (s *unsynced) Store(_ context.Context, key string, value []byte) error {
	file := s.Filename(key)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, value, 0o600)
}

// populate lets a registry write services whose revisions have all been ready.
func populate(dir string, services, each int) error {
	registry := revisions.NewRegistry(revisions.Options{})
	ctx := context.Background()
	if err := registry.Open(ctx, &unsynced{certmagic.FileStorage{Path: dir}}); err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for n := range services {
		group.Go(func() error {
			st, err := registry.Create(growthService(n, 0), revisions.OwnerAPI)
			for i := 1; ; i++ {
				if err != nil {
					return err
				}
				registry.Pin(st.Latest(), map[string]string{st.Latest().Spec().Image: fmt.Sprintf("sha256:%064d", i)})
				registry.MarkReady(st.Latest())
				if i == each {
					return nil
				}
				st, err = registry.Update(redeployed(st, n, i), revisions.OwnerAPI)
			}
		})
	}
	return errors.Join(group.Wait(), registry.Close(ctx))
}

func growthName(n int) string { return fmt.Sprintf("service-%05d", n) }

// growthService is a service of ordinary size; each version has a template of
// its own.
func growthService(n, version int) *servingv1.Service {
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{
		Name: growthName(n), Labels: map[string]string{"team": "blue", "stage": "production"},
	}}
	c := corev1.Container{
		Image: fmt.Sprintf("registry.example.com/team/%s:1.%d.0", growthName(n), version),
		Args:  []string{"--listen", ":8080", "--verbose"},
		StartupProbe: &corev1.Probe{
			ProbeHandler:     corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(0)}},
			FailureThreshold: 10, PeriodSeconds: 1,
		},
	}
	for i, name := range []string{"DATABASE_URL", "CACHE_URL", "LOG_LEVEL", "REGION", "FEATURES", "BUCKET", "TOPIC", "API_BASE"} {
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: fmt.Sprintf("value %d of this variable, version %d", i, version)})
	}
	svc.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/max-scale": "20"}
	svc.Spec.Template.Spec.Containers = []corev1.Container{c}
	return svc
}

// redeployed is the service as a client sends it back with another template.
func redeployed(st *revisions.State, n, version int) *servingv1.Service {
	svc := st.ServiceObject()
	svc.ResourceVersion = ""
	svc.Spec.Template = growthService(n, version).Spec.Template
	return svc
}

// growthHost is an engine whose instances are a listener of this process.
type growthHost struct {
	*scaler.Scaler
	opened, routed time.Duration
	version        int
}

func openHost(ctx context.Context, dir, address string) (*growthHost, error) {
	h := &growthHost{Scaler: scaler.New(scaler.Options{
		Runtime: &listening{Runtime: pooltest.NewRuntime(), address: address}, Observer: silent{},
	})}
	began := time.Now()
	if err := h.Registry().Open(ctx, &certmagic.FileStorage{Path: dir}); err != nil {
		return nil, err
	}
	h.opened = time.Since(began)
	h.Start()
	// The last step of the start is answered requests of what nobody knows.
	if _, err := h.Acquire(ctx, scaler.Request{Service: "unheard-of"}); !errors.Is(err, scaler.ErrUnknownService) {
		return nil, fmt.Errorf("waiting for the start: %w", err)
	}
	h.routed = time.Since(began)
	return h, nil
}

// serve makes sure that an instance of the first service runs.
func (h *growthHost) serve(ctx context.Context) error {
	_, err := h.requests(ctx, 1)
	return err
}

// deploy is what one deploy takes until it is kept, in microseconds, the median
// of several. It returns when the last of them serves.
func (h *growthHost) deploy(ctx context.Context, n int) (float64, error) {
	var all []float64
	for range n {
		h.version++
		svc := redeployed(h.Registry().State(growthName(0)), 0, 1_000_000+h.version)
		began := time.Now()
		if _, err := h.Registry().Update(svc, revisions.OwnerAPI); err != nil {
			return 0, err
		}
		all = append(all, float64(time.Since(began))/float64(time.Microsecond))
	}
	err := poll(ctx, 2*time.Millisecond, time.Minute, func() bool {
		st, _ := h.ServiceStatus(growthName(0))
		return len(st.Revisions) == 1 && st.Serving == st.Latest
	})
	if err != nil {
		return 0, fmt.Errorf("waiting for the last deploy: %w", err)
	}
	return median(all), nil
}

// requests is what one request takes from its service's name to its release, in
// nanoseconds.
func (h *growthHost) requests(ctx context.Context, n int) (float64, error) {
	request := scaler.Request{Service: growthName(0)}
	began := time.Now()
	for range n {
		lease, err := h.Acquire(ctx, request)
		if err != nil {
			return 0, err
		}
		lease.Release()
	}
	return float64(time.Since(began)) / float64(n), nil
}

// listening is a runtime whose instances are all reached at one address.
type listening struct {
	*pooltest.Runtime
	address string
}

func (rt *listening) Start(ctx context.Context, spec instancepool.StartSpec) (instancepool.Handle, error) {
	h, err := rt.Runtime.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &reached{Handle: h, address: rt.address}, nil
}

type reached struct {
	instancepool.Handle
	address string
}

func (h *reached) Address() string { return h.address }

// answer accepts connections, which is all that a probe wants.
func answer(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.Close()
	}
}

// silent is an observer that does not care.
type silent struct{}

func (silent) Instance(instancepool.Event)   {}
func (silent) Revision(scaler.RevisionEvent) {}
