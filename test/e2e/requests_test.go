package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestFirstRequest starts no container before the first request, and answers it
// by the container.
func TestFirstRequest(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "env GREETING hi", "port 9000")))
	if made, there := h.creations(), h.containers(); len(made)+len(there) > 0 {
		t.Errorf("containers before the first request: made %v, there %v", made, there)
	}
	got := h.get("/env")
	if got.status != http.StatusOK {
		t.Fatalf("the first request: %s", got)
	}
	env := strings.Split(strings.TrimSpace(got.body), "\n")
	for _, want := range []string{
		"PORT=9000", "K_SERVICE=hello", "K_REVISION=hello-00001", "K_CONFIGURATION=hello", "GREETING=hi",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("the container's environment lacks %s: %q", want, env)
		}
	}
	all := h.instances()
	if len(all) != 1 {
		t.Fatalf("instances: %+v; want one", all)
	}
	if i := all[0]; i.Service != "hello" || i.Revision != "hello-00001" || !i.up() || i.PID == 0 || i.Address == "" || i.Since.IsZero() {
		t.Errorf("instance: %+v", i)
	}
	if ids := h.containers(); !slices.Equal(ids, []string{all[0].Instance}) {
		t.Errorf("containers: %v; want %s", ids, all[0].Instance)
	}
	if s := h.serviceNamed("hello"); s.Serving != "hello-00001" || len(s.Revisions) != 1 || !strings.HasPrefix(s.Revisions[0].Digest, "sha256:") {
		t.Errorf("service: %+v", s)
	}
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.assertNothingLeft()
}

// TestColdStarts makes cold starts in a row, each answered by a new instance.
func TestColdStarts(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "idle_timeout 1ms", "header_down X-Cold {http.fairway.cold_start}",
		"header_down X-Instance {http.fairway.instance}")))
	seen := make(map[string]bool)
	for n := range loops(15, 1000) {
		got := h.get("/")
		id := got.header.Get("X-Instance")
		if got.status != http.StatusOK || got.header.Get("X-Cold") != "true" || seen[id] {
			t.Fatalf("cold start %d: %s, header %v", n, got, got.header)
		}
		seen[id] = true
		eventually(t, "the instance is gone", func() bool { return len(h.instances()) == 0 })
	}
	if made := h.creations(); len(made) != len(seen) {
		t.Errorf("%d containers for %d cold starts", len(made), len(seen))
	}
	h.assertNothingLeft()
}

// TestExclusive has an app that answers 500 once it has seen two requests at the
// same time, while its instances come and go.
func TestExclusive(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "concurrency 1", "idle_timeout 50ms")))
	wg := crowd(t)
	for client := range 5 {
		wg.Go(func() {
			for n := range 50 {
				if n%10 == 9 { // long enough for the instance to go
					time.Sleep(rand.N(120 * time.Millisecond))
				}
				if got := h.get("/exclusive?ms=1"); got.status != http.StatusOK {
					t.Errorf("client %d, request %d: %s", client, n, got)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestConcurrency sends far more than fits, from zero, and asks the apps how
// many they saw at once.
func TestConcurrency(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "concurrency 10", "instances 0 5", "cpu_throttling false")))
	wg := crowd(t)
	for range 200 {
		wg.Go(func() {
			for range loops(3, 30) {
				if got := h.get("/sleep?ms=20"); got.status != http.StatusOK {
					t.Errorf("%s", got)
					return
				}
			}
		})
	}
	wg.Wait()
	all := h.instances()
	if len(all) != 5 {
		t.Errorf("%d instances; want 5, the maximum", len(all))
	}
	highest := 0
	for _, i := range all {
		var peak int
		h.scanPast(i, "/inflight", &peak)
		if peak > 10 {
			t.Errorf("instance %s had %d requests in flight; want at most 10", i.Instance, peak)
		}
		highest = max(highest, peak)
	}
	if highest < 10 {
		t.Errorf("no instance had more than %d requests in flight: nothing was tested", highest)
	}
}

// TestBurst sends many first requests at once: as many instances start as they
// need, and each container is made once.
func TestBurst(t *testing.T) {
	requests, concurrency, hold := loops(100, 1000), loops(8, 80), loops(4000, 8000)
	const want = 13 // ceil(requests / concurrency)
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", fmt.Sprintf("concurrency %d", concurrency))))
	wg := crowd(t)
	for range requests {
		wg.Go(func() {
			if got := h.get(fmt.Sprintf("/sleep?ms=%d", hold)); got.status != http.StatusOK {
				t.Errorf("%s", got)
			}
		})
	}
	eventually(t, "all requests are in flight", func() bool { return h.serviceNamed("hello").InFlight == requests })
	if all := h.instances(); len(all) != want {
		t.Errorf("%d instances; want %d", len(all), want)
	}
	wg.Wait()
	made := h.creations()
	if unique := slices.Compact(slices.Sorted(slices.Values(made))); len(made) != want || len(unique) != want {
		t.Errorf("%d containers made, %d of them different; want %d", len(made), len(unique), want)
	}
}

// TestQueue has one slot. Who waits for it is served in the order of arrival,
// and who finds the queue full gets 429.
func TestQueue(t *testing.T) {
	const depth = 10
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "concurrency 1", "instances 0 1", fmt.Sprintf("queue_depth %d", depth))))
	release := h.hold("hello")
	order := make(chan int, depth)
	wg := crowd(t)
	for n := range depth {
		wg.Go(func() {
			got := h.get("/sleep?ms=30")
			order <- n
			if got.status != http.StatusOK {
				t.Errorf("request %d: %s", n, got)
			}
		})
		h.awaitQueue("hello", n+1)
	}
	got := h.get("/")
	if seconds, err := strconv.Atoi(got.header.Get("Retry-After")); got.status != http.StatusTooManyRequests || err != nil || seconds < 1 {
		t.Errorf("past the queue's depth: %s, Retry-After %q", got, got.header.Get("Retry-After"))
	}
	release()
	wg.Wait()
	close(order)
	at := 0
	for n := range order {
		if n != at {
			t.Errorf("response %d is that of request %d", at, n)
		}
		at++
	}
	if made := h.creations(); len(made) != 1 {
		t.Errorf("%d containers made; want 1, the maximum", len(made))
	}
}

// hold keeps one slot of a service busy until the function it returns is called.
func (h *host) hold(service string) (release func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	resp := h.open(ctx, service, "/stream?ms=600000&every=50")
	return func() {
		cancel()
		_ = resp.Body.Close()
	}
}

// awaitQueue waits until n requests are queued.
func (h *host) awaitQueue(service string, n int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%d requests are queued", n), func() bool { return h.serviceNamed(service).Queue == n })
}

// about is what the probe says of itself.
type about struct {
	ID          string `json:"id"`
	Served      int    `json:"served"`
	InFlight    int    `json:"inFlight"`
	MaxInFlight int    `json:"maxInFlight"`
	Proto       string `json:"proto"`
}

func (h *host) about(service string) about {
	h.t.Helper()
	got := h.getFrom(context.Background(), service, "/")
	var a about
	if err := json.Unmarshal([]byte(got.body), &a); err != nil {
		h.t.Fatalf("%s: %v", got, err)
	}
	return a
}

// TestLeave has clients leave the queue: they leave nothing behind, and the app
// never hears of them.
func TestLeave(t *testing.T) {
	const clients = 50
	for name, test := range map[string]struct {
		options []string
		hold    bool
		served  int
	}{
		"busy":  {options: []string{"concurrency 1", "instances 0 1"}, hold: true, served: 1},
		"start": {options: []string{"env START_DELAY_MS 1500"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.start(h.caddyfile(h.service("hello", test.options...)))
			release := func() {}
			if test.hold {
				release = h.hold("hello")
			}
			before := h.goroutines()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			wg := crowd(t)
			for range clients {
				wg.Go(func() {
					if got := h.getWith(ctx, "/"); got.err == nil {
						t.Errorf("a client that left got %s", got)
					}
				})
			}
			h.awaitQueue("hello", clients)
			leave()
			wg.Wait()
			within(t, time.Second, "the queue is empty", func() bool { return h.serviceNamed("hello").Queue == 0 })
			eventually(t, "an instance is ready", func() bool {
				all := h.instances()
				return len(all) == 1 && all[0].up()
			})
			release()
			served, asked := 0, 0
			eventually(t, "the app has counted the request that was held", func() bool {
				served = h.about("hello").Served - asked // it counts these too
				asked++
				return served >= test.served
			})
			if served != test.served {
				t.Errorf("the app served %d requests; want %d", served, test.served)
			}
			if made := h.creations(); len(made) != 1 {
				t.Errorf("%d containers made; want 1", len(made))
			}
			h.client.CloseIdleConnections()
			const slack = 15 // the proxy's connections to the instance
			eventually(t, "the goroutines have ended", func() bool { return h.goroutines() <= before+slack })
		})
	}
}

// TestSlotsReturn ends requests in every way there is. Each time all slots are
// free again afterwards.
func TestSlotsReturn(t *testing.T) {
	const slots = 3
	ways := map[string]func(*testing.T, *host, string){
		"end": func(t *testing.T, h *host, service string) {
			if got := h.getFrom(t.Context(), service, "/download?bytes=100000"); got.status != http.StatusOK || len(got.body) != 100000 {
				t.Errorf("download: %d, %d bytes, %v", got.status, len(got.body), got.err)
			}
		},
		"abort": func(t *testing.T, h *host, service string) {
			ctx, leave := context.WithCancel(t.Context())
			gone := make(chan response)
			go func() { gone <- h.getFrom(ctx, service, "/hang") }()
			h.awaitInFlight(service, 1)
			leave()
			if got := <-gone; got.err == nil {
				t.Errorf("a client that left got %s", got)
			}
		},
		"cut": func(_ *testing.T, h *host, service string) {
			release := h.hold(service)
			h.awaitInFlight(service, 1)
			release()
		},
		"wsclient": func(t *testing.T, h *host, service string) {
			conn := h.dial(service, "/ws")
			h.awaitInFlight(service, 1)
			if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
				t.Errorf("closing: %v", err)
			}
		},
		"wsgone": func(t *testing.T, h *host, service string) {
			conn := h.dial(service, "/ws")
			h.awaitInFlight(service, 1)
			if err := conn.CloseNow(); err != nil {
				t.Errorf("closing: %v", err)
			}
		},
		"wsserver": func(t *testing.T, h *host, service string) {
			conn := h.dial(service, "/ws?close_after_ms=100")
			h.awaitInFlight(service, 1)
			if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				t.Errorf("the server's close: %v", err)
			}
		},
		"apppanic": func(t *testing.T, h *host, service string) {
			if got := h.getFrom(t.Context(), service, "/panic"); got.status != http.StatusBadGateway {
				t.Errorf("a panic in the app: %s; want 502", got)
			}
		},
		"crash": func(t *testing.T, h *host, service string) {
			if got := h.getFrom(t.Context(), service, "/crash"); got.status != http.StatusBadGateway {
				t.Errorf("a crash: %s; want 502", got)
			}
		},
		// The proxy panics to cut a response that it cannot finish.
		"midcrash": func(t *testing.T, h *host, service string) {
			resp := h.open(t.Context(), service, "/stream?ms=600000&every=20")
			defer func() { _ = resp.Body.Close() }()
			if got := h.getFrom(t.Context(), service, "/crash?ms=50"); got.status != http.StatusBadGateway {
				t.Errorf("a crash: %s; want 502", got)
			}
			for buf := make([]byte, 4096); ; {
				if _, err := resp.Body.Read(buf); err != nil {
					if err.Error() == "EOF" {
						t.Error("the response that was cut ended as if it were whole")
					}
					return
				}
			}
		},
		"upload": func(t *testing.T, h *host, service string) {
			body, client := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url("/upload"), body)
			h.check(err)
			req.Host = service + ".test"
			ended := make(chan response, 1)
			go func() { ended <- h.do(req) }()
			_, err = client.Write([]byte("some bytes"))
			h.check(err)
			h.awaitInFlight(service, 1)
			_ = client.CloseWithError(errors.New("the client's disk is broken"))
			if got := <-ended; got.err == nil && got.status == http.StatusOK {
				t.Errorf("a broken upload: %s", got)
			}
		},
	}
	h := newHost(t)
	var site strings.Builder
	for service := range ways {
		site.WriteString(h.vhost(service, fmt.Sprintf("concurrency %d", slots), "instances 0 1"))
	}
	h.start(h.caddyfile(site.String()))
	for service, end := range ways {
		h.run(service, func(t *testing.T) {
			end(t, h, service)
			h.awaitInFlight(service, 0)
			// As many as there are slots fit at once, and no more.
			var releases []func()
			for range slots {
				releases = append(releases, h.hold(service))
			}
			next := crowd(t)
			next.Go(func() {
				if got := h.getFrom(t.Context(), service, "/"); got.status != http.StatusOK {
					t.Errorf("afterwards: %s", got)
				}
			})
			h.awaitQueue(service, 1)
			if s := h.serviceNamed(service); s.InFlight != slots {
				t.Errorf("%d in flight while one waits; want %d", s.InFlight, slots)
			}
			for _, release := range releases {
				release()
			}
			next.Wait()
			h.awaitInFlight(service, 0)
		})
	}
}

// awaitInFlight waits until a service has n requests in its instances.
func (h *host) awaitInFlight(service string, n int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%d requests of %s are in flight", n, service), func() bool {
		return h.serviceNamed(service).InFlight == n
	})
}

// dial opens a WebSocket.
func (h *host) dial(service, path string) *websocket.Conn {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws://"+h.site+path, &websocket.DialOptions{Host: service + ".test", HTTPClient: h.client})
	h.check(err)
	h.t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}
