package caddymodule

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// F07: what Caddy answers by itself, and the certificates that it gets for a
// service, start nothing of it.
func TestNothingOfCaddysOwnStartsAnInstance(t *testing.T) {
	ports := make([]string, 2)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, ports[i], _ = net.SplitHostPort(l.Addr().String())
		l.Close()
	}
	fake := newFake(t, hello)
	text := fmt.Sprintf(`{
	admin off
	http_port %s
	https_port %s
	default_bind 127.0.0.1
	skip_install_trust
	on_demand_tls {
		permission fairway
	}
	fairway {
		domain run.test
		runtime fake {
			name %s
		}
	}
}
https:// {
	tls internal {
		on_demand
	}
	fairway
}
https://hello.run.test {
	tls internal
	redir /old https://hello.run.test/new 301
	fairway /second second {
		image app:1
	}
	fairway hello {
		image app:1
	}
}
`, ports[0], ports[1], t.Name())
	js, err := adapt(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load([]byte(js), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		closing.Wait()
	})
	handshake := func(name string) error {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+ports[1], &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: "hello.run.test", InsecureSkipVerify: true}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ask := func(scheme, port, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://127.0.0.1:"+port+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "hello.run.test"
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Location")
	}
	eventually(t, "there is a certificate", func() bool { return handshake("hello.run.test") == nil })
	eventually(t, "there is a certificate on demand", func() bool { return handshake("second.run.test") == nil })
	if err := handshake("other.run.test"); err == nil {
		t.Error("a certificate for no service")
	}
	for path, want := range map[string]int{"/": 308, "/.well-known/acme-challenge/token": 308} {
		if status, to := ask("http", ports[0], path); status != want || to == "" {
			t.Errorf("%s: %d to %q; want %d", path, status, to, want)
		}
	}
	if status, to := ask("https", ports[1], "/old"); status != 301 || to != "https://hello.run.test/new" {
		t.Errorf("a redirect of the site's own: %d to %q", status, to)
	}
	if n := fake.started.Load(); n != 0 {
		t.Errorf("%d instances were started", n)
	}
	if status, _ := ask("https", ports[1], "/"); status != 200 || fake.started.Load() != 1 {
		t.Errorf("a request: %d, and %d instances were started", status, fake.started.Load())
	}
}
