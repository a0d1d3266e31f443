package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/test/containerdtest"
)

// TestInert makes a runtime where there is no containerd.
func TestInert(t *testing.T) {
	dir := t.TempDir()
	r, err := New(Options{Address: filepath.Join(dir, "no", "socket"), StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if left := entries(dir); len(left) != 0 {
		t.Errorf("New has made %v", left)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := r.List(t.Context()); err == nil {
		t.Error("List works after Close")
	}
	if err := r.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// TestExitWithoutContainerd ends an instance while containerd is away.
func TestExitWithoutContainerd(t *testing.T) {
	f := newFixtureOn(t, containerdtest.Start(t))
	r := f.open()
	rev := f.revision(r)
	ended, lives := f.serve(r, rev), f.serve(r, rev)
	f.check(f.daemon.Kill())
	at := time.Now()
	f.check(syscall.Kill(ended.PID(), syscall.SIGKILL))
	f.awaitExit(ended)
	if took := time.Since(at); took > 500*time.Millisecond {
		t.Errorf("the end was noticed after %s", took)
	}
	if err := ended.Stop(t.Context(), 0); !errors.Is(err, instancepool.ErrUnavailable) {
		t.Errorf("Stop: %v; want ErrUnavailable", err)
	}
	f.get(lives, "/")
	f.check(f.daemon.Restart(t.Context()))
	// What could not be removed goes by itself; what lives is known as before.
	eventually(t, "one container is left", func() bool {
		all, err := f.client.Containers(withNamespace(t.Context(), f.opts.Namespace))
		return err == nil && len(all) == 1
	})
	if took := time.Since(at); took > 10*time.Second {
		t.Errorf("the rest was removed after %s", took)
	}
	if err := ended.Stop(t.Context(), 0); err != nil {
		t.Errorf("stopping it again: %v", err)
	}
	all, err := r.List(t.Context())
	if err != nil || len(all) != 1 || all[0] != lives {
		t.Errorf("List: %v %v; want the one that lives", all, err)
	}
	f.poke(lives, "/crash")
	if exit := f.awaitExit(lives); exit.Code != 3 {
		t.Errorf("exit: %+v", exit)
	}
	f.stop(lives)
}

// TestShimKilled kills an instance's shim, with containerd there and away.
func TestShimKilled(t *testing.T) {
	f := newFixtureOn(t, containerdtest.Start(t))
	r := f.open()
	rev := f.revision(r)
	for _, away := range []bool{false, true} {
		h := f.serve(r, rev)
		if away {
			f.check(f.daemon.Kill())
		}
		f.check(syscall.Kill(f.shim(h.ID()), syscall.SIGKILL))
		if away {
			f.get(h, "/") // it lives on
			_ = h.Stop(t.Context(), 0)
			f.check(f.daemon.Restart(t.Context()))
		}
		f.awaitExit(h)
		eventually(t, "it is removed", func() bool { return h.Stop(t.Context(), 0) == nil })
		f.leftWithin(patience, 1)
		if _, err := os.Stat("/sys/fs/cgroup/memory" + cgroupPath(f.opts.Namespace, h.ID())); err == nil {
			t.Error("the cgroup is left")
		}
	}
}

// TestContainerdRestarts restarts containerd at any moment while instances are
// created, run and are stopped.
func TestContainerdRestarts(t *testing.T) {
	f := newFixtureOn(t, containerdtest.Start(t))
	r := f.open()
	rev := f.revision(r)
	lives := f.serve(r, rev)
	pid := lives.PID()
	for round := range loops(4, 60) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					h, err := r.Start(ctx, instancepool.StartSpec{ID: f.newID(), Revision: rev})
					if err == nil {
						_ = h.Stop(ctx, 100*time.Millisecond)
						continue
					}
					select { // as the pool does after a failure
					case <-time.After(50 * time.Millisecond):
					case <-ctx.Done():
					}
				}
			})
		}
		time.Sleep(200*time.Millisecond + rand.N(400*time.Millisecond))
		f.check(f.daemon.Kill())
		time.Sleep(rand.N(500 * time.Millisecond))
		f.check(f.daemon.Restart(t.Context()))
		time.Sleep(rand.N(300 * time.Millisecond))
		cancel()
		wg.Wait()
		back := time.Now()
		eventually(t, "only the first instance is left", func() bool {
			all, err := f.client.Containers(withNamespace(t.Context(), f.opts.Namespace))
			return err == nil && len(all) == 1 && len(f.shims()) == 1 && len(f.addresses()) <= 2 && len(f.mounts()) <= 2
		})
		if took := time.Since(back); took > 10*time.Second {
			t.Errorf("round %d: the rest was removed after %s", round, took)
		}
		if tasks, err := f.tasks(); err != nil || len(tasks) != 1 {
			t.Errorf("round %d: tasks %v %v; want one", round, tasks, err)
		}
	}
	f.get(lives, "/")
	eventually(t, "the runtime has reconnected", func() bool { _, err := r.List(t.Context()); return err == nil })
	if all, err := r.List(t.Context()); err != nil || len(all) != 1 || all[0] != lives || lives.PID() != pid {
		t.Errorf("List: %v %v; want the one that lives", all, err)
	}
	f.stop(lives)
	f.leftWithin(patience, 1)
}

// victimEnv holds the orders of a process that TestProcessKilled kills.
const victimEnv = "FAIRWAY_TEST_VICTIM"

type victimOrders struct {
	Options  Options
	Revision *revisions.Revision
	Round    int
}

// victim is that process: it starts and stops instances, some of them prepared
// before, until it is killed.
func victim(text string) error {
	var orders victimOrders
	if err := json.Unmarshal([]byte(text), &orders); err != nil {
		return err
	}
	r, err := New(orders.Options)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		h, err := r.Start(context.Background(), instancepool.StartSpec{
			ID: fmt.Sprintf("hello-00001-v%dn%d", orders.Round, n), Revision: orders.Revision,
		})
		if err == nil && n%2 == 1 {
			err = h.Stop(context.Background(), 0)
		}
		if err == nil {
			err = prepareSome(r, orders, n)
		}
		if err != nil {
			return err
		}
	}
}

// prepareSome prepares an instance, and then starts, discards or leaves it.
func prepareSome(r *Runtime, orders victimOrders, n int) error {
	p, err := r.Prepare(context.Background(), instancepool.StartSpec{
		ID: fmt.Sprintf("hello-00001-p%dn%d", orders.Round, n), Revision: orders.Revision,
	})
	switch {
	case err != nil:
		return err
	case n%3 == 0:
		return p.Discard(context.Background())
	case n%3 == 1:
		_, err = p.Start(context.Background(), nil)
	}
	return err
}

// TestProcessKilled kills a process between any two steps of its starts and
// stops. The next one adopts what runs and removes the rest.
func TestProcessKilled(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revision(r)
	f.check(r.Close())
	f.killVictims(rev, loops(6, 200))
}

// killVictims kills processes that start and stop instances of a revision.
func (f *fixture) killVictims(rev *revisions.Revision, rounds int) {
	f.t.Helper()
	self, err := os.Executable()
	f.check(err)
	opts := f.opts
	opts.Logger, opts.Values = nil, nil
	for round := range rounds {
		orders, err := json.Marshal(victimOrders{opts, rev, round})
		f.check(err)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), victimEnv+"="+string(orders))
		var output strings.Builder
		cmd.Stdout, cmd.Stderr = &output, &output
		f.check(cmd.Start())
		time.Sleep(100*time.Millisecond + rand.N(1500*time.Millisecond))
		f.check(cmd.Process.Kill())
		_ = cmd.Wait()
		if output.Len() > 0 {
			f.t.Fatalf("the process says %s", output.String())
		}
		next := f.open()
		all, err := next.List(f.t.Context())
		f.check(err)
		for _, h := range all {
			f.get(h, "/")
			f.stop(h)
		}
		f.leftWithin(patience, 1)
		f.check(next.Close())
		f.leftWithin(patience, 0)
		if f.t.Failed() {
			return
		}
	}
}

// TestReboot takes away what does not outlive one: processes, mounts, state in
// memory. Containers, addresses and files are still there.
func TestReboot(t *testing.T) {
	f := newFixtureOn(t, containerdtest.Start(t))
	r := f.open()
	rev := f.revision(r)
	h := f.serve(r, rev)
	shim := f.shim(h.ID())
	f.check(r.Close())
	f.check(f.daemon.Kill())
	for _, pid := range []int{shim, h.PID()} {
		f.check(syscall.Kill(pid, syscall.SIGKILL))
	}
	eventually(t, "the app has ended", func() bool { return syscall.Kill(h.PID(), 0) != nil })
	for _, mount := range f.mounts() {
		f.check(unix.Unmount(mount, unix.MNT_DETACH))
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	f.check(err)
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], filepath.Join(f.daemon.Dir(), "state")+"/") {
			f.check(unix.Unmount(fields[4], unix.MNT_DETACH))
		}
	}
	f.check(os.RemoveAll(filepath.Join(f.daemon.Dir(), "state")))
	f.check(os.RemoveAll(filepath.Join("/run/containerd/runc", f.opts.Namespace)))
	if len(f.addresses()) == 0 || len(entries(filepath.Join(f.opts.StateDir, "netns"))) == 0 {
		t.Fatal("nothing is left to be removed")
	}
	f.check(f.daemon.Restart(t.Context()))

	r = f.open()
	if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("List: %v %v; want none", all, err)
	}
	f.stop(f.serve(r, rev))
	f.leftWithin(patience, 1)
}

// TestForgottenShim has a shim that containerd knows nothing of: it is ended, and
// no other is.
func TestForgottenShim(t *testing.T) {
	o := Options{Address: "/run/some.sock", Namespace: "some"}
	run := func(args ...string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command("/bin/sh", append([]string{"-c", "read forever"}, args...)...)
		cmd.Args[0] = "/usr/bin/containerd-shim-runc-v2"
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = stdin.Close()
			_ = cmd.Wait()
		})
		return cmd
	}
	forgotten := run("-namespace", "some", "-id", "hello-1", "-address", "/run/some.sock")
	others := []*exec.Cmd{
		run("-namespace", "some", "-id", "hello-12", "-address", "/run/some.sock"),
		run("-namespace", "some", "-id", "hello-1", "-address", "/run/other.sock"),
		run("-namespace", "other", "-id", "hello-1", "-address", "/run/some.sock"),
	}
	if err := killShim(o, "hello-1"); err != nil {
		t.Fatal(err)
	}
	if err := forgotten.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the forgotten one: %v", err)
	}
	for _, other := range others {
		if err := other.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("%q was ended: %v", other.Args, err)
		}
	}
}
