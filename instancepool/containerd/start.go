package containerd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/image-spec/identity"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// undoTimeout bounds the removal of what a failed start has made. It does not
// depend on the start's own context, which may be why it failed.
const undoTimeout = 20 * time.Second

// specsKept bounds how many revisions' specs are remembered.
const specsKept = 256

// revisionURL is the type of the extension that holds a revision.
const revisionURL = "run.fairway/revision.json"

// Start implements instancepool.Runtime.
func (r *Runtime) Start(ctx context.Context, spec instancepool.StartSpec) (instancepool.Handle, error) {
	p, err := r.prepare(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", spec.ID, err)
	}
	return p.Start(ctx, spec.Observe)
}

// start is one start in progress, with the steps that undo what it has done.
type start struct {
	r      *Runtime
	client *client.Client
	spec   instancepool.StartSpec
	undos  []func(context.Context) error
	began  time.Time

	members []*member // of the instance, the one that gets the requests first
}

func (s *start) onFailure(undo func(context.Context) error) { s.undos = append(s.undos, undo) }

// undo takes back every step, the last one first. It reports false when something
// could not be taken back.
func (s *start) undo() bool {
	ctx, cancel := context.WithTimeout(withNamespace(context.Background(), s.r.opts.Namespace), undoTimeout)
	defer cancel()
	var err error
	for _, undo := range slices.Backward(s.undos) {
		err = errors.Join(err, undo(ctx))
	}
	if err != nil {
		s.r.log.Debug("taking back a start", zap.String("instance", s.spec.ID), zap.Error(err))
	}
	return err == nil
}

// fail takes all back because of err, which it returns as callers are to see it.
// What cannot be taken back is for the sweep.
func (s *start) fail(ctx context.Context, err error) error {
	undone := s.undo()
	r := s.r
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.starting, s.spec.ID)
	r.logsGrow() // it may have said why it ended
	if !undone || errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		r.lose(s.spec.ID, nil) // at the deadline of a call: it may have an effect yet
	}
	return explain(ctx, err)
}

// phase reports how long the phase took that ends here.
func (s *start) phase(name string) {
	now := time.Now()
	if s.spec.Observe != nil {
		s.spec.Observe(name, now.Sub(s.began))
	}
	s.began = now
}

// member is one container of an instance in the making.
type member struct {
	c         *corev1.Container
	id        string // the container's
	log       string
	base      *specBase
	inst      perInstance
	container client.Container
	task      client.Task
}

// make makes all that the instance has, and its processes, which wait to be
// started.
func (s *start) make(ctx context.Context) (*handle, error) {
	r, rev, id := s.r, s.spec.Revision, s.spec.ID
	s.began = time.Now()
	var err error
	if s.members, err = s.containers(ctx); err != nil {
		return nil, err
	}
	net, err := r.network.attach(ctx, rev.Spec().Port.Number)
	if err != nil {
		return nil, fmt.Errorf("attaching the network: %w", err)
	}
	s.onFailure(func(ctx context.Context) error { return r.network.detach(ctx, net.ID) })
	files := r.filesDir(id)
	s.onFailure(func(context.Context) error { return removeFiles(files) })
	if err := r.names.writeFiles(files, id, net.host()); err != nil {
		return nil, err
	}
	if err := s.equip(net); err != nil {
		return nil, err
	}
	s.phase("network")

	for _, m := range s.members {
		if err := s.create(ctx, m, net); err != nil {
			return nil, err
		}
	}
	s.phase("container")

	// All are made before the first one runs: what it does to a volume that they
	// share cannot change what the others mount.
	processes := make([]*process, len(s.members))
	for i, m := range s.members {
		if processes[i], err = s.task(ctx, m); err != nil {
			return nil, err
		}
	}
	s.phase("task")

	h := r.newHandle(id, rev, net, processes)
	if err := h.watch(); err != nil {
		return nil, err
	}
	r.settle(h)
	s.onFailure(func(context.Context) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.leave(h)
		return nil
	})
	return h, nil
}

// containers returns what the instance's containers are made of.
func (s *start) containers(ctx context.Context) ([]*member, error) {
	rev := s.spec.Revision
	ingress := rev.Spec().Container()
	all := []*member{{c: ingress, id: s.spec.ID}}
	for i := range rev.Spec().Template.Spec.Containers {
		if c := &rev.Spec().Template.Spec.Containers[i]; c != ingress {
			all = append(all, &member{c: c, id: sidecarID(s.spec.ID, len(all))})
		}
	}
	for i, m := range all {
		var err error
		if m.base, err = s.r.base(ctx, s.client, rev, m.c); err != nil {
			return nil, err
		}
		sidecar := m.c.Name
		if i == 0 {
			sidecar = ""
		}
		if m.log, err = s.r.logFile(rev.Service, s.spec.ID, sidecar); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// startAll starts the processes, in the order of their containers, but those that
// depend on others: StartContainer does that.
func (s *start) startAll(ctx context.Context, h *handle) error {
	for _, c := range s.spec.Revision.Spec().Health {
		m := s.members[slices.IndexFunc(s.members, func(m *member) bool { return m.c.Name == c.Container })]
		if len(c.After) > 0 {
			h.stage(m, s)
			continue
		}
		if err := s.startMember(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (s *start) startMember(ctx context.Context, m *member) error {
	rpc, cancel, err := s.step(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if err := m.task.Start(rpc); err != nil {
		return fmt.Errorf("starting the process: %w", m.inst.withoutValues(m.c, err))
	}
	return nil
}

// step returns a context for the next of a start's calls. The end of ctx comes
// between two calls, never in the middle of one: containerd goes on for a while
// with a call that is given up, and what it makes then nobody would remove.
func (s *start) step(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	rpc, cancel := s.r.within(context.WithoutCancel(ctx))
	return rpc, cancel, nil
}

// equip makes what the instance has of its own: its volumes, and what its
// processes are told.
func (s *start) equip(net attachment) error {
	r, rev, id := s.r, s.spec.Revision, s.spec.ID
	values := &lookups{values: r.opts.Values}
	files := r.filesDir(id)
	for i, m := range s.members {
		platform := rev.Env()
		if i == 0 { // a sidecar gets no requests
			platform = append(platform, "PORT="+strconv.Itoa(net.port(rev.Spec().Port.Number)))
		}
		env, err := values.environment(m.c, id, platform)
		if err != nil {
			return err
		}
		if len(env.skipped) > 0 {
			r.log.Warn("keys that are no names of environment variables are left out", zap.String("instance", id), zap.Strings("keys", env.skipped))
		}
		m.inst = perInstance{
			id: id, netns: net.NetNS, files: files, cgroups: cgroupPath(r.opts.Namespace, m.id),
			env: env, own: ownArguments(m.c),
		}
	}
	vols := &volumes{dir: filepath.Join(files, volumesDir), instance: id, rev: rev, lookups: values}
	if err := vols.make(); err != nil {
		return err
	}
	for _, m := range s.members {
		var err error
		if m.inst.mounts, err = vols.mounts(m.c); err != nil {
			return err
		}
	}
	return nil
}

// create makes a container with its snapshot and spec.
func (s *start) create(ctx context.Context, m *member, net attachment) error {
	r, rev, id := s.r, s.spec.Revision, m.id
	ctx, cancel, err := s.step(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	s.onFailure(func(ctx context.Context) error { return r.removeSnapshot(ctx, s.client, id) })
	s.onFailure(func(ctx context.Context) error {
		container, err := s.client.LoadContainer(ctx, id)
		if err != nil {
			return ignoreMissing(err)
		}
		// Even a call that has failed may have left a task. While there may be one,
		// the container stays: the sweep finds the task by it.
		if err := r.removeTask(ctx, container); err != nil {
			return err
		}
		return ignoreMissing(container.Delete(ctx))
	})
	opts := []client.NewContainerOpts{
		client.WithImage(m.base.image),
		m.base.snapshot(r.opts.Snapshotter, id),
		client.WithContainerLabels(labels(rev, map[string]string{
			labelContainer: m.c.Name, labelNetwork: net.ID, labelAddress: net.Address, labelLog: m.log,
			client.StopSignalLabel: m.base.stop,
		})),
		client.WithNewSpec(m.base.spec(rev, m.c, m.inst)),
	}
	if id == s.spec.ID {
		record, err := recordOf(rev)
		if err != nil {
			return err
		}
		opts = append(opts, client.WithContainerExtension(extensionRevision, record))
	}
	m.container, err = newContainer(ctx, s.client, id, opts...)
	if errdefs.IsNotFound(err) { // the image's file system, which somebody has removed
		r.mu.Lock()
		delete(r.specs, specKey(rev, m.c))
		r.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("creating the container: %w", err)
	}
	return nil
}

// newContainer is the client's own NewContainer without its lease: the label on
// the snapshot keeps the garbage collector away, and a lease would stay for a
// day if the start's context ended before it was given back.
func newContainer(ctx context.Context, c *client.Client, id string, opts ...client.NewContainerOpts) (client.Container, error) {
	record := containers.Container{ID: id, Runtime: containers.RuntimeInfo{Name: c.Runtime()}}
	for _, o := range opts {
		if err := o(ctx, c, &record); err != nil {
			return nil, err
		}
	}
	if _, err := c.ContainerService().Create(ctx, record); err != nil {
		return nil, err
	}
	return c.LoadContainer(ctx, id)
}

// task makes a container's process, which waits to be started.
func (s *start) task(ctx context.Context, m *member) (*process, error) {
	rpc, cancel, err := s.step(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	if m.task, err = m.container.NewTask(rpc, cio.LogFile(m.log)); err != nil {
		return nil, fmt.Errorf("creating the process: %w", m.inst.withoutValues(m.c, err))
	}
	return s.r.newProcess(m.container, m.task, m.log, m.base.stop), nil
}

// snapshot returns an option that gives an instance its file system. It is what
// client.WithNewSnapshot does, without reading the image's configuration each
// time.
func (b *specBase) snapshot(snapshotter, id string) client.NewContainerOpts {
	return func(ctx context.Context, c *client.Client, container *containers.Container) error {
		_, err := c.SnapshotService(snapshotter).Prepare(ctx, id, b.parent, snapshots.WithLabels(map[string]string{
			labelManaged: "true", labelRoot: time.Now().UTC().Format(time.RFC3339),
		}))
		if err != nil {
			return fmt.Errorf("preparing the file system: %w", err)
		}
		container.Snapshotter, container.SnapshotKey = snapshotter, id
		return nil
	}
}

// base returns what the specs of a container of a revision have in common.
func (r *Runtime) base(ctx context.Context, c *client.Client, rev *revisions.Revision, container *corev1.Container) (*specBase, error) {
	key := specKey(rev, container)
	r.mu.Lock()
	base := r.specs[key]
	r.mu.Unlock()
	if base != nil {
		return base, nil
	}
	img, err := r.pinned(ctx, c, rev, container)
	if err != nil {
		return nil, err
	}
	rpc, cancel := r.within(ctx)
	defer cancel()
	layers, err := img.RootFS(rpc)
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", img.Name(), explain(ctx, err))
	}
	stop, err := client.GetOCIStopSignal(rpc, img, "SIGTERM")
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", img.Name(), explain(ctx, err))
	}
	if _, err := signal.ParseSignal(stop); err != nil {
		return nil, unusable("reading the stop signal of", img.Name(), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if base = r.specs[key]; base == nil {
		if len(r.specs) >= specsKept { // of revisions long gone, most of them
			clear(r.specs)
		}
		base = &specBase{image: img, parent: identity.ChainID(layers).String(), stop: stop}
		r.specs[key] = base
	}
	return base, nil
}

func specKey(rev *revisions.Revision, c *corev1.Container) string {
	return rev.Name + " " + rev.Hash + " " + c.Name
}

func (r *Runtime) filesDir(id string) string { return filepath.Join(r.opts.StateDir, "files", id) }

// recordOf encodes a revision for its container's record.
func recordOf(rev *revisions.Revision) (*anypb.Any, error) {
	b, err := rev.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: revisionURL, Value: b}, nil
}

// revisionOf decodes what recordOf encoded.
func revisionOf(extensions map[string]typeurl.Any) (*revisions.Revision, error) {
	record := extensions[extensionRevision]
	if record == nil {
		return nil, errors.New("its container carries no revision")
	}
	rev := new(revisions.Revision)
	return rev, rev.UnmarshalJSON(record.GetValue())
}
