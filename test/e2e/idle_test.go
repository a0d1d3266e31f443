package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestIdle keeps an instance busy, in every way there is, for far longer than
// the idle timeout: it is not stopped meanwhile, and soon after.
func TestIdle(t *testing.T) {
	const (
		idle = 400 * time.Millisecond
		busy = 4 * idle
		// slack is for a busy machine.
		slack = 1500 * time.Millisecond
	)
	ways := map[string]func(*testing.T, *host, string){
		"websocket": func(t *testing.T, h *host, service string) {
			conn := h.dial(service, "/ws") // silent
			time.Sleep(busy)
			if err := conn.Write(t.Context(), websocket.MessageText, []byte("still there")); err != nil {
				t.Errorf("writing: %v", err)
			}
			if _, message, err := conn.Read(t.Context()); string(message) != "still there" {
				t.Errorf("the echo: %q %v", message, err)
			}
			_ = conn.Close(websocket.StatusNormalClosure, "")
		},
		"events": func(t *testing.T, h *host, service string) {
			// Seldom: an event shows that the stream lives only when it comes.
			got := h.getFrom(t.Context(), service, fmt.Sprintf("/stream?ms=%d&every=%d", busy.Milliseconds(), (busy/2-20*time.Millisecond).Milliseconds()))
			if n := strings.Count(got.body, "data: "); got.status != http.StatusOK || n < 3 {
				t.Errorf("%d events: %s", n, got)
			}
		},
		"download": func(t *testing.T, h *host, service string) {
			got := h.getFrom(t.Context(), service, fmt.Sprintf("/download?bytes=200000&ms=%d", busy.Milliseconds()))
			if got.status != http.StatusOK || len(got.body) != 200000 {
				t.Errorf("%d, %d bytes, %v", got.status, len(got.body), got.err)
			}
		},
		"upload": func(t *testing.T, h *host, service string) {
			const size = 20
			body, w := io.Pipe()
			go func() {
				for range size {
					time.Sleep(busy / size)
					_, _ = w.Write([]byte{'x'})
				}
				_ = w.Close()
			}()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url("/upload"), body)
			h.check(err)
			req.Host = service + ".test"
			if got := h.do(req); got.status != http.StatusOK || !strings.HasSuffix(strings.TrimSpace(got.body), fmt.Sprintf(" %d", size)) {
				t.Errorf("%s", got)
			}
		},
		"silence": func(t *testing.T, h *host, service string) {
			if got := h.getFrom(t.Context(), service, fmt.Sprintf("/sleep?ms=%d", busy.Milliseconds())); got.status != http.StatusOK {
				t.Errorf("%s", got)
			}
		},
		// The clock starts anew at the end of each request.
		"steady": func(t *testing.T, h *host, service string) {
			for range 10 {
				if got := h.getFrom(t.Context(), service, "/"); got.status != http.StatusOK {
					t.Errorf("%s", got)
				}
				time.Sleep(idle / 2)
			}
			if got := h.getFrom(t.Context(), service, "/"); got.status != http.StatusOK {
				t.Errorf("%s", got)
			}
		},
	}
	h := newHost(t)
	var site strings.Builder
	for service := range ways {
		site.WriteString(h.vhost(service, "idle_timeout "+idle.String()))
	}
	h.start(h.caddyfile(site.String()))
	wg := crowd(t)
	for service, use := range ways {
		wg.Go(func() {
			// The clock runs already when the long use begins.
			if got := h.getFrom(t.Context(), service, "/"); got.status != http.StatusOK {
				t.Errorf("%s: %s", service, got)
			}
			use(t, h, service)
			ended := time.Now()
			for len(h.loggedOf(service, "instance stopped")) == 0 {
				if time.Since(ended) > patience {
					t.Errorf("%s: the instance did not stop: %+v", service, h.instancesOf(service))
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			lines := h.loggedOf(service, "instance draining")
			if len(lines) != 1 || lines[0]["reason"] != "idle" {
				t.Errorf("%s: stopped as %v; want once, as it was idle", service, lines)
				return
			}
			after := lines[0].at().Sub(ended)
			if after < idle-100*time.Millisecond || after > idle+slack {
				t.Errorf("%s: stopped %s after the end; want %s", service, after, idle)
			}
			if made := h.creationsOf(service); len(made) != 1 {
				t.Errorf("%s: %d containers; want 1: it was stopped while in use", service, len(made))
			}
		})
	}
	wg.Wait()
	h.assertNothingLeft()
}

// TestIdleBoundary sends each request in the moment in which the instance may
// be stopped. It is answered, and not by an instance that is being stopped.
func TestIdleBoundary(t *testing.T) {
	const (
		idle     = 20 * time.Millisecond
		jitter   = 2 * time.Millisecond
		services = 3 // at the same time
	)
	h := newHost(t)
	var site strings.Builder
	name := func(n int) string { return fmt.Sprintf("racer%d", n) }
	for n := range services {
		site.WriteString(h.vhost(name(n), "idle_timeout "+idle.String(), "header_down X-Instance {http.fairway.instance}",
			"header_down X-Cold {http.fairway.cold_start}"))
	}
	h.start(h.caddyfile(site.String()))
	type answer struct {
		instance string
		at       time.Time // when it was asked for
	}
	var (
		mu         sync.Mutex
		answers    []answer
		cold, warm int
	)
	wg := crowd(t)
	for n := range services {
		wg.Go(func() {
			pause := idle
			for range loops(150, 10_000) / services {
				time.Sleep(pause + rand.N(2*jitter) - jitter)
				at := time.Now()
				got := h.getFrom(t.Context(), name(n), "/sleep?ms=1")
				if got.status != http.StatusOK {
					t.Errorf("%s: %s", name(n), got)
					return
				}
				if got.header.Get("Probe-Stopping") != "" {
					t.Errorf("%s: answered by an app that has got SIGTERM", name(n))
				}
				mu.Lock()
				answers = append(answers, answer{got.header.Get("X-Instance"), at})
				// Stay where it goes either way.
				if got.header.Get("X-Cold") == "true" {
					cold++
					pause -= jitter / 8
				} else {
					warm++
					pause += jitter / 8
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if cold < len(answers)/20 || warm < len(answers)/20 {
		t.Errorf("%d cold and %d warm: the boundary was not met", cold, warm)
	}
	stopping := make(map[string]time.Time)
	for _, e := range h.logged("instance draining") {
		stopping[e.text("instance")] = e.at()
	}
	for _, a := range answers {
		if since, ok := stopping[a.instance]; ok && since.Before(a.at) {
			t.Errorf("asked at %s, answered by %s, which is being stopped since %s", a.at.Format(time.StampMicro), a.instance, since.Format(time.StampMicro))
		}
	}
	t.Logf("%d cold, %d warm", cold, warm)
}

// TestStopSignal stops apps that take their time after SIGTERM: they get it, up
// to ten seconds.
func TestStopSignal(t *testing.T) {
	const grace = 10 * time.Second
	services := map[string]struct {
		options    []string
		least      time.Duration
		most       time.Duration
		takesLong  bool
		saidSignal bool
	}{
		"prompt": {most: 3 * time.Second},
		"slow":   {options: []string{"env TERM_DELAY_MS 1000"}, least: time.Second, most: 4 * time.Second},
		"almost": {options: []string{"env TERM_DELAY_MS 8500"}, least: 8500 * time.Millisecond, most: grace, takesLong: true},
		"late":   {options: []string{"env TERM_DELAY_MS 60000"}, least: grace, most: grace + 3*time.Second, takesLong: true},
		"deaf":   {options: []string{"env IGNORE_TERM 1"}, least: grace, most: grace + 3*time.Second, takesLong: true},
	}
	h := newHost(t)
	var site strings.Builder
	for name, s := range services {
		if s.takesLong && !full() {
			continue
		}
		site.WriteString(h.vhost(name, s.options...))
	}
	h.start(h.caddyfile(site.String()))
	wg := crowd(t)
	for name, s := range services {
		if s.takesLong && !full() {
			continue
		}
		if got := h.getFrom(t.Context(), name, "/"); got.status != http.StatusOK {
			t.Fatalf("%s: %s", name, got)
		}
		// A request in flight ends before anything is stopped.
		wg.Go(func() {
			if got := h.getFrom(t.Context(), name, "/sleep?ms=700"); got.status != http.StatusOK {
				t.Errorf("%s: %s", name, got)
			}
		})
		h.awaitInFlight(name, 1)
	}
	h.check(h.reload(h.caddyfile("respond gone"), false))
	wg.Wait()
	eventually(t, "all have stopped", func() bool {
		return len(h.containers()) == 0 && len(h.logged("instance stopped")) == len(h.logged("instance draining"))
	})
	for name, s := range services {
		if s.takesLong && !full() {
			continue
		}
		drained, stopped := h.loggedOf(name, "instance draining"), h.loggedOf(name, "instance stopped")
		if len(drained) != 1 || len(stopped) != 1 {
			t.Errorf("%s: draining %v, stopped %v", name, drained, stopped)
			continue
		}
		if took := stopped[0].at().Sub(drained[0].at()); took < s.least || took > s.most {
			t.Errorf("%s: stopped in %s; want %s to %s", name, took, s.least, s.most)
		}
	}
	h.assertNothingLeft()
}

// TestOutput finds what the app wrote below the log directory.
func TestOutput(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello")))
	if got := h.get("/log?lines=3&bytes=40"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	eventually(t, "the lines are in a file", func() bool {
		return bytes.Contains(h.output(), []byte("probe line 2 "))
	})
}
