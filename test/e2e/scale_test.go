package e2e

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// settled waits until the instances of a service are in these states.
func (h *host) settled(service string, states ...string) []instance {
	h.t.Helper()
	var all []instance
	eventually(h.t, fmt.Sprintf("the instances of %s are %q", service, states), func() bool {
		all = h.instancesOf(service)
		if len(all) != len(states) {
			return false
		}
		left := strings.Join(states, " ") + " "
		for _, i := range all {
			if !strings.Contains(left, i.State+" ") {
				return false
			}
			left = strings.Replace(left, i.State+" ", "", 1)
		}
		return true
	})
	return all
}

// cpu is the time on a processor that a process has used, in ticks.
func cpu(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return user + system
}

// An app that never rests has no CPU between its requests, and all it wants when
// cpu_throttling is off. Each request finds it awake.
func TestFrozen(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.vhost("hello", "env LOG_RATE 1000000") + h.vhost("paid", "env LOG_RATE 1000000", "cpu_throttling false")))
	for _, service := range []string{"hello", "paid"} {
		if got := h.getFrom(t.Context(), service, "/"); got.status != http.StatusOK {
			t.Fatalf("%s", got)
		}
	}
	frozen, paid := h.settled("hello", "frozen")[0], h.settled("paid", "ready")[0]
	before, beforePaid := cpu(t, frozen.PID), cpu(t, paid.PID)
	size := h.logSize("hello", frozen.Instance)
	eventually(t, "the other one works on", func() bool { return cpu(t, paid.PID) > beforePaid+5 })
	if used := cpu(t, frozen.PID) - before; used > 0 {
		t.Errorf("frozen, it has used %d ticks of CPU", used)
	}
	if grown := h.logSize("hello", frozen.Instance) - size; grown > 0 {
		t.Errorf("frozen, it has written %d bytes", grown)
	}
	for range loops(100, 10_000) {
		if got := h.getFrom(t.Context(), "hello", "/"); got.status != http.StatusOK {
			t.Fatalf("%s", got)
		}
		time.Sleep(time.Duration(40+time.Now().UnixNano()%20) * time.Millisecond) // around the time of a freeze
	}
	if now := h.settled("hello", "frozen")[0]; now.PID != frozen.PID {
		t.Errorf("instance %+v, before %+v", now, frozen)
	}
	// One whose process is killed while it is frozen is replaced like any other.
	if err := syscall.Kill(frozen.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another one serves", func() bool {
		got := h.getFrom(t.Context(), "hello", "/")
		return got.status == http.StatusOK && h.instancesOf("hello")[0].PID != frozen.PID
	})
}

// A hundred services, all frozen, are asked at once.
func TestManyFrozen(t *testing.T) {
	h := newHost(t)
	n := loops(12, 100)
	var site strings.Builder
	for i := range n {
		site.WriteString(h.vhost(fmt.Sprint("app-", i)))
	}
	h.start(h.caddyfile(site.String()))
	ask := func() {
		wg := crowd(t)
		for i := range n {
			wg.Go(func() {
				if got := h.getFrom(t.Context(), fmt.Sprint("app-", i), "/"); got.status != http.StatusOK {
					t.Errorf("%s", got)
				}
			})
		}
		wg.Wait()
	}
	ask()
	for i := range n {
		h.settled(fmt.Sprint("app-", i), "frozen")
	}
	ask()
	if made := h.creations(); len(made) != n {
		t.Errorf("%d containers were made for %d services", len(made), n)
	}
}

// From what is prepared the next instance starts; its name was known before.
func TestPrepared(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.vhost("hello", "prepared 1", "concurrency 1", "concurrency_target off", "idle_timeout 2s")))
	if got := h.getFrom(t.Context(), "hello", "/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	for range 3 {
		var ahead instance
		eventually(t, "one is prepared, and nothing runs", func() bool {
			all := h.instancesOf("hello")
			if len(all) == 1 {
				ahead = all[0]
			}
			return len(all) == 1 && ahead.State == "prepared"
		})
		if got := h.getFrom(t.Context(), "hello", "/"); got.status != http.StatusOK {
			t.Fatalf("%s", got)
		}
		found := false
		for _, i := range h.instancesOf("hello") {
			found = found || i.Instance == ahead.Instance && i.up()
		}
		if !found {
			t.Errorf("the prepared instance %s does not serve: %+v", ahead.Instance, h.instancesOf("hello"))
		}
	}
	// What is prepared does not outlive Caddy's next start.
	h.kill()
	h.start(h.caddyfile(h.vhost("hello")))
	eventually(t, "nothing prepared is left", func() bool {
		for _, i := range h.instances() {
			if !i.up() {
				return false
			}
		}
		return len(h.containers()) == len(h.instances())
	})
}

// The third of three services has room for its instance when the one goes that
// has been idle for longest.
func TestMemoryBudget(t *testing.T) {
	h := newHost(t)
	h.options = append(h.options, "memory 300MiB")
	service := func(name string) string { return h.vhost(name, "memory 140MiB", "cpu_throttling false") }
	h.start(h.caddyfile(service("one") + service("two") + service("three") + h.vhost("large", "memory 2GiB")))
	for _, name := range []string{"one", "two", "three"} {
		if got := h.getFrom(t.Context(), name, "/"); got.status != http.StatusOK {
			t.Fatalf("%s", got)
		}
	}
	eventually(t, "the first one has gone", func() bool { return len(h.instancesOf("one")) == 0 })
	h.settled("two", "ready")
	h.settled("three", "ready")
	stopped := h.loggedOf("one", "instance stopped")
	if len(stopped) != 1 || stopped[0].text("reason") != "its room is needed" {
		t.Errorf("the log says of the first one: %v", stopped)
	}
	metrics := h.metrics()
	for series, want := range map[string]float64{
		"caddy_fairway_evictions_total": 1, "caddy_fairway_memory_budget_bytes": 300 << 20, "caddy_fairway_starts_waiting_for_room": 0,
	} {
		if got, ok := metrics[series]; !ok || got != want {
			t.Errorf("metric %s is %v (%t); want %v", series, got, ok, want)
		}
	}
	got := h.getFrom(t.Context(), "large", "/")
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("one that is too large: %s", got)
	}
	if s := h.serviceNamed("large"); !strings.Contains(s.Error, "2048 MiB") {
		t.Errorf("its error: %q", s.Error)
	}
	// What an instance really holds is much less than its limit, and counts once it is
	// known: then all fit.
	eventually(t, "the budget knows what they hold", func() bool {
		var host struct {
			Used int64 `json:"used_bytes"`
		}
		h.decode("/fairway/host", &host)
		return host.Used > 0 && host.Used < 100<<20
	})
	if got := h.getFrom(t.Context(), "one", "/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	if all := h.instances(); len(all) != 3 {
		t.Errorf("instances: %+v", all)
	}
}

// What is frozen when Caddy ends is adopted by the next one.
func TestFrozenIsAdopted(t *testing.T) {
	h := newHost(t, onExit("keep"))
	config := h.caddyfile(h.vhost("hello"))
	h.start(config)
	h.getFrom(t.Context(), "hello", "/")
	before := h.settled("hello", "frozen")[0]
	for _, end := range []func(){func() { h.stop() }, h.kill} {
		end()
		h.start(config)
		if got := h.getFrom(t.Context(), "hello", "/"); got.status != http.StatusOK {
			t.Fatalf("%s", got)
		}
		if now := h.settled("hello", "frozen")[0]; now.PID != before.PID {
			t.Errorf("instance %+v, before %+v", now, before)
		}
	}
	if made := h.creations(); len(made) != 1 {
		t.Errorf("containers made: %v", made)
	}
}

// The processors of the host are watched while an instance has the use of them.
func TestABusyHost(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.vhost("hello", "cpu_throttling false")))
	if got := h.getFrom(t.Context(), "hello", "/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	const strained = "caddy_fairway_strained_seconds_total"
	if _, ok := h.metrics()[strained]; !ok {
		t.Fatalf("there is no metric %s", strained)
	}
	var over atomic.Bool
	var work sync.WaitGroup
	defer work.Wait()
	defer over.Store(true)
	for range 2 * runtime.NumCPU() {
		work.Go(func() {
			for !over.Load() {
			}
		})
	}
	before := h.metrics()[strained]
	eventually(t, "it is noticed that the processors are used up", func() bool { return h.metrics()[strained] > before })
}
