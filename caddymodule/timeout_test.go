package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// A request ends at its timeout: with 504 if nothing was answered, and cleanly if
// a response of unknown length has begun. Source: Knative: TestRevisionTimeout.
func TestTimeouts(t *testing.T) {
	site := ""
	for name, options := range map[string]string{
		"total": "timeout 1s", "start": "response_start_timeout 1s", "idle": "response_idle_timeout 1s",
	} {
		// What is trusted changes nothing but the way that requests take.
		site += fmt.Sprintf("handle /%[1]s/own/* {\n fairway %[1]s {\n image app:1\n %[2]s\n }\n}\nhandle /%[1]s/proxy/* {\n fairway %[1]s {\n trusted_proxies 192.0.2.0/24\n }\n}\n", name, options)
	}
	h := startHost(t, site, func(string, *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			say := func(text string) {
				_, _ = io.WriteString(w, text)
				_ = http.NewResponseController(w).Flush()
			}
			switch _, end, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); strings.TrimPrefix(strings.TrimPrefix(end, "own"), "proxy") {
			case "/nothing":
				<-r.Context().Done()
			case "/begun":
				say("begun")
				<-r.Context().Done()
			case "/sized":
				w.Header().Set("Content-Length", "100")
				say("begun")
				<-r.Context().Done()
			case "/slow":
				for i := range 3 {
					say(fmt.Sprint(i+1, " "))
					select {
					case <-time.After(600 * time.Millisecond):
					case <-r.Context().Done():
						return
					}
				}
			case "/socket":
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				rw.Flush()
				_, _ = io.Copy(conn, rw)
			}
		})
	})
	sockets := map[string]net.Conn{"total": upgrade(t, h, "/total/own/socket"), "idle": upgrade(t, h, "/idle/own/socket")}
	var all sync.WaitGroup
	for _, test := range []struct {
		path   string
		status int
		body   string
		whole  bool
	}{
		{"total/%s/nothing", 504, "", true},
		{"total/%s/begun", 200, "begun", true},
		{"total/%s/sized", 200, "begun", false},
		{"total/%s/slow", 200, "1 2 ", true},
		{"start/%s/nothing", 504, "", true},
		{"start/%s/slow", 200, "1 2 3 ", true},
		{"idle/%s/nothing", 504, "", true},
		{"idle/%s/begun", 200, "begun", true},
		{"idle/%s/sized", 200, "begun", false},
		{"idle/%s/slow", 200, "1 2 3 ", true},
	} {
		for _, way := range []string{"own", "proxy"} {
			all.Go(func() {
				path := fmt.Sprintf(test.path, way)
				resp, err := http.Get(h.url + "/" + path)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if resp.StatusCode != test.status || string(body) != test.body || (err == nil) != test.whole {
					t.Errorf("%s: %d %q, %v; want %d %q, whole: %v", path, resp.StatusCode, body, err, test.status, test.body, test.whole)
				}
			})
		}
	}
	all.Wait()
	// F29: what is no longer HTTP has no such end.
	for name, conn := range sockets {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(conn, "still here\n")
		for br := bufio.NewReader(conn); ; {
			line, err := br.ReadString('\n')
			if err != nil {
				t.Errorf("socket of %s: %v", name, err)
			}
			if err != nil || line == "still here\n" {
				break
			}
		}
		conn.Close()
	}
	for _, name := range []string{"total", "start", "idle"} {
		settled(t, name)
	}
}
