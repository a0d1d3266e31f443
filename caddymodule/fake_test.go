package caddymodule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

func init() { caddy.RegisterModule(new(fakeModule)) }

// fakeModule is a runtime whose instances are HTTP servers of this process.
type fakeModule struct {
	Name string `json:"name,omitempty"`
	Mood string `json:"mood,omitempty"` // a setting
}

func (*fakeModule) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "fairway.runtimes.fake", New: func() caddy.Module { return new(fakeModule) }}
}

func (m *fakeModule) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "name" || !d.AllArgs(&m.Name) {
			return d.ArgErr()
		}
	}
	return nil
}

func (m *fakeModule) Key() string      { return "fake " + m.Name }
func (m *fakeModule) Settings() string { return "mood " + m.Mood }

func (m *fakeModule) Dir() string { return filepath.Join(caddy.DefaultStorage.Path, "state") }

func (m *fakeModule) Open(*zap.Logger, *revisions.Values) (instancepool.Runtime, error) {
	rt, ok := fakes.Load(m.Name)
	if !ok {
		return nil, fmt.Errorf("no fake of the name %q", m.Name)
	}
	rt.(*fakeRuntime).opened.Add(1)
	return rt.(*fakeRuntime), nil
}

var fakes sync.Map // name → *fakeRuntime

// fakeRuntime serves handler from each of its instances.
type fakeRuntime struct {
	name    string
	handler func(id string, rev *revisions.Revision) http.Handler
	address string        // of all instances, if it is not that of handler's server
	listing chan struct{} // until it is closed it is not known what runs; nil: it is
	opened  atomic.Int32
	started atomic.Int32

	mu      sync.Mutex // guards all below
	running map[string]*fakeHandle
	failure error
	names   []string
}

func newFake(t testing.TB, handler func(id string, rev *revisions.Revision) http.Handler) *fakeRuntime {
	t.Helper()
	rt := &fakeRuntime{name: t.Name(), handler: handler, running: make(map[string]*fakeHandle)}
	fakes.Store(rt.name, rt)
	t.Cleanup(func() {
		rt.mu.Lock()
		defer rt.mu.Unlock()
		for _, h := range rt.running {
			h.server.CloseClientConnections()
			h.server.Close()
		}
	})
	return rt
}

func (rt *fakeRuntime) Resolve(_ context.Context, image string, _ func(instancepool.Progress)) (string, error) {
	if strings.Contains(image, "missing") {
		return "", fmt.Errorf("%w: no image %s", instancepool.ErrImage, image)
	}
	return "sha256:" + strings.Repeat("0", 64), nil
}

func (rt *fakeRuntime) Prune(context.Context, iter.Seq2[string, string]) error { return nil }

func (rt *fakeRuntime) fail(err error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.failure = err
}

func (rt *fakeRuntime) Start(_ context.Context, spec instancepool.StartSpec) (instancepool.Handle, error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.failure != nil {
		return nil, rt.failure
	}
	rt.started.Add(1)
	h := &fakeHandle{
		rt: rt, id: spec.ID, rev: spec.Revision, since: time.Now(), exited: make(chan struct{}),
		server: serverOf(rt.handler(spec.ID, spec.Revision)),
	}
	rt.running[h.id] = h
	return h, nil
}

func (rt *fakeRuntime) List(ctx context.Context) ([]instancepool.Handle, error) {
	if rt.listing == nil {
		return nil, nil
	}
	select {
	case <-rt.listing:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (rt *fakeRuntime) Close() error { return nil }

func (rt *fakeRuntime) ids() []string {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	var ids []string
	for id := range rt.running {
		ids = append(ids, id)
	}
	return ids
}

type fakeHandle struct {
	rt     *fakeRuntime
	id     string
	rev    *revisions.Revision
	since  time.Time
	server *httptest.Server
	once   sync.Once
	exited chan struct{}
}

func (h *fakeHandle) ID() string                    { return h.id }
func (h *fakeHandle) Revision() *revisions.Revision { return h.rev }
func (h *fakeHandle) PID() int                      { return 4242 }
func (h *fakeHandle) Started() time.Time            { return h.since }

func (h *fakeHandle) Address() string {
	return cmp.Or(h.rt.address, h.server.Listener.Addr().String())
}

func (h *fakeHandle) Exited() <-chan struct{} { return h.exited }
func (h *fakeHandle) Exit() instancepool.Exit { return instancepool.Exit{Code: 3, At: h.since} }
func (h *fakeHandle) LogTail(int) string      { return "its last words" }

func (h *fakeHandle) Stop(context.Context, time.Duration) error {
	h.once.Do(func() {
		h.rt.mu.Lock()
		delete(h.rt.running, h.id)
		h.rt.mu.Unlock()
		h.server.CloseClientConnections()
		close(h.exited)
		h.server.Listener.Close()
	})
	return nil
}

var errFake = errors.New("the fake refuses")

// Gateway implements instancepool.Namer.
func (rt *fakeRuntime) Gateway() netip.Addr { return netip.MustParseAddr("127.0.0.1") }

// SetNames implements instancepool.Namer.
func (rt *fakeRuntime) SetNames(all []string) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.names = slices.Clone(all)
	return nil
}

// named returns what SetNames was told last.
func (rt *fakeRuntime) named() []string {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return slices.Clone(rt.names)
}

// InstanceAt implements instancepool.Locator: one that is not served has 127.0.0.2,
// and nobody is known at 127.0.0.3.
func (rt *fakeRuntime) InstanceAt(a netip.Addr) (instancepool.Handle, bool) {
	switch a.String() {
	case "127.0.0.2":
		return guest{&fakeHandle{rt: rt, id: "web-00001-abcde"}}, true
	case "127.0.0.3":
		return nil, true
	}
	return nil, false
}

// guest is an instance that sends requests.
type guest struct{ *fakeHandle }

func (guest) Address() string { return "127.0.0.2:8080" }

// serverOf is an app's server, which knows HTTP/1.1 and, without TLS, HTTP/2.
func serverOf(app http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(app)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	return s
}
