package containerd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/test/containerdtest"
	"github.com/fairway-run/fairway/test/images"
)

// patience bounds what must happen, on a host that has other work too.
const patience = 30 * time.Second

// loops is how often a test repeats itself: FAIRWAY_FULL=1 asks for many.
func loops(few, many int) int {
	if os.Getenv("FAIRWAY_FULL") != "" {
		return many
	}
	return few
}

var serial atomic.Int64

// fixture is a containerd namespace of its own, with what is needed to look
// behind the runtime's back.
type fixture struct {
	t      testing.TB
	daemon *containerdtest.Daemon
	client *client.Client
	opts   Options
	values *revisions.Values
	http   *http.Client
	ids    atomic.Int64
}

// newFixture uses the daemon that all tests share, and looks for all that may be
// left.
func newFixture(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	return newFixtureOn(t, containerdtest.Shared(t), change...)
}

func newFixtureOn(t testing.TB, d *containerdtest.Daemon, change ...func(*Options)) *fixture {
	t.Helper()
	namespace := fmt.Sprintf("fwt-%d-%d", os.Getpid(), serial.Add(1))
	f := &fixture{
		t: t, daemon: d,
		opts: Options{
			Address: d.Address(), Namespace: namespace, Subnet: freeSubnet(t), Prepared: 1,
			StateDir: filepath.Join(d.Dir(), namespace),
		},
		http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience},
	}
	for _, c := range change {
		c(&f.opts)
	}
	f.opts = f.opts.WithDefaults()
	if f.opts.Values == nil {
		f.values = revisions.NewValues(f.opts.StateDir)
		f.opts.Values = f.values
	}
	f.opts.Logger = zaptest.NewLogger(t)
	var err error
	f.client, err = client.New(d.Address(), client.WithDefaultNamespace(namespace))
	f.check(err)
	f.image(probeImage, images.Options{})
	t.Cleanup(f.close)
	return f
}

// close finds what the test has left.
func (f *fixture) close() {
	f.nothingLeft()
	if n := rules(f.t, f.opts.bridge()); n >= 0 {
		f.t.Errorf("a table of %d rules is left", n)
	}
	if link, err := netlink.LinkByName(f.opts.bridge()); err == nil {
		f.check(netlink.LinkDel(link))
	}
	for _, dir := range f.cgroups("") {
		if err := os.Remove(dir); err != nil && !missing(err) {
			f.t.Error(err)
		}
	}
	f.check(f.client.Close())
}

// cgroups are the directories of a cgroup of the namespace's, in all hierarchies.
func (f *fixture) cgroups(id string) []string {
	f.t.Helper()
	var all []string
	for _, pattern := range []string{cgroupRoot, cgroupRoot + "/*"} {
		dirs, err := filepath.Glob(pattern + cgroupPath(f.opts.Namespace, id))
		f.check(err)
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				all = append(all, dir)
			}
		}
	}
	return all
}

// image imports the probe image under a name.
func (f *fixture) image(name string, o images.Options) {
	f.t.Helper()
	o.Name, o.Package = name, "github.com/fairway-run/fairway/test/images/probe"
	archive, err := images.Build(context.Background(), o)
	f.check(err)
	f.check(f.daemon.Import(context.Background(), archive, f.opts.Namespace))
}

// open makes a runtime that is closed, with all its instances, at the end.
func (f *fixture) open() *Runtime {
	f.t.Helper()
	r, err := New(f.opts)
	f.check(err)
	f.t.Cleanup(func() {
		if r.ctx.Err() == nil {
			f.stopAll(r)
		}
		f.check(r.Close())
	})
	return r
}

func (f *fixture) stopAll(r *Runtime) {
	all, err := r.List(context.Background())
	f.check(err)
	for _, h := range all {
		f.check(h.Stop(context.Background(), 0))
	}
}

// goneImage was there when revisions of it were made.
const goneImage = "localhost:1/gone:1"

// revision makes a revision of the service "hello".
func (f *fixture) revision(r *Runtime, change ...func(*corev1.Container)) *revisions.Revision {
	f.t.Helper()
	return f.revisionOf(r, func(t *servingv1.RevisionTemplateSpec) {
		for _, change := range change {
			change(&t.Spec.Containers[0])
		}
	})
}

// revisionOf is revision for a template that is changed as a whole.
func (f *fixture) revisionOf(r *Runtime, change func(*servingv1.RevisionTemplateSpec)) *revisions.Revision {
	f.t.Helper()
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: "hello"}}
	svc.Spec.Template.Spec.Containers = []corev1.Container{{Image: probeImage}}
	change(&svc.Spec.Template)
	svc, err := revisions.Prepare(svc)
	f.check(err)
	rev, _, err := revisions.NewRegistry(revisions.Options{}).Apply(svc, revisions.OwnerConfig)
	f.check(err)
	for _, image := range rev.Spec().Images() {
		if image == goneImage {
			rev.Pin(image, "sha256:"+strings.Repeat("0", 64))
			continue
		}
		digest, err := r.Resolve(context.Background(), image, nil)
		f.check(err)
		rev.Pin(image, digest)
	}
	return rev
}

func env(pairs ...string) func(*corev1.Container) {
	return func(c *corev1.Container) {
		for _, p := range pairs {
			name, value, _ := strings.Cut(p, "=")
			c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
		}
	}
}

func (f *fixture) newID() string { return fmt.Sprintf("hello-00001-%05d", f.ids.Add(1)) }

// start starts an instance, all of its containers.
func (f *fixture) start(r *Runtime, rev *revisions.Revision) instancepool.Handle {
	f.t.Helper()
	h, err := r.Start(context.Background(), instancepool.StartSpec{ID: f.newID(), Revision: rev})
	f.check(err)
	for _, c := range rev.Spec().Health {
		if len(c.After) > 0 {
			_, err := h.(instancepool.Stager).StartContainer(context.Background(), c.Container)
			f.check(err)
		}
	}
	return h
}

// serve starts an instance and waits until it serves.
func (f *fixture) serve(r *Runtime, rev *revisions.Revision) instancepool.Handle {
	f.t.Helper()
	h := f.start(r, rev)
	f.get(h, "/")
	return h
}

// get asks an instance, and again while it does not listen.
func (f *fixture) get(h instancepool.Handle, path string) string {
	f.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		resp, err := f.http.Get("http://" + h.Address() + path)
		if err == nil {
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			f.check(err)
			if resp.StatusCode != http.StatusOK {
				f.t.Fatalf("GET %s: %s: %s", path, resp.Status, b)
			}
			return strings.TrimSpace(string(b))
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("GET %s: %v; the log: %s", path, err, h.LogTail(2000))
		}
	}
}

// poke sends a request that may fail.
func (f *fixture) poke(h instancepool.Handle, path string) {
	resp, err := f.http.Get("http://" + h.Address() + path)
	if err == nil {
		resp.Body.Close()
	}
}

func (f *fixture) awaitExit(h instancepool.Handle) instancepool.Exit {
	f.t.Helper()
	select {
	case <-h.Exited():
	case <-time.After(patience):
		f.t.Fatalf("%s has not ended", h.ID())
	}
	return h.Exit()
}

func (f *fixture) stop(h instancepool.Handle) {
	f.t.Helper()
	f.check(h.Stop(context.Background(), patience))
}

// nothingLeft fails the test unless everything is gone that instances had. A
// runtime that is open keeps networks ready.
func (f *fixture) nothingLeft() {
	f.t.Helper()
	f.leftWithin(patience, 0)
}

// leftWithin fails the test unless after a while just so many networks are left.
func (f *fixture) leftWithin(d time.Duration, networks int) {
	f.t.Helper()
	var left []string
	for deadline := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		if left = f.leftovers(networks); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			f.t.Errorf("left after %s:\n%s", d, strings.Join(left, "\n"))
			return
		}
	}
}

func (f *fixture) leftovers(networks int) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ctx = withNamespace(ctx, f.opts.Namespace)
	var left []string
	add := func(kind string, allowed int, names []string, err error) {
		if err != nil {
			left = append(left, kind+": "+err.Error())
		}
		if len(names) > allowed {
			left = append(left, fmt.Sprintf("%s: %q", kind, names))
		}
	}
	var names []string
	all, err := f.client.Containers(ctx, managed)
	for _, c := range all {
		names = append(names, c.ID())
	}
	add("containers", 0, names, err)
	names, err = f.tasks()
	add("tasks", 0, names, err)
	names = nil
	err = f.client.SnapshotService(f.opts.Snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted && info.Labels[labelManaged] != "" {
			names = append(names, info.Name)
		}
		return nil
	})
	add("snapshots", 0, names, err)
	leases, err := f.client.LeasesService().List(ctx)
	names = nil
	for _, l := range leases {
		names = append(names, l.ID)
	}
	add("leases", 0, names, err)
	add("shims", 0, f.shims(), nil)
	add("cgroups", 0, f.cgroups("*"), nil)
	add("files", 0, entries(filepath.Join(f.opts.StateDir, "files")), nil)
	add("mounts", networks, f.mounts(), nil)
	add("network namespaces", networks, entries(filepath.Join(f.opts.StateDir, "netns")), nil)
	add("addresses", networks, f.addresses(), nil)
	if networks == 0 {
		records, err := filepath.Glob("/var/lib/cni/results/" + networkName + "-*")
		records = slices.DeleteFunc(records, func(file string) bool {
			b, err := os.ReadFile(file)
			return err != nil || !bytes.Contains(b, []byte(f.opts.StateDir+"/"))
		})
		add("records of CNI", 0, records, err)
	}
	return left
}

// tasks are those that containerd's state knows, with or without a container.
func (f *fixture) tasks() ([]string, error) {
	// A dot marks what containerd itself was killed while it removed.
	return filepath.Glob(filepath.Join(f.daemon.Dir(), "state/io.containerd.runtime.v2.task", f.opts.Namespace, "[^.]*"))
}

// shims are the command lines of the namespace's shims.
func (f *fixture) shims() []string {
	var all []string
	for line := range processes() {
		if strings.HasPrefix(filepath.Base(line[0]), "containerd-shim") && slices.Contains(line, f.opts.Namespace) {
			all = append(all, strings.Join(line, " "))
		}
	}
	return all
}

// shim is the process ID of an instance's shim.
func (f *fixture) shim(id string) int {
	f.t.Helper()
	for line, pid := range processes() {
		if strings.HasPrefix(filepath.Base(line[0]), "containerd-shim") && slices.Contains(line, id) && slices.Contains(line, f.opts.Namespace) {
			return pid
		}
	}
	f.t.Fatalf("%s has no shim", id)
	return 0
}

// processes yields the command line and ID of all processes.
func processes() func(func([]string, int) bool) {
	return func(yield func([]string, int) bool) {
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			b, err := os.ReadFile(file)
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err == nil && len(b) > 0 && !yield(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"), pid) {
				return
			}
		}
	}
}

// mounts are those of network namespaces.
func (f *fixture) mounts() []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	f.check(err)
	var all []string
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], f.opts.StateDir+"/") {
			all = append(all, fields[4])
		}
	}
	return all
}

// addresses are those that are given out.
func (f *fixture) addresses() []string {
	return slices.DeleteFunc(entries(filepath.Join(f.opts.StateDir, "ipam", networkName)), func(name string) bool {
		_, err := netip.ParseAddr(name)
		return err != nil
	})
}

func entries(dir string) []string {
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		panic(err)
	}
	names := make([]string, 0, len(all))
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// freeSubnet is a /24 of 10.192.0.0/10 that no interface has.
func freeSubnet(t testing.TB) string {
	t.Helper()
	taken, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(192 + rand.N(64)), byte(rand.N(256)), 0}), 24)
		if !slices.ContainsFunc(taken, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Overlaps(subnet)
		}) {
			return subnet.String()
		}
	}
}

func (f *fixture) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
