package instancepool

import (
	"context"
	"fmt"
	"time"
)

const (
	// freezeAfter is how long an instance must have had no request to be frozen. It
	// is about what a freeze and a thaw cost together, many times over, and leaves
	// an app a moment to finish what it does after a response.
	freezeAfter = 50 * time.Millisecond
	// thawTimeout bounds a freeze or a thaw, which take about a millisecond.
	thawTimeout = 2 * time.Second
	// exitNoticed is how long the end of a process may take to be noticed.
	exitNoticed = 20 * time.Millisecond
	// freezeAgain is the pause after a freeze that failed.
	freezeAgain = time.Minute
)

// rest says whether an instance that is ready has the CPU.
type rest int

const (
	awake rest = iota
	// asleep instances are frozen, or about to be.
	asleep
	// waking instances have requests that wait for the thaw.
	waking
)

// freezes reports whether i is frozen while it has no requests. A probe that is
// under way is waited for, and an instance that has failed one stays awake until
// it is known how it is. The caller holds mu.
func (p *Pool) freezes(i *Instance) bool {
	_, can := i.handle.(Freezer)
	return can && p.spec.Throttled && i.state == Ready && i.rest == awake && i.asking == 0 && i.doubts == 0 &&
		!time.Now().Before(i.noFreeze)
}

// layDown has i frozen, which has no requests. The caller holds mu.
func (p *Pool) layDown(i *Instance) {
	i.rest = asleep
	if i.news != nil {
		i.woken = make(chan struct{})
	}
	p.frozen++
	p.place(i)
	p.wg.Go(func() { p.freeze(i) })
}

func (p *Pool) freeze(i *Instance) {
	i.ice <- struct{}{}
	defer func() { <-i.ice }()
	p.mu.Lock()
	still := i.rest == asleep && i.state == Ready
	p.mu.Unlock()
	if !still {
		return // a request came in between
	}
	ctx, cancel := context.WithTimeout(p.ctx, thawTimeout)
	defer cancel()
	i.iced = true // whatever comes of it: a thaw puts that right
	err := i.handle.(Freezer).Freeze(ctx)
	if err == nil || p.ctx.Err() != nil {
		return
	}
	if ended(i.handle) {
		return // that is why, and run says so
	}
	p.mu.Lock()
	i.noFreeze = time.Now().Add(freezeAgain)
	p.mu.Unlock()
	if thawErr := p.melt(i); thawErr != nil {
		p.lostInIce(i, thawErr)
		return
	}
	p.mu.Lock()
	p.wakeUp(i)
	p.place(i)
	if i.inFlight == 0 && i.state == Ready {
		now := time.Now()
		p.startIdling(i, now, now)
	}
	p.mu.Unlock()
	e := p.event(i, i.handle, Frozen, "it runs on without a request")
	e.Err = err
	p.opts.Observe(e)
}

// ended reports whether a process has ended, which may be noticed a moment later.
func ended(h Handle) bool {
	moment := time.NewTimer(exitNoticed)
	defer moment.Stop()
	select {
	case <-h.Exited():
		return true
	case <-moment.C:
		return false
	}
}

// thaw returns when i, which a request has been admitted to, has the CPU again.
// An instance that cannot be thawed has failed: for all that wait for it.
func (p *Pool) thaw(ctx context.Context, i *Instance) error {
	select {
	case i.ice <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-i.ice }()
	p.mu.Lock()
	lost := i.state == Draining || i.state == Failed
	p.mu.Unlock()
	if lost {
		return fmt.Errorf("instance %s is being stopped", i.id)
	}
	if i.iced {
		if err := p.melt(i); err != nil {
			p.lostInIce(i, err)
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakeUp(i)
	p.place(i)
	return nil
}

// leaveFrozen is release for a request that i was not thawed for: if it was the only
// one, i goes on sleeping.
func (p *Pool) leaveFrozen(i *Instance) {
	p.mu.Lock()
	if i.rest == waking && i.inFlight == 1 && i.state == Ready && !p.detached {
		i.rest = asleep
		p.wg.Go(func() { p.freeze(i) }) // the freeze may have made way for the request
	}
	p.mu.Unlock()
	p.release(i)
}

// melt thaws i. The caller has i.ice.
func (p *Pool) melt(i *Instance) error {
	ctx, cancel := context.WithTimeout(p.ctx, thawTimeout)
	defer cancel()
	if err := i.handle.(Freezer).Thaw(ctx); err != nil {
		return fmt.Errorf("thawing instance %s: %w", i.id, err)
	}
	i.iced = false
	return nil
}

// wakeUp notes that i has the CPU. The caller holds mu.
func (p *Pool) wakeUp(i *Instance) {
	if i.rest != awake {
		p.frozen--
		i.rest = awake
		if i.woken != nil {
			close(i.woken)
			i.woken = nil
		}
	}
}

// lostInIce gives up an instance that does not thaw: it is stopped, and
// another takes its requests.
func (p *Pool) lostInIce(i *Instance, err error) {
	gone := ended(i.handle)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakeUp(i)
	if gone || i.state != Ready || p.detached {
		return // run says why
	}
	p.setState(i, Draining)
	p.askToStop(i, "it does not thaw: "+err.Error())
	p.scale()
	p.settle()
}
