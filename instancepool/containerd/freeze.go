package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairway-run/fairway/instancepool"
)

// freezing says who may halt an instance, and when. Frozen processes do nothing
// of what containerd asks them to, and it waits for them: none may be frozen
// while it is at work in the instance.
type freezing struct {
	all  []*freezer    // one for each container
	turn chan struct{} // holds one token: of who freezes or thaws; guards all below

	commands int           // that run in the instance
	idle     chan struct{} // closed when no more do; nil without any
}

func newFreezing(processes []*process) freezing {
	f := freezing{turn: make(chan struct{}, 1)}
	for _, p := range processes {
		f.all = append(f.all, p.r.cgroups.freezer(cgroupPath(p.r.opts.Namespace, p.id)))
	}
	return f
}

func (f *freezing) lock(ctx context.Context) error {
	select { // even at the end of ctx, when nobody else is at it
	case f.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case f.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *freezing) unlock() { <-f.turn }

// Freeze implements instancepool.Freezer. It waits for the commands that run in
// the instance. When it fails, it thaws what was frozen already.
func (h *handle) Freeze(ctx context.Context) error {
	f := &h.freezing
	if err := f.lockIdle(ctx, h.over); err != nil {
		return fmt.Errorf("freezing %s: %w", h.id, err)
	}
	defer f.unlock()
	if err := h.halt(ctx); err != nil {
		return fmt.Errorf("freezing %s: %w", h.id, errors.Join(err, h.wake()))
	}
	h.asleep.Store(true)
	return nil
}

// halt freezes the instance's containers. The caller has the turn.
func (h *handle) halt(ctx context.Context) error {
	select { // nobody would thaw it
	case <-h.over:
		return errOver
	default:
	}
	err := freezeAll(ctx, h.freezing.all, h.over)
	for _, p := range h.processes { // an empty cgroup would count as frozen
		if p.hasEnded() {
			return errOver
		}
	}
	return err
}

// Thaw implements instancepool.Freezer. It waits for a Freeze that is at work,
// which gives up at the end of its context.
func (h *handle) Thaw(ctx context.Context) error {
	err := h.thaw(ctx)
	select {
	case <-h.ended:
		err = errOver
	default:
	}
	if err != nil {
		return fmt.Errorf("thawing %s: %w", h.id, err)
	}
	return nil
}

// thaw lets the instance's containers go on, as far as they are there.
func (h *handle) thaw(ctx context.Context) error {
	if err := h.freezing.lock(ctx); err != nil {
		return err
	}
	defer h.freezing.unlock()
	return h.wake()
}

// wake thaws all. The caller has the turn.
func (h *handle) wake() error {
	if h.asleep.Swap(false) {
		h.r.logsGrow()
	}
	return thawAll(h.freezing.all)
}

// enter thaws the instance for a command that is to run in it, and keeps it from
// being frozen until leave.
func (h *handle) enter(ctx context.Context) error {
	f := &h.freezing
	if err := f.lock(ctx); err != nil {
		return err
	}
	defer f.unlock()
	if err := h.wake(); err != nil {
		return err
	}
	if f.commands == 0 {
		f.idle = make(chan struct{})
	}
	f.commands++
	return nil
}

func (h *handle) leave() {
	f := &h.freezing
	f.turn <- struct{}{} // soon: who freezes does not keep it while a command runs
	defer f.unlock()
	if f.commands--; f.commands == 0 {
		close(f.idle)
		f.idle = nil
	}
}

// lockIdle is lock once no command runs.
func (f *freezing) lockIdle(ctx context.Context, over <-chan struct{}) error {
	for {
		if err := f.lock(ctx); err != nil {
			return err
		}
		idle := f.idle
		if idle == nil {
			return nil
		}
		f.unlock()
		select {
		case <-idle:
		case <-over:
			return errOver
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

var _ instancepool.Freezer = (*handle)(nil)
