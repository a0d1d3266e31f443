package containerdtest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/fairway-run/fairway/test/images"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

const (
	namespace = "containerdtest"
	helloName = "localhost/fairway/hello:test"
)

// TestCrash runs a container, kills the daemon, and finds image and container
// again after the restart: the same process. Then all is removed.
func TestCrash(t *testing.T) {
	if reason := Missing(); reason != "" {
		t.Skip(reason)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	d, err := New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if len(d.Address()) >= 100 {
		t.Errorf("address %s is too long for a socket", d.Address())
	}
	archive, err := images.Build(ctx, images.Options{Name: helloName, Package: "../images/hello", User: "65532:65532"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Import(ctx, archive, namespace); err != nil {
		t.Fatal(err)
	}
	id := "hello-" + strings.TrimPrefix(d.Dir(), baseDir+"/"+dirPrefix)
	before := run(ctx, t, d, id)

	if err := d.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	client, err := containerd.New(d.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	nsctx := namespaces.WithNamespace(ctx, namespace)
	container, err := client.LoadContainer(nsctx, id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(nsctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, err := task.Status(nsctx)
	if err != nil {
		t.Fatal(err)
	}
	if task.Pid() != before || status.Status != containerd.Running {
		t.Errorf("after the restart: pid %d, %s; want pid %d, running", task.Pid(), status.Status, before)
	}

	// A frozen container must not survive either.
	if err := task.Pause(nsctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// A process that has ended but was not waited for yet has no program.
	if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", before)); err == nil && program == "/app" {
		t.Errorf("process %d of the container still runs", before)
	}
	if _, err := os.Stat(d.Dir()); !os.IsNotExist(err) {
		t.Errorf("directory %s still exists: %v", d.Dir(), err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), d.Dir()) {
		t.Errorf("mounts below %s are left:\n%s", d.Dir(), mounts)
	}
	killAll(func(args []string) bool {
		if strings.Contains(strings.Join(args, " "), d.Dir()) {
			t.Errorf("still running: %q", args)
		}
		return false
	})
}

// TestShared gets the same daemon twice.
func TestShared(t *testing.T) {
	if a, b := Shared(t), Shared(t); a != b {
		t.Errorf("two daemons, %s and %s; want one", a.Address(), b.Address())
	}
}

// run starts a container of the hello image and returns its pid.
func run(ctx context.Context, t *testing.T, d *Daemon, id string) uint32 {
	t.Helper()
	client, err := containerd.New(d.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx = namespaces.WithNamespace(ctx, namespace)
	image, err := client.GetImage(ctx, helloName)
	if err != nil {
		t.Fatal(err)
	}
	container, err := client.NewContainer(ctx, id,
		containerd.WithNewSnapshot(id, image), containerd.WithNewSpec(oci.WithImageConfig(image)))
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return task.Pid()
}
