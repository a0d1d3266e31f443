package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"go.uber.org/zap"

	"github.com/fairway-run/fairway/instancepool"
)

// managed is the filter for what Fairway made.
const managed = `labels."` + labelManaged + `"==true`

// List implements instancepool.Runtime.
func (r *Runtime) List(ctx context.Context) ([]instancepool.Handle, error) {
	if err := r.sweep(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]instancepool.Handle, 0, len(r.handles))
	for _, h := range r.handles {
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b instancepool.Handle) int { return strings.Compare(a.ID(), b.ID()) })
	return all, nil
}

// sweepLoop sweeps soon after something may have been left, and from time to
// time, until the runtime is closed.
func (r *Runtime) sweepLoop() {
	timer := time.NewTimer(sweepEvery)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.dirty:
			timer.Reset(sweepSoon)
			continue
		case <-timer.C:
		}
		timer.Reset(sweepEvery)
		ctx, cancel := context.WithTimeout(r.ctx, 2*rpcTimeout)
		err := r.sweep(ctx)
		cancel()
		if err != nil && r.ctx.Err() == nil {
			r.log.Warn("removing what was left behind", zap.Error(err))
			timer.Reset(sweepSoon)
		}
	}
}

// sweep makes a handle for each instance that runs, and removes what is left of
// those that do not: containers, snapshots, files, networks. It returns an error
// if it could not look; what it cannot remove it tries again later.
func (r *Runtime) sweep(ctx context.Context) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	r.mu.Lock()
	lost := maps.Clone(r.lost)
	r.mu.Unlock()
	rpc, cancel := r.within(ctx)
	containers, err := c.Containers(rpc, managed)
	cancel()
	if err != nil {
		return fmt.Errorf("listing containers: %w", explain(ctx, err))
	}
	var left error
	for id, group := range instances(containers) {
		if r.busy(id) {
			continue
		}
		var h *handle
		var err error
		if _, ok := lost[id]; !ok {
			h, err = r.load(ctx, id, group)
		}
		switch {
		case err == nil && h != nil:
			r.keep(h)
		case err == nil:
			left = errors.Join(left, r.remove(ctx, id, group, networkOf(ctx, group)))
		case errors.Is(err, instancepool.ErrUnavailable):
			return err
		default: // it may run: its network stays until more is known
			r.network.adopt(networkOf(ctx, group))
			left = errors.Join(left, err)
		}
	}
	for id := range lost { // its container may be gone already
		if !r.busy(id) {
			path := cgroupPath(r.opts.Namespace, id)
			left = errors.Join(left, removeCgroup(path), removeCgroup(sidecarID(path, "*")))
		}
	}
	left = errors.Join(left, r.sweepShims(ctx, c), r.sweepSnapshots(ctx, c), r.sweepFiles(), r.network.sweep(ctx))
	switch {
	case left == nil:
		r.mu.Lock()
		maps.DeleteFunc(r.lost, func(id string, _ *handle) bool { _, ok := lost[id]; return ok })
		r.mu.Unlock()
	case ctx.Err() == nil:
		r.log.Warn("removing what was left behind", zap.Error(left))
		r.leftovers()
	}
	return nil
}

// sidecarID is the ID of a sidecar's container in an instance: the instance's
// own is that of the container that gets the requests. Names of revisions have no
// dots, and only IDs of up to 76 bytes are possible: a container's name may be
// too long.
func sidecarID[N int | string](instance string, number N) string {
	return fmt.Sprint(instance, ".", number)
}

// instanceOf returns the instance that a container, or its snapshot or log,
// belongs to.
func instanceOf(id string) string {
	instance, _, _ := strings.Cut(id, ".")
	return instance
}

// instances returns containers by instance, the one that gets the requests first.
func instances(containers []client.Container) map[string][]client.Container {
	all := make(map[string][]client.Container, len(containers))
	for _, c := range containers {
		id := instanceOf(c.ID())
		all[id] = append(all[id], c)
	}
	for _, group := range all {
		slices.SortFunc(group, func(a, b client.Container) int { return strings.Compare(a.ID(), b.ID()) })
	}
	return all
}

// busy reports whether an instance is known to run, or being started or prepared.
func (r *Runtime) busy(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known(id)
}

// known is busy for a caller that holds mu.
func (r *Runtime) known(id string) bool {
	_, starting := r.starting[id]
	return starting || r.handles[id] != nil
}

// keep makes a handle known, unless the instance has become known meanwhile.
func (r *Runtime) keep(h *handle) {
	r.mu.Lock()
	if r.handles[h.id] == nil && r.ctx.Err() == nil {
		r.handles[h.id], r.at[h.net.host()] = h, h
		r.logsGrow()
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	h.forget()
}

// load returns a handle for an instance whose containers all run, or nil if one
// is dead or was never started.
func (r *Runtime) load(ctx context.Context, id string, group []client.Container) (*handle, error) {
	ctx, cancel := r.within(ctx)
	defer cancel()
	if group[0].ID() != id {
		return nil, nil // it is not there, but a sidecar of it
	}
	processes := make([]*process, 0, len(group))
	for _, container := range group {
		p, err := r.loadProcess(ctx, container)
		if p == nil {
			return nil, err
		}
		processes = append(processes, p)
	}
	info, err := group[0].Info(ctx, client.WithoutRefreshedMetadata)
	if err != nil {
		return nil, fmt.Errorf("reading container %s: %w", id, explain(ctx, err))
	}
	rev, err := revisionOf(info.Extensions)
	if err == nil && len(group) != len(rev.Spec().Template.Spec.Containers) {
		return nil, nil // its start was interrupted
	}
	if err != nil {
		r.log.Warn("an instance cannot be adopted and is removed", zap.String("instance", id), zap.Error(err))
		return nil, nil
	}
	h := r.newHandle(id, rev, attachment{ID: info.Labels[labelNetwork], Address: info.Labels[labelAddress]}, processes)
	h.started = startedAt(r.filesDir(id), info.CreatedAt)
	if err := h.watch(); err != nil {
		return nil, nil // it has just ended
	}
	r.network.adopt(h.net.ID)
	return h, nil
}

// loadProcess returns the process of a container, or nil if it is dead or was
// never started.
func (r *Runtime) loadProcess(ctx context.Context, container client.Container) (*process, error) {
	info, err := container.Info(ctx)
	if errdefs.IsNotFound(err) {
		return nil, nil // it was removed after it had been listed
	}
	if err != nil {
		return nil, fmt.Errorf("reading container %s: %w", container.ID(), explain(ctx, err))
	}
	task, err := container.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading task %s: %w", container.ID(), explain(ctx, err))
	}
	status, err := task.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading task %s: %w", container.ID(), explain(ctx, err))
	}
	if status.Status != client.Running && status.Status != client.Paused {
		return nil, nil
	}
	return r.newProcess(container, task, info.Labels[labelLog], info.Labels[client.StopSignalLabel]), nil
}

// networkOf returns the network of an instance whose containers have been listed.
func networkOf(ctx context.Context, group []client.Container) string {
	info, err := group[0].Info(ctx, client.WithoutRefreshedMetadata)
	if err != nil {
		return "" // the sweep of the networks finds it
	}
	return info.Labels[labelNetwork]
}

// remove removes the containers of an instance with all that belongs to it. What
// it has besides them goes last: by the containers the sweep finds it.
func (r *Runtime) remove(ctx context.Context, id string, group []client.Container, network string) error {
	rpc, cancel := r.within(ctx)
	defer cancel()
	var left error
	for _, container := range group {
		left = errors.Join(left, r.removeContainer(rpc, container))
	}
	if left != nil {
		return left
	}
	if network != "" {
		if err := r.network.detach(ctx, network); err != nil {
			return err
		}
	}
	return removeFiles(r.filesDir(id))
}

func (r *Runtime) removeContainer(ctx context.Context, container client.Container) error {
	id := container.ID()
	if err := r.removeTask(ctx, container); err != nil {
		return fmt.Errorf("deleting task %s: %w", id, err)
	}
	if err := removeCgroup(cgroupPath(r.opts.Namespace, id)); err != nil {
		return err
	}
	if err := ignoreMissing(container.Delete(ctx, client.WithSnapshotCleanup)); err != nil {
		return fmt.Errorf("deleting container %s: %w", id, err)
	}
	return nil
}

// removeTask ends the process of a container and its shim.
func (r *Runtime) removeTask(ctx context.Context, container client.Container) error {
	// Before the first call: the shim waits for what it asks of frozen processes.
	if err := thawAll([]*freezer{r.cgroups.freezer(cgroupPath(r.opts.Namespace, container.ID()))}); err != nil {
		return err
	}
	task, err := container.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
		return ignoreMissing(err)
	}
	if !errdefs.IsNotFound(err) {
		return err
	}
	// A shim may be there whose process was never made: containerd ended in the
	// middle. It shows no task, but is deleted like one.
	r.mu.Lock()
	c := r.client
	r.mu.Unlock()
	if c == nil {
		return errors.New("the runtime is closed")
	}
	_, err = c.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: container.ID()})
	if err := ignoreMissing(errgrpc.ToNative(err)); err != nil {
		return err
	}
	return killShim(r.opts, container.ID())
}

func (r *Runtime) removeSnapshot(ctx context.Context, c *client.Client, id string) error {
	return ignoreMissing(c.SnapshotService(r.opts.Snapshotter).Remove(ctx, id))
}

// sweepSnapshots removes snapshots that were made for a container that then was
// not.
func (r *Runtime) sweepSnapshots(ctx context.Context, c *client.Client) error {
	rpc, cancel := r.within(ctx)
	defer cancel()
	var names []string
	err := c.SnapshotService(r.opts.Snapshotter).Walk(rpc, func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}, managed)
	if err != nil {
		return fmt.Errorf("listing snapshots: %w", err)
	}
	for _, name := range names {
		if r.busy(instanceOf(name)) {
			continue
		}
		if _, err := c.ContainerService().Get(rpc, name); !errdefs.IsNotFound(err) {
			continue
		}
		if err := r.removeSnapshot(rpc, c, name); err != nil {
			return fmt.Errorf("removing snapshot %s: %w", name, err)
		}
	}
	return nil
}

func (r *Runtime) sweepFiles() error {
	entries, err := os.ReadDir(filepath.Join(r.opts.StateDir, "files"))
	if err != nil && !missing(err) {
		return err
	}
	for _, e := range entries {
		if !r.busy(e.Name()) {
			if err := removeFiles(r.filesDir(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
