package containerd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

var (
	errExists = errors.New("it exists")
	errUsed   = errors.New("it has been started or discarded already")
)

// prepared is an instance whose processes have been made, and wait to be started.
type prepared struct {
	s    *start
	h    *handle
	used atomic.Bool
}

// Prepare implements instancepool.Preparer. The secrets and config maps that the
// instance is given are read here: it has them as they are now, even if it is
// started much later.
func (r *Runtime) Prepare(ctx context.Context, spec instancepool.StartSpec) (instancepool.Prepared, error) {
	p, err := r.prepare(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("preparing %s: %w", spec.ID, err)
	}
	return p, nil
}

func (r *Runtime) prepare(ctx context.Context, spec instancepool.StartSpec) (*prepared, error) {
	c, err := r.connect()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	if r.known(spec.ID) {
		r.mu.Unlock()
		return nil, errExists
	}
	r.starting[spec.ID] = nil
	r.mu.Unlock()
	s := &start{r: r, client: c, spec: spec}
	h, err := s.make(ctx)
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil { // while it was made; the next process removes it
		delete(r.starting, spec.ID)
		h.forget()
		return nil, errClosed
	}
	r.starting[spec.ID] = h
	return &prepared{s: s, h: h}, nil
}

func (p *prepared) ID() string { return p.h.id }

// use lets one call through.
func (p *prepared) use() error {
	if p.used.Swap(true) {
		return errUsed
	}
	if p.s.r.ctx.Err() != nil { // the next process removes it
		return errClosed
	}
	return nil
}

// Start implements instancepool.Prepared.
func (p *prepared) Start(ctx context.Context, observe func(phase string, took time.Duration)) (instancepool.Handle, error) {
	h, err := p.start(ctx, observe)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.h.id, err)
	}
	return h, nil
}

func (p *prepared) start(ctx context.Context, observe func(phase string, took time.Duration)) (*handle, error) {
	if err := p.use(); err != nil {
		return nil, err
	}
	s, h, r := p.s, p.h, p.s.r
	s.spec.Observe, s.began = observe, time.Now()
	h.started = s.began
	if err := p.run(ctx); err != nil {
		h.forget()
		return nil, s.fail(ctx, err)
	}
	s.phase("start")
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.starting, h.id)
	if r.ctx.Err() != nil { // while it was started; the next process adopts it
		h.forget()
		return nil, errClosed
	}
	r.handles[h.id] = h
	r.logsGrow()
	return h, nil
}

// run starts the processes that depend on no other.
func (p *prepared) run(ctx context.Context) error {
	select {
	case <-p.h.ended:
		return fmt.Errorf("its process, which waited to be started, %s", p.h.Exit())
	default:
	}
	if err := noteStart(p.s.r.filesDir(p.h.id), p.h.started); err != nil {
		return err
	}
	p.s.r.network.yield(p.h.net.ID)
	return p.s.startAll(ctx, p.h)
}

// Discard implements instancepool.Prepared.
func (p *prepared) Discard(ctx context.Context) error {
	if err := p.use(); err != nil {
		return fmt.Errorf("discarding %s: %w", p.h.id, err)
	}
	err := p.h.Stop(ctx, 0)
	r := p.s.r
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.starting, p.h.id)
	if err != nil {
		r.lose(p.h.id, p.h) // once more: until now the sweep has left it alone
	}
	return err
}

var (
	_ instancepool.Preparer = (*Runtime)(nil)
	_ instancepool.Prepared = (*prepared)(nil)
)
