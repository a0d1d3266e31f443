package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/requestbody"

	"github.com/fairway-run/fairway/revisions"
)

// ways are options of a service that change nothing for a client but how its
// requests are sent.
var ways = map[string]string{"own": "", "proxy": "trusted_proxies 192.0.2.0/24\n", "h2c": "port h2c 8080\n"}

// startSuspicious starts a host with an instance that, once it is suspected, stays so
// until the end of the test.
func startSuspicious(t *testing.T, options string, app http.HandlerFunc) *host {
	t.Helper()
	var begun atomic.Bool
	over := make(chan struct{})
	h := startHost(t, "request_body {\n max_size 1000\n}\nfairway hello {\n image app:1\n startup_probe http /ready\n"+options+"}", func(string, *revisions.Revision) http.Handler {
		first := !begun.Load()
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path != "/ready":
				app(w, r)
			case first && begun.Load():
				<-over
			}
		})
	})
	t.Cleanup(func() { close(over) })
	if status, _, _ := h.get("/"); status != 200 {
		t.Fatal(status)
	}
	begun.Store(true)
	return h
}

func states() (all []string) {
	for _, v := range instanceViews() {
		all = append(all, v.State)
	}
	return all
}

// A client that sends half a body, or one that is none, says nothing of the instance.
func TestTheClientsFaultIsNotTheInstances(t *testing.T) {
	for way, options := range ways {
		t.Run(way, func(t *testing.T) {
			h := startSuspicious(t, options, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
			for name, test := range map[string]struct {
				rest string
				want int // 0 when nobody is there any more to be told
			}{
				"broken chunks":  {"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", 502},
				"no chunks":      {"Transfer-Encoding: chunked\r\n\r\n1\nZ\r\n0\r\n\r\n", 502},
				"too much":       {"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + strings.Repeat("x", 2000) + "\r\n0\r\n\r\n", 413},
				"half the chunk": {"Transfer-Encoding: chunked\r\n\r\n5\r\nhe", 0},
				"half the body":  {"Content-Length: 5\r\n\r\nhe", 0},
			} {
				conn, err := net.Dial("tcp", "127.0.0.1:"+h.port)
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n%s", h.port, test.rest)
				if test.want == 0 {
					_ = conn.Close()
				} else if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != test.want {
					t.Errorf("%s: %+v, %v; want %d", name, resp, err, test.want)
				}
				_ = conn.Close()
				settled(t, "hello")
				if got := states(); len(got) != 1 || got[0] != "ready" {
					t.Errorf("%s: the instance is %q", name, got)
				}
			}
		})
	}
}

// An instance that breaks is suspected, whatever it was asked.
func TestABrokenInstanceIsSuspected(t *testing.T) {
	for way, options := range ways {
		if way == "h2c" {
			continue // there one request's end is not the connection's
		}
		for name, body := range map[string]string{"no body": "", "small body": "hello"} {
			t.Run(way+", "+name, func(t *testing.T) {
				h := startSuspicious(t, options, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/break" {
						_, _ = io.Copy(io.Discard, r.Body)
						panic(http.ErrAbortHandler)
					}
				})
				resp, err := http.Post(h.url+"/break", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 502 {
					t.Error(resp.Status)
				}
				if got := states(); len(got) == 0 || got[0] != "suspect" {
					t.Errorf("the instance is %q", got)
				}
			})
		}
	}
}
