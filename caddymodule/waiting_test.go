package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-run/fairway/revisions"
)

// browser is what one sends to a host without TLS.
var browser = http.Header{"Accept": {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}}

// askAs sends a request with these fields.
func (h *host) askAs(method, path string, header http.Header) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header = header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// untilReady passes its probe once it is opened.
func untilReady(opened *atomic.Bool) func(string, *revisions.Revision) http.Handler {
	return func(id string, rev *revisions.Revision) http.Handler {
		app := hello(id, rev)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/ready" && !opened.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			app.ServeHTTP(w, r)
		})
	}
}

const slowSite = "metrics /metrics\nfairway hello {\n image app:1\n startup_probe http /ready\n no_wake /ping\n waiting_page {\n after 10ms\n }\n}\nhandle_errors {\n respond \"an error\"\n}\n"

// F22: a browser gets the page until the instance is ready that its first request
// has started, and then goes on. Everybody else waits.
func TestWaitingPage(t *testing.T) {
	requestsTotal.DeletePartialMatch(prometheus.Labels{"outcome": "waiting_page"}) // of other runs
	var opened atomic.Bool
	h := startHost(t, slowSite, untilReady(&opened))
	if resp, body, err := h.askAs("GET", "/ping", browser); err != nil || resp.StatusCode != 503 || body != "an error" || h.fake.started.Load() != 0 {
		t.Fatalf("no_wake: %v %q, %v", resp, body, err)
	}
	for range 3 {
		resp, body, err := h.askAs("GET", "/a?b=c", browser)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 503 || !strings.Contains(body, "<title>hello is starting</title>") {
			t.Fatalf("%s: %s", resp.Status, body)
		}
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8", "Refresh": "1", "Retry-After": "1",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %q; want %q", name, got, want)
			}
		}
	}
	answers := make(chan string)
	others := map[string]func() (*http.Response, string, error){
		"curl":         func() (*http.Response, string, error) { return h.askAs("GET", "/", http.Header{"Accept": {"*/*"}}) },
		"a form":       func() (*http.Response, string, error) { return h.askAs("POST", "/", browser) },
		"secure fetch": func() (*http.Response, string, error) { return h.askAs("GET", "/", with("Sec-Fetch-Mode", "cors")) },
	}
	for name, ask := range others {
		go func() {
			resp, body, err := ask()
			if err != nil || resp.StatusCode != 200 {
				body = fmt.Sprintf("%s: %v, %v", name, resp, err)
			}
			answers <- body
		}()
	}
	eventually(t, "the others wait", func() bool { return service(t, "hello").Queue == len(others) })
	if resp, _, err := h.askAs("GET", "/", browser); err != nil || resp.StatusCode != 503 {
		t.Errorf("among others: %v, %v", resp, err)
	}
	opened.Store(true)
	ids := make(map[string]bool)
	for range others {
		ids[<-answers] = true
	}
	resp, body, err := h.askAs("GET", "/a?b=c", browser)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Refresh") != "" {
		t.Errorf("when it is ready: %v, %v", resp, err)
	}
	ids[body] = true
	if n := h.fake.started.Load(); n != 1 || len(ids) != 1 {
		t.Errorf("%d instances were started; answers: %v", n, ids)
	}
	if _, body, _ := h.get("/metrics"); !strings.Contains(body, `outcome="waiting_page",revision="",service="hello"} 4`) {
		t.Error("the pages are not counted as what they are")
	}
	settled(t, "hello")
}

func with(name, value string) http.Header {
	h := browser.Clone()
	h.Set(name, value)
	return h
}

// A start within the time that nothing is shown for shows nothing.
func TestWaitingPageOfAFastStart(t *testing.T) {
	h := startHost(t, "fairway hello {\n image app:1\n waiting_page {\n after 1m\n }\n}", hello)
	if resp, body, err := h.askAs("GET", "/", browser); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v %q, %v", resp, body, err)
	}
	settled(t, "hello")
}

// F20: no page hides that an instance cannot start.
func TestWaitingPageOfAFailure(t *testing.T) {
	h := startHost(t, slowSite, untilReady(new(atomic.Bool)))
	h.fake.fail(errFake)
	for range 3 {
		resp, body, err := h.askAs("GET", "/", browser)
		if err != nil || resp.StatusCode != 503 || body != "an error" || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Refresh") != "" {
			t.Errorf("%v %q, %v", resp, body, err)
		}
	}
}

func TestNavigates(t *testing.T) {
	for _, test := range []struct {
		what string
		r    *http.Request
		want bool
	}{
		{"without TLS", &http.Request{Method: "GET", Header: browser}, true},
		{"mode", &http.Request{Method: "GET", Header: with("Sec-Fetch-Mode", "navigate")}, true},
		{"dest", &http.Request{Method: "GET", Header: with("Sec-Fetch-Dest", "document")}, true},
		{"frame", &http.Request{Method: "GET", Header: with("Sec-Fetch-Dest", "iframe")}, false},
		{"fetch", &http.Request{Method: "GET", Header: with("Sec-Fetch-Mode", "cors")}, false},
		{"XHR", &http.Request{Method: "GET", Header: with("X-Requested-With", "XMLHttpRequest")}, false},
		{"prefetch", &http.Request{Method: "GET", Header: with("Sec-Purpose", "prefetch")}, false},
		{"upgrade", &http.Request{Method: "GET", Header: with("Upgrade", "websocket")}, false},
		{"range", &http.Request{Method: "GET", Header: with("Range", "bytes=0-")}, false},
		{"body", &http.Request{Method: "GET", Header: browser, ContentLength: 1}, false},
		{"body of any length", &http.Request{Method: "GET", Header: browser, ContentLength: -1, Body: io.NopCloser(strings.NewReader("x"))}, false},
		{"no body, without its length", &http.Request{Method: "GET", Header: browser, ContentLength: -1, Body: io.NopCloser(strings.NewReader(""))}, true},
		{"HEAD", &http.Request{Method: "HEAD", Header: browser}, false},
		{"POST", &http.Request{Method: "POST", Header: browser}, false},
		{"anything", &http.Request{Method: "GET", Header: with("Accept", "*/*")}, false},
		{"no HTML", &http.Request{Method: "GET", Header: with("Accept", "application/json, text/html;q=0")}, false},
		{"nothing", &http.Request{Method: "GET", Header: http.Header{}}, false},
		{"HTML last", &http.Request{Method: "GET", Header: with("Accept", "application/json, TEXT/HTML;q=0.1")}, true},
	} {
		settleLength(test.r)
		if got := navigates(test.r); got != test.want {
			t.Errorf("%s: %v", test.what, got)
		}
	}
}

func FuzzAcceptsHTML(f *testing.F) {
	f.Add("text/html;q=0.5, */*")
	f.Fuzz(func(t *testing.T, accept string) {
		if acceptsHTML(http.Header{"Accept": {accept}}) && !strings.Contains(strings.ToLower(accept), "text/html") {
			t.Errorf("%q", accept)
		}
	})
}

func TestWaitingPageTemplate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.html")
	for text, want := range map[string]string{
		`<p title="{{.Service}}">{{.Reason}} {{.Seconds}}</p>`: "",
		"{{.Colour}}":                         "trying " + file + ": ",
		"{{if}}":                              "parsing " + file + ": ",
		strings.Repeat("x", maxWaitingPage+1): file + " has more than 1048576 bytes",
		"{{range 100}}" + strings.Repeat("x", 99999) + "{{end}}": "the page has more than 1048576 bytes",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p := &WaitingPage{File: file}
		err := p.provision()
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), "waiting_page: ") || !strings.Contains(err.Error(), want) {
				t.Errorf("%.40q: %v; want %q", text, err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.render(waitingData{Service: `<b>"`, Seconds: 1, Reason: "a<b"})
		if want := `<p title="&lt;b&gt;&#34;">a&lt;b 1</p>`; err != nil || string(got) != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
	if err := (&WaitingPage{File: file + "x"}).provision(); err == nil || !strings.Contains(err.Error(), "waiting_page: open "+file+"x") {
		t.Error(err)
	}
	if err := (&WaitingPage{After: -1}).provision(); err == nil {
		t.Error("a time below zero")
	}
	p := new(WaitingPage)
	if err := p.provision(); err != nil {
		t.Fatal(err)
	}
	if got, err := p.render(waitingData{Service: "<script>"}); err != nil || strings.Contains(string(got), "<script") {
		t.Errorf("%s, %v", got, err)
	}
}

func TestWaitingPageOptions(t *testing.T) {
	for options, want := range map[string]string{
		"waiting_page":                             `"waiting_page":{}`,
		"waiting_page /a.html":                     `"waiting_page":{"file":"/a.html"}`,
		"waiting_page /a.html {\n after 2s\n }":    `"waiting_page":{"after":2000000000,"file":"/a.html"}`,
		"waiting_page a b":                         "rong argument count",
		"waiting_page /a\nwaiting_page /b":         "duplicate option 'waiting_page'",
		"waiting_page {\n colour red\n }":          "waiting_page: unrecognized option 'colour'",
		"waiting_page {\n after\n }":               "rong argument count",
		"waiting_page {\n after 0s\n }":            "waiting_page: after: '0s' is not a duration above zero",
		"waiting_page {\n after soon\n }":          "waiting_page: after: 'soon' is not a duration above zero",
		"waiting_page {\n after 1s\n after 2s\n }": "waiting_page: duplicate option 'after'",
	} {
		js, err := adapt(t, "{\n\tfairway {\n\t\truntime fake\n\t}\n}\n:80 {\n\tfairway hello {\n\t\timage app\n\t\t"+options+"\n\t}\n}\n")
		if err != nil {
			js = err.Error()
		} else {
			var v any
			if err := json.Unmarshal([]byte(js), &v); err != nil {
				t.Fatal(err)
			}
			b, _ := json.Marshal(v)
			js = string(b)
		}
		if !strings.Contains(js, want) {
			t.Errorf("%q: %s; want %s", options, js, want)
		}
	}
}
