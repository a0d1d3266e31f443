package containerd

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/fairway-run/fairway/instancepool"
)

// execRemoval is what the removal of an ended command may take.
const execRemoval = 5 * time.Second

// Exec implements instancepool.Execer: the command runs as the container's own
// process does, with its user, environment and limits. A frozen instance is thawed
// for it, and stays so.
func (h *handle) Exec(ctx context.Context, container string, command []string) (err error) {
	in, err := h.processOf(container)
	if err != nil {
		return err
	}
	if err := h.enter(ctx); err != nil {
		return fmt.Errorf("running %s: %w", command[0], err)
	}
	defer h.leave()
	ctx = withNamespace(ctx, h.r.opts.Namespace)
	spec, err := in.container.Spec(ctx)
	if err != nil {
		return fmt.Errorf("reading the spec of %s: %w", h.id, explain(ctx, err))
	}
	process := *spec.Process
	process.Args = command
	p, err := in.task.Exec(ctx, "probe-"+strings.ToLower(rand.Text()), &process,
		cio.NullIO)
	if err != nil {
		return fmt.Errorf("running %s: %w", command[0], explain(ctx, err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execRemoval)
		defer cancel()
		if _, removal := p.Delete(ctx, client.WithProcessKill); removal != nil && err == nil {
			err = fmt.Errorf("removing the ended %s: %w", command[0], explain(ctx, removal))
		}
	}()
	exited, err := p.Wait(ctx)
	if err != nil {
		return fmt.Errorf("running %s: %w", command[0], explain(ctx, err))
	}
	if err := p.Start(ctx); err != nil {
		return fmt.Errorf("running %s: %w", command[0], explain(ctx, err))
	}
	select {
	case status := <-exited:
		code, _, err := status.Result()
		if err != nil {
			return fmt.Errorf("running %s: %w", command[0], explain(ctx, err))
		}
		if code != 0 {
			return fmt.Errorf("%s exited with code %d", command[0], code)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// processOf returns the process of a container by its name.
func (h *handle) processOf(container string) (*process, error) {
	n := 1 // of the next sidecar, as they are made
	ingress := h.rev.Spec().Container()
	for i := range h.rev.Spec().Template.Spec.Containers {
		c := &h.rev.Spec().Template.Spec.Containers[i]
		id := h.id
		if c != ingress {
			id = sidecarID(h.id, n)
			n++
		}
		if c.Name != container {
			continue
		}
		for _, p := range h.processes {
			if p.id == id {
				return p, nil
			}
		}
	}
	return nil, fmt.Errorf("instance %s has no container %q", h.id, container)
}

var _ instancepool.Execer = (*handle)(nil)
