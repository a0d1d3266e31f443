package simulator

import (
	"math/rand/v2"
	"time"
)

// instance is one of a fleet.
type instance struct {
	began    time.Duration
	ready    bool
	leaving  bool // takes no more requests
	inFlight int
	idleAt   time.Duration // since when inFlight is 0
	awakeAt  time.Duration // since when it has the CPU
	frozen   bool
	used     int // counts requests, for those who ask when it was used last
}

// fleet are the simulated instances of a service, and the queue before them. A
// policy tells it when to start and stop some.
type fleet struct {
	clock
	of      service
	pick    func(free []*instance) *instance
	changed func()        // called when a request has come, got its slot or gone
	grace   time.Duration // to a freeze; below 0: never
	keep    time.Duration // to an idle instance's stop; below 0: the policy's to decide

	all    []*instance
	queue  []request // at is when it came
	uses   int
	left   int // requests that are still to come or to end
	result result
}

func newFleet(of service) *fleet {
	f := &fleet{of: of, grace: -1, keep: -1, left: len(of.requests), pick: first, changed: func() {}}
	for _, r := range of.requests {
		f.at(r.at, func() {
			f.queue = append(f.queue, r)
			f.changed()
			f.hand()
		})
	}
	f.after(time.Second, f.sample)
	return f
}

// sample notes once a second what there is.
func (f *fleet) sample() {
	var s sample
	for _, i := range f.all {
		s.requests += i.inFlight
		s.existing++
		if !i.frozen {
			s.unfrozen++
		}
	}
	f.result.samples = append(f.result.samples, s)
	if f.left > 0 || len(f.all) > 0 {
		f.after(time.Second, f.sample)
	}
}

// first takes the first that is free, which keeps the others idle.
func first(free []*instance) *instance { return free[0] }

// recent takes the one that was used last.
func recent(free []*instance) *instance {
	best := free[0]
	for _, i := range free {
		if i.used > best.used {
			best = i
		}
	}
	return best
}

// leastLoaded takes the one with the fewest requests.
func leastLoaded(free []*instance) *instance {
	best := free[0]
	for _, i := range free {
		if i.inFlight < best.inFlight {
			best = i
		}
	}
	return best
}

// roundRobin takes the one that was used longest ago.
func roundRobin(free []*instance) *instance {
	best := free[0]
	for _, i := range free {
		if i.used < best.used {
			best = i
		}
	}
	return best
}

func atRandom(r *rand.Rand) func([]*instance) *instance {
	return func(free []*instance) *instance { return free[r.IntN(len(free))] }
}

// hand gives free slots to those who wait.
func (f *fleet) hand() {
	for len(f.queue) > 0 {
		var free []*instance
		for _, i := range f.all {
			if i.ready && !i.leaving && i.inFlight < f.of.concurrency {
				free = append(free, i)
			}
		}
		if len(free) == 0 {
			return
		}
		f.admit(f.pick(free))
	}
}

func (f *fleet) admit(i *instance) {
	r := f.queue[0]
	f.queue = f.queue[1:]
	f.result.waits = append(f.result.waits, f.now-r.at)
	f.uses++
	i.used = f.uses
	i.inFlight++
	if i.frozen {
		i.frozen, i.awakeAt = false, f.now
	}
	f.changed()
	f.after(r.takes, func() {
		i.inFlight--
		f.left--
		if i.inFlight == 0 {
			f.idle(i)
		}
		f.changed()
		f.hand()
	})
}

func (f *fleet) idle(i *instance) {
	i.idleAt = f.now
	if i.leaving {
		f.gone(i)
		return
	}
	was := i.used
	unused := func() bool { return i.used == was && i.inFlight == 0 && !i.leaving }
	if f.grace >= 0 {
		f.after(f.grace, func() {
			if unused() && !i.frozen {
				i.frozen = true
				f.result.freezes++
				f.result.unfrozen += f.now - i.awakeAt
			}
		})
	}
	if f.keep >= 0 {
		f.after(f.keep, func() {
			if unused() {
				f.stop(i)
			}
		})
	}
}

// start starts an instance.
func (f *fleet) start() {
	i := &instance{began: f.now, awakeAt: f.now}
	f.all = append(f.all, i)
	f.result.starts++
	f.result.most = max(f.result.most, len(f.all))
	f.after(f.of.startup, func() {
		i.ready = true
		if i.leaving {
			f.gone(i)
			return
		}
		f.idle(i)
		f.hand()
		f.changed()
	})
}

// stop stops an instance when it has done what it has to do.
func (f *fleet) stop(i *instance) {
	if i.leaving {
		return
	}
	i.leaving = true
	if i.ready && i.inFlight == 0 {
		f.gone(i)
	}
}

func (f *fleet) gone(i *instance) {
	for n, o := range f.all {
		if o == i {
			f.all = append(f.all[:n], f.all[n+1:]...)
			break
		}
	}
	f.result.existing += f.now - i.began
	if !i.frozen {
		f.result.unfrozen += f.now - i.awakeAt
	}
}

// counts tells how many instances there are that take or will take requests.
func (f *fleet) counts() (ready, starting, inFlight int) {
	for _, i := range f.all {
		inFlight += i.inFlight
		switch {
		case i.leaving:
		case i.ready:
			ready++
		default:
			starting++
		}
	}
	return ready, starting, inFlight
}

// forEachService runs a policy on each service of a trace, as none of these knows
// of the others.
func forEachService(t trace, policy func(service) result) result {
	var all result
	for _, s := range t.services {
		all.add(policy(s))
	}
	return all
}

// reactive starts an instance when those that there are, or start, have no slot
// for a request, and stops one that was idle for as long as keep.
func reactive(pick func([]*instance) *instance, keep, grace time.Duration) func(service) result {
	return func(s service) result {
		f := newFleet(s)
		f.pick, f.keep, f.grace = pick, keep, grace
		f.changed = func() {
			ready, starting, inFlight := f.counts()
			if len(f.queue) > ready*s.concurrency-inFlight+starting*s.concurrency {
				f.start()
			}
		}
		f.run()
		return f.result
	}
}

// perRequest starts an instance for each request that finds no free slot.
func perRequest(keep time.Duration) func(service) result {
	return func(s service) result {
		f := newFleet(s)
		f.pick, f.keep = recent, keep
		f.changed = func() {
			ready, starting, inFlight := f.counts()
			if len(f.queue) > ready*s.concurrency-inFlight+starting {
				f.start()
			}
		}
		f.run()
		return f.result
	}
}

// clairvoyant is what nobody can do better: at each moment as many instances as the
// requests need that are being served, none of which has waited.
func clairvoyant(s service) result {
	var c clock
	var r result
	inFlight, since := 0, time.Duration(0)
	count := func(change int) {
		n := (inFlight + s.concurrency - 1) / s.concurrency
		r.existing += time.Duration(n) * (c.now - since)
		r.most = max(r.most, n)
		inFlight, since = inFlight+change, c.now
	}
	for _, q := range s.requests {
		c.at(q.at, func() {
			r.waits = append(r.waits, 0)
			count(1)
			c.after(q.takes, func() { count(-1) })
		})
	}
	c.run()
	r.unfrozen = r.existing
	return r
}
