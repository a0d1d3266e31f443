package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// generation is the number at the end of a revision's name.
func generation(revision string) int {
	n, err := strconv.Atoi(revision[strings.LastIndex(revision, "-")+1:])
	if err != nil {
		return -1
	}
	return n
}

// load is steady load on a service: every client sends one request after the
// other and checks that each is answered by a revision that is not older than
// the one before.
type load struct {
	stop          func()
	count, resets atomic.Int64

	mu       sync.Mutex
	problems []string
	answered map[string]int // by revision
}

// steadily begins to load a service from so many clients, until end is called.
func (h *host) steadily(service string, clients int) *load {
	return h.steadilyBy(clients, func(client, n int) (got response, says string) {
		// Some are in flight when the revisions change.
		if n%4 == client%4 {
			got = h.getFrom(context.Background(), service, "/sleep?ms=60")
			return got, got.header.Get("X-Revision")
		}
		got = h.getFrom(context.Background(), service, "/env?name=K_REVISION")
		return got, got.body
	})
}

// steadilyBy is steadily with requests that ask sends. It also returns the revision
// that the app says it is.
func (h *host) steadilyBy(clients int, ask func(client, n int) (got response, says string)) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{answered: make(map[string]int)}
	var wg sync.WaitGroup
	l.stop = func() {
		cancel()
		wg.Wait()
	}
	h.t.Cleanup(l.stop)
	for client := range clients {
		wg.Go(func() {
			last := 0
			for n := 0; ctx.Err() == nil; n++ {
				got, says := ask(client, n)
				if errors.Is(got.err, syscall.ECONNRESET) || errors.Is(got.err, io.EOF) {
					// Each config of Caddy has a listening socket of its own: when an old
					// one is closed, the kernel resets what nobody has accepted yet.
					l.resets.Add(1)
					got, says = ask(client, n)
				}
				l.count.Add(1)
				revision := got.header.Get("X-Revision")
				l.mu.Lock()
				l.answered[revision]++
				switch gen := generation(revision); {
				case got.status != http.StatusOK:
					l.problems = append(l.problems, fmt.Sprintf("client %d, request %d: %s", client, n, got))
				case says != revision:
					l.problems = append(l.problems, fmt.Sprintf("client %d, request %d: Fairway says %s, the app %s", client, n, revision, says))
				case gen < last:
					l.problems = append(l.problems, fmt.Sprintf("client %d, request %d: %s after %d", client, n, revision, last))
				default:
					last = gen
				}
				l.mu.Unlock()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return l
}

// end ends the load and reports what went wrong.
func (l *load) end(t testing.TB) map[string]int {
	t.Helper()
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, problem := range l.problems {
		if n == 10 {
			t.Errorf("and %d more", len(l.problems)-n)
			break
		}
		t.Error(problem)
	}
	if l.count.Load() == 0 {
		t.Error("no request was sent: nothing was tested")
	}
	if n := l.resets.Load(); n > 0 {
		t.Logf("%d of %d requests met a listening socket that was just closed", n, l.count.Load())
		if n > 1+l.count.Load()/100 {
			t.Errorf("%d of %d connections were reset", n, l.count.Load())
		}
	}
	return l.answered
}

// tellRevision has each response say which revision answered.
const tellRevision = "header_down X-Revision {http.fairway.revision}"

// awaitServing waits until a revision serves.
func (h *host) awaitServing(service, revision string) {
	h.t.Helper()
	eventually(h.t, revision+" serves", func() bool { return h.serviceNamed(service).Serving == revision })
}

// assertOnly fails the test unless n instances are there, and of everything on
// the machine exactly what belongs to them.
func (h *host) assertOnly(n int) {
	h.t.Helper()
	h.assertOnlyWithin(patience, n)
}

func (h *host) assertOnlyWithin(limit time.Duration, n int) {
	h.t.Helper()
	var problem string
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if problem = h.besides(n); problem == "" {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("not within %s: %s", limit, problem)
			return
		}
	}
}

// besides says what is there besides n instances, or is not.
func (h *host) besides(n int) string {
	all := h.instances()
	if len(all) != n {
		return fmt.Sprintf("%d instances; want %d: %+v", len(all), n, all)
	}
	ids := make([]string, 0, n)
	for _, i := range all {
		if !i.up() {
			return fmt.Sprintf("instance %s is %s", i.Instance, i.State)
		}
		ids = append(ids, i.Instance)
	}
	slices.Sort(ids)
	ctx, cancel := context.WithTimeout(h.ctx(), patience)
	defer cancel()
	tasks, err := h.tasks(ctx)
	if err != nil {
		return err.Error()
	}
	snapshots, err := h.snapshots(ctx)
	if err != nil {
		return err.Error()
	}
	containers := h.containers()
	for kind, names := range map[string][]string{"containers": containers, "tasks": tasks, "snapshots": snapshots} {
		if slices.Sort(names); !slices.Equal(names, ids) {
			return fmt.Sprintf("%s %q; want %q", kind, names, ids)
		}
	}
	shims, err := h.shims()
	if err != nil || len(shims) != n {
		return fmt.Sprintf("shims %q, %v; want %d", shims, err, n)
	}
	leases, err := h.containerd.LeasesService().List(ctx)
	if err != nil || len(leases) != 0 {
		return fmt.Sprintf("leases %v, %v; want none", leases, err)
	}
	mounts, err := h.mounts()
	if err != nil {
		return err.Error()
	}
	const prepared = 4 // networks that are made ahead
	given, err := h.reservations()
	if err != nil || len(given) > n+prepared || len(given) != len(mounts) {
		return fmt.Sprintf("%d addresses, %d network namespaces, %v; want at most %d of each", len(given), len(mounts), err, n+prepared)
	}
	if groups := h.cgroups(); len(groups) != n {
		return fmt.Sprintf("cgroups %q; want %d", groups, n)
	}
	return ""
}

// cgroups are the names of the instances' cgroups, which a hierarchy of version
// 1 has once for each controller.
func (h *host) cgroups() []string {
	var names []string
	for _, pattern := range []string{"/sys/fs/cgroup/fairway", "/sys/fs/cgroup/*/fairway"} {
		dirs, _ := filepath.Glob(filepath.Join(pattern, h.namespace, "*"))
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				names = append(names, filepath.Base(dir))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TestSwap changes the image and the environment of a service again and again
// while clients use it: none sees an error, or an older revision after a newer.
func TestSwap(t *testing.T) {
	every := time.Duration(loops(2, 5)) * time.Second
	swaps := loops(4, 12)
	h := newHost(t)
	config := func(n int) string {
		// The image changes each time, the environment every other time.
		return h.caddyfile(h.service("hello", "image "+h.image(1+n%2), fmt.Sprintf("env VERSION %d", n/2), "concurrency 4", tellRevision))
	}
	h.start(config(0))
	l := h.steadily("hello", 8)
	eventually(t, "there is load", func() bool { return l.count.Load() > 20 })
	for n := 1; n <= swaps; n++ {
		h.check(h.reload(config(n), false))
		swapped := time.Now()
		h.awaitServing("hello", fmt.Sprintf("hello-%05d", n+1))
		time.Sleep(time.Until(swapped.Add(every)))
	}
	answered := l.end(t)
	for n := range swaps + 1 {
		if revision := fmt.Sprintf("hello-%05d", n+1); answered[revision] == 0 {
			t.Errorf("%s answered nothing: %v", revision, answered)
		}
	}
	t.Logf("%d requests: %v", l.count.Load(), answered)
	latest := fmt.Sprintf("hello-%05d", swaps+1)
	eventually(t, "only the latest revision is left", func() bool {
		s := h.serviceNamed("hello")
		return len(s.Revisions) == 1 && s.Serving == latest && s.Latest == latest
	})
	h.assertOnly(len(h.instances()))
}

// TestBadRevisions makes one revision after the other that cannot start, and at
// last one that can.
func TestBadRevisions(t *testing.T) {
	h := newHost(t)
	config := func(options ...string) string {
		return h.caddyfile(h.service("hello", append(options, "concurrency 10", tellRevision)...))
	}
	h.start(config())
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	serving := h.instances()[0]
	l := h.steadily("hello", 2)
	made := 1
	for _, bad := range []struct {
		name    string
		options []string
		causes  []string
	}{
		{"exits", []string{"env FAIL_START exit:7"}, []string{"exited with code 7", "its last output: probe: exiting, as FAIL_START says"}},
		{
			"silent",
			[]string{"env FAIL_START nolisten", "startup_probe tcp {\n\t\tperiod 1s\n\t}"},
			[]string{"startup probe (tcp port 8080) failed for 1s", "probe: not listening, as FAIL_START says"},
		},
		{
			"sick",
			[]string{"env FAIL_START probe503:600000", "startup_probe http /healthz {\n\t\tperiod 1s\n\t}"},
			[]string{"startup probe (http port 8080 /healthz) failed for 1s", "503", "probe: listening on"},
		},
		{"no image", []string{"image localhost/fairway/none:1"}, []string{"localhost/fairway/none:1"}},
		{"no command", []string{"command /none"}, []string{"/none", "no such file"}},
	} {
		h.check(h.reload(config(bad.options...), false))
		made++
		name := fmt.Sprintf("hello-%05d", made)
		var s service
		eventually(t, bad.name+": the revision has failed", func() bool {
			s = h.serviceNamed("hello")
			return s.Latest == name && s.Error != ""
		})
		if s.Serving != "hello-00001" {
			t.Errorf("%s: %s serves", bad.name, s.Serving)
		}
		for _, cause := range bad.causes {
			if !strings.Contains(s.Error, cause) {
				t.Errorf("%s: the error lacks %q: %s", bad.name, cause, s.Error)
			}
		}
		if !slices.ContainsFunc(s.Revisions, func(r revision) bool { return r.Revision == name && r.State == "failed" }) {
			t.Errorf("%s: %+v", bad.name, s.Revisions)
		}
		if lines := h.loggedOf("hello", "revision failed"); len(lines) != made-1 || !strings.Contains(lines[len(lines)-1].text("error"), bad.causes[0]) {
			t.Errorf("%s: the log: %v", bad.name, lines)
		}
		h.assertOnly(1)
		if all := h.instances(); len(all) == 1 && (all[0].Instance != serving.Instance || all[0].PID != serving.PID) {
			t.Errorf("%s: %+v serves instead of %+v", bad.name, all[0], serving)
		}
		if t.Failed() {
			break
		}
	}
	made++
	h.check(h.reload(config("env VERSION good"), false))
	h.awaitServing("hello", fmt.Sprintf("hello-%05d", made))
	answered := l.end(t)
	if len(answered) > 2 {
		t.Errorf("revisions that cannot start have answered: %v", answered)
	}
	if got := h.get("/"); got.header.Get("X-Revision") != fmt.Sprintf("hello-%05d", made) {
		t.Errorf("afterwards %s answers", got.header.Get("X-Revision"))
	}
	eventually(t, "only the good one is left", func() bool {
		s := h.serviceNamed("hello")
		return len(s.Revisions) == 1 && s.Error == ""
	})
	h.assertOnly(1)
}

// TestDeploysInARow makes revisions faster than they can start: the last one
// serves in the end, and nothing of the others is left. Meanwhile nobody waits
// in vain, not even before the first one is up.
func TestDeploysInARow(t *testing.T) {
	const deploys = 5
	h := newHost(t)
	config := func(n int) string {
		return h.caddyfile(h.service("hello", fmt.Sprintf("env VERSION %d", n), "env START_DELAY_MS 400", "concurrency 10", tellRevision))
	}
	h.start(config(1))
	l := h.steadily("hello", 3)
	for n := 2; n <= deploys; n++ {
		time.Sleep(120 * time.Millisecond)
		h.check(h.reload(config(n), false))
	}
	last := fmt.Sprintf("hello-%05d", deploys)
	h.awaitServing("hello", last)
	eventually(t, "the last one alone is left", func() bool {
		s := h.serviceNamed("hello")
		return len(s.Revisions) == 1 && s.Latest == last
	})
	l.end(t)
	h.assertOnly(1)

	// Gone while the next is on trial; those who wait are told.
	h.check(h.reload(config(deploys+1), false))
	eventually(t, "the next one starts", func() bool { return len(h.instances()) > 1 })
	h.check(h.reload(h.caddyfile("respond gone"), false))
	h.assertOnly(0)
	if s := h.serviceNamed("hello"); s.Service != "" {
		t.Errorf("the service is still there: %+v", s)
	}
	// Back again: its revisions go on counting.
	h.check(h.reload(config(deploys+2), false))
	got := h.get("/env?name=K_REVISION")
	if got.status != http.StatusOK || generation(got.body) != deploys+2 {
		t.Errorf("back again: %s; want revision %d", got, deploys+2)
	}
}
