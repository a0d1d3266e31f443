package containerd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	client "github.com/containerd/containerd/v2/client"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

const (
	// codeTimeout is how long containerd may take to tell the exit code of a
	// process that has ended.
	codeTimeout = 3 * time.Second
	// killTimeout is how long the kernel may take to end a process after SIGKILL.
	killTimeout = 10 * time.Second
	// unknownCode stands for an exit code that containerd could not tell.
	unknownCode = 255
)

// handle is one instance: the processes of its containers. It ends when one of
// them does.
type handle struct {
	r         *Runtime
	id        string
	rev       *revisions.Revision
	net       attachment
	started   time.Time
	processes []*process // the first one gets the requests
	stages    stages

	end   sync.Once
	ended chan struct{}
	first *process // which ended first; written before ended is closed

	finish   sync.Once
	over     chan struct{} // closed when the instance has ended or is to end
	freezing freezing
	asleep   atomic.Bool // it is frozen: its log does not grow

	stopping chan struct{} // holds one token: of the one Stop at work; guards gone
	gone     bool
}

func (r *Runtime) newHandle(id string, rev *revisions.Revision, net attachment, processes []*process) *handle {
	return &handle{
		r: r, id: id, rev: rev, net: net, processes: processes,
		ended: make(chan struct{}), over: make(chan struct{}), stopping: make(chan struct{}, 1),
		freezing: newFreezing(processes),
	}
}

func (h *handle) ID() string                    { return h.id }
func (h *handle) Revision() *revisions.Revision { return h.rev }
func (h *handle) PID() int                      { return h.processes[0].pid() }
func (h *handle) Started() time.Time            { return h.started }
func (h *handle) Address() string               { return h.net.Address }
func (h *handle) Exited() <-chan struct{}       { return h.ended }

// LogTail implements instancepool.Handle. After the instance's end it is the log
// of the container that ended it. The shim copies what the process wrote: the
// last lines, which matter most, may come after its end.
func (h *handle) LogTail(n int) string {
	log := h.processes[0].log
	select {
	case <-h.ended:
		log = h.first.log
		awaitQuiet(h.r.ctx, log)
	default:
	}
	return tail(log, n)
}

// Exit implements instancepool.Handle.
func (h *handle) Exit() instancepool.Exit {
	select {
	case <-h.ended:
		return h.first.exit
	default:
		return instancepool.Exit{}
	}
}

// watch begins to watch the processes, which may not have been started yet.
func (h *handle) watch() error {
	for _, p := range h.processes {
		if err := p.watch(h.noteEnd); err != nil {
			h.forget()
			return err
		}
	}
	return nil
}

// noteEnd notes that a process has ended, and with it the instance.
func (h *handle) noteEnd(p *process) {
	h.end.Do(func() {
		h.first = p
		close(h.ended)
	})
	h.noteOver()
}

// noteOver notes that the instance has ended or is to end: nobody may freeze it
// any more.
func (h *handle) noteOver() { h.finish.Do(func() { close(h.over) }) }

// forget ends the watch.
func (h *handle) forget() {
	for _, p := range h.processes {
		p.forget()
	}
}

// Stop implements instancepool.Handle.
func (h *handle) Stop(ctx context.Context, grace time.Duration) error {
	select { // even without time it is noted as lost, unless another call is at it
	case h.stopping <- struct{}{}:
	default:
		select {
		case h.stopping <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("stopping %s: %w", h.id, context.Cause(ctx))
		}
	}
	defer func() { <-h.stopping }()
	if h.gone {
		return nil
	}
	h.noteOver()
	if err := h.endAll(ctx, grace); err != nil {
		h.release(err)
		return fmt.Errorf("stopping %s: %w", h.id, err)
	}
	containers := make([]client.Container, len(h.processes))
	for i, p := range h.processes {
		containers[i] = p.container
	}
	err := h.r.remove(ctx, h.id, containers, h.net.ID)
	h.release(err)
	h.gone = err == nil
	if err != nil {
		return fmt.Errorf("removing %s: %w", h.id, explain(ctx, err))
	}
	return nil
}

// release makes the handle unknown. If err says that something of the instance
// is left, that is for the sweep: the network too, as the container that names
// it may be gone.
func (h *handle) release(err error) {
	if err != nil {
		h.r.network.unuse(h.net.ID)
	}
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	delete(h.r.handles, h.id)
	h.r.leave(h)
	h.r.logsGrow() // there is one more of those that have ended
	if err != nil {
		h.r.lose(h.id, h)
	}
}

// endAll ends the processes, all at the same time: politely first. Signals do
// nothing to frozen ones.
func (h *handle) endAll(ctx context.Context, grace time.Duration) error {
	for _, step := range []struct {
		politely bool
		wait     time.Duration
	}{{true, grace}, {false, killTimeout}} {
		if err := h.thaw(ctx); err != nil {
			return err
		}
		for _, p := range h.processes {
			signal := syscall.SIGKILL
			if step.politely && !h.unstarted(p.id) {
				signal = p.stop
			}
			if err := p.signal(signal); err != nil {
				return err
			}
		}
		if done, err := h.await(ctx, step.wait); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d has not ended %s after SIGKILL", h.PID(), killTimeout)
}

// await waits until all processes have ended, and reports whether they have.
func (h *handle) await(ctx context.Context, d time.Duration) (bool, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for _, p := range h.processes {
		select {
		case <-p.exited:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-timer.C:
			return false, nil
		}
	}
	return true, nil
}

var _ instancepool.Handle = (*handle)(nil)
