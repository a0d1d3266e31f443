package scaler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// service routes the requests of one service to the pool of one of its
// revisions, and brings up the revision that is to be next.
type service struct {
	s    *Scaler
	name string
	// route is where new requests go; nil when nobody wants the service. It is
	// stored under mu and loaded by each request without it.
	route atomic.Pointer[instancepool.Pool]

	mu      sync.Mutex  // guards all below; may be held when a pool's lock is taken
	serving *deployment // the one in route
	next    *deployment // on trial, or failed
	leaving []*deployment
	retired bool
}

// deployment is a revision with its pool.
type deployment struct {
	rev  *revisions.Revision
	pool *instancepool.Pool
	// adopted is set when an earlier process routed to it.
	adopted bool
	// trial ends its bring-up; nil when there is none.
	trial   context.CancelFunc
	failure error
	since   time.Time
}

func newService(s *Scaler, name string) *service {
	return &service{s: s, name: name}
}

func (v *service) deploy(rev *revisions.Revision) *deployment {
	return &deployment{rev: rev, pool: v.s.newPool(rev), since: time.Now()}
}

// want makes rev the revision that the service should come to.
func (v *service) want(rev *revisions.Revision) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.retired {
		return
	}
	if v.serving != nil && v.serving.rev == rev {
		v.dropNext()
		v.serving.pool.Wake() // for the minimum of one that was adopted
		return
	}
	if v.next != nil && v.next.rev == rev {
		if v.next.failure != nil { // asked for again: tried again
			v.next = v.deploy(rev)
			v.try(v.next)
		}
		return
	}
	v.dropNext()
	d := v.deploy(rev)
	switch {
	case v.serving == nil:
		v.serve(d)
		v.warm(d)
	case !v.serving.adopted && !v.serving.pool.Proven() && v.serving.pool.Failure() != nil:
		// What cannot serve protects nobody.
		v.swap(d)
		v.warm(d)
	default:
		v.next = d
		v.try(d)
	}
}

// warm prepares a revision that serves without having been on trial: its image
// at once, and instances if it wants some without being asked.
func (v *service) warm(d *deployment) {
	if n := max(d.rev.MinInstances, d.rev.InitialScale); n > 0 {
		v.s.wg.Go(func() { v.report(d, d.pool.Await(v.s.ctx, n)) })
		return
	}
	v.s.wg.Go(func() { _ = v.s.resolve(v.s.ctx, d.rev) }) // reported there; a request tries again
}

func (v *service) report(d *deployment, err error) {
	e := RevisionEvent{Kind: "ready", Service: v.name, Revision: d.rev.Name, Took: time.Since(d.since)}
	switch {
	case errors.Is(err, instancepool.ErrDraining), errors.Is(err, context.Canceled):
		return
	case err != nil:
		e.Kind, e.Err = "failed", err
	}
	v.s.opts.Observer.Revision(e)
}

// try brings d up and lets it take over when it is ready. The caller holds mu.
func (v *service) try(d *deployment) {
	ctx, cancel := context.WithTimeoutCause(v.s.ctx, progressDeadline,
		fmt.Errorf("revision %s was not ready within %s", d.rev.Name, progressDeadline))
	d.trial = cancel
	n := max(1, d.rev.MinInstances, d.rev.InitialScale)
	if v.serving != nil {
		// As many as the present load needs, so that no queue builds up at the swap.
		n = max(n, (v.serving.pool.Load()+d.rev.Concurrency-1)/d.rev.Concurrency)
	}
	v.s.wg.Go(func() {
		defer cancel()
		v.tried(d, d.pool.Await(ctx, n))
	})
}

// tried notes how a trial ended.
func (v *service) tried(d *deployment, err error) {
	v.mu.Lock()
	if v.next != d || v.retired || v.s.ctx.Err() != nil {
		v.mu.Unlock()
		return
	}
	d.trial = nil
	if err != nil {
		d.failure = err
		v.end(d, 0, nil)
		v.mu.Unlock()
		v.report(d, err)
		return
	}
	v.next = nil
	v.swap(d)
	v.mu.Unlock()
	v.report(d, nil)
}

// serve makes d the one that new requests go to. The caller holds mu.
func (v *service) serve(d *deployment) {
	v.serving = d
	v.route.Store(d.pool)
}

// swap lets d take over: new requests go to it from here on, and the one before
// finishes what it has. The caller holds mu.
func (v *service) swap(d *deployment) {
	old := v.serving
	v.serve(d)
	v.s.opts.Observer.Revision(RevisionEvent{Kind: "promoted", Service: v.name, Revision: d.rev.Name, Took: time.Since(d.since)})
	if old != nil {
		v.leave(old)
	}
}

// leave drains d: each of its requests may still take as long as any may. The
// caller holds mu.
func (v *service) leave(d *deployment) {
	v.s.opts.Observer.Revision(RevisionEvent{Kind: "draining", Service: v.name, Revision: d.rev.Name})
	began := time.Now()
	v.end(d, d.rev.Timeout, func() {
		v.s.opts.Observer.Revision(RevisionEvent{Kind: "retired", Service: v.name, Revision: d.rev.Name, Took: time.Since(began)})
	})
}

// end drains d and keeps it in sight until nothing of it is left; then, unless
// ended is nil, its revision is dropped and ended called. The caller holds mu.
func (v *service) end(d *deployment, timeout time.Duration, ended func()) {
	v.leaving = append(v.leaving, d)
	d.pool.Drain(timeout)
	v.s.wg.Go(func() {
		select {
		case <-d.pool.Done():
		case <-v.s.ctx.Done():
			return
		}
		v.mu.Lock()
		v.leaving = slices.DeleteFunc(v.leaving, func(o *deployment) bool { return o == d })
		if v.retired && len(v.leaving) == 0 {
			v.s.retiring.Delete(v)
		}
		wantedAgain := slices.ContainsFunc([]*deployment{v.serving, v.next}, func(o *deployment) bool {
			return o != nil && o.rev == d.rev
		})
		v.mu.Unlock()
		if ended == nil {
			return
		}
		if !wantedAgain {
			v.s.registry.Drop(d.rev)
		}
		ended()
	})
}

// dropNext gives up the revision on trial. The caller holds mu.
func (v *service) dropNext() {
	d := v.next
	if d == nil {
		return
	}
	v.next = nil
	if d.trial != nil {
		d.trial()
	}
	if d.failure == nil {
		v.leave(d)
		d.pool.Drain(0)
		return
	}
	v.s.registry.Drop(d.rev)
}

// adopt gives found instances to their revisions. Before the first want the
// newest of those revisions serves; with several, the newest has to prove
// itself again, as it may have been on trial when its process ended.
func (v *service) adopt(handles []instancepool.Handle) {
	if len(handles) == 0 {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.serving == nil && !v.retired {
		v.serveFound(handles)
	}
	for _, h := range handles {
		if d := v.deploymentOf(h.Revision()); d == nil || !d.pool.Adopt(h) {
			v.s.discard(h, "its revision is retired")
		}
	}
	if v.next != nil && v.next.trial == nil && v.next.failure == nil {
		v.try(v.next)
	}
}

// serveFound decides what serves when nothing does yet. The caller holds mu.
func (v *service) serveFound(handles []instancepool.Handle) {
	var revs []*revisions.Revision
	for _, h := range handles {
		rev := v.s.registry.Adopt(h.Revision())
		if !slices.Contains(revs, rev) {
			revs = append(revs, rev)
		}
	}
	slices.SortFunc(revs, func(a, b *revisions.Revision) int { return cmp.Compare(b.Generation, a.Generation) })
	if len(revs) > 1 {
		v.next = v.deploy(revs[0])
		revs = revs[1:]
	}
	d := v.deploy(revs[0])
	d.adopted = true
	v.serve(d)
}

// deploymentOf returns the deployment of what rev says, if there is one. A
// revision of another template that happens to have the same name is another.
func (v *service) deploymentOf(rev *revisions.Revision) *deployment {
	for _, d := range []*deployment{v.serving, v.next} {
		if d != nil && d.rev.Name == rev.Name && d.rev.Hash == rev.Hash && d.failure == nil {
			return d
		}
	}
	return nil
}

// retire ends the service: requests that have an instance finish.
func (v *service) retire() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.retired {
		return
	}
	v.retired = true
	v.s.retiring.Store(v, true)
	v.route.Store(nil)
	v.dropNext()
	if v.serving != nil {
		v.leave(v.serving)
		v.serving.pool.Dismiss()
		v.serving = nil
	}
	if len(v.leaving) == 0 {
		v.s.retiring.Delete(v)
	}
}

// hurry stops the instances of a retired service whatever they do.
func (v *service) hurry() {
	v.mu.Lock()
	leaving := slices.Clone(v.leaving)
	v.mu.Unlock()
	for _, d := range leaving {
		d.pool.Drain(0)
	}
}

// wait returns when no instance of a retired service is left, or at
// ctx's end.
func (v *service) wait(ctx context.Context) error {
	v.mu.Lock()
	leaving := slices.Clone(v.leaving)
	v.mu.Unlock()
	for _, d := range leaving {
		select {
		case <-d.pool.Done():
		case <-ctx.Done():
			return fmt.Errorf("stopping revision %s: %w", d.rev.Name, context.Cause(ctx))
		}
	}
	return nil
}

// detach lets go of all instances.
func (v *service) detach() {
	v.mu.Lock()
	all := slices.Clone(v.leaving)
	for _, d := range []*deployment{v.serving, v.next} {
		if d != nil {
			all = append(all, d)
		}
	}
	v.retired = true
	v.route.Store(nil)
	v.mu.Unlock()
	for _, d := range all {
		if d.trial != nil {
			d.trial()
		}
		d.pool.Detach()
	}
}
