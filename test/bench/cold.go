package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fairway-run/fairway/test/containerdtest"
)

// cold compares a request that finds no instance with the bare containerd calls
// that start the same container: the very spec that Fairway made, with its
// seccomp profile, limits and a network namespace of its own.
func cold(ctx context.Context, daemon *containerdtest.Daemon, caddy string, rounds int) (err error) {
	dir, err := os.MkdirTemp("", "fairway-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	stop, err := runCaddy(ctx, caddy, config(daemon, dir, "\t\tidle_timeout 20ms", ""), dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	client, err := containerd.New(daemon.Address(), containerd.WithDefaultNamespace(namespace))
	if err != nil {
		return err
	}
	defer client.Close()
	raw, err := newRaw(ctx, client, dir)
	if err != nil {
		return err
	}
	var ours, theirs []time.Duration
	for i := range rounds + 3 {
		if err := rest(ctx); err != nil {
			return err
		}
		took, err := firstByte(ctx, "http://"+siteAddr+"/")
		if err != nil {
			return err
		}
		if err := poll(ctx, 30*time.Second, func() bool { return len(instances()) == 0 }); err != nil {
			return fmt.Errorf("waiting for the instance to stop: %w", err)
		}
		if err := rest(ctx); err != nil {
			return err
		}
		bare, err := raw.start(ctx, fmt.Sprintf("raw-%d", i))
		if err != nil {
			return fmt.Errorf("raw start: %w", err)
		}
		if i >= 3 { // the first ones warm the caches of both
			ours, theirs = append(ours, took), append(theirs, bare)
		}
	}
	fmt.Printf("cold start, request to first byte, %d of each in turn\n", rounds)
	fmt.Printf("%-6s %12s %12s %8s\n", "", "fairway", "containerd", "ratio")
	for _, q := range []float64{0.5, 0.9, 0.99} {
		a, b := quantile(ours, q), quantile(theirs, q)
		fmt.Printf("p%-5.0f %12s %12s %8.2f\n", q*100, a.Round(10*time.Microsecond), b.Round(10*time.Microsecond), float64(a)/float64(b))
	}
	return nil
}

// rest lets the background work of the start before end, such as Fairway's
// making of the next network, so that neither side pays for the other's.
func rest(ctx context.Context) error {
	timer := time.NewTimer(500 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// instance is what the admin API shows of one.
type instance struct {
	Instance string `json:"instance"`
	State    string `json:"state"`
	PID      int    `json:"pid"`
	Address  string `json:"address"`
}

// instances returns what runs, or one nameless instance if that is unknown.
func instances() []instance {
	unknown := []instance{{}}
	resp, err := http.Get("http://" + adminAddr + "/fairway/instances")
	if err != nil {
		return unknown
	}
	defer resp.Body.Close()
	var all []instance
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		return unknown
	}
	return all
}

// rawStarter starts containers by bare client calls.
type rawStarter struct {
	client *containerd.Client
	image  containerd.Image
	spec   *specs.Spec
	dir    string
}

// newRaw takes the spec of an instance that Fairway runs.
func newRaw(ctx context.Context, client *containerd.Client, dir string) (*rawStarter, error) {
	if _, err := firstByte(ctx, "http://"+siteAddr+"/"); err != nil {
		return nil, err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	containers, err := client.Containers(ctx)
	if err != nil {
		return nil, err
	}
	if len(containers) == 0 {
		return nil, errors.New("the instance is gone already")
	}
	spec, err := containers[0].Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the instance's spec: %w", err)
	}
	img, err := client.GetImage(ctx, image)
	if err != nil {
		return nil, err
	}
	return &rawStarter{client: client, image: img, spec: spec, dir: dir}, nil
}

// start starts a container and returns how long it took until its app answered
// a request. The files that Fairway mounts are gone with its instance, and the
// network namespace is a fresh one, reached by the app's loopback from inside.
func (r *rawStarter) start(ctx context.Context, id string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), time.Minute)
	defer cancel()
	netns, err := newNetNS(filepath.Join(r.dir, id))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, netns.close()) }()
	spec := *r.spec
	linux := *spec.Linux
	spec.Linux = &linux
	linux.CgroupsPath = "/" + namespace + "/" + id
	linux.Namespaces = nil
	for _, ns := range r.spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			ns.Path = netns.path
		}
		linux.Namespaces = append(linux.Namespaces, ns)
	}
	spec.Mounts = nil
	for _, m := range r.spec.Mounts {
		if m.Type == "bind" {
			m.Source = "/etc/hosts" // the same number of mounts, of a file that is there
		}
		spec.Mounts = append(spec.Mounts, m)
	}

	began := time.Now()
	c, err := r.client.NewContainer(ctx, id, containerd.WithImage(r.image),
		containerd.WithNewSnapshot(id, r.image), containerd.WithSpec(&spec))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	task, err := c.NewTask(ctx, cio.LogFile(filepath.Join(r.dir, id+".log")))
	if err != nil {
		return 0, err
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if err := task.Start(ctx); err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, task.Kill(ctx, syscall.SIGKILL))
		<-exited
		_, deleteErr := task.Delete(ctx)
		err = errors.Join(err, deleteErr)
	}()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return netns.dial(ctx, "127.0.0.1:8080")
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://app/", nil)
	if err != nil {
		return 0, err
	}
	if err := poll(ctx, 20*time.Second, func() bool {
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return false
		}
		took = time.Since(began)
		_ = resp.Body.Close()
		return true
	}); err != nil {
		return 0, fmt.Errorf("waiting for the app: %w", err)
	}
	return took, nil
}
