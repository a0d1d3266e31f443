package containerd

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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/test/containerdtest"
	"github.com/fairway-run/fairway/test/images"
)

func TestMain(m *testing.M) {
	if orders, ok := os.LookupEnv(victimEnv); ok {
		fmt.Println(victim(orders)) // it is killed; that it ends is an error
		os.Exit(1)
	}
	os.Exit(containerdtest.Main(m))
}

const probeImage = "localhost/fairway/probe:1"

var engineCount atomic.Int64

// engine is a namespace on the shared containerd, with the options for runtimes
// on it.
type engine struct {
	t      *testing.T
	opts   Options
	client *client.Client
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	daemon := containerdtest.Shared(t)
	n := engineCount.Add(1)
	namespace := fmt.Sprintf("runtime-%d-%d", os.Getpid(), n)
	dir := filepath.Join(daemon.Dir(), namespace)
	e := &engine{t: t, opts: Options{
		Address: daemon.Address(), Namespace: namespace, StateDir: filepath.Join(dir, "state"), LogDir: filepath.Join(dir, "logs"),
		// Of a network of its own for each process: others may test at the same time.
		Subnet: fmt.Sprintf("10.%d.%d.0/24", 128+os.Getpid()%64, n), Prepared: 1,
	}}
	c, err := client.New(daemon.Address())
	e.check(err)
	e.client = c
	t.Cleanup(func() {
		_ = c.Close()
		if bridge, err := netlink.LinkByName(e.opts.bridge()); err == nil {
			_ = netlink.LinkDel(bridge)
		}
	})
	e.importTag(1)
	return e
}

func (e *engine) check(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *engine) ctx() context.Context {
	return namespaces.WithNamespace(e.t.Context(), e.opts.Namespace)
}

// importTag makes the name probeImage mean another image.
func (e *engine) importTag(content int) {
	e.t.Helper()
	archive, err := images.Build(e.t.Context(), images.Options{
		Name: probeImage, Package: "../../test/images/probe", User: "65532:65532", Labels: map[string]string{"content": strconv.Itoa(content)},
	})
	e.check(err)
	e.check(containerdtest.Shared(e.t).Import(e.t.Context(), archive, e.opts.Namespace))
}

// runtime is one that is closed at the test's end, or before.
func (e *engine) runtime() *Runtime {
	e.t.Helper()
	r, err := New(e.opts)
	e.check(err)
	e.t.Cleanup(func() { _ = r.Close() })
	return r
}

// revision makes a revision of the probe and pins its image.
func (e *engine) revision(r *Runtime, change func(*corev1.Container)) *revisions.Revision {
	e.t.Helper()
	svc := &servingv1.Service{}
	svc.Name = "hello"
	c := corev1.Container{Image: probeImage}
	if change != nil {
		change(&c)
	}
	svc.Spec.Template.Spec.Containers = []corev1.Container{c}
	svc, err := revisions.Prepare(svc)
	e.check(err)
	rev, _, err := revisions.NewRegistry(revisions.Options{}).Apply(svc, revisions.OwnerConfig)
	e.check(err)
	digest, err := r.Resolve(e.t.Context(), rev.Spec().Image, nil)
	e.check(err)
	rev.Pin(rev.Spec().Image, digest)
	return rev
}

func (e *engine) start(r *Runtime, id string, rev *revisions.Revision) instancepool.Handle {
	e.t.Helper()
	h, err := r.Start(e.t.Context(), instancepool.StartSpec{ID: e.id(id), Revision: rev})
	e.check(err)
	e.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := h.Stop(ctx, time.Second); err != nil {
			e.t.Errorf("stopping: %v", err)
		}
	})
	return h
}

// id is unique on the machine.
func (e *engine) id(name string) string { return name + "-" + e.opts.Namespace }

// get asks an instance, as soon as it listens.
func (e *engine) get(h instancepool.Handle, path string) string {
	e.t.Helper()
	var last error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(mustRequest(e.t, "http://"+h.Address()+path))
		if err != nil {
			last = err
			continue
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		e.check(err)
		if resp.StatusCode != http.StatusOK {
			e.t.Errorf("%s: %s %s", path, resp.Status, body)
		}
		return string(body)
	}
	e.t.Fatalf("%s: %v", path, last)
	return ""
}

func mustRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// left is what there is in the namespace, besides images and their layers.
func (e *engine) left() []string {
	e.t.Helper()
	var left []string
	containers, err := e.client.ContainerService().List(e.ctx())
	e.check(err)
	for _, c := range containers {
		left = append(left, "container "+c.ID)
	}
	e.check(e.client.SnapshotService("").Walk(e.ctx(), func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			left = append(left, "snapshot "+info.Name)
		}
		return nil
	}))
	leases, err := e.client.LeasesService().List(e.ctx())
	e.check(err)
	for _, l := range leases {
		left = append(left, "lease "+l.ID)
	}
	for _, pattern := range []string{"files/*", "netns/*", "ipam/fairway/10.*"} {
		files, err := filepath.Glob(filepath.Join(e.opts.StateDir, pattern))
		e.check(err)
		left = append(left, files...)
	}
	return left
}

// TestHardening looks at an instance from the inside and at its cgroup.
func TestHardening(t *testing.T) {
	e := newEngine(t)
	r := e.runtime()
	h := e.start(r, "hard", e.revision(r, func(c *corev1.Container) {
		c.Resources.Limits = corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
		}
	}))
	status := make(map[string]string)
	for line := range strings.Lines(e.get(h, "/file?path=/proc/self/status")) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.TrimSpace(value)
	}
	for name, want := range map[string]string{
		"Seccomp": "2", "NoNewPrivs": "1", "Uid": "65532\t65532\t65532\t65532", "Pid": "1",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000",
		"CapBnd": "00000000000005fb", // of capabilities
	} {
		if status[name] != want {
			t.Errorf("%s is %q; want %q", name, status[name], want)
		}
	}
	path := cgroupPath(e.opts.Namespace, h.ID())
	for _, limit := range [][]string{
		{"/sys/fs/cgroup" + path + "/pids.max", "/sys/fs/cgroup/pids" + path + "/pids.max", strconv.Itoa(pidsLimit)},
		{"/sys/fs/cgroup" + path + "/memory.max", "/sys/fs/cgroup/memory" + path + "/memory.limit_in_bytes", strconv.Itoa(64 << 20)},
		{"/sys/fs/cgroup" + path + "/cpu.max", "/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us", "25000"},
	} {
		b, err := os.ReadFile(limit[0])
		if err != nil {
			b, err = os.ReadFile(limit[1])
		}
		if got, _, _ := strings.Cut(strings.TrimSpace(string(b)), " "); err != nil || got != limit[2] {
			t.Errorf("%s: %q, %v; want %s", limit[0], b, err, limit[2])
		}
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", h.PID()))
	if err != nil || strings.TrimSpace(string(score)) != strconv.Itoa(oomScore) {
		t.Errorf("OOM score %q, %v", score, err)
	}
	if hosts := e.get(h, "/file?path=/etc/hosts"); !strings.Contains(hosts, h.ID()) {
		t.Errorf("/etc/hosts: %s", hosts)
	}
	env := e.get(h, "/env")
	for _, want := range []string{"PORT=8080\n", "K_SERVICE=hello\n", "K_REVISION=hello-00001\n", "HOSTNAME=" + h.ID() + "\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("the environment lacks %s: %s", want, env)
		}
	}
	if log := h.LogTail(1000); !strings.Contains(log, "probe: listening") {
		t.Errorf("the log: %q", log)
	}
}

// TestFailedStart leaves nothing behind when the process cannot be started, or
// is not wanted any more.
func TestFailedStart(t *testing.T) {
	e := newEngine(t)
	e.opts.Prepared = 1
	r := e.runtime()
	rev := e.revision(r, func(c *corev1.Container) { c.Command = []string{"/none"} })
	h, err := r.Start(t.Context(), instancepool.StartSpec{ID: e.id("none"), Revision: rev})
	if err == nil || !strings.Contains(err.Error(), "/none") || errors.Is(err, instancepool.ErrUnavailable) {
		t.Errorf("handle %v, error %v", h, err)
	}
	good := e.revision(r, nil)
	for n := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*12*time.Millisecond)
		h, err := r.Start(ctx, instancepool.StartSpec{ID: e.id(fmt.Sprintf("late%d", n)), Revision: good})
		cancel()
		if err == nil {
			e.check(h.Stop(t.Context(), time.Second))
		}
	}
	// The prepared network goes with the runtime.
	e.check(r.Close())
	if left := e.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := r.Start(t.Context(), instancepool.StartSpec{ID: e.id("closed"), Revision: rev}); err == nil {
		t.Error("a closed runtime starts")
	}
}

// TestAdopt has a second runtime find what a first one has left: what runs it
// adopts, what is dead it removes, what is not Fairway's it leaves alone.
func TestAdopt(t *testing.T) {
	e := newEngine(t)
	first := e.runtime()
	rev := e.revision(first, nil)
	h, err := first.Start(t.Context(), instancepool.StartSpec{ID: e.id("adopt"), Revision: rev})
	e.check(err)
	dead, err := first.Start(t.Context(), instancepool.StartSpec{ID: e.id("dead"), Revision: rev})
	e.check(err)
	before := e.get(h, "/")

	image, err := e.client.GetImage(e.ctx(), probeImage)
	e.check(err)
	foreign, err := e.client.NewContainer(e.ctx(), e.id("foreign"), client.WithNewSnapshot(e.id("foreign"), image),
		client.WithNewSpec(oci.WithImageConfig(image)))
	e.check(err)

	second := e.runtime()
	if _, err := second.List(t.Context()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another Fairway process (pid %d)", os.Getpid())) {
		t.Errorf("two runtimes at once: %v", err)
	}
	elsewhere := e.opts
	elsewhere.StateDir = filepath.Join(t.TempDir(), "state")
	third, err := New(elsewhere)
	e.check(err)
	if _, err := third.List(t.Context()); err == nil || !strings.Contains(err.Error(), "another Fairway process") {
		t.Errorf("two runtimes on one namespace, with a state directory each: %v", err)
	}
	e.check(third.Close())
	e.check(first.Close())
	process, err := os.FindProcess(dead.PID())
	e.check(err)
	e.check(process.Kill())
	eventually(t, "it has ended", func() bool { return syscall.Kill(dead.PID(), 0) != nil })

	var all []instancepool.Handle
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if all, err = second.List(t.Context()); err == nil && len(all) == 1 {
			break
		}
	}
	e.check(err)
	if len(all) != 1 || all[0].ID() != h.ID() || all[0].PID() != h.PID() || all[0].Address() != h.Address() ||
		all[0].Revision().Hash != rev.Hash || all[0].Revision().Digest() != rev.Digest() || all[0].Started().IsZero() {
		t.Fatalf("adopted: %+v", all)
	}
	if after := e.get(all[0], "/"); strings.Split(after, "served")[0] != strings.Split(before, "served")[0] {
		t.Errorf("another process answers: %s; before: %s", after, before)
	}
	if again, err := second.List(t.Context()); err != nil || len(again) != 1 || again[0] != all[0] {
		t.Errorf("listed again: %v, %v", again, err)
	}
	if _, err := e.client.LoadContainer(e.ctx(), e.id("dead")); !errdefs.IsNotFound(err) {
		t.Errorf("the dead instance's container: %v", err)
	}
	e.check(all[0].Stop(t.Context(), 5*time.Second))
	e.check(all[0].Stop(t.Context(), 5*time.Second))
	if exit := all[0].Exit(); exit.Code != 0 || exit.OOM {
		t.Errorf("it %s", exit)
	}
	e.check(second.Close())
	want := []string{"container " + e.id("foreign"), "snapshot " + e.id("foreign")}
	if left := e.left(); !slices.Equal(left, want) {
		t.Errorf("left: %q; want %q", left, want)
	}
	e.check(foreign.Delete(e.ctx(), client.WithSnapshotCleanup))
}

// TestLost has an instance that its runtime was told to remove but could not:
// it is removed although it runs.
func TestLost(t *testing.T) {
	e := newEngine(t)
	r := e.runtime()
	h, err := r.Start(t.Context(), instancepool.StartSpec{ID: e.id("lost"), Revision: e.revision(r, nil)})
	e.check(err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Stop(ended, time.Minute); err == nil {
		t.Error("a stop without time has succeeded")
	}
	const prepared = 2 // a network namespace and its address
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && len(e.left()) != prepared; {
		time.Sleep(20 * time.Millisecond)
	}
	e.check(r.Close())
	if left := e.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestPinned starts what a tag meant when it was resolved, after it has moved on
// and after it is gone.
func TestPinned(t *testing.T) {
	e := newEngine(t)
	r := e.runtime()
	rev := e.revision(r, nil)
	e.importTag(2)
	moved, err := r.Resolve(t.Context(), probeImage, nil)
	if err != nil || moved == rev.Digest() {
		t.Fatalf("the tag means %s, %v; before %s", moved, err, rev.Digest())
	}
	e.check(e.client.ImageService().Delete(e.ctx(), probeImage))
	h := e.start(r, "pinned", rev)
	c, err := e.client.LoadContainer(e.ctx(), h.ID())
	e.check(err)
	info, err := c.Info(e.ctx())
	e.check(err)
	if !strings.HasSuffix(info.Image, "@"+rev.Digest()) {
		t.Errorf("image %s; want %s", info.Image, rev.Digest())
	}
	e.get(h, "/")
	if _, err := r.Resolve(t.Context(), "localhost:1/none:1", nil); !errors.Is(err, instancepool.ErrImage) {
		t.Errorf("an image that is nowhere: %v", err)
	}
}

// TestHostNetwork gives two instances a port each.
func TestHostNetwork(t *testing.T) {
	e := newEngine(t)
	e.opts.Network = Host
	r := e.runtime()
	rev := e.revision(r, nil)
	a, b := e.start(r, "a", rev), e.start(r, "b", rev)
	if a.Address() == b.Address() || !strings.HasPrefix(a.Address(), "127.0.0.1:") {
		t.Errorf("addresses %s and %s", a.Address(), b.Address())
	}
	for _, h := range []instancepool.Handle{a, b} {
		if port := e.get(h, "/env?name=PORT"); !strings.HasSuffix(h.Address(), ":"+port) {
			t.Errorf("%s was told port %s", h.Address(), port)
		}
	}
	e.check(b.Stop(t.Context(), time.Second))
	if files, err := filepath.Glob(filepath.Join(e.opts.StateDir, "netns", "*")); err != nil || len(files) > 0 {
		t.Errorf("network namespaces %q, %v", files, err)
	}
}

// TestUnavailable tells an engine that is not there from a revision that is wrong.
func TestUnavailable(t *testing.T) {
	dir := t.TempDir()
	r, err := New(Options{Address: filepath.Join(dir, "none"), StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := r.List(ctx); !errors.Is(err, instancepool.ErrUnavailable) {
		t.Errorf("List: %v", err)
	}
	if _, err := r.Resolve(ctx, "app", nil); !errors.Is(err, instancepool.ErrUnavailable) {
		t.Errorf("Resolve: %v", err)
	}
}

// TestReusedAddress gives an address to one instance after the other: each is
// reached at once.
func TestReusedAddress(t *testing.T) {
	e := newEngine(t)
	e.opts.Subnet = strings.TrimSuffix(e.opts.Subnet, "/24") + "/29" // room for five
	r := e.runtime()
	rev := e.revision(r, nil)
	seen := make(map[string]bool)
	again := 0
	for n := range 9 {
		h, err := r.Start(t.Context(), instancepool.StartSpec{ID: e.id(fmt.Sprintf("reused%d", n)), Revision: rev})
		e.check(err)
		began := time.Now()
		e.get(h, "/")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("instance %d at %s was reached after %s", n, h.Address(), took)
		}
		if seen[h.Address()] {
			again++
		}
		seen[h.Address()] = true
		e.check(h.Stop(t.Context(), time.Second))
	}
	if again == 0 {
		t.Errorf("no address was used twice: %v", seen)
	}
}
