package instancepool

import (
	"context"
	"fmt"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// watcher asks one check of one container of an instance.
type watcher struct {
	p         *Pool
	i         *Instance
	container string
	check     revisions.Check

	// What the answers were, in a row; it has failed, or it is in doubt whether it will.
	failures, successes int
	failed, doubted     bool
}

// startChecks asks how i is, which is ready, until ctx ends. Its start counts as the
// first success, so that the first attempt is a period later.
func (p *Pool) startChecks(ctx context.Context, i *Instance) {
	if !p.checked {
		return
	}
	for _, h := range p.spec.Health {
		for _, check := range h.Checks {
			w := &watcher{p: p, i: i, container: h.Container, check: check}
			p.wg.Go(func() { w.run(ctx) })
		}
	}
}

// run asks from time to time. A frozen instance is not asked, and no timer goes on
// for it: what is due by then is asked when it has been thawed for a request.
func (w *watcher) run(ctx context.Context) {
	ask, done := prober(w.i.handle, w.container, w.check.Probe)
	defer done()
	next := time.Now().Add(w.check.Period)
	if first := w.i.handle.Started().Add(w.check.Delay); first.After(next) {
		next = first
	}
	for pause(ctx, time.Until(next)) && w.begin(ctx) {
		next = time.Now().Add(w.check.Period)
		attempt, release := context.WithTimeout(ctx, w.check.Attempt)
		err := ask(attempt)
		release()
		if news := w.end(ctx, err); news != nil {
			select {
			case w.i.news <- *news:
			case <-ctx.Done():
			}
		}
	}
}

// begin waits until the instance has the CPU, and keeps it from being frozen until
// end. It reports false when the instance need not be asked any more.
func (w *watcher) begin(ctx context.Context) bool {
	p, i := w.p, w.i
	for {
		p.mu.Lock()
		if p.detached || i.stopSent || i.state != Ready && i.state != Suspect && i.state != Unready {
			p.mu.Unlock()
			return false
		}
		if i.rest == awake {
			i.asking++
			p.mu.Unlock()
			return true
		}
		woken := i.woken
		p.mu.Unlock()
		select {
		case <-woken:
		case <-ctx.Done():
			return false
		}
	}
}

// end counts the answer, and does what follows from it; it returns what there is to
// tell of that.
func (w *watcher) end(ctx context.Context, err error) *Event {
	p, i := w.p, w.i
	var fault *StartError
	if err != nil && w.check.Liveness && w.failures+1 >= w.check.Failures {
		fault = &StartError{
			Revision: p.rev.Name, Reason: "LivenessProbeFailed", Err: w.failure(err), Log: i.handle.LogTail(logTail),
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i.asking--
	if ctx.Err() != nil || p.detached || i.stopSent || i.state != Ready && i.state != Suspect && i.state != Unready {
		return nil
	}
	if fault != nil {
		i.fault = fault
		p.broke(i, fault)
		p.askToStop(i, "liveness probe failed")
		return nil
	}
	w.count(err == nil)
	news := w.follow(err)
	// A probe is not use: the instance goes on resting where it was interrupted.
	if (i.state == Ready || i.state == Unready) && i.inFlight == 0 && i.rest == awake {
		p.goOnIdling(i, time.Now())
	}
	p.settle()
	return news
}

// count counts one answer. The caller holds mu.
func (w *watcher) count(success bool) {
	i := w.i
	if success {
		w.failures = 0
		w.successes++
	} else {
		w.successes = 0
		w.failures++
	}
	failed := w.failed
	switch {
	case w.check.Liveness:
	case w.failures >= w.check.Failures:
		w.failed = true
	case w.successes >= w.check.Successes:
		w.failed = false
	}
	i.lost += change(failed, w.failed)
	doubted := w.doubted
	w.doubted = w.failed || w.failures > 0
	i.doubts += change(doubted, w.doubted)
}

// change is what a count of what is so changes by.
func change(before, now bool) int {
	switch {
	case now && !before:
		return 1
	case before && !now:
		return -1
	}
	return 0
}

// follow takes the instance out of use, or into use again, if the checks say so;
// it returns what there is to tell of that. The caller holds mu.
func (w *watcher) follow(err error) *Event {
	p, i := w.p, w.i
	switch {
	case i.lost > 0 && i.state == Ready:
		e := p.event(i, i.handle, Unready, w.failure(err).Error())
		e.Took = time.Since(i.since)
		p.setState(i, Unready)
		p.scale()
		return &e
	case i.lost == 0 && i.state == Unready:
		e := p.event(i, i.handle, Ready, "readiness probe succeeded again")
		e.Took = time.Since(i.since)
		p.makeReady(i)
		p.answerAwaits(nil)
		p.handOver(false)
		return &e
	}
	return nil
}

// failure says that the check has failed, the last time with err.
func (w *watcher) failure(err error) error {
	whose := ""
	if len(w.p.spec.Health) > 1 {
		whose = " of container " + w.container
	}
	times := "once"
	if w.check.Failures > 1 {
		times = fmt.Sprintf("%d times in a row", w.check.Failures)
	}
	return fmt.Errorf("the %s probe%s (%s) failed %s: %w", w.check.Word(), whose, describe(w.check.Probe), times, err)
}

// faultOf is why i is ended at once, or nil.
func (p *Pool) faultOf(i *Instance) *StartError {
	p.mu.Lock()
	defer p.mu.Unlock()
	return i.fault
}
