package e2e

import (
	"net/http"
	"testing"
)

// TestNoWake has monitors look at a service that sleeps: they get their answer, and
// no container is made before somebody comes who needs it (F06).
func TestNoWake(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile("@monitors header User-Agent *Monitor*\n" + h.service("hello", "no_wake @monitors 503", "idle_timeout 1s")))
	monitor := func() response {
		req, err := http.NewRequestWithContext(h.life, http.MethodGet, h.url("/"), nil)
		if err != nil {
			return response{err: err}
		}
		req.Header.Set("User-Agent", "SomeMonitor/1.0")
		return h.do(req)
	}
	sleeping := func() {
		t.Helper()
		for range 100 {
			if got := monitor(); got.status != http.StatusServiceUnavailable || got.header.Get("Cache-Control") != "no-store" {
				t.Fatalf("a monitor got %s, %v", got, got.header)
			}
		}
	}
	sleeping()
	if made, there := h.creations(), h.containers(); len(made)+len(there) > 0 {
		t.Errorf("containers for monitors: made %v, there %v", made, there)
	}
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("the first request: %s", got)
	}
	if made := h.creations(); len(made) != 1 {
		t.Errorf("containers for one request: %v", made)
	}
	// They keep nothing from being stopped either.
	eventually(t, "the instance is gone, though monitors ask", func() bool {
		monitor()
		return len(h.instances()) == 0
	})
	sleeping()
	if made := h.creations(); len(made) != 1 {
		t.Errorf("containers in the end: %v", made)
	}
	h.assertNothingLeft()
}
