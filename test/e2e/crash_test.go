package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shimOf is the process ID of an instance's shim.
func (h *host) shimOf(id string) int {
	h.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	h.check(err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && slices.Contains(args, h.namespace) && slices.Contains(args, id) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			h.check(err)
			return pid
		}
	}
	h.t.Fatalf("instance %s has no shim", id)
	return 0
}

// direct asks an instance without Caddy.
func (h *host) direct(address, path string) response {
	req, err := http.NewRequest(http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return response{err: err}
	}
	req.Close = true
	return h.do(req)
}

// logSize is how much an instance has written to its log.
func (h *host) logSize(service, id string) int64 {
	h.t.Helper()
	info, err := os.Stat(filepath.Join(h.logDir, service, id+".log"))
	h.check(err)
	return info.Size()
}

// TestCaddyKilled kills Caddy and starts it again: the instances run on, write on
// and serve on, the same processes.
func TestCaddyKilled(t *testing.T) {
	h := newHost(t)
	config := h.caddyfile(h.vhost("hello", "concurrency 1", tellRevision) + h.vhost("chatty", "env LOG_RATE 1000000", "cpu_throttling false", tellRevision))
	h.start(config)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if got := h.getFrom(t.Context(), "hello", "/sleep?ms=800"); got.status != http.StatusOK {
				t.Errorf("%s", got)
			}
		})
	}
	wg.Wait()
	if got := h.getFrom(t.Context(), "chatty", "/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	before := h.identities()
	chatty := h.instancesOf("chatty")[0]
	for range loops(2, 20) {
		h.kill()
		// A pipe whose reader is gone would hold a tenth of a second's output.
		size := h.logSize("chatty", chatty.Instance)
		time.Sleep(time.Second)
		if grown := h.logSize("chatty", chatty.Instance) - size; grown < 500_000 {
			t.Errorf("without Caddy the app wrote %d bytes in a second; want about a million", grown)
		}
		if got := h.direct(chatty.Address, "/"); got.status != http.StatusOK {
			t.Errorf("without Caddy the app answers %s", got)
		}
		h.start(config)
		for _, service := range []string{"hello", "chatty"} {
			got := h.getFrom(t.Context(), service, "/env?name=K_REVISION")
			if got.status != http.StatusOK || got.body != service+"-00001" {
				t.Errorf("afterwards: %s", got)
			}
		}
		eventually(t, "all are ready", func() bool {
			all := h.instances()
			return len(all) == 3 && !slices.ContainsFunc(all, func(i instance) bool { return !i.up() })
		})
		if after := h.identities(); !slices.Equal(after, before) {
			t.Errorf("instances %v; want %v", after, before)
		}
		size = h.logSize("chatty", chatty.Instance)
		within(t, 3*time.Second, "the app writes on", func() bool { return h.logSize("chatty", chatty.Instance) != size })
	}
	if made := h.creations(); len(made) != 3 {
		t.Errorf("containers made: %v; want 3", made)
	}
	h.assertOnly(3)
	for _, e := range h.logged("instance ready") {
		if e.text("pid") == "" || e.text("instance") == "" {
			t.Errorf("the log: %v", e)
		}
	}
	// An adopted instance's end is noticed like any other's.
	if got := h.getFrom(t.Context(), "chatty", "/crash"); got.status != http.StatusBadGateway {
		t.Errorf("a crash: %s; want 502", got)
	}
	if got := h.getFrom(t.Context(), "chatty", "/"); got.status != http.StatusOK {
		t.Errorf("after the crash: %s", got)
	}
	h.assertOnly(3)
}

// TestRestart stops Caddy in peace and starts it with the same config, with
// another one, and without the service.
func TestRestart(t *testing.T) {
	h := newHost(t, onExit("keep"))
	config := func(version int) string {
		return h.caddyfile(h.service("hello", fmt.Sprintf("env VERSION %d", version), tellRevision))
	}
	h.start(config(1))
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	before := h.identities()
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if ids := h.containers(); len(ids) != 1 {
		t.Errorf("after the exit: %v; want the instance", ids)
	}

	h.start(config(1))
	if got := h.get("/env?name=K_REVISION"); got.body != "hello-00001" {
		t.Errorf("the same config: %s", got)
	}
	if after := h.identities(); !slices.Equal(after, before) {
		t.Errorf("instances %v; want %v", after, before)
	}

	// Changed while Caddy was away: swapped as by a reload.
	h.kill()
	h.start(config(2))
	last := ""
	eventually(t, "the new revision serves", func() bool {
		got := h.get("/env?name=VERSION")
		if got.status != http.StatusOK || got.body < last {
			t.Errorf("%s after version %s", got, last)
		}
		last = got.body
		return last == "2"
	})
	h.assertOnly(1)
	if got := h.get("/"); got.header.Get("X-Revision") != "hello-00002" {
		t.Errorf("%s answers", got.header.Get("X-Revision"))
	}

	// Gone meanwhile.
	h.kill()
	h.start(h.caddyfile("respond gone"))
	h.assertOnly(0)

	// And all ends with Caddy if that is asked for.
	h.exit = "stop"
	h.check(h.reload(config(3), false))
	if got := h.get("/"); got.status != http.StatusOK {
		t.Errorf("%s", got)
	}
	if code := h.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	h.assertNothingLeft()
}

// TestKilledWhileStarting kills Caddy at any moment of a start, and in the
// middle of a swap and a stop: the next Caddy serves, and nothing is left.
func TestKilledWhileStarting(t *testing.T) {
	h := newHost(t)
	config := func(n int) string {
		return h.caddyfile(h.service("hello", fmt.Sprintf("env VERSION %d", n/2), "concurrency 1", "idle_timeout 30s"))
	}
	for n := range loops(6, 60) {
		h.start(config(n))
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 1 + n%2 {
			wg.Go(func() { h.getWith(ctx, "/sleep?ms=100") })
		}
		time.Sleep(rand.N(400 * time.Millisecond))
		h.kill()
		leave()
		wg.Wait()
		h.start(config(n))
		version := strconv.Itoa(n / 2)
		if got := h.get("/env?name=VERSION"); got.status != http.StatusOK {
			t.Fatalf("round %d: %s", n, got)
		}
		// One that ran may have served before the new revision was ready.
		eventually(t, "the config's revision serves", func() bool { return h.get("/env?name=VERSION").body == version })
		eventually(t, "only it is left", func() bool {
			return len(h.serviceNamed("hello").Revisions) == 1 && !slices.ContainsFunc(h.instances(), func(i instance) bool { return !i.up() })
		})
		h.assertOnly(len(h.instances()))
		h.kill()
		if t.Failed() {
			return
		}
	}
}

// TestShimKilled kills the shim of one of two busy instances.
func TestShimKilled(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "concurrency 1", "header_down X-Instance {http.fairway.instance}")))
	got := make(chan response, 2)
	for range 2 {
		go func() { got <- h.get("/sleep?ms=3000") }()
	}
	h.awaitInFlight("hello", 2)
	before := h.instances()
	victim := before[0].Instance
	h.check(syscall.Kill(h.shimOf(victim), syscall.SIGKILL))
	killed := time.Now()
	for range 2 {
		switch r := <-got; r.status {
		case http.StatusOK:
			if r.header.Get("X-Instance") == victim {
				t.Errorf("the killed instance has answered: %s", r)
			}
		case http.StatusBadGateway:
			if took := time.Since(killed); took > 2*time.Second {
				t.Errorf("502 came after %s", took)
			}
			// The other one is still busy: this needs a new one.
			next := h.get("/")
			if id := next.header.Get("X-Instance"); next.status != http.StatusOK || id == before[0].Instance || id == before[1].Instance {
				t.Errorf("the next request: %s by %s", next, id)
			}
		default:
			t.Errorf("%s", r)
		}
	}
	if made := h.creations(); len(made) != 3 {
		t.Errorf("containers made: %v; want 3", made)
	}
	h.assertOnly(2)
}

// TestContainerdKilled kills containerd while instances serve: they go on, and
// cold starts wait until it is back.
func TestContainerdKilled(t *testing.T) {
	h := newHost(t, ownContainerd())
	h.start(h.caddyfile(h.vhost("warm", tellRevision) + h.vhost("cold") + h.vhost("brief", "idle_timeout 300ms")))
	for _, service := range []string{"warm", "brief"} {
		if got := h.getFrom(t.Context(), service, "/"); got.status != http.StatusOK {
			t.Fatalf("%s", got)
		}
	}
	before := h.instancesOf("warm")
	l := h.steadily("warm", 2)
	h.check(h.daemon.Kill())
	cold := make(chan response, 1)
	go func() { cold <- h.getFrom(context.Background(), "cold", "/") }()
	// Meanwhile brief's instance is to be stopped.
	select {
	case got := <-cold:
		t.Errorf("without containerd, a cold start is answered %s", got)
		cold <- got
	case <-time.After(3 * time.Second):
	}
	h.check(h.daemon.Restart(t.Context()))
	back := time.Now()
	if got := <-cold; got.status != http.StatusOK {
		t.Errorf("the cold start: %s", got)
	}
	t.Logf("cold start %s after containerd was back", time.Since(back))
	h.assertOnlyWithin(10*time.Second, 2)
	l.end(t)
	if after := h.instancesOf("warm"); len(after) != 1 || after[0].PID != before[0].PID {
		t.Errorf("instances %+v; want %+v", after, before)
	}
	// What happened to the ones that run is still noticed.
	if got := h.getFrom(t.Context(), "warm", "/crash"); got.status != http.StatusBadGateway {
		t.Errorf("a crash: %s", got)
	}
	if got := h.getFrom(t.Context(), "warm", "/"); got.status != http.StatusOK {
		t.Errorf("after the crash: %s", got)
	}
	h.assertOnly(2)
}

// TestContainerdRestarts restarts containerd at any moment while instances are
// created, run and are stopped all the time.
func TestContainerdRestarts(t *testing.T) {
	h := newHost(t, ownContainerd())
	h.start(h.caddyfile(h.service("hello", "concurrency 1", "idle_timeout 20ms")))
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	for n := range loops(5, 50) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for client := range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if got := h.get("/sleep?ms=20"); got.status != http.StatusOK {
						t.Errorf("round %d: client %d: %s after %s", n, client, got, got.took)
					}
					time.Sleep(rand.N(200 * time.Millisecond))
				}
			})
		}
		time.Sleep(500*time.Millisecond + rand.N(500*time.Millisecond))
		h.check(h.daemon.Kill())
		time.Sleep(rand.N(700 * time.Millisecond))
		h.check(h.daemon.Restart(t.Context()))
		time.Sleep(rand.N(300 * time.Millisecond))
		cancel()
		wg.Wait()
		h.assertOnlyWithin(8*time.Second, 0)
		if t.Failed() {
			t.Logf("round %d; containerd's log:\n%s", n, tail(h.daemon.Log(), 100_000))
			return
		}
	}
}

// TestReboot ends all processes and takes away what does not outlive a reboot:
// Fairway starts cleanly on the rest.
func TestReboot(t *testing.T) {
	h := newHost(t, ownContainerd())
	config := h.caddyfile(h.service("hello"))
	h.start(config)
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	was := h.instances()[0]
	shim := h.shimOf(was.Instance)
	h.kill()
	h.check(h.daemon.Kill())
	for _, pid := range []int{shim, was.PID} {
		h.check(syscall.Kill(pid, syscall.SIGKILL))
	}
	eventually(t, "the app has ended", func() bool { return syscall.Kill(was.PID, 0) != nil })
	for _, mount := range slices.Backward(h.mountsBelow(h.daemon.Dir())) {
		h.check(unix.Unmount(mount, unix.MNT_DETACH))
	}
	h.check(os.RemoveAll(filepath.Join(h.daemon.Dir(), "state")))
	h.check(os.RemoveAll(filepath.Join("/run/containerd/runc", h.namespace)))
	groups, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*/fairway", h.namespace, "*"))
	h.check(err)
	for _, group := range groups {
		if info, err := os.Stat(group); err == nil && info.IsDir() {
			h.check(os.Remove(group))
		}
	}
	h.removeRules()
	h.removeRest() // the bridge

	h.check(h.daemon.Restart(t.Context()))
	h.start(config)
	got := h.get("/")
	if got.status != http.StatusOK {
		t.Errorf("after the reboot: %s", got)
	}
	if all := h.instances(); len(all) != 1 || all[0].Instance == was.Instance {
		t.Errorf("instances: %+v", all)
	}
	h.assertOnly(1)
}

// mountsBelow are the mount points below a directory, in the order they were
// mounted.
func (h *host) mountsBelow(dir string) []string {
	h.t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	h.check(err)
	var points []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points
}

// TestCycles starts and stops instances in a subnet that has room for few: every
// address, and everything else, comes back. Some of them crash.
func TestCycles(t *testing.T) {
	const warm = 6
	cycles := loops(25, 1000)
	h := newHost(t)
	base, _, _ := strings.Cut(h.subnet, "/")
	h.runtime["subnet"] = base + "/28"
	site := h.vhost("hello", "idle_timeout 1ms")
	// A service that crashes again and again is not started again at once.
	crashing := func(n int) string { return fmt.Sprintf("crash%d", n) }
	for n := range warm + cycles {
		if n%5 == 4 {
			site += h.vhost(crashing(n))
		}
	}
	h.start(h.caddyfile(site))
	cycle := func(n int) {
		t.Helper()
		service, path, want := "hello", "/", http.StatusOK
		if n%5 == 4 {
			service, path, want = crashing(n), "/crash", http.StatusBadGateway
		}
		if got := h.getFrom(t.Context(), service, path); got.status != want {
			t.Fatalf("cycle %d: %s; want %d", n, got, want)
		}
		eventually(t, "the instance is gone", func() bool { return len(h.instances()) == 0 })
	}
	for n := range warm {
		cycle(n)
	}
	settled := func() (goroutines, descriptors int) {
		t.Helper()
		h.client.CloseIdleConnections()
		h.assertOnly(0)
		const prepared = 4
		eventually(t, "networks are prepared", func() bool {
			mounts, err := h.mounts()
			h.check(err)
			given, err := h.reservations()
			h.check(err)
			return len(mounts) == prepared && len(given) == prepared
		})
		return h.goroutines(), h.descriptors()
	}
	goroutines, descriptors := settled()
	for n := range cycles {
		cycle(warm + n)
	}
	g, d := settled()
	t.Logf("%d goroutines, %d descriptors; after %d cycles %d and %d", goroutines, descriptors, cycles, g, d)
	const slack = 8
	if g > goroutines+slack || d > descriptors+slack {
		t.Errorf("%d goroutines and %d descriptors; before %d cycles it was %d and %d", g, d, cycles, goroutines, descriptors)
	}
	logs, err := filepath.Glob(filepath.Join(h.logDir, "hello", "*"))
	h.check(err)
	const kept, sinceLastLook = 10, 60
	if len(logs) > kept+sinceLastLook {
		t.Errorf("%d logs of ended instances are kept", len(logs))
	}
	if made := h.creations(); len(made) != warm+cycles {
		t.Errorf("%d containers for %d requests", len(made), warm+cycles)
	}
}
