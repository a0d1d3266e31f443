package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/metrics"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
)

// host is a Caddy with Fairway on a fake engine.
type host struct {
	t    *testing.T
	url  string
	port string
	fake *fakeRuntime

	global string // options
}

// startHost loads a config whose one site has the given directives. "%s" in
// them is where the service's options would be.
func startHost(t *testing.T, site string, handler func(id string, rev *revisions.Revision) http.Handler) *host {
	t.Helper()
	h := newHost(t, handler)
	if err := h.load(site); err != nil {
		t.Fatal(err)
	}
	return h
}

// newHost is startHost without a config yet.
func newHost(t *testing.T, handler func(id string, rev *revisions.Revision) http.Handler) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	h := &host{t: t, url: "http://127.0.0.1:" + port, port: port, fake: newFake(t, handler)}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		closing.Wait()
		if n := len(h.fake.ids()); n > 0 {
			t.Errorf("%d instances left when no config wants them", n)
		}
	})
	return h
}

func (h *host) text(site string) string {
	return fmt.Sprintf("{\n\tadmin off\n\tauto_https off\n\tfairway {\n\t\truntime fake {\n\t\t\tname %s\n\t\t}\n\t}\n%s}\nhttp://127.0.0.1:%s, http://*.example.com:%s {\n\tbind 127.0.0.1\n%s\n}\n", h.t.Name(), h.global, h.port, h.port, site)
}

func (h *host) config(site string) []byte {
	h.t.Helper()
	js, err := adapt(h.t, h.text(site))
	if err != nil {
		h.t.Fatal(err)
	}
	return []byte(js)
}

func (h *host) load(site string) error {
	// A connection that is kept may reach the old config's server for a moment.
	defer http.DefaultClient.CloseIdleConnections()
	return caddy.Load(h.config(site), true)
}

func (h *host) get(path string) (int, string, http.Header) {
	h.t.Helper()
	resp, err := again(func() (*http.Response, error) { return http.Get(h.url + path) })
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// again asks a second time if the connection was lost: a load closes Caddy's old
// listener with what the kernel has queued there.
func again(ask func() (*http.Response, error)) (*http.Response, error) {
	resp, err := ask()
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		resp, err = ask()
	}
	return resp, err
}

// service returns what the admin API shows of a service.
func service(t *testing.T, name string) serviceView {
	t.Helper()
	for _, v := range serviceViews() {
		if v.Service == name {
			return v
		}
	}
	t.Fatalf("no service %s in %+v", name, serviceViews())
	return serviceView{}
}

// settled waits until no request of the service holds or waits for a slot.
func settled(t *testing.T, name string) {
	t.Helper()
	eventually(t, "the service's slots are free", func() bool {
		v := service(t, name)
		return v.InFlight == 0 && v.Queue == 0
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	for !is() {
		select {
		case <-ticker.C:
		case <-timeout.C:
			t.Fatalf("not true in time: %s", what)
		}
	}
}

// hello answers with the instance and the revision.
func hello(id string, rev *revisions.Revision) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Revision", rev.Name)
		w.Header().Set("X-Instance", id)
		fmt.Fprintf(w, "%s %s", rev.Name, id)
	})
}

func TestFirstRequestStartsAnInstance(t *testing.T) {
	h := startHost(t, `
	fairway hello {
		image app:1
		header_down X-Revision {http.fairway.revision}
		header_down X-Cold {http.fairway.cold_start}
		header_up X-Instance {http.fairway.instance}
	}`, func(id string, rev *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("X-Instance"); got != id {
				t.Errorf("X-Instance = %q in instance %q", got, id)
			}
			w.Write([]byte(rev.Name))
		})
	})
	if n := h.fake.started.Load(); n != 0 {
		t.Fatalf("%d instances before the first request", n)
	}
	status, body, header := h.get("/")
	if status != 200 || body != "hello-00001" || header.Get("X-Revision") != "hello-00001" || header.Get("X-Cold") != "true" {
		t.Errorf("first: %d %q %v", status, body, header)
	}
	if _, _, header = h.get("/"); header.Get("X-Cold") != "false" {
		t.Errorf("second: X-Cold = %q", header.Get("X-Cold"))
	}
	if n := h.fake.started.Load(); n != 1 {
		t.Errorf("%d instances were started", n)
	}
	settled(t, "hello")
	if views := instanceViews(); len(views) != 1 || views[0].State != "ready" || views[0].PID != 4242 || views[0].Revision != "hello-00001" {
		t.Errorf("instances: %+v", views)
	}
}

func TestConcurrencyIsExact(t *testing.T) {
	var now, most atomic.Int32
	h := startHost(t, "fairway hello {\n image app:1\n concurrency 1\n instances 0 1\n}", func(string, *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
		})
	})
	var clients sync.WaitGroup
	for range 5 {
		clients.Go(func() {
			for range 50 {
				resp, err := http.Get(h.url)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
		})
	}
	clients.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at once", most.Load())
	}
	settled(t, "hello")
}

func TestRefusals(t *testing.T) {
	release := make(chan struct{})
	h := startHost(t, `
	fairway /full/* full {
		image app:1
		concurrency 1
		instances 0 1
		queue_depth 1
	}
	fairway /missing/* missing {
		image missing:1
	}
	fairway /slow/* slow {
		image app:1
		timeout 1s
	}
	handle_errors {
		respond "sorry: {err.status_code}" {err.status_code}
	}`, func(_ string, rev *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		})
	})
	t.Run("an image that is missing is 503 with Retry-After", func(t *testing.T) {
		status, body, header := h.get("/missing/")
		if status != 503 || body != "sorry: 503" || header.Get("Retry-After") == "" {
			t.Errorf("%d %q %v", status, body, header)
		}
		if e := service(t, "missing").Error; !strings.Contains(e, "no image missing:1") {
			t.Errorf("the admin API says %q", e)
		}
	})
	t.Run("a response that does not begin in time is 504, and the slot is free", func(t *testing.T) {
		if status, _, _ := h.get("/slow/"); status != 504 {
			t.Errorf("status %d", status)
		}
		settled(t, "slow")
	})
	t.Run("beyond the queue's depth it is 429", func(t *testing.T) {
		var clients sync.WaitGroup
		clients.Go(func() { h.get("/full/") })
		eventually(t, "one in flight", func() bool { return service(t, "full").InFlight == 1 })
		clients.Go(func() { h.get("/full/") })
		eventually(t, "one in the queue", func() bool { return service(t, "full").Queue == 1 })
		status, _, header := h.get("/full/")
		if status != 429 || header.Get("Retry-After") != "1" {
			t.Errorf("%d %v", status, header)
		}
		close(release)
		clients.Wait()
		settled(t, "full")
	})
}

func TestSlotsAreFreeAfterEveryEnd(t *testing.T) {
	h := startHost(t, "fairway hello {\n image app:1\n concurrency 4\n instances 0 1\n}", func(string, *revisions.Revision) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		mux.HandleFunc("/half", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("half"))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		mux.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			rw.Flush()
			if r.URL.Query().Has("close") {
				return
			}
			io.Copy(conn, rw)
		})
		return mux
	})
	h.get("/panic") // from its answer on the service is in view
	busy := func() {
		t.Helper()
		eventually(t, "a request is in flight", func() bool { return service(t, "hello").InFlight == 1 })
	}
	for name, run := range map[string]func(t *testing.T){
		"a panic of the app": func(*testing.T) { h.get("/panic") },
		"a response cut by the app": func(t *testing.T) {
			resp, err := http.Get(h.url + "/half")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("half a response looks whole")
			}
		},
		"a stream the client leaves": func(t *testing.T) {
			resp, err := http.Get(h.url + "/stream")
			if err != nil {
				t.Fatal(err)
			}
			busy()
			resp.Body.Close()
		},
		"a client that leaves before the response": func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			left := make(chan error, 1)
			go func() {
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, h.url+"/hang", nil)
				resp, err := http.DefaultClient.Do(req)
				if err == nil {
					resp.Body.Close()
				}
				left <- err
			}()
			busy()
			cancel()
			if err := <-left; err == nil {
				t.Error("it was answered")
			}
		},
		"a WebSocket the client closes": func(t *testing.T) {
			conn := upgrade(t, h, "/upgrade")
			busy()
			conn.Close()
		},
		"a WebSocket the app closes": func(t *testing.T) {
			conn := upgrade(t, h, "/upgrade?close")
			io.Copy(io.Discard, conn)
			conn.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t)
			settled(t, "hello")
		})
	}
	if n := h.fake.started.Load(); n != 1 {
		t.Errorf("%d instances were started", n)
	}
}

// upgrade opens a WebSocket as far as the proxy is concerned.
func upgrade(t *testing.T, h *host, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+h.port)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", path, h.port)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "101") {
		t.Fatalf("%q, %v", line, err)
	}
	return conn
}

func TestAnInstanceThatRefusesConnectionsIsReplaced(t *testing.T) {
	h := startHost(t, "fairway hello {\n image app:1\n}", func(id string, _ *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// No connection is kept that could break under the second request.
			w.Header().Set("Connection", "close")
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %d", id, len(b))
		})
	})
	_, first, _ := h.get("/")
	h.fake.breakOff()
	resp, err := http.Post(h.url, "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 || !strings.HasSuffix(string(b), " 100000") || strings.HasPrefix(first, strings.Fields(string(b))[0]) {
		t.Errorf("%d %q after %q", resp.StatusCode, b, first)
	}
	settled(t, "hello")
}

func TestReload(t *testing.T) {
	const site = "fairway hello {\n image app:%d\n}\nrespond /same ok"
	h := startHost(t, fmt.Sprintf(site, 1), hello)
	_, first, _ := h.get("/")

	t.Run("an unchanged service keeps its instance", func(t *testing.T) {
		for range 3 {
			if err := h.load(fmt.Sprintf(site, 1)); err != nil {
				t.Fatal(err)
			}
			if _, body, _ := h.get("/"); body != first {
				t.Errorf("answered by %q, before by %q", body, first)
			}
		}
	})
	t.Run("a config that fails changes nothing", func(t *testing.T) {
		// An address that this machine does not have fails when the http app starts,
		// which may be before or after ours.
		bad := strings.Replace(string(h.config(fmt.Sprintf(site, 9))), "127.0.0.1:"+h.port, "203.0.113.1:9", 1)
		for range 10 {
			if err := caddy.Load([]byte(bad), true); err == nil {
				t.Fatal("a config with a foreign address was loaded")
			}
		}
		if _, body, _ := h.get("/"); body != first {
			t.Errorf("answered by %q, before by %q", body, first)
		}
		if v := service(t, "hello"); v.Serving != "hello-00001" || v.Latest != "hello-00001" || len(v.Revisions) != 1 {
			t.Errorf("%+v", v)
		}
		if n := h.fake.started.Load(); n != 1 {
			t.Errorf("%d instances were started", n)
		}
	})
	t.Run("settings of the engine cannot change", func(t *testing.T) {
		other := strings.Replace(string(h.config(fmt.Sprintf(site, 1))), `"engine": "fake"`, `"engine": "fake", "mood": "bad"`, 1)
		for range 3 {
			wantError(t, caddy.Load([]byte(other), true), "its settings cannot change while Caddy runs: they are mood , not mood bad")
		}
		if _, body, _ := h.get("/"); body != first {
			t.Errorf("answered by %q, before by %q", body, first)
		}
	})
	t.Run("validating changes nothing", func(t *testing.T) {
		var cfg caddy.Config
		if err := json.Unmarshal(h.config(fmt.Sprintf(site, 8)), &cfg); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&cfg); err != nil {
			t.Fatal(err)
		}
		if _, body, _ := h.get("/"); body != first {
			t.Errorf("answered by %q, before by %q", body, first)
		}
	})
	t.Run("a changed service becomes a new revision", func(t *testing.T) {
		if err := h.load(fmt.Sprintf(site, 2)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new revision serves", func() bool {
			_, body, _ := h.get("/")
			return !strings.HasPrefix(body, "hello-00001")
		})
		eventually(t, "the old one is gone", func() bool { return len(service(t, "hello").Revisions) == 1 })
	})
	t.Run("a revision that cannot start leaves traffic where it is", func(t *testing.T) {
		_, before, _ := h.get("/")
		h.fake.fail(errFake)
		if err := h.load(fmt.Sprintf(site, 3)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the failure shows", func() bool { return strings.Contains(service(t, "hello").Error, errFake.Error()) })
		if _, body, _ := h.get("/"); body != before {
			t.Errorf("answered by %q, before by %q", body, before)
		}
		h.fake.fail(nil)
	})
	t.Run("a queued request outlives a reload with its body", func(t *testing.T) {
		h.fake.fail(fmt.Errorf("%w: for a moment", instancepool.ErrUnavailable))
		if err := h.load("fairway other {\n image app:1\n}"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			resp, err := again(func() (*http.Response, error) {
				return http.Post(h.url, "text/plain", strings.NewReader(strings.Repeat("x", 64<<10)))
			})
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != 200 {
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
			}
			done <- err
		}()
		eventually(t, "it waits", func() bool { return service(t, "other").Queue == 1 })
		if err := h.load("fairway other {\n image app:1\n}\nrespond /x y"); err != nil {
			t.Fatal(err)
		}
		h.fake.fail(nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if n := h.fake.opened.Load(); n != 1 {
		t.Errorf("the engine was opened %d times", n)
	}
}

func TestMetricsSurviveReloads(t *testing.T) {
	const site = "metrics /metrics\nfairway hello {\n image app:1\n}"
	h := startHost(t, site, hello)
	h.get("/")
	for range 3 {
		if err := h.load(site); err != nil {
			t.Fatal(err)
		}
	}
	_, body, _ := h.get("/metrics")
	for _, want := range []string{
		`caddy_fairway_requests_total{outcome="admitted",revision="hello-00001",service="hello"}`,
		`caddy_fairway_instances{revision="hello-00001",service="hello",state="ready"} 1`,
		`caddy_fairway_cold_start_seconds_count{phase="total",service="hello"}`,
		`caddy_fairway_queue_seconds_count{service="hello"}`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

// What counted a service goes with it: the number of series does not grow with the
// number of names that there ever were.
func TestMetricsOfAServiceThatIsGone(t *testing.T) {
	const site = "metrics /metrics\nfairway gone {\n image app:1\n}"
	h := startHost(t, site, hello)
	h.get("/")
	if _, body, _ := h.get("/metrics"); !strings.Contains(body, `service="gone"`) {
		t.Fatal("no series of the service")
	}
	if err := h.load("metrics /metrics"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, body, _ := h.get("/metrics")
		if !strings.Contains(body, `service="gone"`) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the series stay:\n%s", body)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, test := range map[string]struct{ config, want string }{
		"no name":          {`{"handler": "fairway", "definition": {"image": "app"}}`, "the service has no name"},
		"no image":         {`{"handler": "fairway", "service": "hello", "definition": {"port": 1}}`, "service hello: missing image"},
		"own upstreams":    {`{"handler": "fairway", "service": "hello", "definition": {"image": "app"}, "proxy": {"upstreams": [{"dial": "x:1"}]}}`, "upstreams has no place here"},
		"unknown field":    {`{"handler": "fairway", "service": "hello", "colour": 1}`, `unknown field "colour"`},
		"concurrency 1001": {`{"handler": "fairway", "service": "hello", "definition": {"image": "app", "concurrency": 1001}}`, "concurrency 1001 is not from 1 to 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			newFake(t, hello)
			config := fmt.Sprintf(`{"admin": {"disabled": true}, "apps": {
				"fairway": {"runtime": {"engine": "fake", "name": %q}},
				"http": {"servers": {"a": {"listen": ["127.0.0.1:0"], "routes": [{"handle": [%s]}]}}}}}`, t.Name(), test.config)
			wantError(t, caddy.Load([]byte(config), true), test.want)
		})
	}
}

func TestAdminAPI(t *testing.T) {
	startHost(t, "fairway hello {\n image app:1\n}", hello)
	for _, route := range (adminAPI{}).Routes() {
		if !strings.HasPrefix(route.Pattern, "/fairway/") {
			continue
		}
		rec := httptest.NewRecorder()
		if err := route.Handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, route.Pattern, nil)); err != nil {
			t.Errorf("GET %s: %v", route.Pattern, err)
		}
		if !json.Valid(rec.Body.Bytes()) || rec.Body.Len() < len("[]") {
			t.Errorf("GET %s: %s", route.Pattern, rec.Body)
		}
		err := route.Handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, route.Pattern, nil))
		wantError(t, err, "method POST is not allowed")
	}
}

// What keeps a request from an instance has Cloud Run's status.
func TestRefuse(t *testing.T) {
	start := func(err error) error {
		return &instancepool.StartError{Revision: "hello-00001", Reason: "ResourcesUnavailable", Err: err, RetryAfter: 1500 * time.Millisecond}
	}
	for _, test := range []struct {
		err    error
		status int
		retry  string
	}{
		{instancepool.ErrQueueFull, http.StatusTooManyRequests, "1"},
		{fmt.Errorf("%w (10s)", instancepool.ErrNoInstance), http.StatusTooManyRequests, "1"},
		{instancepool.ErrTimeout, http.StatusGatewayTimeout, ""},
		{start(errors.New("exit")), http.StatusServiceUnavailable, "2"},
		{start(instancepool.ErrNoRoom), http.StatusServiceUnavailable, "2"},
		{fmt.Errorf("%w: hello", scaler.ErrDisabled), http.StatusServiceUnavailable, ""},
		{fmt.Errorf("%w: hello", scaler.ErrNotReady), http.StatusServiceUnavailable, "1"},
		{fmt.Errorf("%w: hello", scaler.ErrUnknownService), http.StatusNotFound, ""},
	} {
		rec := httptest.NewRecorder()
		err := new(Handler).refuse(rec, httptest.NewRequest(http.MethodGet, "/", nil), new(exchange), "hello", test.err)
		var answer caddyhttp.HandlerError
		if !errors.As(err, &answer) || answer.StatusCode != test.status || rec.Header().Get("Retry-After") != test.retry {
			t.Errorf("%v: %v, Retry-After %q; want %d, %q", test.err, err, rec.Header().Get("Retry-After"), test.status, test.retry)
		}
	}
}

// Until the engine has said what runs already, the services of the config are not known:
// who asks for one by its host waits, as who asks by its name does, and so does who
// wants a certificate for it.
func TestAServiceIsAwaitedByItsHost(t *testing.T) {
	h := newHost(t, hello)
	h.fake.listing = make(chan struct{})
	if err := h.load("\tfairway /named hello {\n\t\timage app:1\n\t}\n\tfairway"); err != nil {
		t.Fatal(err)
	}
	app := &App{engine: current.Load(), ready: make(chan struct{})}
	close(app.ready)
	allowed, answered := make(chan error), make(chan int)
	go func() {
		_, _, err := app.serviceOf(t.Context(), "hello.example.com", false)
		allowed <- err
	}()
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/byhost", nil)
		req.Host = "hello.example.com"
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := app.serviceOf(impatient, "hello.example.com", false); !errors.Is(err, context.Canceled) {
		t.Errorf("before it is known: %v", err)
	}
	close(h.fake.listing)
	if err := <-allowed; err != nil {
		t.Errorf("serviceOf: %v", err)
	}
	if status := <-answered; status != http.StatusOK {
		t.Errorf("by its host: %d", status)
	}
	if _, _, err := app.serviceOf(t.Context(), "other.example.com", false); !errors.Is(err, errUnknownHost) {
		t.Errorf("another: %v", err)
	}
}
