package instancepool

import "time"

// waiter is one request that waits for a slot.
type waiter struct {
	since      time.Time
	prev, next *waiter
	queued     bool
	// settled gets exactly one value, when the waiter leaves the queue in any
	// other way than by its own cancellation.
	settled chan grant
}

// grant is what a waiter gets: an instance with a slot taken for it, or why not.
type grant struct {
	instance *Instance
	cold     bool // it had to be started
	frozen   bool // it has to be thawed
	waited   bool // in the queue
	err      error
}

// queue is first in, first out, and anybody can leave it at any place at the
// same cost.
type queue struct {
	head, tail *waiter
	length     int
}

func (q *queue) push(w *waiter) {
	w.queued, w.prev, w.next = true, q.tail, nil
	if q.tail != nil {
		q.tail.next = w
	} else {
		q.head = w
	}
	q.tail = w
	q.length++
}

func (q *queue) pop() *waiter {
	w := q.head
	if w != nil {
		q.remove(w)
	}
	return w
}

func (q *queue) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.tail = w.prev
	}
	w.queued, w.prev, w.next = false, nil, nil
	q.length--
}
