package caddymodule

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// TestTheRestOfABodyIsNoRequest sends bodies that look like requests to an app that
// answers before it has read them.
func TestTheRestOfABodyIsNoRequest(t *testing.T) {
	const size = 3 << 20
	for name, options := range map[string]string{"http1": "", "h2c": "port h2c 8080"} {
		t.Run(name, func(t *testing.T) {
			h := startHost(t, "fairway hello {\n image app:1\n"+options+"\n}", func(string, *revisions.Revision) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodPost && r.URL.Path != "/next" {
						t.Errorf("%s %s: nobody has asked for that", r.Method, r.URL)
					}
					_, _ = r.Body.Read(make([]byte, 1000))
				})
			})
			next := "GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1:" + h.port + "\r\n\r\n"
			body := strings.Repeat(next, size/len(next))
			for n := range 20 {
				fields := fmt.Sprintf("Content-Length: %d", len(body))
				sent := body
				switch n % 4 {
				case 1, 3:
					fields, sent = "Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
				case 2:
					fields += "\r\nConnection: Upgrade\r\nUpgrade: other"
				}
				conn, err := net.Dial("tcp", "127.0.0.1:"+h.port)
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				writing := make(chan struct{})
				go func() {
					defer close(writing)
					_, _ = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n%s\r\n\r\n%s", h.port, fields, sent)
				}()
				answers := bufio.NewReader(conn)
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatalf("%s: %v", fields, err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				if !resp.Close { // all of it has been read after all
					<-writing
					fmt.Fprintf(conn, "GET /next HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n\r\n", h.port)
					if resp, err = http.ReadResponse(answers, nil); err != nil || resp.StatusCode != http.StatusOK || !resp.Close {
						t.Errorf("%s: what is asked next: %+v, %v", fields, resp, err)
					}
				}
				if again, err := http.ReadResponse(answers, nil); err == nil {
					t.Errorf("%s: one more answer than was asked for: %s", fields, again.Status)
				}
				_ = conn.Close()
				<-writing
			}
		})
	}
}

// TestARefusedBodyIsNotAwaited asks whether a body is wanted, and is told no. It does not
// send it, so an answer that waited for it would never come.
func TestARefusedBodyIsNotAwaited(t *testing.T) {
	h := startHost(t, "fairway hello {\n image app:1\n}", func(string, *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusExpectationFailed) })
	})
	for _, length := range []string{"Content-Length: 4", "Transfer-Encoding: chunked"} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+h.port)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nExpect: 100-continue\r\n%s\r\n\r\n", h.port, length)
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "417") {
			t.Errorf("%s: %q, %v", length, line, err)
		}
	}
}

// An app may answer before it has read a body. The answer is whole, nobody reads on
// when the request is over, and a connection of HTTP/1 ends with it.
func TestAnAnswerBeforeTheBody(t *testing.T) {
	for name, options := range map[string]string{"http1": "", "h2c": "port h2c 8080"} {
		t.Run(name, func(t *testing.T) {
			h := startHost(t, "log\nfairway hello {\n image app:1\n"+options+"\n}", func(string, *revisions.Revision) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_ = http.NewResponseController(w).EnableFullDuplex()
					if r.URL.Path == "/all" {
						_, _ = io.Copy(io.Discard, r.Body)
					}
					io.WriteString(w, "enough")
				})
			})
			ask := func(path string, body io.Reader) *http.Response {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+path, body)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "enough" {
					t.Errorf("%s: %q, %v", path, b, err)
				}
				return resp
			}
			for range 10 {
				more, begin := io.Pipe()
				go func() { _, _ = begin.Write(make([]byte, 1000)) }()
				if resp := ask("/", more); !resp.Close {
					t.Error("the connection is kept in the midst of a body")
				}
				_ = begin.Close()
				if resp := ask("/all", bytes.NewReader(make([]byte, 100_000))); resp.Close {
					t.Error("the connection is not kept after a whole body")
				}
				if resp := ask("/all", io.LimitReader(rand.Reader, 100_000)); resp.Close {
					t.Error("the connection is not kept after a whole body in chunks")
				}
			}
			settled(t, "hello")
		})
	}
}
