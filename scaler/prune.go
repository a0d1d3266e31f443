package scaler

import (
	"context"
	"fmt"
	"time"
)

const (
	// pruneAfter is the time from when revisions are gone, or from the start, to
	// when images that nobody needs are looked for: who deletes may soon deploy.
	pruneAfter = time.Minute
	// pruneTimeout bounds one such look.
	pruneTimeout = time.Minute
)

// pruneSoon has the images looked at that removed revisions had.
func (s *Scaler) pruneSoon() {
	select {
	case s.prunable <- struct{}{}:
	default:
	}
}

// pruneLoop removes the images that no revision has any more, once after the
// start and then after revisions are gone, until the scaler is closed. Without
// them it does nothing.
func (s *Scaler) pruneLoop() {
	select {
	case <-s.loaded:
	case <-s.ctx.Done():
		return
	}
	timer := time.NewTimer(pruneAfter)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.prunable:
			timer.Reset(pruneAfter)
			continue
		case <-timer.C:
		}
		if !s.prune() {
			timer.Reset(pruneAfter)
		}
	}
}

// prune reports whether it could look at the images.
func (s *Scaler) prune() bool {
	if !s.resolving.TryLock() {
		return false // a pull may last for long, and must not wait either
	}
	defer s.resolving.Unlock()
	ctx, cancel := context.WithTimeout(s.ctx, pruneTimeout)
	defer cancel()
	err := s.opts.Runtime.Prune(ctx, s.registry.Pins())
	if err == nil || s.ctx.Err() != nil {
		return true
	}
	s.opts.Observer.Revision(RevisionEvent{Kind: "prune_failed", Err: fmt.Errorf("removing images that no revision has: %w", err)})
	return false
}
