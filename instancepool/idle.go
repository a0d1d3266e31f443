package instancepool

import (
	"fmt"
	"slices"
	"time"
)

const (
	// keepLeast is how long an instance is kept in any case, even when its next
	// request is known to be far.
	keepLeast = 10 * time.Second
	// An instance that is started for an expected request is there so long before
	// it, besides what a start takes, and stays so long after.
	expectBefore = time.Second
	expectAfter  = 2 * time.Second
	// surplusEvery is how often it is looked at whether an idle instance has become
	// one too many.
	surplusEvery = 5 * time.Second
	// lookEvery is how often it is asked whether the load wants more instances.
	lookEvery = time.Second
)

// startIdling notes that i has had nothing to do since then, and sees to it that this is
// looked at when it may have lasted long enough. A timer that ends before is left
// alone: that costs nothing per request. The caller holds mu.
func (p *Pool) startIdling(i *Instance, now, since time.Time) {
	i.idleAt = since
	if p.detached {
		return
	}
	after := p.lookAt(i, now.Sub(since))
	if now.Sub(since) >= p.spec.IdleTimeout {
		after = time.Millisecond // what was no use has kept it
	}
	if p.freezes(i) {
		after = min(after, freezeAfter)
	}
	if !i.idleSet || i.idleEnd.After(now.Add(after)) {
		p.lookIn(i, now, after)
	}
}

// lookIn has idled called. The caller holds mu.
func (p *Pool) lookIn(i *Instance, now time.Time, after time.Duration) {
	i.idleSet, i.idleEnd = true, now.Add(after)
	i.idle = reset(i.idle, after, func() { p.idled(i) })
}

// idled freezes an instance that has been idle for a moment, and stops one that
// has been for long enough. The same lock admits requests, so none can be on its
// way to it.
func (p *Pool) idled(i *Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i.idleSet = false
	if i.state != Ready && i.state != Unready || i.inFlight > 0 || p.detached {
		return
	}
	idle := time.Since(i.idleAt)
	stop, reason := p.tooLong(i, idle)
	if stop {
		p.leaveIdle(i, reason)
		return
	}
	p.goOnIdling(i, time.Now())
}

// goOnIdling freezes i, which has nothing to do, if it has been idle for long
// enough, and sees to it that it is looked at again. The caller holds mu.
func (p *Pool) goOnIdling(i *Instance, now time.Time) {
	idle := now.Sub(i.idleAt)
	next := p.lookAt(i, idle)
	if p.freezes(i) {
		if idle >= freezeAfter {
			p.layDown(i)
		} else {
			next = min(next, freezeAfter-idle)
		}
	}
	next = max(next, time.Millisecond)
	if !i.idleSet || i.idleEnd.After(now.Add(next)) {
		p.lookIn(i, now, next)
	}
}

// tooLong reports whether i, idle for so long, is to be stopped, and why. The
// caller holds mu.
func (p *Pool) tooLong(i *Instance, idle time.Duration) (stop bool, reason string) {
	s := p.snapshot()
	there := p.ready
	if i.state == Unready { // these are the first to go
		there += p.unready
	}
	over := s.Max != 0 && there > max(s.Max, 0)
	switch {
	case over:
		return true, "there may be fewer"
	case i.state == Unready:
		return idle >= p.spec.IdleTimeout && there+p.starting > max(s.Min, s.Floor), "idle, and not ready"
	case p.ready+p.starting <= p.kept(s):
		return false, ""
	case !i.due.IsZero():
		return time.Until(i.due) <= 0, "the request that was expected has not come"
	case idle >= p.spec.IdleTimeout:
		return true, "idle"
	case idle < keepLeast:
		return false, ""
	case p.spec.Scaling.Window > 0 && p.ready > max(1, p.opts.Decide(s).Keep):
		return true, "the load of late needs fewer"
	case p.ready+p.starting == 1:
		// The last one is kept for the next request, unless that has hardly ever come
		// before the idle timeout.
		return p.opts.Rhythm.InVain(idle, p.spec.IdleTimeout), "no request is expected within the idle timeout"
	}
	return false, ""
}

// kept is how many instances are not stopped for being idle, nor for the sake of
// others. The caller holds mu.
func (p *Pool) kept(s Snapshot) int {
	n := max(s.Min, s.Floor)
	if n == 0 && time.Now().Before(p.promised) {
		return 1
	}
	return n
}

// lookAt is after how long i, idle for so long, has to be looked at again. The
// caller holds mu.
func (p *Pool) lookAt(i *Instance, idle time.Duration) time.Duration {
	next := p.spec.IdleTimeout
	sooner := func(at time.Duration) {
		if at > idle && (at < next || next <= idle) {
			next = at
		}
	}
	if !i.due.IsZero() {
		return max(time.Until(i.due), time.Millisecond)
	}
	if kept := time.Until(p.promised); kept > 0 && idle >= p.spec.IdleTimeout {
		return kept
	}
	sooner(keepLeast)
	if idle >= keepLeast {
		if at, ok := p.tooLongAt(idle); ok {
			sooner(at)
		}
	}
	if next <= idle { // it is one of the minimum
		return p.spec.IdleTimeout
	}
	return next - idle
}

// tooLongAt is when an instance that is idle for so long, at least keepLeast, may
// have become one too many before the idle timeout; false when nothing but
// lookAgain can tell. It is a multiple of surplusEvery, so that no instance is
// looked at more often. The caller holds mu.
func (p *Pool) tooLongAt(idle time.Duration) (time.Duration, bool) {
	s, at := p.snapshot(), idle
	switch {
	case s.Max != 0 && p.ready > max(s.Max, 0):
	case p.spec.Scaling.Window == 0:
		return 0, false
	case p.ready+p.starting <= max(s.Min, s.Floor):
		return 0, false
	case p.ready > 1: // the load of late fades
	case p.ready+p.starting > 1:
		return 0, false
	default:
		var vain bool
		if at, vain = p.opts.Rhythm.VainAt(idle, p.spec.IdleTimeout); !vain {
			return 0, false
		}
	}
	looks := int(max((idle-keepLeast)/surplusEvery+1, (at-keepLeast+surplusEvery-1)/surplusEvery))
	return keepLeast + time.Duration(looks)*surplusEvery, true
}

// lookAgain sees to it that instances that are idle are looked at in time, after
// what tooLongAt goes by has changed. The caller holds mu.
func (p *Pool) lookAgain() {
	now := time.Now()
	if _, ok := p.tooLongAt(keepLeast); !ok || p.detached {
		return
	}
	for _, i := range p.instances {
		if i.state != Ready || i.inFlight > 0 || !i.idleSet {
			continue
		}
		if after := p.lookAt(i, now.Sub(i.idleAt)); i.idleEnd.After(now.Add(after)) {
			p.lookIn(i, now, after)
		}
	}
}

// expect sees to it that there is an instance again when the next request is
// due, after the last one has been stopped. The caller holds mu.
func (p *Pool) expect() {
	if p.alive() > 0 || p.phase != open || p.restedAt.IsZero() {
		return
	}
	rest, ok := p.opts.Rhythm.Next(time.Since(p.restedAt))
	if !ok {
		return
	}
	p.due = reset(p.due, time.Until(p.restedAt.Add(p.startFor(rest))), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.detached || p.phase != open || p.alive() > 0 || p.restedAt.IsZero() || p.failing() || p.snapshot().Max < 0 {
			return
		}
		i := p.startOne(fmt.Sprintf("a request is expected %s after the last, as %d times of %d", roughly(rest.From), rest.Seen, rest.Of))
		i.due = p.restedAt.Add(rest.To + expectAfter)
	})
}

// startFor is when an instance has to be started for a request that is expected,
// counted from the one before. The caller holds mu.
func (p *Pool) startFor(rest Rest) time.Duration {
	return rest.From - expectBefore - 2*p.opts.Startups.Mean()
}

// roughly is a duration for people.
func roughly(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Hour:
		return d.Round(time.Hour)
	case d > 10*time.Minute:
		return d.Round(time.Minute)
	}
	return d.Round(time.Second)
}

// Spare is an instance that could be stopped for the sake of others.
type Spare struct {
	ID string
	// Since is when it has last been of use.
	Since time.Time
	// Prepared is set when it is only prepared: then it has no CPU to give.
	Prepared bool
}

// Spares returns the instances that could be stopped for the sake of others, the one
// that has been idle for longest first.
func (p *Pool) Spares() []Spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spares()
}

// spares is Spares. The caller holds mu. An instance that has only just become idle is
// none: it is about to be asked again, and would but be missed. Nor are those that the
// minimum needs.
func (p *Pool) spares() []Spare {
	if p.detached {
		return nil
	}
	all := make([]Spare, 0, len(p.prepared))
	for _, i := range p.instances {
		if (i.state == Ready && time.Since(i.idleAt) >= p.idleLeast() || i.state == Unready) && i.inFlight == 0 {
			all = append(all, Spare{ID: i.id, Since: i.idleAt})
		}
	}
	slices.SortStableFunc(all, func(a, b Spare) int { return a.Since.Compare(b.Since) })
	ready := p.ready + p.starting - p.kept(p.snapshot()) // more than are needed
	left := ready + p.unready
	all = slices.DeleteFunc(all, func(s Spare) bool {
		if left <= 0 {
			return true
		}
		if p.byID(s.ID).state == Ready {
			if ready <= 0 {
				return true
			}
			ready--
		}
		left--
		return false
	})
	for _, a := range p.prepared {
		all = append(all, Spare{ID: a.ID(), Since: a.since, Prepared: true})
	}
	return all
}

// idleLeast is how long an instance must have been idle to be spare. What is not frozen
// for being idle says nothing by that. The caller holds mu.
func (p *Pool) idleLeast() time.Duration {
	if p.spec.Throttled {
		return freezeAfter
	}
	return time.Second
}

func (p *Pool) byID(id string) *Instance {
	at := slices.IndexFunc(p.instances, func(i *Instance) bool { return i.id == id })
	if at < 0 {
		return nil
	}
	return p.instances[at]
}

// Evict stops an instance for the sake of others, if it is still spare.
func (p *Pool) Evict(id, reason string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.ContainsFunc(p.spares(), func(s Spare) bool { return s.ID == id }) {
		return false
	}
	if p.giveUp(id) {
		p.prepareLater()
		return true
	}
	p.leaveIdle(p.byID(id), reason)
	return true
}

// leaveIdle stops an instance that has nothing to do. The caller holds mu.
func (p *Pool) leaveIdle(i *Instance, reason string) {
	unready := i.state == Unready
	p.setState(i, Draining)
	p.askToStop(i, reason)
	if unready {
		p.scale() // there may be another in its place now, which requests may wait for
	}
	p.expect()
}
