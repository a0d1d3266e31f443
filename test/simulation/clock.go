package simulation

import "time"

// clock runs what happens in a simulation in the order of time. What happens at the
// same time does so in the order in which it was asked for, so that each run is like
// every other.
type clock struct {
	now    time.Duration
	events []event // a heap
	asked  int
}

type event struct {
	at  time.Duration
	nth int
	run func()
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.nth < o.nth }

// after has f run when d has passed.
func (c *clock) after(d time.Duration, f func()) {
	c.asked++
	c.events = append(c.events, event{c.now + max(d, 0), c.asked, f})
	for i := len(c.events) - 1; i > 0; {
		parent := (i - 1) / 2
		if !c.events[i].before(c.events[parent]) {
			return
		}
		c.events[i], c.events[parent] = c.events[parent], c.events[i]
		i = parent
	}
}

// run returns when nothing is left to happen.
func (c *clock) run() {
	for len(c.events) > 0 {
		e := c.pop()
		c.now = e.at
		e.run()
	}
}

func (c *clock) pop() event {
	first, last := c.events[0], len(c.events)-1
	c.events[0] = c.events[last]
	c.events[last] = event{}
	c.events = c.events[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			return first
		}
		if child+1 < last && c.events[child+1].before(c.events[child]) {
			child++
		}
		if !c.events[child].before(c.events[i]) {
			return first
		}
		c.events[i], c.events[child] = c.events[child], c.events[i]
		i = child
	}
}
