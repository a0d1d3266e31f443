package simulation

import (
	"slices"
	"time"
)

// queueDepth is how many requests may wait, in Knative's activator as well as in
// Fairway. That one waits in vain for so long that it is given up does not happen in
// any trace with any policy that runs on a fleet, and so is left out.
const queueDepth = 10_000

// policy decides how many instances a fleet has.
type policy interface {
	// waits is called when a request has come that found no free slot.
	waits()
	// idles is called when an instance has become idle.
	idles(*instance)
}

// fleet is the instances of a service and the queue before them: first in, first
// out, and none is bound to an instance before that has a free slot.
type fleet struct {
	*clock
	meter  *meter
	of     Service
	pick   picker
	policy policy
	load   load
	// freezeAfter is how long an instance must have been idle to be frozen; below 0:
	// never is. thaw is what a thaw takes.
	freezeAfter, thaw time.Duration

	instances []*instance // the oldest first, those that are leaving too
	queue     []request
	serving   int
	uses      int // counts what is done with instances, to tell what was last
}

// instance is one of a fleet. It is ready when its start is over.
type instance struct {
	ready    bool
	leaving  bool // takes no more requests, and ends when it has none
	inFlight int
	frozen   bool
	awakeAt  time.Duration // when its last thaw is over
	used     int           // when it was last given a request, in uses
	opened   int           // when it last became one that is awake and has a free slot
}

func newFleet(c *clock, m *meter, of Service, pick picker) *fleet {
	return &fleet{clock: c, meter: m, of: of, pick: pick, freezeAfter: -1}
}

func (f *fleet) serve(r request) {
	f.note()
	f.meter.came(f.now)
	f.queue = append(f.queue, r)
	f.hand()
	switch {
	case len(f.queue) > queueDepth:
		f.queue = f.queue[:len(f.queue)-1]
		f.meter.rejected()
		f.meter.left(f.now)
		r.done()
	case len(f.queue) > 0:
		f.policy.waits()
	}
}

// note accounts for the load until now. It is called before that changes.
func (f *fleet) note() { f.load.note(f.now, len(f.queue)+f.serving) }

// hand gives free slots to those who wait.
func (f *fleet) hand() {
	for len(f.queue) > 0 {
		i := f.pick(f)
		if i == nil {
			return
		}
		r := f.queue[0]
		f.queue = f.queue[1:]
		f.admit(i, r)
	}
}

func (f *fleet) admit(i *instance, r request) {
	if i.frozen {
		i.frozen = false
		i.awakeAt = f.now + f.thaw
		f.open(i)
		f.meter.thawed(f.now)
	}
	f.uses++
	i.used = f.uses
	i.inFlight++
	f.serving++
	thaw := max(0, i.awakeAt-f.now)
	f.meter.admitted(f.now + thaw - r.came)
	f.after(thaw+r.takes, func() {
		f.release(i)
		r.done()
	})
}

func (f *fleet) release(i *instance) {
	f.note()
	f.meter.left(f.now)
	if i.inFlight == f.of.Concurrency {
		f.open(i)
	}
	i.inFlight--
	f.serving--
	f.hand()
	f.settle(i)
}

func (f *fleet) open(i *instance) {
	f.uses++
	i.opened = f.uses
}

// settle sees to an instance that may have nothing to do.
func (f *fleet) settle(i *instance) {
	switch {
	case i.inFlight > 0:
	case i.leaving:
		f.end(i)
	default:
		f.whenIdle(i, f.freezeAfter, func() {
			i.frozen = true
			f.meter.froze(f.now)
		})
		f.policy.idles(i)
	}
}

// whenIdle calls f when i, which is idle now, has been for that long; it does not if
// a request comes before, or if after is below 0.
func (f *fleet) whenIdle(i *instance, after time.Duration, then func()) {
	if after < 0 {
		return
	}
	used := i.used
	f.after(after, func() {
		if i.used == used && i.inFlight == 0 && !i.leaving {
			then()
		}
	})
}

// start starts n instances.
func (f *fleet) start(n int) {
	for range n {
		i := new(instance)
		f.instances = append(f.instances, i)
		f.meter.started(f.now)
		f.after(f.of.Startup, func() {
			if i.leaving {
				return // it has ended
			}
			i.ready = true
			f.open(i)
			f.hand()
			f.settle(i)
		})
	}
}

// stop lets an instance end once it has no requests.
func (f *fleet) stop(i *instance) {
	i.leaving = true
	if i.inFlight == 0 {
		f.end(i)
	}
}

func (f *fleet) end(i *instance) {
	f.instances = slices.DeleteFunc(f.instances, func(o *instance) bool { return o == i })
	f.meter.ended(f.now, i.frozen)
}

// count tells how many instances take or will take requests.
func (f *fleet) count() (ready, starting int) {
	for _, i := range f.instances {
		switch {
		case i.leaving:
		case i.ready:
			ready++
		default:
			starting++
		}
	}
	return ready, starting
}
