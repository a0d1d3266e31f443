package containerd

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/test/containerdtest"
)

func (f *fixture) prepare(r *Runtime, rev *revisions.Revision) instancepool.Prepared {
	f.t.Helper()
	p, err := r.Prepare(context.Background(), instancepool.StartSpec{ID: f.newID(), Revision: rev})
	f.check(err)
	return p
}

func (f *fixture) startPrepared(p instancepool.Prepared) instancepool.Handle {
	f.t.Helper()
	h, err := p.Start(context.Background(), nil)
	f.check(err)
	if h.ID() != p.ID() {
		f.t.Errorf("%s was started, and %s prepared", h.ID(), p.ID())
	}
	return h
}

// TestPrepare starts an instance long after it was prepared.
func TestPrepare(t *testing.T) {
	f := newFixture(t)
	f.put(revisions.Secrets, "db", "password", "s3cret-one")
	r := f.open()
	rev := f.revision(r, func(c *corev1.Container) {
		c.Env = []corev1.EnvVar{{Name: "PASSWORD", ValueFrom: secretKey("db", "password", nil)}}
	})
	var phases []string
	observe := func(phase string, took time.Duration) {
		if took <= 0 || took > patience {
			t.Errorf("phase %s took %s", phase, took)
		}
		phases = append(phases, phase)
	}
	spec := instancepool.StartSpec{ID: f.newID(), Revision: rev, Observe: observe}
	p, err := r.Prepare(t.Context(), spec)
	f.check(err)
	if _, err := r.Prepare(t.Context(), spec); !errors.Is(err, errExists) {
		t.Errorf("preparing the same ID: %v", err)
	}
	if _, err := r.Start(t.Context(), spec); !errors.Is(err, errExists) {
		t.Errorf("starting the same ID: %v", err)
	}
	if want := []string{"network", "container", "task"}; !slices.Equal(phases, want) {
		t.Errorf("phases %v; want %v", phases, want)
	}
	f.put(revisions.Secrets, "db", "password", "s3cret-two")
	for range 3 { // it is known, but it does not run
		if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("List: %v %v", all, err)
		}
	}
	if len(f.shims()) != 1 {
		t.Errorf("shims: %q", f.shims())
	}
	time.Sleep(1200 * time.Millisecond)

	phases = nil
	at := time.Now()
	h, err := p.Start(t.Context(), observe)
	f.check(err)
	if want := []string{"start"}; !slices.Equal(phases, want) {
		t.Errorf("phases %v; want %v", phases, want)
	}
	if h.Started().Before(at) || h.Started().After(time.Now()) {
		t.Errorf("started at %s, between %s and now", h.Started(), at)
	}
	f.expect(h, "/env?name=PASSWORD", "s3cret-one")
	if all, err := r.List(t.Context()); err != nil || len(all) != 1 || all[0] != h {
		t.Errorf("List: %v %v", all, err)
	}
	if _, err := p.Start(t.Context(), nil); !errors.Is(err, errUsed) {
		t.Errorf("starting it again: %v", err)
	}
	if err := p.Discard(t.Context()); !errors.Is(err, errUsed) {
		t.Errorf("discarding it: %v", err)
	}
	f.runs(h)

	f.check(r.Close())
	r = f.open()
	all, err := r.List(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("List: %v %v", all, err)
	}
	if diff := all[0].Started().Sub(h.Started()).Abs(); diff > 10*time.Millisecond {
		t.Errorf("adopted, it was started at %s; it was at %s", all[0].Started(), h.Started())
	}
	f.stop(all[0])
	f.leftWithin(patience, 1)
}

// TestDiscard discards what was prepared, and stops what was started from it.
// Nothing is left.
func TestDiscard(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for name, rev := range map[string]*revisions.Revision{
		"one": f.revision(r), "two": f.revisionOf(r, sidecar("other", "PORT=9000")),
	} {
		t.Run(name, func(t *testing.T) {
			p := f.prepare(r, rev)
			f.check(p.Discard(t.Context()))
			f.leftWithin(0, 1)
			if err := p.Discard(t.Context()); !errors.Is(err, errUsed) {
				t.Errorf("discarding it again: %v", err)
			}
			if _, err := p.Start(t.Context(), nil); !errors.Is(err, errUsed) {
				t.Errorf("starting it: %v", err)
			}
			h := f.startPrepared(f.prepare(r, rev))
			f.get(h, "/")
			f.stop(h)
			f.leftWithin(0, 1)
		})
	}
	t.Run("without time", func(t *testing.T) {
		p := f.prepare(r, f.revision(r))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Discard(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Discard: %v", err)
		}
		f.leftWithin(patience, 1)
	})
}

// TestPreparedDies takes from prepared instances what they need, and starts them.
// Nothing is left.
func TestPreparedDies(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revisionOf(r, sidecar("other", "PORT=9000"))
	for name, test := range map[string]struct {
		spoil func(*handle)
		ctx   func() context.Context
		want  string
	}{
		"killed": {func(h *handle) {
			f.check(syscall.Kill(h.PID(), syscall.SIGKILL))
			f.awaitExit(h)
		}, t.Context, "waited to be started, was ended by signal 9"},
		"just killed":    {func(h *handle) { f.check(syscall.Kill(h.PID(), syscall.SIGKILL)) }, t.Context, ""},
		"sidecar killed": {func(h *handle) { f.check(syscall.Kill(h.processes[1].pid(), syscall.SIGKILL)) }, t.Context, ""},
		"shim killed":    {func(h *handle) { f.check(syscall.Kill(f.shim(h.ID()), syscall.SIGKILL)) }, t.Context, ""},
		"no time": {func(*handle) {}, func() context.Context {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx
		}, "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			p := f.prepare(r, rev)
			test.spoil(p.(*prepared).h)
			h, err := p.Start(test.ctx(), nil)
			if err == nil || !strings.Contains(err.Error(), p.ID()) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Start: %v %v; want %s", h, err, test.want)
			}
			f.leftWithin(patience, 1)
			if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("List: %v %v", all, err)
			}
		})
	}
	t.Run("discarded after its end", func(t *testing.T) {
		p := f.prepare(r, rev)
		f.check(syscall.Kill(p.(*prepared).h.PID(), syscall.SIGKILL))
		f.check(p.Discard(t.Context()))
		f.leftWithin(0, 1)
	})
}

// TestPreparedLeft has a process end that has not used what it had prepared: the
// next one removes it.
func TestPreparedLeft(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revisionOf(r, sidecar("other", "PORT=9000"))
	runs := f.serve(r, rev)
	left, late := f.prepare(r, rev), f.prepare(r, rev)
	f.check(r.Close())
	if _, err := left.Start(t.Context(), nil); !errors.Is(err, errClosed) {
		t.Errorf("starting it after the end: %v", err)
	}
	if err := late.Discard(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("discarding it after the end: %v", err)
	}
	r = f.open()
	all, err := r.List(t.Context())
	if err != nil || len(all) != 1 || all[0].ID() != runs.ID() {
		t.Errorf("List: %v %v; want %s", all, err, runs.ID())
	}
	if len(f.shims()) != 2 || len(f.cgroups(left.ID()+"*"))+len(f.cgroups(late.ID()+"*")) > 0 {
		t.Errorf("shims: %q", f.shims())
	}
	f.get(all[0], "/")
	f.stop(all[0])
	f.leftWithin(patience, 1)
}

// TestPreparedOutlivesContainerd restarts containerd while an instance waits to be
// started.
func TestPreparedOutlivesContainerd(t *testing.T) {
	f := newFixtureOn(t, containerdtest.Start(t))
	r := f.open()
	rev := f.revision(r)
	started, discarded, early := f.prepare(r, rev), f.prepare(r, rev), f.prepare(r, rev)
	f.check(f.daemon.Kill())
	if _, err := early.Start(t.Context(), nil); !errors.Is(err, instancepool.ErrUnavailable) {
		t.Errorf("starting it without containerd: %v", err)
	}
	f.check(f.daemon.Restart(t.Context()))
	eventually(t, "the runtime has reconnected", func() bool { _, err := r.List(t.Context()); return err == nil })
	h := f.startPrepared(started)
	f.get(h, "/")
	f.check(discarded.Discard(t.Context()))
	f.stop(h)
	f.leftWithin(patience, 1)
}

// TestPreparedStartCancelled takes a start back at every moment.
func TestPreparedStartCancelled(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revision(r)
	n := loops(10, 200)
	for i := range n {
		p := f.prepare(r, rev)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*40*time.Millisecond/time.Duration(n))
		h, err := p.Start(ctx, nil)
		cancel()
		if err == nil {
			f.check(h.Stop(t.Context(), 0))
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start: %v; want the end of its context", err)
		}
	}
	f.leftWithin(patience, 1)
}

// TestPreparedPort keeps the port of an instance that is prepared from others, in
// the host's network.
func TestPreparedPort(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Network = Host })
	r := f.open()
	rev := f.revision(r)
	p, discarded := f.prepare(r, rev), f.prepare(r, rev)
	taken := func(address string) bool {
		l, err := net.Listen("tcp", address)
		if err == nil {
			l.Close()
		}
		return err != nil
	}
	addresses := []string{p.(*prepared).h.Address(), discarded.(*prepared).h.Address()}
	for _, address := range addresses {
		if !taken(address) {
			t.Errorf("anybody can have %s", address)
		}
	}
	h := f.startPrepared(p)
	f.get(h, "/")
	f.stop(h)
	f.check(discarded.Discard(t.Context()))
	left := f.prepare(r, rev)
	addresses = append(addresses, left.(*prepared).h.Address())
	f.check(r.Close())
	for _, address := range addresses {
		if taken(address) {
			t.Errorf("nobody can have %s", address)
		}
	}
	r = f.open()
	if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("List: %v %v", all, err)
	}
	f.leftWithin(patience, 0)
}

// BenchmarkPrepared measures the start of an instance that is prepared.
func BenchmarkPrepared(b *testing.B) {
	f := newFixture(b, func(o *Options) { o.Prepared = 4 })
	r := f.open()
	rev := f.revision(r)
	f.stop(f.serve(r, rev))
	took := make(map[string][]time.Duration)
	note := func(name string, since time.Time) { took[name] = append(took[name], time.Since(since)) }
	for b.Loop() {
		at := time.Now()
		p := f.prepare(r, rev)
		note("prepare", at)
		unused := f.prepare(r, rev)
		time.Sleep(300 * time.Millisecond) // networks are made ahead again
		at = time.Now()
		h := f.startPrepared(p)
		note("start", at)
		f.get(h, "/")
		note("first-byte", at)
		at = time.Now()
		f.check(unused.Discard(b.Context()))
		note("discard", at)
		f.check(h.Stop(b.Context(), 0))
	}
	for name, all := range took {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-ms")
	}
}
