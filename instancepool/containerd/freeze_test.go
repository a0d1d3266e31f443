package containerd

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-run/fairway/instancepool"
)

// busy has the probe write to its log all the time.
var busy = env("LOG_RATE=2000000")

// serveTwo starts an instance with a sidecar that is busy, and waits until both
// serve: a program that is asked to end before it listens to signals exits with 2.
func (f *fixture) serveTwo(r *Runtime) instancepool.Handle {
	f.t.Helper()
	h := f.serve(r, f.revisionOf(r, sidecar("other", "PORT=9000", "LOG_RATE=2000000")))
	ip, _, _ := strings.Cut(h.Address(), ":")
	f.get(elsewhere{h, ip + ":9000"}, "/")
	return h
}

func (f *fixture) freeze(h instancepool.Handle) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f.check(h.(instancepool.Freezer).Freeze(ctx))
}

func (f *fixture) thaw(h instancepool.Handle) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f.check(h.(instancepool.Freezer).Thaw(ctx))
}

// stands fails the test if an instance uses the CPU, or answers.
func (f *fixture) stands(h instancepool.Handle) {
	f.t.Helper()
	before := f.usage(h).CPU
	hasty := &http.Client{Transport: f.http.Transport, Timeout: 300 * time.Millisecond}
	if resp, err := hasty.Get("http://" + h.Address() + "/"); err == nil {
		resp.Body.Close()
		f.t.Errorf("it answers: %s", resp.Status)
	}
	if after := f.usage(h).CPU; after != before {
		f.t.Errorf("it has used the CPU for %s", after-before)
	}
}

// runs waits until an instance uses the CPU and answers.
func (f *fixture) runs(h instancepool.Handle) {
	f.t.Helper()
	before := f.usage(h).CPU
	f.get(h, "/")
	eventually(f.t, "it uses the CPU", func() bool { return f.usage(h).CPU > before })
}

// TestFreeze freezes and thaws an instance of one and of two containers.
func TestFreeze(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for name, h := range map[string]instancepool.Handle{
		"one": f.serve(r, f.revision(r, busy)),
		"two": f.serveTwo(r),
	} {
		t.Run(name, func(t *testing.T) {
			f.thaw(h) // it runs; that it is so is enough
			for range 3 {
				f.freeze(h)
				f.freeze(h)
				f.stands(h)
				at := time.Now()
				if log := h.LogTail(1000); log == "" || time.Since(at) > time.Second {
					t.Errorf("the log, after %s: %q", time.Since(at), log)
				}
				if h.Exit() != (instancepool.Exit{}) {
					t.Errorf("exit: %s", h.Exit())
				}
				f.thaw(h)
				f.thaw(h)
				f.runs(h)
			}
			if all, err := r.List(t.Context()); err != nil || !slices.Contains(all, h) {
				t.Errorf("List: %v %v", all, err)
			}
			f.stop(h)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			at := time.Now()
			if err := h.(instancepool.Freezer).Freeze(ctx); !errors.Is(err, errOver) {
				t.Errorf("freezing what is gone: %v", err)
			}
			if err := h.(instancepool.Freezer).Thaw(ctx); !errors.Is(err, errOver) {
				t.Errorf("thawing what is gone: %v", err)
			}
			if took := time.Since(at); took > time.Second {
				t.Errorf("that took %s", took)
			}
		})
	}
}

// TestFreezeLate gives up a freeze that does not come to its end, and takes back
// what it has frozen.
func TestFreezeLate(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	h := f.serveTwo(r)
	// The kernel seems never to come to it.
	state := filepath.Join(t.TempDir(), "state")
	writeFile(t, state, "FREEZING\n")
	second := h.(*handle).freezing.all[1]
	second.state, state = state, second.state
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.(instancepool.Freezer).Freeze(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Freeze: %v; want the end of its context", err)
	}
	f.runs(h)

	// Stop does not wait for it.
	failed := make(chan error, 1)
	go func() { failed <- h.(instancepool.Freezer).Freeze(context.Background()) }()
	eventually(t, "it is being frozen", func() bool { return len(h.(*handle).freezing.turn) == 1 })
	f.stop(h)
	if err := <-failed; !errors.Is(err, errOver) {
		t.Errorf("Freeze of what is stopped: %v", err)
	}
	if exit := h.Exit(); exit.Code != 0 {
		t.Errorf("exit: %s", exit)
	}
	second.state = state
}

// TestStopFrozen ends frozen instances: those that end when they are asked to get
// to know of it.
func TestStopFrozen(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for name, test := range map[string]struct {
		change func(*corev1.Container)
		grace  time.Duration
		code   int
		log    string
	}{
		"ends when asked":  {env("TERM_DELAY_MS=100"), patience, 0, "probe: got SIGTERM"},
		"ignores SIGTERM":  {env("IGNORE_TERM=1"), 200 * time.Millisecond, 137, "probe: got SIGTERM"},
		"without patience": {busy, 0, 137, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := f.serve(r, f.revision(r, test.change))
			f.freeze(h)
			at := time.Now()
			f.check(h.Stop(t.Context(), test.grace))
			if took := time.Since(at); took > 5*time.Second {
				t.Errorf("stopped after %s", took)
			}
			if h.Exit().Code != test.code && test.log != "" {
				t.Errorf("exit: %s; want code %d", h.Exit(), test.code)
			}
			if log := h.LogTail(1000); !strings.Contains(log, test.log) {
				t.Errorf("the log: %q", log)
			}
		})
	}
	t.Run("frozen meanwhile", func(t *testing.T) {
		h := f.serve(r, f.revision(r, env("TERM_DELAY_MS=500")))
		stopped := make(chan error, 1)
		go func() { stopped <- h.Stop(context.Background(), patience) }()
		eventually(t, "the app was asked to end", func() bool { return strings.Contains(h.LogTail(1000), "SIGTERM") })
		if err := h.(instancepool.Freezer).Freeze(t.Context()); !errors.Is(err, errOver) {
			t.Errorf("Freeze of what is stopped: %v", err)
		}
		f.check(<-stopped)
		if exit := h.Exit(); exit.Code != 0 {
			t.Errorf("exit: %s", exit)
		}
	})
}

// TestKilledFrozen kills frozen instances from outside. Version 1 of cgroups lets
// them end when they are thawed, and version 2 at once.
func TestKilledFrozen(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	h := f.serve(r, f.revision(r))
	f.freeze(h)
	f.check(syscall.Kill(h.PID(), syscall.SIGKILL))
	_ = h.(instancepool.Freezer).Thaw(t.Context())
	if exit := f.awaitExit(h); exit.Code != 137 {
		t.Errorf("exit: %s", exit)
	}
	at := time.Now()
	if err := h.(instancepool.Freezer).Freeze(t.Context()); !errors.Is(err, errOver) || time.Since(at) > time.Second {
		t.Errorf("Freeze after %s: %v", time.Since(at), err)
	}
	f.stop(h)
}

// TestAdoptFrozen has a later process find frozen instances: it thaws one, and
// notices that another was killed.
func TestAdoptFrozen(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	ids := make(map[string]int)
	for range 3 {
		h := f.serveTwo(r)
		f.freeze(h)
		ids[h.ID()] = h.PID()
	}
	f.check(r.Close())

	r = f.open()
	at := time.Now()
	all, err := r.List(t.Context())
	f.check(err)
	if took := time.Since(at); took > 5*time.Second {
		t.Errorf("the list was there after %s", took)
	}
	if len(all) != len(ids) {
		t.Fatalf("%d instances are adopted; want %d", len(all), len(ids))
	}
	for _, h := range all {
		if h.PID() != ids[h.ID()] {
			t.Errorf("%s has process %d; want %d", h.ID(), h.PID(), ids[h.ID()])
		}
		f.stands(h)
	}
	f.thaw(all[0])
	f.runs(all[0])
	f.freeze(all[0])
	f.stop(all[0])
	if exit := all[0].Exit(); exit.Code != 0 {
		t.Errorf("exit: %s", exit)
	}
	f.check(syscall.Kill(all[1].PID(), syscall.SIGKILL))
	_ = all[1].(instancepool.Freezer).Thaw(t.Context())
	if exit := f.awaitExit(all[1]); exit.Code != 137 {
		t.Errorf("exit: %s", exit)
	}
	f.stop(all[1])
	f.stop(all[2])
}

// TestSweepFrozen has frozen instances that are to be removed: one that a later
// process cannot adopt, one that was killed meanwhile, one without a shim, one
// without a container, and one that could not be stopped.
func TestSweepFrozen(t *testing.T) {
	f := newFixture(t)
	for name, spoil := range map[string]func(instancepool.Handle){
		"not adoptable": func(h instancepool.Handle) { f.unrecord(h.ID()) },
		"sidecar killed": func(h instancepool.Handle) {
			f.check(syscall.Kill(h.(*handle).processes[1].pid(), syscall.SIGKILL))
			f.unrecord(h.ID())
		},
		"shim killed": func(h instancepool.Handle) { f.check(syscall.Kill(f.shim(h.ID()), syscall.SIGKILL)) },
		"container deleted": func(h instancepool.Handle) {
			ctx := withNamespace(t.Context(), f.opts.Namespace)
			for _, p := range h.(*handle).processes {
				f.check(f.client.ContainerService().Delete(ctx, p.id))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.open()
			h := f.serveTwo(r)
			f.freeze(h)
			f.check(r.Close())
			spoil(h)
			r = f.open()
			at := time.Now()
			eventually(t, "it is removed", func() bool {
				all, err := r.List(t.Context())
				return err == nil && len(all) == 0 && len(f.leftovers(1)) == 0
			})
			if took := time.Since(at); took > 10*time.Second {
				t.Errorf("it was removed after %s", took)
			}
			f.leftWithin(patience, 1)
			f.check(r.Close())
		})
	}
	t.Run("stopped without time", func(t *testing.T) {
		r := f.open()
		h := f.serve(r, f.revision(r, env("IGNORE_TERM=1")))
		f.freeze(h)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.Stop(ctx, patience); !errors.Is(err, context.Canceled) {
			t.Errorf("Stop: %v", err)
		}
		f.check(writeControl(h.(*handle).freezing.all[0].control, h.(*handle).freezing.all[0].halt)) // somebody else
		f.leftWithin(patience, 1)
	})
}

// unrecord spoils what an instance would be adopted by.
func (f *fixture) unrecord(id string) {
	f.t.Helper()
	_, err := f.client.ContainerService().Update(withNamespace(context.Background(), f.opts.Namespace), containers.Container{
		ID: id, Extensions: map[string]typeurl.Any{extensionRevision: &anypb.Any{TypeUrl: revisionURL, Value: []byte("{")}},
	}, "extensions")
	f.check(err)
}

// TestExecFrozen runs a command in a frozen instance, and freezes one in which a
// command runs.
func TestExecFrozen(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	h := f.serve(r, f.revision(r, env("START_DELAY_MS=400")))
	run := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return h.(instancepool.Execer).Exec(ctx, "user-container", []string{"/app"}) // it cannot listen where another does
	}
	f.freeze(h)
	if err := run(); err == nil || !strings.Contains(err.Error(), "exited with code 1") {
		t.Errorf("Exec: %v", err)
	}
	f.get(h, "/")

	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- run() }()
	}
	eventually(t, "both run", func() bool {
		freezing := &h.(*handle).freezing
		f.check(freezing.lock(t.Context()))
		defer freezing.unlock()
		return freezing.commands == 2
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.(instancepool.Freezer).Freeze(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Freeze while commands run: %v", err)
	}
	f.get(h, "/")
	f.freeze(h)
	for range 2 {
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "exited with code 1") {
				t.Errorf("Exec: %v", err)
			}
		default:
			t.Fatal("it is frozen while a command runs")
		}
	}
	f.stands(h)
	f.stop(h)
}

// TestFreezeCycles freezes and thaws an instance that has requests all the time.
// Each is answered; none is answered by a frozen instance.
func TestFreezeCycles(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	h := f.serve(r, f.revision(r))
	files := len(entries("/proc/self/fd"))
	var wg sync.WaitGroup
	var answered atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	for range 3 {
		wg.Go(func() {
			transport := new(http.Transport)
			defer transport.CloseIdleConnections()
			hasty := &http.Client{Transport: transport, Timeout: patience}
			for ctx.Err() == nil {
				resp, err := hasty.Get("http://" + h.Address() + "/healthz")
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				answered.Add(1)
			}
		})
	}
	n := loops(1000, 10_000)
	var freezes, thaws []time.Duration
	for range n {
		at := time.Now()
		f.freeze(h)
		frozen := time.Now()
		f.thaw(h)
		thawed := time.Now()
		freezes, thaws = append(freezes, frozen.Sub(at)), append(thaws, thawed.Sub(frozen))
		served := answered.Load()
		if len(thaws)%20 == 0 {
			eventually(t, "a request is answered", func() bool { return answered.Load() > served })
		}
	}
	cancel()
	wg.Wait()
	slices.Sort(freezes)
	slices.Sort(thaws)
	t.Logf("of %d: freeze %s, p99 %s; thaw %s, p99 %s; %d requests", n, freezes[n/2], freezes[n*99/100], thaws[n/2], thaws[n*99/100], answered.Load())
	if answered.Load() < int64(n/20) {
		t.Errorf("%d requests were answered", answered.Load())
	}
	eventually(t, "no file is left open", func() bool { return len(entries("/proc/self/fd")) <= files+4 })
	f.stop(h)
}

// BenchmarkFreeze measures a freeze and a thaw of an idle instance, and what it
// takes to measure its use.
func BenchmarkFreeze(b *testing.B) {
	f := newFixture(b)
	r := f.open()
	h := f.serve(r, f.revision(r))
	var freezes, thaws, first, usages []time.Duration
	for b.Loop() {
		time.Sleep(5 * time.Millisecond)
		at := time.Now()
		f.freeze(h)
		freezes = append(freezes, time.Since(at))
		time.Sleep(5 * time.Millisecond)
		at = time.Now()
		f.thaw(h)
		thaws = append(thaws, time.Since(at))
		f.get(h, "/healthz")
		first = append(first, time.Since(at))
		at = time.Now()
		f.usage(h)
		usages = append(usages, time.Since(at))
	}
	for name, all := range map[string][]time.Duration{"freeze": freezes, "thaw": thaws, "first-byte": first, "usage": usages} {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-us")
		b.ReportMetric(float64(all[len(all)*9/10].Microseconds()), name+"-p90-us")
	}
	f.check(h.Stop(context.Background(), 0))
}
