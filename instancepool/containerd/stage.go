package containerd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

// stages are the containers of an instance that are made, and started when those
// have started that they depend on.
type stages struct {
	mu sync.Mutex // guards all below, and is not held during calls

	waiting map[string]staged // by the containers' names
	started map[string]time.Time
}

// staged is a container that waits for others.
type staged struct {
	s *start
	m *member
}

// stage has m wait for StartContainer.
func (h *handle) stage(m *member, s *start) {
	h.stages.mu.Lock()
	defer h.stages.mu.Unlock()
	if h.stages.waiting == nil {
		h.stages.waiting = make(map[string]staged)
		h.stages.started = make(map[string]time.Time)
	}
	h.stages.waiting[m.c.Name] = staged{s, m}
}

// StartContainer implements instancepool.Stager. It is not tried again if it
// fails: then the instance is to be stopped.
func (h *handle) StartContainer(ctx context.Context, container string) (time.Time, error) {
	h.stages.mu.Lock()
	next, ok := h.stages.waiting[container]
	if !ok {
		since, ok := h.stages.started[container]
		h.stages.mu.Unlock()
		if !ok {
			since = h.started // by an earlier process
		}
		return since, nil
	}
	delete(h.stages.waiting, container)
	since := time.Now()
	h.stages.started[container] = since
	h.stages.mu.Unlock()
	if err := next.s.startMember(ctx, next.m); err != nil {
		return time.Time{}, fmt.Errorf("starting %s: %w", h.id, explain(ctx, err))
	}
	return since, nil
}

// unstarted reports whether the container of that ID waits to be started. What
// waits knows no signals but SIGKILL.
func (h *handle) unstarted(id string) bool {
	h.stages.mu.Lock()
	defer h.stages.mu.Unlock()
	for _, next := range h.stages.waiting {
		if next.m.id == id {
			return true
		}
	}
	return false
}

var _ instancepool.Stager = (*handle)(nil)
