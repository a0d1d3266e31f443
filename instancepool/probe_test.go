package instancepool_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// process is a Handle on something that really listens.
type process struct {
	rev     *revisions.Revision
	address string
	started time.Time
	exited  chan struct{}
	exit    func(code int)
	code    atomic.Int64
}

func newProcess(rev *revisions.Revision, address string) *process {
	p := &process{rev: rev, address: address, started: time.Now(), exited: make(chan struct{})}
	var once sync.Once
	p.exit = func(code int) {
		once.Do(func() {
			p.code.Store(int64(code))
			close(p.exited)
		})
	}
	return p
}

func (p *process) ID() string                                { return "hello-00001-abcde" }
func (p *process) Revision() *revisions.Revision             { return p.rev }
func (p *process) PID() int                                  { return 1 }
func (p *process) Started() time.Time                        { return p.started }
func (p *process) Address() string                           { return p.address }
func (p *process) Exited() <-chan struct{}                   { return p.exited }
func (p *process) Exit() instancepool.Exit                   { return instancepool.Exit{Code: int(p.code.Load())} }
func (p *process) LogTail(int) string                        { return "" }
func (p *process) Stop(context.Context, time.Duration) error { p.exit(0); return nil }

// probing returns a process at address that is asked by probe.
func probing(address string, probe revisions.Probe) *process {
	rev := revision(1)
	if probe.Attempt == 0 {
		probe.Attempt = time.Second
	}
	if probe.Total == 0 {
		probe.Total = 10 * time.Second
	}
	probe.Port = rev.Spec().Port.Number
	rev.Spec().Health[0].Startup = &probe
	return newProcess(rev, address)
}

// freeAddress is one that nothing listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	defer l.Close()
	return l.Addr().String()
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// within fails the test when the probe has not ended soon; it returns its error.
func within(t *testing.T, p *process) error {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("the probe does not end"))
	defer cancel()
	return instancepool.Probe(ctx, p)
}

// F17: the port is found open as soon as it is.
func TestTCPProbe(t *testing.T) {
	address := freeAddress(t)
	result := make(chan error, 1)
	go func() { result <- within(t, probing(address, revisions.Probe{})) }()
	select {
	case err := <-result:
		t.Fatalf("before anything listened: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	listen(t, address)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// F18: an open port is not enough where a path is to answer.
func TestHTTPProbe(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" || r.Host != "app.example" || r.Header.Get("X-Probe") != "yes" || r.UserAgent() != "fairway-probe" {
			t.Errorf("asked %s of %s with %v", r.URL, r.Host, r.Header)
		}
		if asked.Add(1) < 5 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	p := probing(server.Listener.Addr().String(), revisions.Probe{
		Kind: revisions.ProbeHTTP, Path: "/healthz",
		Header: http.Header{"Host": {"app.example"}, "X-Probe": {"yes"}},
	})
	if err := within(t, p); err != nil {
		t.Fatal(err)
	}
	equal(t, "asked", asked.Load(), 5)
}

func TestGRPCProbe(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	status := health.NewServer()
	status.SetServingStatus("app", healthpb.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, status)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()

	result := make(chan error, 1)
	go func() {
		result <- within(t, probing(l.Addr().String(), revisions.Probe{Kind: revisions.ProbeGRPC, Service: "app"}))
	}()
	select {
	case err := <-result:
		t.Fatalf("while it does not serve: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	status.SetServingStatus("app", healthpb.HealthCheckResponse_SERVING)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func TestProbeEndsWithTheProcess(t *testing.T) {
	p := probing(freeAddress(t), revisions.Probe{Total: time.Hour})
	time.AfterFunc(20*time.Millisecond, func() { p.exit(3) })
	err := within(t, p)
	if err == nil || err.Error() != "the container exited with code 3" {
		t.Fatalf("got %v", err)
	}
}

// A probe that runs out of time names itself and what it heard last.
func TestProbeTimesOut(t *testing.T) {
	unavailable := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer unavailable.Close()
	silent := listen(t, "127.0.0.1:0")
	for _, test := range []struct {
		name string
		p    *process
		want []string
	}{
		{
			"nothing listens", probing(freeAddress(t), revisions.Probe{Total: 50 * time.Millisecond}),
			[]string{"tcp port 8080", "50ms", "refused"},
		},
		{
			"not healthy", probing(unavailable.Listener.Addr().String(), revisions.Probe{Kind: revisions.ProbeHTTP, Path: "/up", Total: 200 * time.Millisecond}),
			[]string{"http port 8080 /up", "200ms", "answered 503"},
		},
		{
			"no answer to the first attempt", probing(silent.Addr().String(), revisions.Probe{Kind: revisions.ProbeHTTP, Path: "/", Attempt: time.Second, Total: 50 * time.Millisecond}),
			[]string{"http port 8080 /", "deadline exceeded"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := within(t, test.p)
			for _, part := range test.want {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want it to say %q", err, part)
				}
			}
		})
	}
}

// The delay is waited for after the process's start, and not again for one that
// has been running for long.
func TestProbeDelay(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	p := probing(l.Addr().String(), revisions.Probe{Delay: 100 * time.Millisecond})
	if err := within(t, p); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(p.started); took < p.rev.Spec().Health[0].Startup.Delay {
		t.Errorf("was asked %s after its start", took)
	}
	p.rev.Spec().Health[0].Startup.Delay = time.Hour
	p.started = time.Now().Add(-2 * time.Hour)
	if err := within(t, p); err != nil {
		t.Fatal(err)
	}
}

// F30: an instance's transport leads to it alone, and nowhere once it has ended.
func TestTransport(t *testing.T) {
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.Header.Get("Accept-Encoding"))
	}))
	closed := make(chan struct{}, 10)
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			connections.Add(1)
		case http.StateClosed:
			closed <- struct{}{}
		default:
		}
	}
	server.Start()
	defer server.Close()
	rev := revision(1)
	pool := instancepool.New(rev, instancepool.Options{
		Decide: asNeeded,
		Start: func(context.Context, instancepool.StartSpec) (instancepool.Handle, error) {
			return newProcess(rev, server.Listener.Addr().String()), nil
		},
	})
	get := func(l *instancepool.Lease) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://app.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := l.Instance().RoundTrip(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	lease, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-closed // the probe's own
	for range 3 {
		body, err := get(lease)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "the application sees", body, "app.example ")
	}
	equal(t, "connections of the probe and the requests", connections.Load(), 2)
	lease.Release()
	pool.Drain(time.Minute)
	<-pool.Done()
	<-closed
	// Something else listens at the address by now.
	_, err = get(lease)
	if _, ok := errors.AsType[*instancepool.DialError](err); !ok {
		t.Fatalf("a request to an instance that has ended: %v", err)
	}
	pool.Wait()
}
