package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// rawStarter starts containers by bare client calls.
type rawStarter struct {
	client *containerd.Client
	image  containerd.Image
	spec   *specs.Spec
	dir    string
}

// newRaw takes the spec of the only instance that Fairway runs, with its seccomp
// profile, limits and a network namespace of its own.
func newRaw(ctx context.Context, client *containerd.Client, image, dir string) (*rawStarter, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	var containers []containerd.Container
	var err error
	// Those of the bench before may be on their way out.
	late := poll(ctx, 200*time.Millisecond, time.Minute, func() bool {
		containers, err = client.Containers(ctx)
		return err != nil || len(containers) == 1
	})
	switch {
	case err != nil:
		return nil, err
	case late != nil:
		return nil, fmt.Errorf("there are %d containers to take the spec of, not 1", len(containers))
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

// rawContainer is a container that a rawStarter starts.
type rawContainer struct {
	starter *rawStarter
	id      string
	netns   *netNS
	spec    specs.Spec

	container containerd.Container
	task      containerd.Task
}

// prepare makes what Fairway has, too, before a request comes: the spec, and a
// network namespace, which is a fresh one with nothing but its loopback. The files
// that Fairway mounts are gone with its instance.
func (r *rawStarter) prepare(id string) (*rawContainer, error) {
	netns, err := newNetNS(filepath.Join(r.dir, id))
	if err != nil {
		return nil, err
	}
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
	return &rawContainer{starter: r, id: id, netns: netns, spec: spec}, nil
}

// start returns when the container's app has answered a request.
func (c *rawContainer) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), time.Minute)
	defer cancel()
	r := c.starter
	var err error
	if c.container, err = r.client.NewContainer(ctx, c.id, containerd.WithImage(r.image),
		containerd.WithNewSnapshot(c.id, r.image), containerd.WithSpec(&c.spec)); err != nil {
		return err
	}
	if c.task, err = c.container.NewTask(ctx, cio.LogFile(filepath.Join(r.dir, c.id+".log"))); err != nil {
		return err
	}
	if _, err := c.task.Wait(ctx); err != nil { // as everyone does who wants to know of the end
		return err
	}
	if err := c.task.Start(ctx); err != nil {
		return err
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.netns.dial(ctx, "127.0.0.1:8080")
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://app/", nil)
	if err != nil {
		return err
	}
	if err := poll(ctx, 2*time.Millisecond, 20*time.Second, func() bool {
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return true
	}); err != nil {
		return fmt.Errorf("waiting for the app: %w", err)
	}
	return nil
}

// remove removes what of the container there is.
func (c *rawContainer) remove() error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), time.Minute)
	defer cancel()
	var errs []error
	if c.task != nil {
		_, err := c.task.Delete(ctx, containerd.WithProcessKill)
		errs = append(errs, err)
	}
	if c.container != nil {
		errs = append(errs, c.container.Delete(ctx, containerd.WithSnapshotCleanup))
	}
	return errors.Join(append(errs, c.netns.close())...)
}
