package instancepool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// errNotReady is wrapped by a probe that ran out of time.
var errNotReady = errors.New("not ready in time")

// probe returns nil as soon as all containers of the instance have started, or
// why one never did: its process ended, its probe's time ran out, or ctx ended. A
// container that depends on others is started once these have.
func probe(ctx context.Context, h Handle) error {
	all := h.Revision().Spec().Health
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	over := make(chan struct{})
	defer watch.Wait()
	defer close(over)
	watch.Go(func() {
		select {
		case <-h.Exited():
			cancel(fmt.Errorf("the container %s", h.Exit()))
		case <-over:
		}
	})
	if len(all) == 1 {
		return startedUp(ctx, h, &all[0], "", h.Started())
	}
	started := make(map[string]chan struct{}, len(all))
	for i := range all {
		started[all[i].Container] = make(chan struct{})
	}
	var probes sync.WaitGroup
	for i := range all {
		c := &all[i]
		probes.Go(func() {
			if err := bringUpOne(ctx, h, c, started); err != nil {
				cancel(err) // the first one counts
				return
			}
			close(started[c.Container])
		})
	}
	probes.Wait()
	return context.Cause(ctx)
}

// bringUpOne starts one container of several when those that it depends on have
// started, and returns when it has itself.
func bringUpOne(ctx context.Context, h Handle, c *revisions.Health, started map[string]chan struct{}) error {
	for _, name := range c.After {
		select {
		case <-started[name]:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	since := h.Started()
	if s, ok := h.(Stager); ok && len(c.After) > 0 {
		var err error
		if since, err = s.StartContainer(ctx, c.Container); err != nil {
			return fmt.Errorf("container %s: %w", c.Container, err)
		}
	}
	return startedUp(ctx, h, c, " of container "+c.Container, since)
}

// startedUp returns nil as soon as a container, whose process runs since then, has
// started. whose says in an error which one of several that is.
func startedUp(ctx context.Context, h Handle, c *revisions.Health, whose string, since time.Time) error {
	if c.Startup == nil {
		return context.Cause(ctx)
	}
	p := *c.Startup
	// The delay counts from the process's start: one that has run for long is not
	// waited for again.
	if !pause(ctx, p.Delay-time.Since(since)) {
		return context.Cause(ctx)
	}
	ctx, stop := context.WithTimeout(ctx, p.Total)
	defer stop()
	deadline, _ := ctx.Deadline()
	ask, done := prober(h, c.Container, p)
	defer done()
	wait, most := probePauseMin, probePauseMax
	if p.Kind == revisions.ProbeExec {
		wait, most = execPauseMin, execPauseMax
	}
	var last error
	for {
		attempt, release := context.WithTimeout(ctx, p.Attempt)
		err := ask(attempt)
		release()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil && time.Now().Before(deadline) {
			last = err // what the end of time itself has cut off says nothing
		}
		if !pause(ctx, wait) {
			break
		}
		wait = min(wait*2, most)
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	hint := ""
	if errors.Is(last, syscall.ECONNREFUSED) {
		hint = listeningHint(h, p.Port)
	}
	return fmt.Errorf("%w: the startup probe%s (%s) failed for %s: %w%s", errNotReady, whose, describe(p), p.Total, last, hint)
}
