package e2e

import (
	"net/http"
	"testing"
)

// TestTimeoutKillsNobody lets requests run into their timeout, one after the other
// and side by side: the same process goes on.
func TestTimeoutKillsNobody(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "timeout 1s")))
	before, pid := h.about("hello").ID, h.instances()[0].PID
	late := crowd(t)
	for range 5 {
		late.Go(func() {
			if got := h.get("/sleep?ms=60000"); got.status != http.StatusGatewayTimeout {
				t.Errorf("%s; want 504", got)
			}
		})
	}
	late.Wait()
	if after := h.about("hello").ID; after != before {
		t.Errorf("process %s serves; before it was %s", after, before)
	}
	if all := h.instances(); len(all) != 1 || all[0].PID != pid {
		t.Errorf("instances %+v; want one with process %d", all, pid)
	}
	if made := h.creations(); len(made) != 1 {
		t.Errorf("containers: %v", made)
	}
}
