package caddymodule

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/quic-go/quic-go/http3"

	"github.com/fairway-run/fairway/revisions"
)

// Over HTTP/3 nothing but the end of its stream says that a GET has no body. It is an
// ordinary request all the same.
func TestHTTP3(t *testing.T) {
	var opened atomic.Bool
	ready := untilReady(&opened)
	fake := newFake(t, func(id string, rev *revisions.Revision) http.Handler {
		probed := ready(id, rev)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/ready" {
				probed.ServeHTTP(w, r)
				return
			}
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%d %q", r.ContentLength, b)
		})
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	s := side{name: "http3"}
	s.tookProxy()
	js, err := adapt(t, fmt.Sprintf("{\n admin off\n skip_install_trust\n auto_https disable_redirects\n fairway {\n runtime fake {\n name %s\n }\n }\n}\nhttps://localhost:%s {\n bind 127.0.0.1\n tls internal\n route {\n noter http3\n fairway hello {\n image app:1\n startup_probe http /ready\n waiting_page {\n after 10ms\n }\n }\n }\n}\n", fake.name, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		closing.Wait()
	})
	if err := caddy.Load([]byte(js), true); err != nil {
		t.Fatal(err)
	}
	tr := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer tr.Close()
	try := func(method string, header http.Header, body io.Reader) (int, string, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "https://localhost:"+port, body)
		if err != nil {
			t.Fatal(err)
		}
		if header != nil {
			req.Header = header.Clone()
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.ProtoMajor != 3 {
			t.Errorf("%s: %v", resp.Proto, err)
		}
		return resp.StatusCode, string(b), nil
	}
	ask := func(method string, header http.Header, body io.Reader) (int, string) {
		t.Helper()
		status, got, err := try(method, header, body)
		if err != nil {
			t.Fatal(err)
		}
		return status, got
	}
	eventually(t, "there is a certificate", func() bool {
		_, _, err := try(http.MethodGet, browser, nil)
		return err == nil
	})
	if status, body := ask(http.MethodGet, browser, nil); status != 503 || !strings.Contains(body, "is starting") {
		t.Errorf("no waiting page: %d %q", status, body)
	}
	opened.Store(true)
	eventually(t, "it is ready", func() bool {
		status, _ := ask(http.MethodGet, browser, nil)
		return status == 200
	})
	s.tookProxy()
	for _, test := range []struct {
		method string
		body   string
		want   string
		proxy  bool
	}{
		{http.MethodGet, "", `0 ""`, false},
		{http.MethodDelete, "", `0 ""`, false},
		{http.MethodGet, "hello", `-1 "hello"`, true},
		{http.MethodPost, "hello", `-1 "hello"`, true},
	} {
		var body io.Reader
		if test.body != "" {
			body = io.MultiReader(strings.NewReader(test.body)) // of a length that is not known
		}
		if status, got := ask(test.method, nil, body); status != 200 || got != test.want {
			t.Errorf("%s %q: %d, %s; want %s", test.method, test.body, status, got, test.want)
		}
		settled(t, "hello")
		if got := s.tookProxy(); !slices.Equal(got, []bool{test.proxy}) {
			t.Errorf("%s %q: by reverse_proxy: %v; want %v", test.method, test.body, got, test.proxy)
		}
	}
}
