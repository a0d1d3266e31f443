package caddymodule

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/fairway-run/fairway/revisions"
)

// What is too large starts nothing, if its length is known; else it ends at the limit.
func TestMaxRequestBody(t *testing.T) {
	h := startHost(t, "\tfairway app {\n\t\timage app:1\n\t\tmax_request_body 1KiB\n\t}", func(string, *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || len(body) > 1024 {
				t.Errorf("the app got %d bytes, %v", len(body), err)
			}
			_, _ = w.Write(body)
		})
	})
	post := func(body io.Reader) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); resp.StatusCode == http.StatusOK && (err != nil || len(got) != 1024) {
			t.Errorf("%d bytes come back, %v", len(got), err)
		}
		return resp.StatusCode
	}
	text := strings.Repeat("x", 1025)
	if got := post(strings.NewReader(text)); got != http.StatusRequestEntityTooLarge {
		t.Errorf("a larger one: %d", got)
	}
	if n := h.fake.started.Load(); n != 0 {
		t.Errorf("%d instances were started for it", n)
	}
	for name, body := range map[string]io.Reader{"of known length": strings.NewReader(text[1:]), "of unknown length": io.MultiReader(strings.NewReader(text[1:]))} {
		if got := post(body); got != http.StatusOK {
			t.Errorf("one just as large, %s: %d", name, got)
		}
	}
}

// One that does not say how large it is ends at the limit, whatever the app makes of it.
func TestMaxRequestBodyOfUnknownLength(t *testing.T) {
	h := startHost(t, "\tfairway app {\n\t\timage app:1\n\t\tmax_request_body 1KiB\n\t}", func(string, *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if n, err := io.Copy(io.Discard, r.Body); err == nil || n > 1024 {
				t.Errorf("the app got %d bytes, %v", n, err)
			}
		})
	})
	for range 2 { // the second finds the same instance as it was
		resp, err := http.Post(h.url, "text/plain", io.MultiReader(strings.NewReader(strings.Repeat("x", 5000))))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	if n := h.fake.started.Load(); n != 1 {
		t.Errorf("%d instances were started", n)
	}
}

func TestMaxRequestBodyErrors(t *testing.T) {
	for options, want := range map[string]string{
		"max_request_body":                           "rong argument count",
		"max_request_body 1 2":                       "rong argument count",
		"max_request_body much":                      "'much' is not a size such as 10MB",
		"max_request_body 0":                         "'0' is not a size such as 10MB",
		"max_request_body 1MB\nmax_request_body 2MB": "duplicate option 'max_request_body'",
	} {
		_, err := adapt(t, "{\n\tfairway {\n\t\truntime fake\n\t}\n}\n:80 {\n\tfairway hello {\n\t\timage app\n\t\t"+options+"\n\t}\n}\n")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", options, err, want)
		}
	}
}
