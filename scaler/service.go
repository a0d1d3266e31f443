package scaler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

const (
	// warmTimeout bounds how long a move of traffic waits for the instances that
	// its load needs on a revision that has been ready before.
	warmTimeout = time.Minute
	// warmRetry is the pause after none of them has become ready.
	warmRetry = 10 * time.Second
	// resolveRetry is the pause after an image could not be had.
	resolveRetry = time.Second
)

// service follows what the registry says of one service: it routes its requests
// to the pools of its revisions, and lets the revisions prove themselves that
// are to be used next.
type service struct {
	s    *Scaler
	name string
	// route is where new requests go; nil when nobody wants the service. It is
	// stored under mu and loaded by each request without it.
	route atomic.Pointer[table]
	// startups and rhythm are learned over all revisions.
	startups instancepool.Startups
	rhythm   instancepool.Rhythm

	mu       sync.Mutex // guards all below; may be held when a pool's lock is taken
	deployed map[*revisions.Revision]*deployment
	leaving  []*deployment
	retired  bool
	step     *time.Timer // to the next step of a gradual rollout
	retry    *time.Timer // to the next attempt to bring a revision up
}

// deployment is a revision with its pool.
type deployment struct {
	rev  *revisions.Revision
	pool *instancepool.Pool
	// routed is set once requests can get to it.
	routed bool
	// trial ends what it is brought up for; nil when there is nothing.
	trial context.CancelFunc
	// warmed is set from when it has been brought up for the load that it is to
	// take until it takes it.
	warmed bool
	// setback is why it could not be brought up for that load when last tried.
	setback error
	failure error
	noted   bool // the registry knows of the failure
	since   time.Time
}

func newService(s *Scaler, name string) *service {
	return &service{s: s, name: name, deployed: make(map[*revisions.Revision]*deployment)}
}

// of returns the deployment of rev, made if need be. The caller holds mu.
func (v *service) of(rev *revisions.Revision) *deployment {
	d := v.deployed[rev]
	if d == nil {
		d = &deployment{rev: rev, since: time.Now()}
		d.pool = v.s.newPool(v, rev, func(e instancepool.Event) { v.observe(d, e) })
		v.deployed[rev] = d
	}
	return d
}

// sync brings the service to what the registry says now. It is called after
// each change, and does nothing where nothing is to be done. found are
// instances of it that an earlier process left.
func (v *service) sync(found []instancepool.Handle) {
	v.mu.Lock()
	defer v.mu.Unlock()
	st := v.s.registry.State(v.name)
	if v.retired || st == nil || st.Service == nil {
		for _, h := range found {
			v.s.discard(h, "its service is not configured any more")
		}
		return
	}
	pending := st.Pending()
	for _, rev := range pending {
		if d := v.deployed[rev]; d != nil && d.noted { // asked for again: tried again
			delete(v.deployed, rev)
		}
		v.of(rev)
	}
	for _, t := range st.Targets {
		v.of(t.Revision)
	}
	v.adopt(found)
	for _, rev := range pending {
		if d := v.of(rev); d.trial == nil && d.failure == nil {
			v.try(d, st)
		}
	}
	v.reroute(st)
	v.bound(st)
	v.dropUnused(st, pending)
	if v.step != nil {
		v.step.Stop()
	}
	if wait, ok := st.Step(time.Now()); ok {
		v.step = time.AfterFunc(wait, func() { v.s.registry.Advance(v.name) })
	}
}

// resume is sync for what the registry does not know of: it is told what comes of it.
// The caller holds no lock.
func (v *service) resume() {
	v.sync(nil)
	v.s.registry.Confirm(v.name)
}

// routing tells the registry where requests get to.
func (s *Scaler) routing(name string) *revisions.Routing {
	v := s.lookup(name)
	if v == nil {
		return nil
	}
	t := v.route.Load()
	if t == nil {
		return nil
	}
	return &revisions.Routing{Targets: t.targets, Waits: t.waits}
}

// adopt gives found instances to their revisions. The caller holds mu.
func (v *service) adopt(found []instancepool.Handle) {
	for _, h := range found {
		rev := v.s.registry.Revision(h.Revision().Name)
		d := v.deployed[rev]
		// A revision of another template that happens to have the same name is
		// another.
		if d == nil || rev.Hash != h.Revision().Hash || d.failure != nil || !d.pool.Adopt(h) {
			v.s.discard(h, "its revision is retired")
		}
	}
}

// reroute makes the registry's targets those of new requests, when the
// revisions that are to take more of them are up to it. Who may send requests at all
// changes at once. The caller holds mu.
func (v *service) reroute(st *revisions.State) {
	old, off := v.route.Load(), disabled(st.Bounds())
	if old != nil && !off { // else there is nothing to be up to
		if waits := v.warm(st, old); waits != "" {
			same := *old
			same.disabled, same.internal, same.waits = off, st.Internal(), waits
			v.route.Store(&same)
			return
		}
	}
	next := newTable(st.Targets, v.of)
	next.disabled, next.internal = off, st.Internal()
	v.route.Store(next)
	for _, d := range next.pools {
		d.warmed, d.setback = false, nil
		if d.routed {
			d.pool.Wake() // for a minimum that nothing has asked for yet
			continue
		}
		d.routed = true
		v.s.prepareSoon()
		if d.trial != nil { // it need not prove itself to be used any more
			d.trial()
			d.trial = nil
		}
		if old != nil && len(old.pools) > 0 {
			v.s.opts.Observer.Revision(RevisionEvent{Kind: "promoted", Service: v.name, Revision: d.rev.Name, Took: time.Since(d.since)})
		}
		if d.rev.Readiness() != revisions.ReadinessTrue {
			v.prepare(d)
			continue
		}
		d.pool.Wake()
	}
}

// bound shares the service's bounds among the revisions that its requests go to.
// The caller holds mu.
// Source: Cloud Run: service-level minimum instances.
func (v *service) bound(st *revisions.State) {
	b, t := st.Bounds(), v.route.Load()
	shares := make([]int, len(t.pools))
	for i, d := range t.pools {
		shares[i] = t.percent(d)
	}
	lows, highs := divide(b.Min, shares), divide(b.Max, shares)
	for i, d := range t.pools {
		low, high := lows[i], 0
		switch {
		case disabled(b):
			low, high = 0, -1
		case b.Max > 0 && shares[i] > 0: // it has requests, and so needs one
			high = max(1, highs[i])
		case b.Max > 0: // reached by its tag only
			high = b.Max
		}
		if b.Manual && shares[i] > 0 {
			low = high
		}
		d.pool.Bound(low, high)
	}
}

// divide shares n in proportion to shares, whole: what is left over goes to the
// largest remainders.
func divide(n int, shares []int) []int {
	parts, total := make([]int, len(shares)), 0
	for _, share := range shares {
		total += share
	}
	if total == 0 {
		return parts
	}
	left, order := n, make([]int, len(shares))
	for i, share := range shares {
		order[i], parts[i] = i, n*share/total
		left -= parts[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return n*shares[b]%total - n*shares[a]%total })
	for _, i := range order[:left] {
		parts[i]++
	}
	return parts
}

func disabled(b revisions.Bounds) bool { return b.Manual && b.Min == 0 }

// warm says what all that the new targets send more requests to still needs to take
// them; empty: nothing. What has been ready before but has too few instances for the
// load is brought up first; while that goes on nothing moves. The caller holds mu.
func (v *service) warm(st *revisions.State, old *table) (waits string) {
	load := old.load()
	if load == 0 {
		return ""
	}
	for _, t := range st.Targets {
		d, percent := v.of(t.Revision), percentOf(st, t.Revision)
		if d.warmed || percent <= old.percent(d) || d.rev.Readiness() != revisions.ReadinessTrue {
			continue
		}
		n := instancesFor(load*percent/100, d.rev)
		if d.trial == nil && readyInstances(d) >= n {
			continue
		}
		if waits == "" || d.setback != nil {
			waits = d.waits()
		}
		if d.trial == nil {
			v.bringUp(d, n, warmTimeout)
		}
	}
	return waits
}

// waits says what a move of traffic to d waits for.
func (d *deployment) waits() string {
	if d.setback == nil {
		return fmt.Sprintf("revision %s is being brought up for the load", d.rev.Name)
	}
	_, why := explain(d.rev, d.setback)
	return fmt.Sprintf("revision %s cannot be brought up for the load, and is tried again: %s", d.rev.Name, strings.TrimSpace(why))
}

// hindered notes why d cannot be brought up for the load that it is to take. The
// caller holds mu, and calls Confirm afterwards.
func (v *service) hindered(d *deployment, err error) {
	d.setback = err
	same := *v.route.Load()
	same.waits = d.waits()
	v.route.Store(&same)
}

func readyInstances(d *deployment) int {
	n := 0
	for _, i := range d.pool.Status().Instances {
		if i.State == instancepool.Ready || i.State == instancepool.Frozen {
			n++
		}
	}
	return n
}

// instancesFor is how many instances load requests at the same time need, as far
// as there may be so many.
func instancesFor(load int, rev *revisions.Revision) int {
	spec := rev.Spec()
	n := max(1, spec.MinInstances, (load+spec.Concurrency-1)/spec.Concurrency)
	if spec.MaxInstances > 0 {
		n = min(n, spec.MaxInstances)
	}
	return n
}

// prepare gets a revision ready that serves without having been on trial: its
// image at once, and instances if it wants some without being asked.
func (v *service) prepare(d *deployment) {
	if n := max(d.rev.Spec().MinInstances, d.rev.Spec().InitialScale); n > 0 {
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

// try lets d prove itself. The caller holds mu.
func (v *service) try(d *deployment, st *revisions.State) {
	spec := d.rev.Spec()
	n := max(1, spec.MinInstances, spec.InitialScale)
	if spec.InitialScale == 0 && spec.MinInstances == 0 {
		n = 0 // it is to be believed: its image must be there, no more
	}
	if t := v.route.Load(); t != nil && n > 0 && st.Latest() == d.rev {
		// As many as the present load needs, so that no queue builds up at the swap.
		load := t.load()
		for _, target := range st.Targets {
			if target.Latest {
				n = max(n, instancesFor(load*target.Percent/100, d.rev))
			}
		}
	}
	v.bringUp(d, n, spec.ProgressDeadline)
}

// bringUp starts n instances of d, and goes on with the service when they are
// ready. The caller holds mu.
func (v *service) bringUp(d *deployment, n int, timeout time.Duration) {
	ctx, cancel := context.WithTimeoutCause(v.s.ctx, timeout, &deadlineError{revision: d.rev.Name, after: timeout})
	d.trial = cancel
	v.s.wg.Go(func() {
		defer cancel()
		err := v.resolve(ctx, d)
		if err == nil && n > 0 {
			err = d.pool.Await(ctx, n)
		}
		v.tried(d, err)
	})
}

// resolve waits until the images of d are there, while the engine does not answer
// as well. A registry that gives none is asked twice: it may have been restarted.
func (v *service) resolve(ctx context.Context, d *deployment) error {
	for refused := 0; ; {
		err := v.s.resolve(ctx, d.rev)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, instancepool.ErrUnavailable):
			v.await(d, err)
		case refused > 0:
			return err
		default:
			refused++
		}
		retry := time.NewTimer(resolveRetry)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return context.Cause(ctx)
		}
	}
}

// await shows what a trial waits for.
func (v *service) await(d *deployment, err error) {
	v.mu.Lock()
	waits := d.trial != nil && v.deployed[d.rev] == d && !v.retired
	proven := d.rev.Readiness() == revisions.ReadinessTrue
	if waits && proven {
		v.hindered(d, err)
	}
	v.mu.Unlock()
	switch {
	case waits && proven:
		v.s.registry.Confirm(v.name)
	case waits && d.rev.Readiness() == revisions.ReadinessUnknown:
		reason, message := explain(d.rev, err)
		v.s.registry.MarkWaiting(d.rev, reason, message)
	}
}

// deadlineError says that a revision took too long.
type deadlineError struct {
	revision string
	after    time.Duration
}

func (e *deadlineError) Error() string {
	return fmt.Sprintf("revision %s was not ready within %s", e.revision, e.after)
}

// tried notes how a trial ended.
func (v *service) tried(d *deployment, err error) {
	v.mu.Lock()
	if v.deployed[d.rev] != d || d.trial == nil || v.retired || v.s.ctx.Err() != nil {
		v.mu.Unlock()
		return
	}
	d.trial = nil
	proven := d.rev.Readiness() == revisions.ReadinessTrue
	switch {
	case err == nil:
		d.warmed = true
	case !proven:
		d.failure = err
		v.end(d, 0, nil)
		v.mu.Unlock()
		v.report(d, err) // first: whoever sees the status finds the log
		reason, message := explain(d.rev, err)
		v.s.registry.MarkFailed(d.rev, reason, message)
		v.mu.Lock()
		d.noted = true
		v.mu.Unlock()
		v.resume()
		return
	case readyInstances(d) > 0:
		d.warmed = true // fewer have to do: whoever moves traffic may flee from worse
	default:
		var late *deadlineError
		if d.setback == nil || !errors.As(err, &late) { // else what it has waited for says more
			v.hindered(d, err)
		}
		if v.retry != nil {
			v.retry.Stop()
		}
		v.retry = time.AfterFunc(warmRetry, v.resume)
		v.mu.Unlock()
		v.report(d, err)
		v.s.registry.Confirm(v.name)
		return
	}
	v.mu.Unlock()
	if proven {
		v.resume()
	} else {
		v.s.registry.MarkReady(d.rev) // which calls sync
	}
	v.report(d, err)
}

// explain says in Knative's words why a revision cannot start.
func explain(rev *revisions.Revision, err error) (reason, message string) {
	var start *instancepool.StartError
	var deadline *deadlineError
	switch {
	case errors.As(err, &start):
	case errors.As(err, &deadline):
		return servingv1.ReasonProgressDeadlineExceeded, err.Error()
	case errors.Is(err, instancepool.ErrImage):
		return servingv1.ReasonContainerMissing, servingv1.RevisionContainerMissingMessage(rev.Spec().Image, err.Error())
	default:
		return "ResourcesUnavailable", err.Error()
	}
	switch {
	case start.Reason == servingv1.ReasonContainerMissing:
		return start.Reason, servingv1.RevisionContainerMissingMessage(rev.Spec().Image, start.Err.Error())
	case start.Log == "":
		return start.Reason, start.Err.Error()
	case strings.HasPrefix(start.Reason, "ExitCode"): // which says the rest
		return start.Reason, servingv1.RevisionContainerExitingMessage(start.Log)
	}
	return start.Reason, fmt.Sprintf("%v; its last output: %s", start.Err, start.Log)
}

// observe follows the instances of a revision that serves without having been
// on trial: how the first of them do tells whether it works. Of one on trial it
// shows what keeps it waiting.
func (v *service) observe(d *deployment, e instancepool.Event) {
	v.s.opts.Observer.Instance(e)
	if errors.Is(e.Err, instancepool.ErrUnavailable) || errors.Is(e.Err, instancepool.ErrNoRoom) {
		v.s.wg.Go(func() { v.await(d, e.Err) })
	}
	if d.rev.Readiness() == revisions.ReadinessTrue || (e.State != instancepool.Ready && e.State != instancepool.Failed) {
		return
	}
	v.s.wg.Go(func() {
		v.mu.Lock()
		serves := d.routed && d.trial == nil && v.deployed[d.rev] == d && !v.retired
		v.mu.Unlock()
		switch failure := d.pool.Failure(); {
		case !serves:
		case e.State == instancepool.Ready:
			v.s.registry.MarkReady(d.rev)
		case failure != nil && !failure.Passing():
			reason, message := explain(d.rev, failure)
			v.s.registry.MarkFailed(d.rev, reason, message)
		}
	})
}

// dropUnused drains what no request can get to any more and what need not prove
// itself any more. The caller holds mu.
func (v *service) dropUnused(st *revisions.State, pending []*revisions.Revision) {
	t := v.route.Load()
	for rev, d := range v.deployed {
		switch {
		case slices.Contains(t.pools, d), slices.Contains(pending, rev), st.Routed(rev):
			continue
		case d.failure != nil && st.Latest() == rev: // to be seen
			continue
		}
		delete(v.deployed, rev)
		if d.trial != nil {
			d.trial()
			d.trial = nil
			v.leave(d)
			d.pool.Drain(0) // nobody uses it
			continue
		}
		if d.failure != nil { // drained already
			v.s.wg.Go(func() { v.s.registry.Drop(rev) })
			continue
		}
		v.leave(d)
	}
}

// leave drains d: what its requests and connections have not done by its deadline
// is cut. The caller holds mu.
func (v *service) leave(d *deployment) {
	v.s.opts.Observer.Revision(RevisionEvent{Kind: "draining", Service: v.name, Revision: d.rev.Name})
	began := time.Now()
	v.end(d, d.rev.Spec().DrainTimeout, func() {
		v.s.opts.Observer.Revision(RevisionEvent{Kind: "retired", Service: v.name, Revision: d.rev.Name, Took: time.Since(began)})
	})
}

// end drains d and keeps it in sight until nothing of it is left; then, unless
// ended is nil, the registry may forget its revision, and ended is called. The
// caller holds mu.
func (v *service) end(d *deployment, timeout time.Duration, ended func()) {
	v.leaving = append(v.leaving, d)
	d.pool.Drain(timeout)
	v.s.wg.Go(func() {
		select {
		case <-d.pool.Done():
		case <-v.s.ctx.Done():
			return
		}
		d.pool.Wait() // it may still tell of its last instance
		v.mu.Lock()
		v.leaving = slices.DeleteFunc(v.leaving, func(o *deployment) bool { return o == d })
		gone, wantedAgain := v.retired && len(v.leaving) == 0, v.deployed[d.rev] != nil
		v.mu.Unlock()
		if ended != nil {
			if !wantedAgain {
				v.s.registry.Drop(d.rev)
			}
			ended()
		}
		if gone {
			v.gone()
		}
	})
}

// gone ends what there is of a retired service without instances, unless another
// has its name by now.
func (v *service) gone() {
	v.s.retiring.Delete(v)
	if !v.s.registry.Known(v.name) {
		v.s.opts.Observer.Revision(RevisionEvent{Kind: "removed", Service: v.name})
	}
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
	v.stopTimers()
	for _, d := range v.deployed {
		switch {
		case d.trial != nil && !d.routed:
			d.trial()
			v.leave(d)
			d.pool.Drain(0)
		case d.failure == nil:
			v.leave(d)
			d.pool.Dismiss()
		}
	}
	clear(v.deployed)
	if len(v.leaving) == 0 {
		v.gone()
	}
}

// stopTimers is for a service that is followed no longer. The caller holds mu.
func (v *service) stopTimers() {
	for _, t := range []*time.Timer{v.step, v.retry} {
		if t != nil {
			t.Stop()
		}
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

// dismiss answers every waiting request with ErrRemoved.
func (v *service) dismiss() {
	v.mu.Lock()
	all := slices.Collect(maps.Values(v.deployed))
	v.mu.Unlock()
	for _, d := range all {
		d.pool.Dismiss()
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
	all := slices.AppendSeq(slices.Clone(v.leaving), maps.Values(v.deployed))
	v.retired = true
	v.route.Store(nil)
	v.stopTimers()
	v.mu.Unlock()
	for _, d := range all {
		if d.trial != nil {
			d.trial()
		}
		d.pool.Detach()
	}
}
