package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// TestStartFailsElsewhere has apps that listen, but not where requests come: the
// error says where that is (F49).
func TestStartFailsElsewhere(t *testing.T) {
	const probe = "startup_probe tcp {\n\t\tport 8080\n\t\tperiod 1s\n\t}"
	services := map[string]struct{ option, cause string }{
		"inside": {"env LISTEN_ADDR 127.0.0.1", "it listens on 127.0.0.1:8080, where only the container itself reaches it"},
		"six":    {"env LISTEN_ADDR ::1", "it listens on [::1]:8080, where only the container itself reaches it"},
		"port":   {"port 3000", "it listens on [::]:3000"},
	}
	h := newHost(t)
	var site strings.Builder
	for name, s := range services {
		site.WriteString(h.vhost(name, s.option, probe))
	}
	h.start(h.caddyfile(site.String()))
	wg := crowd(t)
	for name, s := range services {
		wg.Go(func() {
			if got := h.getFrom(t.Context(), name, "/"); got.status != http.StatusServiceUnavailable {
				t.Errorf("%s: %s; want 503", name, got)
			}
			if said := h.serviceNamed(name).Error; !strings.Contains(said, s.cause) {
				t.Errorf("%s: the API says %q, which lacks %q", name, said, s.cause)
			}
		})
	}
	wg.Wait()
}
