package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/logging" // the file writer
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
)

func init() {
	caddy.RegisterModule(refuser{})
	httpcaddyfile.RegisterHandlerDirective("refuse", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		return refuser{}, nil
	})
}

// refusals are all the reasons why a request gets no instance, by outcome. A service
// that is not there has no series of its own.
var refusals = map[string]struct {
	err     error
	status  int
	nowhere bool
}{
	"queue_full":   {err: instancepool.ErrQueueFull, status: 429},
	"no_instance":  {err: fmt.Errorf("%w (10s)", instancepool.ErrNoInstance), status: 429},
	"timeout":      {err: instancepool.ErrTimeout, status: 504},
	"disabled":     {err: fmt.Errorf("%w: hello", scaler.ErrDisabled), status: 503},
	"removed":      {err: scaler.ErrRemoved, status: 503, nowhere: true},
	"unknown":      {err: fmt.Errorf("%w: hello", scaler.ErrUnknownService), status: 404, nowhere: true},
	"internal":     {err: scaler.ErrInternal, status: 404},
	"not_ready":    {err: scaler.ErrNotReady, status: 503},
	"start_failed": {err: &instancepool.StartError{Err: errFake}, status: 503},
	"no_room":      {err: &instancepool.StartError{Err: instancepool.ErrNoRoom}, status: 503},
	"client_gone":  {err: context.Canceled, status: 499},
	"unavailable":  {err: instancepool.ErrDraining, status: 503},
}

// refuser refuses requests for the reason in their path, as a Handler would.
type refuser struct{}

func (refuser) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.refuse", New: func() caddy.Module { return new(refuser) }}
}

func (refuser) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	outcome := strings.TrimPrefix(r.URL.Path, "/refuse/")
	if outcome == "client_gone" {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		r = r.WithContext(ctx)
	}
	x := &exchange{began: time.Now().Add(-time.Minute)}
	return new(Handler).refuse(w, r, x, "refused", refusals[outcome].err)
}

// logTo is a directive that has the site's access log in a file of its own.
func logTo(t *testing.T) (directive, file string) {
	file = filepath.Join(t.TempDir(), "access.log")
	return "log {\n output file " + file + "\n format json\n}\n", file
}

// accessLog returns the lines about requests with that path.
func accessLog(t *testing.T, file, path string) []map[string]any {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for line := range strings.Lines(string(b)) {
		var e map[string]any
		if !strings.HasSuffix(line, "\n") {
			continue // it is being written
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if request, ok := e["request"].(map[string]any); ok && request["uri"] == path {
			all = append(all, e)
		}
	}
	return all
}

// inAccessLog waits for the line about the one request with that path.
func inAccessLog(t *testing.T, file, path string) map[string]any {
	t.Helper()
	var lines []map[string]any
	eventually(t, "a line about "+path, func() bool {
		lines = accessLog(t, file, path)
		return len(lines) > 0
	})
	if len(lines) != 1 {
		t.Errorf("%d lines about %s", len(lines), path)
	}
	return lines[0]
}

// Whoever looks at a refusal later finds why it was, and how long the client had
// waited for it, in the metrics and in the access log.
func TestRefusalsAreTold(t *testing.T) {
	requestsTotal.DeletePartialMatch(prometheus.Labels{"service": "refused"}) // of other runs
	requestsTotal.DeletePartialMatch(prometheus.Labels{"service": ""})
	log, file := logTo(t)
	h := startHost(t, log+"metrics /metrics\nroute /refuse/* {\n refuse\n}\nfairway hello {\n image app:1\n}", hello)
	for outcome, want := range refusals {
		path := "/refuse/" + outcome
		if status, _, _ := h.get(path); status != want.status {
			t.Errorf("%s: status %d; want %d", outcome, status, want.status)
		}
		e := inAccessLog(t, file, path)
		if waited, _ := e["fairway_queue_duration"].(float64); e["fairway_outcome"] != outcome || e["fairway_service"] != "refused" || waited < 60 {
			t.Errorf("%s: the access log says %v", outcome, e)
		}
	}
	_, body, _ := h.get("/metrics")
	for outcome, r := range refusals {
		service := "refused"
		if r.nowhere {
			service = ""
		}
		if want := fmt.Sprintf("caddy_fairway_requests_total{outcome=%q,revision=\"\",service=%q} 1\n", outcome, service); !strings.Contains(body, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// A host that no service has is told like a service that is not there.
func TestAnUnknownHostIsTold(t *testing.T) {
	requestsTotal.DeletePartialMatch(prometheus.Labels{"service": ""}) // of other runs
	log, file := logTo(t)
	h := startHost(t, log+"metrics /metrics\nfairway", hello)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "nobody.example.com:" + h.port
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if e := inAccessLog(t, file, "/"); resp.StatusCode != 404 || e["fairway_outcome"] != "unknown" {
		t.Errorf("%s; the access log says %v", resp.Status, e)
	}
	if _, body, _ := h.get("/metrics"); !strings.Contains(body, `caddy_fairway_requests_total{outcome="unknown",revision="",service=""} 1`) {
		t.Error("it is not counted")
	}
}

// A request that waits until its time is over says for how long that was.
func TestATimeoutInTheQueueIsTold(t *testing.T) {
	requestsTotal.DeletePartialMatch(prometheus.Labels{"service": "queued"}) // of other runs
	log, file := logTo(t)
	h := startHost(t, log+"metrics /metrics\nfairway queued {\n image app:1\n timeout 1s\n startup_probe http /ready\n}", untilReady(new(atomic.Bool)))
	if status, _, _ := h.get("/"); status != 504 {
		t.Errorf("status %d", status)
	}
	e := inAccessLog(t, file, "/")
	if waited, _ := e["fairway_queue_duration"].(float64); e["fairway_outcome"] != "timeout" || e["fairway_service"] != "queued" || waited < 1 {
		t.Errorf("the access log says %v", e)
	}
	_, body, _ := h.get("/metrics")
	if !strings.Contains(body, `caddy_fairway_requests_total{outcome="timeout",revision="",service="queued"} 1`) || strings.Contains(body, `caddy_fairway_request_timeouts_total{revision="queued-00001"`) {
		t.Errorf("it is not counted as what it is:\n%s", body)
	}
}

// A request whose time is over in an instance is told from others, whichever way it
// took. It is not the instance's end: the next one goes to the same.
func TestATimeoutInAnInstanceIsTold(t *testing.T) {
	log, file := logTo(t)
	site := log + "metrics /metrics\nhandle /own/* {\n fairway late {\n image app:1\n timeout 1s\n }\n}\n" +
		"handle /proxy/* {\n fairway late {\n trusted_proxies 192.0.2.0/24\n }\n}\n"
	h := startHost(t, site, func(id string, rev *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, end, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
			switch end {
			case "sized":
				w.Header().Set("Content-Length", "100")
				fallthrough
			case "begun":
				_, _ = w.Write([]byte("begun"))
				_ = http.NewResponseController(w).Flush()
				fallthrough
			case "nothing":
				<-r.Context().Done()
			default:
				hello(id, rev).ServeHTTP(w, r)
			}
		})
	})
	_, first, _ := h.get("/own/first")
	var all sync.WaitGroup
	for _, way := range []string{"own", "proxy"} {
		for _, end := range []string{"nothing", "begun", "sized"} {
			all.Go(func() {
				resp, err := http.Get(h.url + "/" + way + "/" + end)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if want := map[bool]int{true: 504, false: 200}[end == "nothing"]; resp.StatusCode != want {
					t.Errorf("%s %s: status %d", way, end, resp.StatusCode)
				}
				_, _ = resp.Body.Read(make([]byte, 10))
				_, _ = resp.Body.Read(make([]byte, 10)) // to its end
			})
		}
	}
	all.Wait()
	settled(t, "late")
	for _, way := range []string{"own", "proxy"} {
		for _, end := range []string{"nothing", "begun", "sized"} {
			if e := inAccessLog(t, file, "/"+way+"/"+end); e["fairway_outcome"] != "timeout" || e["fairway_revision"] != "late-00001" {
				t.Errorf("%s %s: the access log says %v", way, end, e)
			}
		}
		_, again, _ := h.get("/" + way + "/again")
		if e := inAccessLog(t, file, "/"+way+"/again"); again != first || e["fairway_outcome"] != nil {
			t.Errorf("%s: served by %s; before by %s; %v", way, again, first, e)
		}
	}
	if n := h.fake.started.Load(); n != 1 {
		t.Errorf("%d instances were started", n)
	}
	const series = `caddy_fairway_request_timeouts_total{revision="late-00001",service="late"}`
	if _, body, _ := h.get("/metrics"); !strings.Contains(body, series+" 6\n") {
		t.Error("the metrics count others")
	}
	if err := h.load("metrics /metrics"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the series goes with its service", func() bool {
		_, body, _ := h.get("/metrics")
		return !strings.Contains(body, series)
	})
}
