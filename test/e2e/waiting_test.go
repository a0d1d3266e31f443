package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestWaitingPage has a browser that opens a slow app, and a script that asks for
// it at the same time: the one gets pages until the app answers, the other waits.
func TestWaitingPage(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile("log\n" + h.service("slow", "env START_DELAY_MS 3000", "idle_timeout 1s", "waiting_page")))
	visit := func() response {
		req, err := http.NewRequestWithContext(h.life, http.MethodGet, h.url("/?a=b"), nil)
		if err != nil {
			return response{err: err}
		}
		req.Header.Set("Accept", "text/html,*/*;q=0.8")
		return h.do(req)
	}
	first := visit()
	if first.status != http.StatusServiceUnavailable || first.header.Get("Refresh") != "1" || !strings.Contains(first.body, "slow is starting") {
		t.Fatalf("the first answer: %s", first)
	}
	wg := crowd(t)
	wg.Go(func() {
		if got := h.get("/"); got.status != http.StatusOK {
			t.Errorf("the script got %s", got)
		}
	})
	got := first
	eventually(t, "the app answers", func() bool {
		if got = visit(); got.status == http.StatusServiceUnavailable && got.header.Get("Refresh") == "1" {
			time.Sleep(time.Second) // as the browser does
			return false
		}
		return true
	})
	if got.status != http.StatusOK {
		t.Errorf("in the end: %s", got)
	}
	wg.Wait()
	if n := len(h.creationsOf("slow")); n != 1 {
		t.Errorf("%d containers were made", n)
	}
	eventually(t, "the access log says what it was", func() bool {
		return strings.Contains(h.rawLog(), `"fairway_outcome":"waiting_page"`)
	})
}
