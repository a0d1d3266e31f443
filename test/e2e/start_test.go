package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// output is all that the instances have written.
func (h *host) output() []byte {
	var all []byte
	_ = filepath.WalkDir(h.logDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		data, _ := os.ReadFile(path)
		all = append(all, data...)
		return nil
	})
	return all
}

// TestStartupProbes has apps that are not ready when their process runs.
func TestStartupProbes(t *testing.T) {
	services := map[string]struct {
		options []string
		least   time.Duration
		most    time.Duration
	}{
		"tcp":  {options: []string{"env START_DELAY_MS 700"}, least: 700 * time.Millisecond},
		"http": {options: []string{"env FAIL_START probe503:1500", "startup_probe http /healthz"}, least: 1500 * time.Millisecond},
		"grpc": {options: []string{"env FAIL_START probe503:1500", "env GRPC 1", "port h2c 8080", "startup_probe grpc"}, least: 1500 * time.Millisecond},
		// The port is open long before the app can serve: only a probe knows.
		"early": {options: []string{"env FAIL_START probe503:60000"}, most: 10 * time.Second},
	}
	h := newHost(t)
	var site strings.Builder
	for name, s := range services {
		site.WriteString(h.vhost(name, s.options...))
	}
	h.start(h.caddyfile(site.String()))
	wg := crowd(t)
	for name, s := range services {
		wg.Go(func() {
			got := h.getFrom(t.Context(), name, "/")
			if got.status != http.StatusOK || got.took < s.least || (s.most > 0 && got.took > s.most) {
				t.Errorf("%s: %s after %s; want 200 after %s", name, got, got.took, s.least)
			}
			if name == "grpc" && !strings.Contains(got.body, `"HTTP/2.0"`) {
				t.Errorf("the app got %s; want HTTP/2", got.body)
			}
		})
	}
	wg.Wait()
}

// TestStartFails has services that cannot start: those who wait get one answer,
// which says when to come back; the API and the log say why; starts are tried
// again ever less often, however many ask; and nothing is left.
func TestStartFails(t *testing.T) {
	services := map[string]struct {
		options []string
		causes  []string // all in the error
	}{
		"exits": {options: []string{"env FAIL_START exit:7"}, causes: []string{"exited with code 7", "probe: exiting, as FAIL_START says"}},
		"silent": {
			options: []string{"env FAIL_START nolisten", "startup_probe tcp {\n\t\tperiod 1s\n\t\tfailure_threshold 2\n\t}"},
			causes:  []string{"startup probe (tcp port 8080) failed for 2s", "probe: not listening, as FAIL_START says"},
		},
		"sick": {
			options: []string{"env FAIL_START probe503:60000", "startup_probe http /healthz {\n\t\tperiod 2s\n\t}"},
			causes:  []string{"startup probe (http port 8080 /healthz) failed for 2s", "503"},
		},
		"noimage":   {options: []string{"image localhost/fairway/none:1"}, causes: []string{"localhost/fairway/none:1"}},
		"nocommand": {options: []string{"command /none --at all"}, causes: []string{"/none", "no such file"}},
	}
	h := newHost(t)
	var site strings.Builder
	for name, s := range services {
		site.WriteString(h.vhost(name, slices.Concat([]string{"concurrency 2"}, s.options)...))
	}
	h.start(h.caddyfile(site.String()))
	refused := func(name string, got response) {
		seconds, err := strconv.Atoi(got.header.Get("Retry-After"))
		if got.status != http.StatusServiceUnavailable || err != nil || seconds < 1 {
			t.Errorf("%s: %s, Retry-After %q; want 503", name, got, got.header.Get("Retry-After"))
		}
	}
	tests := crowd(t)
	for name, s := range services {
		tests.Go(func() {
			// The first comes alone, so that one instance is started.
			refused(name, h.getFrom(t.Context(), name, "/"))
			said := h.serviceNamed(name).Error
			logged := ""
			for began := time.Now(); logged == "" && time.Since(began) < patience; time.Sleep(10 * time.Millisecond) {
				for _, e := range h.loggedOf(name, "instance failed") {
					logged = e.text("error")
				}
			}
			for _, cause := range s.causes {
				if !strings.Contains(said, cause) {
					t.Errorf("%s: the API says %q, which lacks %q", name, said, cause)
				}
				if !strings.Contains(logged, cause) {
					t.Errorf("%s: the log says %q, which lacks %q", name, logged, cause)
				}
			}
			// For the next five seconds many ask: tried after 1 and 2 more seconds.
			// Between tries nobody waits.
			wg := crowd(t)
			var asked, atOnce atomic.Int64
			for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
				wg.Go(func() {
					got := h.getFrom(t.Context(), name, "/")
					refused(name, got)
					asked.Add(1)
					if got.took < 100*time.Millisecond {
						atOnce.Add(1)
					}
				})
			}
			wg.Wait()
			if atOnce.Load() < asked.Load()/4 {
				t.Errorf("%s: %d of %d requests were refused at once; want most", name, atOnce.Load(), asked.Load())
			}
			if n := len(h.loggedOf(name, "instance starting")); n < 2 || n > 5 {
				t.Errorf("%s: %d starts for 100 requests in 5 seconds; want two or three", name, n)
			}
			if s := h.serviceNamed(name); s.Queue != 0 || s.InFlight != 0 {
				t.Errorf("%s: queue %d, in flight %d", name, s.Queue, s.InFlight)
			}
			if made := h.creationsOf(name); len(slices.Compact(slices.Sorted(slices.Values(made)))) != len(made) {
				t.Errorf("%s: a container was made twice: %q", name, made)
			}
			t.Logf("%s: %s", name, said)
		})
	}
	tests.Wait()
	h.assertNothingLeft()
}

// TestStartFailsTogether has many waiters, who need many instances, of which
// none can start: each gets its answer.
func TestStartFailsTogether(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("exits", "concurrency 5", "env FAIL_START exit:1", "env START_DELAY_MS 300")))
	wg := crowd(t)
	for range 20 {
		wg.Go(func() {
			if got := h.get("/"); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
				t.Errorf("%s", got)
			}
		})
	}
	wg.Wait()
	if n := len(h.creations()); n < 4 || n > 8 {
		t.Errorf("%d starts; want the 4 that 20 requests need, and few more", n)
	}
	h.assertNothingLeft()
}

// TestStartAlone starts a service that takes very long, and one whose image
// never comes: no other notices.
func TestStartAlone(t *testing.T) {
	const others = 3
	hold := loops(5000, 30000)
	h := newHost(t)
	registry, err := net.Listen("tcp", "127.0.0.1:0")
	h.check(err)
	t.Cleanup(func() { _ = registry.Close() })
	go func() {
		for {
			conn, err := registry.Accept() // and says nothing
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
		}
	}()
	// More of each than may start at the same time.
	site := h.vhost("hung", "concurrency 1", "image "+registry.Addr().String()+"/none:1")
	site += h.vhost("slow", "concurrency 1", fmt.Sprintf("env START_DELAY_MS %d", hold))
	for n := range others {
		site += h.vhost(fmt.Sprintf("other%d", n))
	}
	h.start(h.caddyfile(site))
	// One instance's start is what the others compare with.
	if got := h.getFrom(t.Context(), "other0", "/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	began := time.Now()
	wg := crowd(t)
	const waiting = 12
	for range waiting {
		wg.Go(func() {
			if got := h.getFrom(t.Context(), "slow", "/"); got.status != http.StatusOK {
				t.Errorf("slow: %s", got)
			}
		})
	}
	for range waiting {
		wg.Go(func() {
			if got := h.getFrom(t.Context(), "hung", "/"); got.err == nil {
				t.Errorf("hung: %s", got)
			}
		})
	}
	eventually(t, "the slow instances run", func() bool {
		up := 0
		for _, id := range h.containers() {
			if strings.HasPrefix(id, "slow-") {
				up++
			}
		}
		return up == waiting
	})
	for n := 1; n < others; n++ {
		if got := h.getFrom(t.Context(), fmt.Sprintf("other%d", n), "/"); got.status != http.StatusOK || got.took > 2*time.Second {
			t.Errorf("a cold start meanwhile: %s in %s", got, got.took)
		}
	}
	var took []time.Duration
	for range 200 {
		got := h.getFrom(t.Context(), "other0", "/")
		if got.status != http.StatusOK {
			t.Errorf("meanwhile: %s", got)
		}
		took = append(took, got.took)
	}
	if since := time.Since(began); since > time.Duration(hold)*time.Millisecond {
		t.Errorf("this took %s, longer than the slow start: nothing was tested", since)
	}
	slices.Sort(took)
	// Whoever waits for the slow start waits for most of its time.
	if p99 := took[len(took)*99/100]; p99 > time.Duration(hold)*time.Millisecond/5 {
		t.Errorf("p99 meanwhile: %s", p99)
	}
	within(t, time.Duration(hold)*time.Millisecond+2*patience, "the slow service's requests are answered", func() bool {
		s := h.serviceNamed("slow")
		return s.Queue == 0 && s.InFlight == 0
	})
}
