package e2e

import (
	"net/http"
	"testing"
)

// TestNamesThatBeginAlike has two services of which one's name begins with the
// other's: what happens to one leaves the other alone (F46).
func TestNamesThatBeginAlike(t *testing.T) {
	h := newHost(t, onExit("keep"))
	both := h.vhost("a") + h.vhost("a-1")
	h.start(h.caddyfile(both))
	first, second := h.about("a").ID, h.about("a-1").ID
	if first == second {
		t.Fatal("one process serves both")
	}
	h.kill()
	h.start(h.caddyfile(both))
	for name, want := range map[string]string{"a": first, "a-1": second} {
		if got := h.about(name).ID; got != want {
			t.Errorf("%s after a restart: process %s; want %s", name, got, want)
		}
	}
	gone := func(name string) {
		t.Helper()
		eventually(t, "nothing runs of "+name, func() bool { return len(h.instancesOf(name)) == 0 })
	}
	h.check(h.reload(h.caddyfile(h.vhost("a-1")), false))
	gone("a")
	if got := h.about("a-1").ID; got != second {
		t.Errorf("a-1 without a: process %s; want %s", got, second)
	}
	h.check(h.reload(h.caddyfile(both), false))
	third := h.about("a").ID
	h.check(h.reload(h.caddyfile(h.vhost("a")), false))
	gone("a-1")
	if got := h.about("a").ID; got != third {
		t.Errorf("a without a-1: process %s; want %s", got, third)
	}
	if got := h.getFrom(t.Context(), "a", "/"); got.status != http.StatusOK {
		t.Errorf("%s", got)
	}
	if names := h.instancesOf("a-1"); len(names) > 0 {
		t.Errorf("%+v", names)
	}
}
