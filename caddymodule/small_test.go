package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// startHTTP2 is startHost whose clients may speak HTTP/2 without TLS, and a client that
// does. It loads one config: after a second one the old server may still take, and then
// close, a connection that a test means to keep.
func startHTTP2(t *testing.T, site string, handler func(id string, rev *revisions.Revision) http.Handler) (*host, *http.Client) {
	t.Helper()
	h := newHost(t, handler)
	h.global = "\tservers {\n\t\tprotocols h1 h2 h2c\n\t}\n"
	if err := h.load(site); err != nil {
		t.Fatal(err)
	}
	two := &http.Transport{Protocols: new(http.Protocols)}
	two.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(two.CloseIdleConnections)
	return h, &http.Client{Transport: two}
}

// breakOff has all instances go on "running" and listen no more.
func (rt *fakeRuntime) breakOff() {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, h := range rt.running {
		h.server.CloseClientConnections()
		h.server.Listener.Close()
	}
}

// F28: another instance gets all of a body though the request was meant for one to
// which a connection was kept, and which has gone.
func TestABodySurvivesItsInstance(t *testing.T) {
	for _, way := range []string{"own", "proxy"} {
		site := "fairway hello {\n image app:1\n" + ways[way] + "}"
		for name, ask := range map[string]func(h *host, two *http.Client) (*http.Response, error){
			"small": func(h *host, _ *http.Client) (*http.Response, error) {
				return http.Post(h.url, "text/plain", strings.NewReader("hello"))
			},
			"small, HTTP2": func(h *host, two *http.Client) (*http.Response, error) {
				return two.Post(h.url, "text/plain", strings.NewReader("hello"))
			},
			// It is looked at before it is sent, as most requests like it have none.
			"of a GET without its length": func(h *host, two *http.Client) (*http.Response, error) {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url, io.MultiReader(strings.NewReader("hello")))
				return two.Do(req)
			},
		} {
			t.Run(way+", "+name, func(t *testing.T) {
				h, two := startHTTP2(t, site, func(id string, _ *revisions.Revision) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						b, _ := io.ReadAll(r.Body)
						fmt.Fprintf(w, "%s %s", id, b)
					})
				})
				_, first, _ := h.get("/")
				h.fake.breakOff()
				resp, err := ask(h, two)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				id, body, _ := strings.Cut(string(b), " ")
				if resp.StatusCode != 200 || body != "hello" || id == strings.TrimSpace(first) {
					t.Errorf("%d %q after %q", resp.StatusCode, b, first)
				}
				if got := states(); !slices.Contains(got, "ready") {
					t.Errorf("the instances are %q: the second is in order", got)
				}
				settled(t, "hello")
			})
		}
	}
}

// What the proxy has read to send it in one piece is not there for another instance: that
// must not get the rest of it for the whole.
func TestABufferedBodyIsNotCut(t *testing.T) {
	var saw atomic.Int64
	h := startHost(t, "fairway hello {\n image app:1\n request_buffers 64KiB\n}", func(string, *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			saw.Store(n)
		})
	})
	const size = 100_000
	for name, body := range map[string]func() io.Reader{
		"of known length":   func() io.Reader { return strings.NewReader(strings.Repeat("x", size)) },
		"of unknown length": func() io.Reader { return io.MultiReader(strings.NewReader(strings.Repeat("x", size))) },
	} {
		post := func() int {
			resp, err := http.Post(h.url, "text/plain", body())
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp.StatusCode
		}
		if status := post(); status != 200 || saw.Load() != size {
			t.Fatalf("%s: %d, of which the app saw %d bytes", name, status, saw.Load())
		}
		saw.Store(size)
		h.fake.breakOff()
		if status := post(); status != 502 || saw.Load() != size {
			t.Errorf("%s, when the instance is gone: %d, of which another saw %d bytes", name, status, saw.Load())
		}
		settled(t, "hello")
	}
}

// A client that says that it sends a body, and does not, or asks for much and does not
// read it, holds its slot no longer than a request may take.
func TestAClientThatStalls(t *testing.T) {
	const size = 64 << 20
	for _, way := range []string{"own", "proxy"} {
		t.Run(way, func(t *testing.T) {
			site := "fairway hello {\n image app:1\n timeout 1s\n concurrency 1\n instances 0 1\n" + ways[way] + "}"
			h, two := startHTTP2(t, site, func(string, *revisions.Revision) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					n := 10_000
					if r.URL.Path == "/much" {
						n = size
					}
					w.Header().Set("Content-Length", fmt.Sprint(n))
					for chunk := make([]byte, 10_000); n > 0; n -= len(chunk) {
						if _, err := w.Write(chunk[:min(n, len(chunk))]); err != nil {
							return
						}
					}
				})
			})
			dial := func() (net.Conn, *bufio.Reader) {
				conn, err := net.Dial("tcp", "127.0.0.1:"+h.port)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
				return conn, bufio.NewReader(conn)
			}
			kept, answers := dial()
			post := func() {
				t.Helper()
				fmt.Fprintf(kept, "POST / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nContent-Length: 5\r\n\r\nhello", h.port)
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || len(b) != 10_000 || resp.Close {
					t.Errorf("on a connection that is kept: %+v, %d bytes, %v", resp, len(b), err)
				}
			}
			late := func(what string, resp *http.Response, err error) {
				t.Helper()
				if err != nil || resp.StatusCode != http.StatusGatewayTimeout {
					t.Errorf("%s: %+v, %v", what, resp, err)
				}
				settled(t, "hello")
			}
			post()
			conn, answer := dial()
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nContent-Length: 5\r\n\r\nhe", h.port)
			resp, err := http.ReadResponse(answer, nil)
			late("half a body", resp, err)
			if _, err := io.Copy(io.Discard, answer); err != nil {
				t.Errorf("the connection is not closed: %v", err)
			}
			body, begin := io.Pipe()
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url, body)
			req.ContentLength = 5
			resp, err = two.Do(req)
			late("no body over HTTP/2", resp, err)
			begin.Close()
			post() // its deadlines were those of another request

			much, _ := dial()
			fmt.Fprintf(much, "GET /much HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n\r\n", h.port)
			eventually(t, "it is being answered", func() bool { return service(t, "hello").InFlight == 1 })
			settled(t, "hello")
			if resp, err = two.Get(h.url + "/much"); err != nil {
				t.Fatal(err)
			}
			settled(t, "hello")
			if n, err := io.Copy(io.Discard, resp.Body); err == nil || n >= size {
				t.Errorf("all of it has come, %d bytes", n)
			}
			post()
		})
	}
}
