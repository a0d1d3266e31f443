package caddymodule

import (
	"net/http"
	"strings"
	"testing"
)

// F06: what must not wake a service gets an answer all the same.
func TestNoWake(t *testing.T) {
	h := startHost(t, "@bots header User-Agent *Bot*\nfairway hello {\n image app:1\n cpu_throttling false\n no_wake @bots\n no_wake /favicon.ico 503\n}\n", hello)
	ask := func(path, agent string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	for range 100 {
		for _, resp := range []*http.Response{ask("/", "SomeBot/1"), ask("/favicon.ico", "Mozilla")} {
			if resp.StatusCode != 503 || resp.Header.Get("Cache-Control") != "no-store" {
				t.Fatalf("%s, %v", resp.Status, resp.Header)
			}
		}
	}
	if n := h.fake.started.Load(); n != 0 {
		t.Fatalf("%d instances were started", n)
	}
	if resp := ask("/", "Mozilla"); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if resp := ask("/favicon.ico", "SomeBot/1"); resp.StatusCode != 200 || resp.Header.Get("X-Instance") == "" {
		t.Errorf("while an instance is awake: %s", resp.Status)
	}
	settled(t, "hello")
}

func TestNoWakeStatus(t *testing.T) {
	h := startHost(t, "fairway hello {\n image app:1\n no_wake /ping 204\n}\n", hello)
	if status, body, _ := h.get("/ping"); status != 204 || body != "" {
		t.Errorf("%d %q", status, body)
	}
	if status, _, _ := h.get("/"); status != 200 {
		t.Error(status)
	}
}

func TestNoWakeErrors(t *testing.T) {
	for options, want := range map[string]string{
		"no_wake":                        "which requests?",
		"no_wake *":                      "would let no request start an instance",
		"no_wake @bots":                  "unrecognized matcher name: @bots",
		"no_wake /x 99":                  "'99' is not a status from 200 to 599",
		"no_wake /x 204 more":            "rong argument count",
		"no_wake /x 204\nno_wake /y 503": "two statuses, 204 and 503",
	} {
		_, err := adapt(t, "{\n\tfairway {\n\t\truntime fake\n\t}\n}\n:80 {\n\tfairway hello {\n\t\timage app\n\t\t"+options+"\n\t}\n}\n")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", options, err, want)
		}
	}
}
