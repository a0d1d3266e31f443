package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	client "github.com/containerd/containerd/v2/client"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/test/images"
)

// TestInstance starts an instance and looks at what it was given, from inside
// and from outside.
func TestInstance(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revision(r, env("GREETING=hi"), func(c *corev1.Container) {
		c.Resources.Limits = corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
		}
	})
	var phases []string
	id := f.newID()
	h, err := r.Start(t.Context(), instancepool.StartSpec{ID: id, Revision: rev, Observe: func(phase string, took time.Duration) {
		if took <= 0 {
			t.Errorf("phase %s took %s", phase, took)
		}
		phases = append(phases, phase)
	}})
	f.check(err)
	if want := []string{"network", "container", "task", "start"}; !slices.Equal(phases, want) {
		t.Errorf("phases %v; want %v", phases, want)
	}
	if h.ID() != id || h.Revision() != rev || h.PID() <= 0 || time.Since(h.Started()) > patience || h.Exit() != (instancepool.Exit{}) {
		t.Errorf("handle %s %v %d %s %v", h.ID(), h.Revision(), h.PID(), h.Started(), h.Exit())
	}
	for name, want := range map[string]string{
		"PORT": "8080", "K_SERVICE": "hello", "K_REVISION": "hello-00001", "K_CONFIGURATION": "hello",
		"HOSTNAME": id, "GREETING": "hi",
	} {
		if got := f.get(h, "/env?name="+name); got != want {
			t.Errorf("%s=%q; want %q", name, got, want)
		}
	}
	ip, _, _ := strings.Cut(h.Address(), ":")
	if got := f.get(h, "/file?path=/etc/hosts"); !strings.Contains(got, ip+"\t"+id) || !strings.Contains(got, "127.0.0.1\tlocalhost") {
		t.Errorf("hosts: %q", got)
	}
	if got := f.get(h, "/file?path=/etc/hostname"); got != id {
		t.Errorf("hostname: %q", got)
	}
	if got, want := f.get(h, "/file?path=/etc/resolv.conf"), strings.TrimSpace(resolvConf(os.ReadFile)); got != want {
		t.Errorf("resolv.conf: %q; want %q", got, want)
	}
	assertStatus(t, h.PID(), map[string]string{
		"NoNewPrivs": "1", "Seccomp": "2",
		// CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE
		"CapBnd": "00000000000005fb",
	})
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", h.PID())); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(oomScore) {
		t.Errorf("oom_score_adj: %s %v", b, err)
	}
	assertLimits(t, cgroupPath(f.opts.Namespace, id), 128<<20, 50_000)
	if all, err := r.List(t.Context()); err != nil || len(all) != 1 || all[0] != h {
		t.Errorf("List: %v %v; want the same handle", all, err)
	}
	if _, err := r.Start(t.Context(), instancepool.StartSpec{ID: id, Revision: rev}); err == nil {
		t.Error("the same ID was started twice")
	}
	eventually(t, "the app's output is there", func() bool { return strings.Contains(h.LogTail(1000), "probe: listening on") })
	f.stop(h)
	if h.Exit().Code != 0 || h.Exit().OOM {
		t.Errorf("exit: %s", h.Exit())
	}
	if got := h.LogTail(1000); !strings.HasSuffix(got, "probe: got SIGTERM") {
		t.Errorf("the log after the end: %q", got)
	}
}

func assertStatus(t *testing.T, pid int, want map[string]string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if w, ok := want[name]; ok && value != w {
			t.Errorf("%s: %s; want %s", name, value, w)
		}
	}
}

// assertLimits reads the limits of a cgroup of either version.
func assertLimits(t *testing.T, path string, memory, quota int) {
	t.Helper()
	for file, want := range map[string]string{
		"/sys/fs/cgroup" + path + "/memory.max":                   strconv.Itoa(memory),
		"/sys/fs/cgroup" + path + "/cpu.max":                      fmt.Sprintf("%d %d", quota, cpuPeriod),
		"/sys/fs/cgroup" + path + "/pids.max":                     strconv.Itoa(pidsLimit),
		"/sys/fs/cgroup/memory" + path + "/memory.limit_in_bytes": strconv.Itoa(memory),
		"/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us":         strconv.Itoa(quota),
		"/sys/fs/cgroup/pids" + path + "/pids.max":                strconv.Itoa(pidsLimit),
	} {
		v2 := !strings.HasPrefix(file, "/sys/fs/cgroup/memory/") && !strings.HasPrefix(file, "/sys/fs/cgroup/cpu/") && !strings.HasPrefix(file, "/sys/fs/cgroup/pids/")
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); (err == nil) != v2 {
			continue
		}
		b, err := os.ReadFile(file)
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s: %s %v; want %s", file, got, err, want)
		}
	}
}

// TestOverrides has a revision say otherwise than its image.
func TestOverrides(t *testing.T) {
	f := newFixture(t)
	const name = "localhost/fairway/odd:1"
	f.image(name, images.Options{
		Entrypoint: []string{"/app"}, Cmd: []string{"from-the-image"}, Env: []string{"FROM=image", "PORT=1"},
		User: "1000:1000", WorkingDir: "/from", Files: map[string][]byte{"/from/x": nil, "/there/x": nil},
	})
	r := f.open()
	uid := int64(4321)
	for name, test := range map[string]struct {
		change        func(*corev1.Container)
		args, cwd, id string
	}{
		"nothing": {func(*corev1.Container) {}, "/app from-the-image", "/from", "1000"},
		"args":    {func(c *corev1.Container) { c.Args = []string{"mine"} }, "/app mine", "/from", "1000"},
		"command": {func(c *corev1.Container) { c.Command = []string{"/app", "all"} }, "/app all", "/from", "1000"},
		"both": {func(c *corev1.Container) {
			c.Command, c.Args, c.WorkingDir = []string{"/app", "a"}, []string{"b"}, "/there"
			c.SecurityContext = &corev1.SecurityContext{RunAsUser: &uid}
		}, "/app a b", "/there", "4321"},
	} {
		t.Run(name, func(t *testing.T) {
			h := f.serve(r, f.revision(r, func(c *corev1.Container) { c.Image = "localhost/fairway/odd:1" }, env("MINE=1"), test.change))
			if got := f.get(h, "/env?name=FROM") + f.get(h, "/env?name=PORT"); got != "image8080" {
				t.Errorf("environment: %s", got)
			}
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.PID()))
			f.check(err)
			if got := strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " "); got != test.args {
				t.Errorf("arguments: %s; want %s", got, test.args)
			}
			if got, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", h.PID())); err != nil || got != test.cwd {
				t.Errorf("working directory: %s %v; want %s", got, err, test.cwd)
			}
			gid := test.id
			if test.id == "4321" {
				gid = "0" // the user is not in the image
			}
			assertStatus(t, h.PID(), map[string]string{
				"Uid": strings.Join([]string{test.id, test.id, test.id, test.id}, "\t"),
				"Gid": strings.Join([]string{gid, gid, gid, gid}, "\t"), "CapEff": "0000000000000000",
			})
			if got, want := openFiles(t, h.PID()), openFiles(t, os.Getppid()); got != want {
				t.Errorf("open files: %s; want %s", got, want)
			}
			f.check(h.Stop(t.Context(), 0))
		})
	}
}

// openFiles is the limit of a process, as the kernel prints it.
func openFiles(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if limit, ok := strings.CutPrefix(line, "Max open files"); ok {
			return strings.Join(strings.Fields(limit), " ")
		}
	}
	return ""
}

// TestExit has instances end by themselves, in every way.
func TestExit(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for name, test := range map[string]struct {
		end  func(instancepool.Handle)
		code int
		oom  bool
	}{
		"crash": {func(h instancepool.Handle) { f.poke(h, "/crash") }, 3, false},
		"kill":  {func(h instancepool.Handle) { f.check(syscall.Kill(h.PID(), syscall.SIGKILL)) }, 137, false},
		"oom":   {func(h instancepool.Handle) { f.poke(h, "/oom") }, 137, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := f.serve(r, f.revision(r, func(c *corev1.Container) {
				c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
			}))
			test.end(h)
			got := f.awaitExit(h)
			if got.Code != test.code || got.OOM != test.oom || time.Since(got.At) > patience {
				t.Errorf("exit: %+v; want %d, %t", got, test.code, test.oom)
			}
			f.stop(h)
			f.leftWithin(patience, 1)
		})
	}
	t.Run("soon", func(t *testing.T) {
		h := f.serve(r, f.revision(r))
		at := time.Now()
		f.check(syscall.Kill(h.PID(), syscall.SIGKILL))
		f.awaitExit(h)
		if took := time.Since(at); took > time.Second {
			t.Errorf("the end was noticed after %s", took)
		}
		f.stop(h)
	})
	t.Run("at once", func(t *testing.T) {
		h := f.start(r, f.revision(r, env("FAIL_START=exit:7")))
		if got := f.awaitExit(h); got.Code != 7 {
			t.Errorf("exit: %+v", got)
		}
		if got := h.LogTail(1000); got != "probe: exiting, as FAIL_START says" {
			t.Errorf("the log: %q", got)
		}
		f.stop(h)
	})
}

// TestStopSignal stops an app by the signal that its image names, also when another
// process has started it.
func TestStopSignal(t *testing.T) {
	f := newFixture(t)
	first := f.open()
	own := func(signal string) func(*corev1.Container) {
		name := "localhost/fairway/" + strings.ToLower(signal) + ":1"
		f.image(name, images.Options{StopSignal: signal})
		return func(c *corev1.Container) { c.Image = name }
	}
	rev := f.revision(first, own("SIGQUIT"))
	const ended = 2 // as Go's programs do
	h := f.serve(first, rev)
	f.check(h.Stop(t.Context(), patience))
	if h.Exit().Code != ended {
		t.Errorf("exit: %+v; want %d", h.Exit(), ended)
	}
	f.serve(first, rev)
	f.check(first.Close())
	second := f.open()
	all, err := second.List(t.Context())
	f.check(err)
	if len(all) != 1 {
		t.Fatalf("adopted: %v", all)
	}
	f.check(all[0].Stop(t.Context(), patience))
	if got := all[0].Exit(); got.Code != ended {
		t.Errorf("adopted, exit: %+v; want %d", got, ended)
	}
	if err := f.fails(second, f.revision(second, own("SIGNONE"))); !errors.Is(err, instancepool.ErrImage) || !strings.Contains(err.Error(), "stop signal") || !strings.Contains(err.Error(), "SIGNONE") {
		t.Errorf("a signal that does not exist: %v", err)
	}
}

// TestStop stops apps that take their time.
func TestStop(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	t.Run("ignores SIGTERM", func(t *testing.T) {
		h := f.serve(r, f.revision(r, env("IGNORE_TERM=1")))
		at := time.Now()
		f.check(h.Stop(t.Context(), 700*time.Millisecond))
		if took := time.Since(at); took < 700*time.Millisecond || took > 5*time.Second {
			t.Errorf("stopped after %s", took)
		}
		if h.Exit().Code != 137 {
			t.Errorf("exit: %+v", h.Exit())
		}
	})
	t.Run("takes its time", func(t *testing.T) {
		h := f.serve(r, f.revision(r, env("TERM_DELAY_MS=500")))
		f.check(h.Stop(t.Context(), patience))
		if h.Exit().Code != 0 {
			t.Errorf("exit: %+v", h.Exit())
		}
	})
	t.Run("by many", func(t *testing.T) {
		h := f.serve(r, f.revision(r, env("TERM_DELAY_MS=500")))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := h.Stop(t.Context(), patience); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		f.leftWithin(0, 1)
	})
	t.Run("without patience", func(t *testing.T) {
		h := f.serve(r, f.revision(r, env("IGNORE_TERM=1")))
		first := make(chan error, 1)
		go func() { first <- h.Stop(context.Background(), 2*time.Second) }()
		eventually(t, "the app was asked to end", func() bool { return strings.Contains(h.LogTail(1000), "SIGTERM") })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		at := time.Now()
		if err := h.Stop(ctx, patience); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Stop: %v; want the end of its context", err)
		}
		if took := time.Since(at); took > time.Second {
			t.Errorf("Stop came back %s after its call, for a context of 50ms", took)
		}
		f.check(<-first)
	})
	t.Run("given up", func(t *testing.T) {
		h := f.serve(r, f.revision(r, env("IGNORE_TERM=1")))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := h.Stop(ctx, patience); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Stop: %v; want the end of its context", err)
		}
		// Somebody wanted it to end: it does, and all it had goes.
		f.leftWithin(patience, 1)
		f.awaitExit(h)
		f.stop(h)
	})
}

// TestStartFails starts what cannot start. Nothing may be left.
func TestStartFails(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for name, change := range map[string]func(*corev1.Container){
		"no such program":   func(c *corev1.Container) { c.Command = []string{"/no/such/program"} },
		"not a program":     func(c *corev1.Container) { c.Command = []string{"/etc/hosts"} },
		"no such directory": func(c *corev1.Container) { c.WorkingDir = "/app/x" },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Start(t.Context(), instancepool.StartSpec{ID: f.newID(), Revision: f.revision(r, change)})
			if err == nil || errors.Is(err, instancepool.ErrUnavailable) || errors.Is(err, instancepool.ErrImage) {
				t.Errorf("Start: %v", err)
			}
			f.leftWithin(0, 1)
		})
	}
	t.Run("no image", func(t *testing.T) {
		ctx := withNamespace(t.Context(), f.opts.Namespace)
		known := f.revision(r)
		f.stop(f.serve(r, known))
		unknown := f.revision(r, func(c *corev1.Container) { c.Args = []string{"other"} })
		pinned, err := pinnedName(probeImage, known.Digest())
		f.check(err)
		for _, name := range []string{probeImage, pinned} {
			f.check(f.client.ImageService().Delete(ctx, name, coreimages.SynchronousDelete()))
		}
		if _, err := r.Start(ctx, instancepool.StartSpec{ID: f.newID(), Revision: unknown}); !errors.Is(err, instancepool.ErrImage) {
			t.Errorf("Start: %v; want ErrImage", err)
		}
		// What is remembered of the image is of no use any more, and forgotten.
		if _, err := r.Start(ctx, instancepool.StartSpec{ID: f.newID(), Revision: known}); err == nil {
			t.Error("an instance starts without its image")
		}
		f.leftWithin(0, 1)
		f.image(probeImage, images.Options{})
		if _, err := r.Resolve(ctx, probeImage, nil); err != nil {
			t.Error(err)
		}
		f.stop(f.serve(r, known))
	})
}

// TestStartCancelled takes a start back at every moment.
func TestStartCancelled(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revision(r)
	f.stop(f.serve(r, rev))
	n := loops(15, 300)
	for i := range n {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*200*time.Millisecond/time.Duration(n))
		h, err := r.Start(ctx, instancepool.StartSpec{ID: f.newID(), Revision: rev})
		cancel()
		if err == nil {
			f.check(h.Stop(t.Context(), 0))
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start: %v; want the end of its context", err)
		}
	}
	f.leftWithin(patience, 1)
}

// TestForeign has containers in the namespace that somebody else made, running
// and not, and named as an instance could be.
func TestForeign(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	ctx := withNamespace(t.Context(), f.opts.Namespace)
	img, err := f.client.GetImage(ctx, probeImage)
	f.check(err)
	pids := make(map[string]uint32)
	for _, id := range []string{"foreign", "hello-00001-aaaaa", "dead"} {
		c, err := f.client.NewContainer(ctx, id, client.WithNewSnapshot(id, img), client.WithNewSpec(oci.WithImageConfig(img)))
		f.check(err)
		t.Cleanup(func() {
			_ = c.Delete(withNamespace(context.Background(), f.opts.Namespace), client.WithSnapshotCleanup)
		})
		if id == "dead" {
			continue
		}
		task, err := c.NewTask(ctx, cio.NullIO)
		f.check(err)
		t.Cleanup(func() {
			_, _ = task.Delete(withNamespace(context.Background(), f.opts.Namespace), client.WithProcessKill)
		})
		f.check(task.Start(ctx))
		pids[id] = task.Pid()
	}
	f.stop(f.serve(r, f.revision(r)))
	for range 3 {
		if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("List: %v %v", all, err)
		}
	}
	all, err := f.client.Containers(ctx)
	f.check(err)
	if len(all) != 3 {
		t.Errorf("%d containers; want the 3 foreign ones", len(all))
	}
	for id, pid := range pids {
		if err := syscall.Kill(int(pid), 0); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	for _, id := range []string{"foreign", "dead"} {
		if _, err := f.client.SnapshotService(f.opts.Snapshotter).Stat(ctx, id); err != nil {
			t.Errorf("the snapshot of %s: %v", id, err)
		}
	}
}

// TestCycles starts and stops again and again, one and several at a time, and
// compares all there is with the beginning.
func TestCycles(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Subnet = strings.Replace(o.Subnet, "/24", "/28", 1) })
	r := f.open()
	rev := f.revision(r)
	f.stop(f.serve(r, rev))
	settle := func() (goroutines, files int) {
		f.leftWithin(patience, 1)
		f.http.CloseIdleConnections()
		runtime.GC()
		return runtime.NumGoroutine(), len(entries("/proc/self/fd"))
	}
	goroutines, files := settle()
	for range loops(30, 1000) / 3 {
		var wg sync.WaitGroup
		for n := range 3 {
			wg.Go(func() {
				h, err := r.Start(t.Context(), instancepool.StartSpec{ID: f.newID(), Revision: rev})
				if err != nil {
					t.Error(err)
					return
				}
				if n == 2 {
					_ = syscall.Kill(h.PID(), syscall.SIGKILL)
				}
				if err := h.Stop(t.Context(), 0); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	var g, o int
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if g, o = settle(); (g <= goroutines+2 && o <= files+2) || time.Now().After(deadline) {
			break
		}
	}
	if g > goroutines+2 || o > files+2 {
		t.Errorf("%d goroutines and %d open files; %d and %d at the start", g, o, goroutines, files)
	}
	f.check(r.rotate())
	if logs := entries(filepath.Join(f.opts.LogDir, "hello")); len(logs) > logsKept {
		t.Errorf("%d logs are kept; want %d", len(logs), logsKept)
	}
}

// TestHostNetworkAdopted has a second runtime take over instances, and their
// ports, in the host's network.
func TestHostNetworkAdopted(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Network = Host })
	r := f.open()
	rev := f.revision(r)
	h := f.serve(r, rev)
	f.check(r.Close())
	r = f.open()
	all, err := r.List(t.Context())
	if err != nil || len(all) != 1 || all[0].PID() != h.PID() || all[0].Address() != h.Address() {
		t.Fatalf("List: %v %v; want %s", all, err, h.ID())
	}
	f.poke(all[0], "/crash")
	if exit := f.awaitExit(all[0]); exit.Code != 3 {
		t.Errorf("exit: %+v", exit)
	}
	f.stop(all[0])
	f.leftWithin(0, 0)
}

// BenchmarkStart measures the phases of a start whose image is there.
func BenchmarkStart(b *testing.B) {
	f := newFixture(b, func(o *Options) { o.Prepared = 4 })
	r := f.open()
	rev := f.revision(r)
	f.stop(f.serve(r, rev))
	took := make(map[string][]time.Duration)
	for b.Loop() {
		n := r.network.(*bridgeNetwork)
		eventually(b, "a network is ready", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.ready) == n.want
		})
		began := time.Now()
		h, err := r.Start(b.Context(), instancepool.StartSpec{ID: f.newID(), Revision: rev, Observe: func(phase string, d time.Duration) {
			took[phase] = append(took[phase], d)
		}})
		f.check(err)
		took["sum"] = append(took["sum"], time.Since(began))
		f.get(h, "/")
		took["first-byte"] = append(took["first-byte"], time.Since(began))
		stop := time.Now()
		f.check(h.Stop(b.Context(), 0))
		took["stop"] = append(took["stop"], time.Since(stop))
	}
	for phase, all := range took {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, phase+"-ms")
	}
}
