package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"testing"
)

// A container reaches another service without leaving the machine, and in no other
// way than anybody else: from zero, through the queue, and by its name.
func TestServiceToService(t *testing.T) {
	h := newHost(t, onExit("keep"))
	_, port, _ := net.SplitHostPort(h.site)
	config := h.caddyfile(h.vhost("caller")+h.vhost("api", "ingress internal", "concurrency 1")) +
		fmt.Sprintf("http://*.internal:%s {\n\tfairway\n}\n", port)
	h.start(config)
	fetch := func(host, path string) string {
		t.Helper()
		got := h.getFrom(t.Context(), "caller", "/fetch?url="+url.QueryEscape("http://"+host+":"+port+path))
		if got.status != http.StatusOK {
			t.Fatalf("%s%s: the caller answered %v", host, path, got)
		}
		return got.body
	}
	who := func(host string) string {
		return fmt.Sprintf(`200 for=_%s;host="%s:%s";proto=http`, h.instancesOf("caller")[0].Instance, host, port)
	}
	eventually(t, "the caller knows all names", func() bool {
		return h.getFrom(t.Context(), "caller", "/fetch?url="+url.QueryEscape("http://api.internal:"+port+"/")).status == http.StatusOK
	})
	for _, host := range []string{"api.test", "api.internal"} {
		if got := fetch(host, "/header?name=Forwarded"); got != who(host) {
			t.Errorf("at %s: %q; want %q", host, got, who(host))
		}
	}
	if n := len(h.instancesOf("api")); n != 1 {
		t.Errorf("%d instances of the service that was asked", n)
	}
	// Others do not get in, whatever they say.
	if got := h.getFrom(t.Context(), "api", "/"); got.status != http.StatusNotFound {
		t.Errorf("from outside: %v", got)
	}
	if got := h.asked("api.internal", "/"); got.status != http.StatusNotFound {
		t.Errorf("from outside: %v", got)
	}
	logged := h.loggedOf("caller", "instance ready")
	if len(logged) != 1 {
		t.Errorf("%d instances of the caller", len(logged))
	}

	// One that runs learns of what comes later, and is the same to the next Caddy.
	h.apply(http.MethodPost, knative+"services", "application/json", h.ksvc("later", 1, ""))
	h.awaitReady("later", "later-00001")
	eventually(t, "the caller knows the new service", func() bool {
		return h.getFrom(t.Context(), "caller", "/fetch?url="+url.QueryEscape("http://later.internal:"+port+"/header?name=Forwarded")).body == who("later.internal")
	})
	before := h.instancesOf("caller")[0]
	h.kill()
	h.start(config)
	if got := fetch("api.internal", "/header?name=Forwarded"); got != who("api.internal") {
		t.Errorf("after Caddy was killed: %q; want %q", got, who("api.internal"))
	}
	if after := h.instancesOf("caller"); len(after) != 1 || after[0].PID != before.PID {
		t.Errorf("after Caddy was killed the caller is %v; was %v", after, before)
	}
}
