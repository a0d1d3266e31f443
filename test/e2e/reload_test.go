package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// descriptors is how many file descriptors Caddy has.
func (h *host) descriptors() int {
	h.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.pid()))
	h.check(err)
	return len(entries)
}

// identities are the instances with their pids.
func (h *host) identities() []string {
	var all []string
	for _, i := range h.instances() {
		all = append(all, fmt.Sprintf("%s pid %d", i.Instance, i.PID))
	}
	slices.Sort(all)
	return all
}

// badConfigs are configs that fail, each at another time: when it is read, when
// its modules are set up, when its apps start.
func (h *host) badConfigs(site string) map[string]string {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	h.check(err)
	h.t.Cleanup(func() { _ = taken.Close() })
	address := taken.Addr().String()
	return map[string]string{
		"unreadable":   h.caddyfile(site + "\nnonsense"),
		"no such file": h.caddyfile(site+"\n"+h.service("extra")) + "https://localhost {\n\ttls /none.pem /none.key\n}\n",
		// The services are declared by then, or not: apps start in any order.
		"no listener": h.caddyfile(site+"\n"+h.service("extra")) + "http://" + address + " {\n\tbind 127.0.0.1\n}\n",
	}
}

// TestReload reloads the config in every way while clients use the service and
// requests wait: no request fails, and what runs stays as it is.
func TestReload(t *testing.T) {
	h := newHost(t)
	site := h.vhost("hello", "concurrency 10", tellRevision) +
		h.vhost("queue", "concurrency 1", "instances 0 1") +
		h.vhost("stream", "concurrency 10") +
		h.vhost("slow", "concurrency 1", "env START_DELAY_MS 4000")
	config := h.caddyfile(site)
	h.start(config)
	bad := h.badConfigs(site)

	// Long requests, of each kind.
	socket := h.dial("stream", "/ws")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := h.open(ctx, "stream", "/stream?ms=600000&every=20")
	defer func() { _ = events.Body.Close() }()
	arrived := make(chan int, 1)
	go func() {
		n, _ := io.Copy(io.Discard, events.Body)
		arrived <- int(n)
	}()
	release := h.hold("queue")
	const waiting = 5
	var wg sync.WaitGroup
	for range waiting {
		wg.Go(func() {
			if got := h.getFrom(t.Context(), "queue", "/"); got.status != http.StatusOK {
				t.Errorf("queued: %s", got)
			}
		})
	}
	h.awaitQueue("queue", waiting)
	l := h.steadily("hello", 4)
	eventually(t, "there is load", func() bool { return l.count.Load() > 20 })
	before := h.identities()
	counted := `caddy_fairway_requests_total{outcome="admitted",revision="hello-00001",service="hello"}`
	admitted := h.metrics()[counted]

	// A request with a body waits through all of it.
	body := make([]byte, 1<<20)
	for i := range body {
		body[i] = byte(rand.N(256))
	}
	sum := sha256.Sum256(body)
	posted := make(chan response, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url("/upload"), bytes.NewReader(body))
		if err != nil {
			posted <- response{err: err}
			return
		}
		req.Host = "slow.test"
		posted <- h.do(req)
	}()
	h.awaitQueue("slow", 1)

	reloads := 0
	reload := func(what, config string, force bool) {
		t.Helper()
		reloads++
		if err := h.reload(config, force); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n := range loops(4, 40) {
		reload("the same", config, false)
		reload("the same, forced", config, true)
		reload("another", h.caddyfile(site+fmt.Sprintf("header X-Config %d\n", n)), false)
		for what, config := range bad {
			reloads++
			if err := h.reload(config, false); err == nil {
				t.Errorf("%s: no error", what)
			}
		}
		if s := h.serviceNamed("extra"); s.Service != "" {
			t.Errorf("a config that failed has declared %+v", s)
		}
		if s := h.serviceNamed("queue"); s.Queue != waiting || s.InFlight != 1 {
			t.Errorf("the queue after %d reloads: %+v", reloads, s)
		}
		h.check(socket.Write(t.Context(), websocket.MessageText, []byte("still there")))
		if _, message, err := socket.Read(t.Context()); string(message) != "still there" {
			t.Fatalf("the WebSocket after %d reloads: %q, %v", reloads, message, err)
		}
	}
	t.Logf("%d reloads", reloads)
	if got := <-posted; got.status != http.StatusOK || strings.TrimSpace(got.body) != fmt.Sprintf("%s %d", hex.EncodeToString(sum[:]), len(body)) {
		t.Errorf("the queued POST: %s", got)
	}
	if now := h.metrics()[counted]; now <= admitted {
		t.Errorf("the counter of requests was %v before and is %v", admitted, now)
	}
	select {
	case n := <-arrived:
		t.Errorf("the stream has ended after %d bytes", n)
	default:
	}
	answered := l.end(t)
	if len(answered) != 1 {
		t.Errorf("the service has changed: %v", answered)
	}
	h.check(socket.Close(websocket.StatusNormalClosure, ""))
	cancel()
	if n := <-arrived; n < 100 {
		t.Errorf("the stream had %d bytes", n)
	}
	after := h.identities()
	for _, i := range before {
		if !slices.Contains(after, i) {
			t.Errorf("instance %s is gone: %v", i, after)
		}
	}
	if len(after) != 4 {
		t.Errorf("instances: %v; want one of each service", after)
	}
	release()
	wg.Wait()
	if made := h.creations(); len(made) != 4 {
		t.Errorf("containers made: %v; want one of each service", made)
	}
	h.assertOnly(4)
}

// TestReloadLeaks reloads again and again, most of the configs in vain: Caddy
// gathers neither goroutines nor file descriptors.
func TestReloadLeaks(t *testing.T) {
	h := newHost(t)
	site := h.service("hello")
	config := h.caddyfile(site)
	h.start(config)
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	bad := h.badConfigs(site)
	round := func() {
		for what, config := range bad {
			if err := h.reload(config, false); err == nil {
				t.Errorf("%s: no error", what)
			}
		}
		h.check(h.reload(config, true))
	}
	for range 3 {
		round()
	}
	h.client.CloseIdleConnections()
	goroutines, descriptors := h.goroutines(), h.descriptors()
	rounds := loops(8, 100)
	for range rounds {
		round()
	}
	h.client.CloseIdleConnections()
	var g, d int
	eventually(t, "all is as before", func() bool {
		g, d = h.goroutines(), h.descriptors()
		// One of each round would be more.
		return g < goroutines+rounds && d < descriptors+rounds
	})
	t.Logf("%d goroutines and %d descriptors before, %d and %d after %d rounds", goroutines, descriptors, g, d, rounds)
	if made := h.creations(); len(made) != 1 {
		t.Errorf("containers made: %v; want one", made)
	}
}

// TestRemovedWhileQueued takes a service out of the config while requests wait
// for it: they are told, the one in flight ends in peace, then all is gone.
func TestRemovedWhileQueued(t *testing.T) {
	const depth = 5
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "concurrency 1", "instances 0 1", fmt.Sprintf("queue_depth %d", depth))))
	flying := make(chan response, 1)
	go func() { flying <- h.get("/sleep?ms=2500") }()
	h.awaitInFlight("hello", 1)
	var wg sync.WaitGroup
	for range depth {
		wg.Go(func() {
			got := h.get("/")
			if got.status != http.StatusServiceUnavailable || got.took > 2*time.Second {
				t.Errorf("who waits gets %s after %s; want 503 at once", got, got.took)
			}
		})
	}
	h.awaitQueue("hello", depth)
	h.check(h.reload(h.caddyfile("respond gone"), false))
	wg.Wait()
	if got := h.get("/"); got.body != "gone" {
		t.Errorf("the new config answers %s", got)
	}
	if got := <-flying; got.status != http.StatusOK {
		t.Errorf("in flight: %s", got)
	}
	h.assertOnly(0)
}

// TestValidate validates configs while instances run: nothing changes, and no
// containerd is needed.
func TestValidate(t *testing.T) {
	h := newHost(t)
	config := h.caddyfile(h.service("hello"))
	h.start(config)
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	before := h.identities()
	nowhere := filepath.Join(h.dir, "nowhere")
	elsewhere := strings.NewReplacer(h.daemon.Address(), filepath.Join(nowhere, "socket"), h.stateDir, nowhere, h.logDir, nowhere).Replace(config)
	for name, config := range map[string]string{
		"the same":      config,
		"another":       h.caddyfile(h.service("hello", "env VERSION 2") + "\n" + h.service("extra", "instances 1 2")),
		"no containerd": elsewhere,
	} {
		if err := h.validate(config); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(nowhere); err == nil {
		t.Error("validating has made directories")
	}
	if after := h.identities(); !slices.Equal(after, before) {
		t.Errorf("instances %v; want %v", after, before)
	}
	if got := h.get("/"); got.status != http.StatusOK {
		t.Errorf("afterwards: %s", got)
	}
	if made := h.creations(); len(made) != 1 {
		t.Errorf("containers made: %v; want one", made)
	}
	h.assertOnly(1)
}
