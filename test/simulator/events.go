package simulator

import (
	"container/heap"
	"time"
)

// clock runs what happens in a simulation, in the order of time.
type clock struct {
	now    time.Duration
	events eventHeap
	order  int
}

type event struct {
	at    time.Duration
	order int // of those at the same time the one that was asked for first
	run   func()
}

// at has f run at a time that is not past.
func (c *clock) at(at time.Duration, f func()) {
	c.order++
	heap.Push(&c.events, event{max(at, c.now), c.order, f})
}

func (c *clock) after(d time.Duration, f func()) { c.at(c.now+d, f) }

// run runs until nothing is left.
func (c *clock) run() {
	for len(c.events) > 0 {
		e := heap.Pop(&c.events).(event)
		c.now = e.at
		e.run()
	}
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].order < h[j].order
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1].run = nil
	*h = old[:len(old)-1]
	return e
}
