package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fairway-run/fairway/revisions"
)

// F43: an instance that ends takes with it what it has, once, and nothing else: those
// that wait, and those that come, go to another.
func TestACrashTakesOnlyWhatTheInstanceHas(t *testing.T) {
	const inside, waiting = 4, 8
	for way, option := range map[string]string{"own": "", "proxy": "trusted_proxies 192.0.2.0/24"} {
		t.Run(way, func(t *testing.T) {
			var lost atomic.Int64
			h := startHost(t, fmt.Sprintf("fairway hello {\n image app:1\n concurrency %d\n instances 0 1\n %s\n}", inside, option), func(id string, _ *revisions.Revision) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/lost" {
						lost.Add(1)
						<-r.Context().Done()
						return
					}
					_, _ = io.WriteString(w, id)
				})
			})
			ask := func(path string, want int, by func(string) bool) {
				resp, err := http.Get(h.url + path)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != want || by != nil && !by(string(b)) {
					t.Errorf("%s: %d %q, %v; want %d", path, resp.StatusCode, b, err, want)
				}
			}
			_, first, _ := h.get("/")
			another := func(id string) bool { return id != first }
			var victims, clients sync.WaitGroup
			for range inside {
				victims.Go(func() { ask("/lost", http.StatusBadGateway, nil) })
			}
			eventually(t, "the instance has its fill", func() bool { return lost.Load() == inside })
			for range waiting {
				clients.Go(func() { ask("/waits", http.StatusOK, another) })
			}
			eventually(t, "the others wait", func() bool { return service(t, "hello").Queue == waiting })
			h.fake.mu.Lock()
			handle := h.fake.running[first]
			h.fake.mu.Unlock()
			// Its connections end before anybody is told that it has.
			handle.server.Listener.Close()
			handle.server.CloseClientConnections()
			victims.Wait()
			for range waiting {
				clients.Go(func() { ask("/comes", http.StatusOK, another) })
			}
			if err := handle.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			clients.Wait()
			settled(t, "hello")
			if n := lost.Load(); n != inside {
				t.Errorf("%d requests were begun for %d that were lost", n, inside)
			}
			if n := h.fake.started.Load(); n != 2 {
				t.Errorf("%d instances were started", n)
			}
		})
	}
}
