package scaler

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

const (
	// budgetPart of the host's memory is for instances.
	budgetPart = 0.9
	// roomPatience is how long a start waits for memory.
	roomPatience = 10 * time.Second
	// roomEvery is how often it is looked at whether there is some now: what others
	// on the host use changes without a word.
	roomEvery = 100 * time.Millisecond
	// preparedMemory is what an instance holds that is prepared: a shim and runc's init.
	preparedMemory = 8 << 20
	// capacityFor is how long an answer about the host's memory is believed.
	capacityFor = 50 * time.Millisecond
)

// budget shares the host's memory among the instances of all services. An
// instance counts with its limit until it is known what it holds.
type budget struct {
	size     func() (instancepool.Capacity, error)
	makeRoom func() (id string, ok bool) // has something stopped; called without mu

	mu      sync.Mutex // guards all below
	limits  Limits
	held    map[string]int64
	used    int64
	leaving map[string]bool // asked to stop for the sake of others
	queue   []*claim        // those who wait for memory, in order
	changed chan struct{}   // closed, and replaced, when a claim may have become grantable
	evicted int
	host    instancepool.Capacity
	hostAt  time.Time
}

type claim struct {
	id    string
	bytes int64
}

func newBudget(limits Limits, engine instancepool.Runtime, makeRoom func() (string, bool)) *budget {
	b := &budget{limits: limits, makeRoom: makeRoom, held: make(map[string]int64), leaving: make(map[string]bool), changed: make(chan struct{})}
	if s, ok := engine.(instancepool.Sizer); ok {
		b.size = s.Capacity
	}
	return b
}

// roomError says why there is no room.
type roomError struct{ need, free, total int64 }

func (e *roomError) Error() string {
	return fmt.Sprintf("%v: it may use %s, %s of %s are free, and nothing idle can go",
		instancepool.ErrNoRoom, inMiB(e.need), inMiB(e.free), inMiB(e.total))
}

func (e *roomError) Unwrap() error { return instancepool.ErrNoRoom }

func inMiB(n int64) string { return fmt.Sprintf("%d MiB", max(0, n)>>20) }

// total is what all instances may hold; 0 means any amount. The caller holds mu.
func (b *budget) total() int64 {
	if b.limits.Memory != 0 {
		return max(b.limits.Memory, 0)
	}
	part := b.limits.MemoryPart
	if part == 0 {
		part = budgetPart
	}
	return int64(part * float64(b.capacity().Memory))
}

func (b *budget) setLimits(l Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = l
	b.tell()
}

// capacity is the host's. The caller holds mu.
func (b *budget) capacity() instancepool.Capacity {
	if b.size != nil && time.Since(b.hostAt) >= capacityFor {
		if c, err := b.size(); err == nil {
			b.host = c
		}
		b.hostAt = time.Now()
	}
	return b.host
}

// free is how much memory a start may have now. The caller holds mu.
func (b *budget) free() (free, total int64) {
	total = b.total()
	if total == 0 {
		return 1 << 62, 0
	}
	free = total - b.used
	// What is promised to instances that start is not used yet, so what the host has
	// left may be less than it seems; that is what the budget is for. But others use
	// the host's memory too, of which the budget knows nothing.
	if host := b.capacity(); host.Available > 0 && b.limits.Memory == 0 {
		free = min(free, host.Available)
	}
	return free, total
}

// take returns when there is memory for an instance, or with a *roomError. What can
// go is stopped for it.
func (b *budget) take(ctx context.Context, id string, bytes int64) error {
	c := &claim{id, bytes}
	b.mu.Lock()
	b.queue = append(b.queue, c)
	b.mu.Unlock()
	defer b.leave(c)
	patience := time.NewTimer(roomPatience)
	defer patience.Stop()
	var tick *time.Ticker
	for {
		granted, changed, err := b.try(c)
		if granted || err != nil {
			return err
		}
		if tick == nil {
			tick = time.NewTicker(roomEvery)
			defer tick.Stop()
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-patience.C:
			b.mu.Lock()
			defer b.mu.Unlock()
			free, total := b.free()
			return &roomError{bytes, free, total}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try grants a claim if it is the first and there is room, or makes some. If it
// does not, changed tells when to try again.
func (b *budget) try(c *claim) (granted bool, changed <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = b.changed
	if b.queue[0] != c {
		return false, changed, nil
	}
	for {
		free, total := b.free()
		free += b.held[c.id] // it may have been prepared
		if total > 0 && c.bytes > total {
			return false, nil, &roomError{c.bytes, free, total}
		}
		if c.bytes <= free {
			b.hold(c.id, c.bytes)
			return true, nil, nil
		}
		for id := range b.leaving {
			free += b.held[id]
		}
		if c.bytes <= free {
			return false, changed, nil // it will do when they are gone
		}
		b.mu.Unlock()
		id, ok := b.makeRoom()
		b.mu.Lock()
		if !ok {
			return false, changed, nil
		}
		b.leaving[id] = true
		b.evicted++
	}
}

func (b *budget) leave(c *claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = slices.DeleteFunc(b.queue, func(o *claim) bool { return o == c })
	b.tell()
}

// tell wakes those who wait. The caller holds mu.
func (b *budget) tell() {
	if len(b.queue) > 0 {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// spare takes memory for an instance that is only prepared, if there is plenty
// and nobody waits.
func (b *budget) spare(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if free, _ := b.free(); len(b.queue) > 0 || free < preparedMemory {
		return false
	}
	b.hold(id, preparedMemory)
	return true
}

// hold notes what an instance counts with. The caller holds mu.
func (b *budget) hold(id string, bytes int64) {
	b.used += bytes - b.held[id]
	b.held[id] = bytes
}

// set notes what an instance was found to hold.
func (b *budget) set(id string, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.held[id]; ok {
		b.hold(id, bytes)
		b.tell()
	}
}

// drop forgets an instance.
func (b *budget) drop(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= b.held[id]
	delete(b.held, id)
	delete(b.leaving, id)
	b.tell()
}

// follow notes what becomes of instances. limit is that of their revision.
func (b *budget) follow(e instancepool.Event, limit int64) {
	switch {
	case e.State == instancepool.Starting && e.Adopted: // it is there, whatever it needs
		b.mu.Lock()
		defer b.mu.Unlock()
		b.hold(e.Instance, limit)
	case e.State == instancepool.Stopped, e.State == instancepool.Failed:
		b.drop(e.Instance)
	}
}

// BudgetStatus is how the host's memory is used.
type BudgetStatus struct {
	// Total is what all instances may hold, in bytes, 0 without a bound; Used is what
	// they count with.
	Total, Used int64
	// Evictions counts the instances that were stopped for the sake of others.
	Evictions int
	// Waiting counts the starts that wait for memory.
	Waiting int
}

func (b *budget) status() BudgetStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return BudgetStatus{Total: b.total(), Used: b.used, Evictions: b.evicted, Waiting: len(b.queue)}
}
