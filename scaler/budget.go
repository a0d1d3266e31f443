package scaler

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

const (
	// budgetPart of the host's memory is for instances.
	budgetPart = 0.9
	// roomPatience is how long a start waits for room.
	roomPatience = 10 * time.Second
	// roomEvery is how often it is looked at whether there is some now: what others
	// on the host use changes without a word.
	roomEvery = 100 * time.Millisecond
	// preparedMemory is what an instance holds that is prepared: a shim and runc's init.
	preparedMemory = 8 << 20
	// capacityFor is how long an answer about the host's memory is believed.
	capacityFor = 50 * time.Millisecond
)

// budget shares the host's memory, and its CPU if that is bounded, among the
// instances of all services. An instance counts with its limits; in memory, until
// it is known what it holds.
type budget struct {
	size func() (instancepool.Capacity, error)
	// spares are what could be stopped for the sake of others, those first that are to go
	// first. It and its results are called without mu.
	spares func() []spare

	mu       sync.Mutex // guards all below
	limits   Limits
	held     map[string]room
	used     room
	promised map[string]bool // whose memory is a limit, not what was found
	promises int64           // the sum of their memory
	leaving  map[string]bool // asked to stop for the sake of others
	queue    []*claim        // those who wait for room, in order
	changed  chan struct{}   // closed, and replaced, when a claim may have become grantable
	evicted  int
	host     instancepool.Capacity
	hostAt   time.Time
}

// room is what instances take: bytes of memory, and thousandths of a processor.
type room struct{ memory, cpu int64 }

// roomFor is what an instance of a revision may take.
func roomFor(s *revisions.Spec) room { return room{s.Memory, int64(math.Round(s.CPU * 1000))} }

// endless is as much as anything may take.
var endless = room{1 << 62, 1 << 62}

func (r room) plus(o room) room  { return room{r.memory + o.memory, r.cpu + o.cpu} }
func (r room) minus(o room) room { return room{r.memory - o.memory, r.cpu - o.cpu} }
func (r room) in(o room) bool    { return r.memory <= o.memory && r.cpu <= o.cpu }

type claim struct {
	id   string
	need room
	// stuck is set when nothing could be done for it the last time that it was looked
	// at: others may pass.
	stuck bool
}

// spare is an instance that could be stopped for the sake of others.
type spare struct {
	instancepool.Spare
	evict func() bool // false if it is in use by now
}

func newBudget(limits Limits, engine instancepool.Runtime, spares func() []spare) *budget {
	b := &budget{
		limits: limits, spares: spares, changed: make(chan struct{}),
		held: make(map[string]room), promised: make(map[string]bool), leaving: make(map[string]bool),
	}
	if s, ok := engine.(instancepool.Sizer); ok {
		b.size = s.Capacity
	}
	return b
}

// roomError says why there is no room.
type roomError struct {
	need, free, total room
	never             bool // not even if all others went
}

func (e *roomError) Error() string {
	need, free, total := inMiB(e.need.memory), inMiB(e.free.memory), inMiB(e.total.memory)
	enough := e.free
	if e.never {
		enough = e.total
	}
	if e.total.cpu > 0 && e.need.cpu > enough.cpu && (e.need.memory <= enough.memory || e.total.memory == 0) {
		need, free, total = inCPUs(e.need.cpu), inCPUs(e.free.cpu), inCPUs(e.total.cpu)
	}
	if e.never {
		return fmt.Sprintf("%v: it may use %s, and all instances together %s", instancepool.ErrNoRoom, need, total)
	}
	return fmt.Sprintf("%v: it may use %s, %s of %s are free, and nothing idle can go", instancepool.ErrNoRoom, need, free, total)
}

func (e *roomError) Unwrap() error {
	if e.never {
		return instancepool.ErrTooLarge
	}
	return instancepool.ErrNoRoom
}

func inMiB(n int64) string { return fmt.Sprintf("%d MiB", max(0, n)>>20) }

func inCPUs(n int64) string {
	return strconv.FormatFloat(float64(max(0, n))/1000, 'f', -1, 64) + " CPUs"
}

// total is what all instances may hold; 0 means any amount. The caller holds mu.
func (b *budget) total() room {
	cpu := b.limits.CPU
	if part := b.limits.CPUPart; part > 0 {
		cpu = part * b.capacity().CPU
	}
	total := room{max(b.limits.Memory, 0), int64(math.Round(cpu * 1000))}
	if b.limits.Memory == 0 {
		part := b.limits.MemoryPart
		if part == 0 {
			part = budgetPart
		}
		total.memory = int64(part * float64(b.capacity().Memory))
	}
	return total
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

// free is how much a start may have now. The caller holds mu.
func (b *budget) free() (free, total room) {
	free, total = endless, b.total()
	if total.cpu > 0 {
		free.cpu = total.cpu - b.used.cpu
	}
	if total.memory == 0 {
		return free, total
	}
	free.memory = total.memory - b.used.memory
	// Others use the host's memory too, of which the budget knows nothing. What is
	// promised to instances that start is not used yet: it seems to be left.
	if host := b.capacity(); host.Available > 0 && b.limits.Memory == 0 {
		free.memory = min(free.memory, host.Available-b.promises)
	}
	return free, total
}

// take returns when there is room for an instance, or with a *roomError. What can
// go is stopped for it.
func (b *budget) take(ctx context.Context, id string, need room) error {
	c := &claim{id: id, need: need}
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
			return &roomError{need: need, free: free, total: total}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try grants a claim in its turn if there is room, or makes some. If it does not,
// changed tells when to try again.
func (b *budget) try(c *claim) (granted bool, changed <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		free, total := b.free()
		if total.memory > 0 && c.need.memory > total.memory || total.cpu > 0 && c.need.cpu > total.cpu {
			return false, nil, &roomError{need: c.need, free: free, total: total, never: true}
		}
		if first := b.before(c, free); first != nil {
			if first.stuck && first.need.in(c.need) {
				b.stick(c)
			}
			return false, b.changed, nil
		}
		free = free.plus(b.held[c.id]) // it may have been prepared
		if c.need.in(free) {
			b.hold(c.id, c.need, true)
			return true, nil, nil
		}
		free = free.plus(b.soon())
		if c.need.in(free) {
			c.stuck = false
			return false, b.changed, nil // it will do when they are gone
		}
		if !b.evict(c.need, free) {
			b.stick(c)
			return false, b.changed, nil
		}
	}
}

// before returns a claim that has waited for longer than c, and that is to have what
// is free; nil when there is none: those for which nothing can be done have to let
// c pass, if it needs less. The caller holds mu.
func (b *budget) before(c *claim, free room) *claim {
	free = free.plus(b.soon())
	for _, o := range b.queue[:slices.Index(b.queue, c)] {
		if !o.stuck || o.need.in(c.need) || o.need.in(free.plus(b.held[o.id])) {
			return o
		}
	}
	return nil
}

// stick notes that nothing can be done for c now. The caller holds mu.
func (b *budget) stick(c *claim) {
	if !c.stuck {
		c.stuck = true
		b.tell()
	}
}

// soon is what those hold who are asked to stop. The caller holds mu.
func (b *budget) soon() (r room) {
	for id := range b.leaving {
		r = r.plus(b.held[id])
	}
	return r
}

// relieve stops what is spare while instances hold more than all may: they have grown.
func (b *budget) relieve() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		total := b.total()
		over := b.used.minus(b.soon()).memory - total.memory
		if total.memory == 0 || over <= 0 {
			return
		}
		// As much as there is, if that is not enough.
		if !b.evict(room{memory: 1}, room{cpu: endless.cpu}) {
			return
		}
	}
}

// evict has the first of the spares stopped that gives what need has too little of,
// and reports whether it did. It stops none if all of them together would not be
// enough. The caller holds mu, which is free meanwhile.
func (b *budget) evict(need, free room) bool {
	b.mu.Unlock()
	all := b.spares()
	b.mu.Lock()
	all = slices.DeleteFunc(all, func(s spare) bool {
		gives := b.held[s.ID]
		return b.leaving[s.ID] || (need.memory <= free.memory || gives.memory == 0) && (need.cpu <= free.cpu || gives.cpu == 0)
	})
	for _, s := range b.enough(need, free, all) {
		b.mu.Unlock()
		gone := s.evict()
		b.mu.Lock()
		if !gone {
			continue // a request has come to it meanwhile
		}
		b.evicted++
		if _, held := b.held[s.ID]; held {
			b.leaving[s.ID] = true
		}
		return true
	}
	return false
}

// enough are the first of all that give what need has too little of, without those that
// the later ones make superfluous; none if all of them do not. The caller holds mu.
func (b *budget) enough(need, free room, all []spare) []spare {
	for i, s := range all {
		if free = free.plus(b.held[s.ID]); need.in(free) {
			return slices.DeleteFunc(all[:i+1], func(s spare) bool {
				without := free.minus(b.held[s.ID])
				if need.in(without) {
					free = without
					return true
				}
				return false
			})
		}
	}
	return nil
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
	if free, _ := b.free(); len(b.queue) > 0 || free.memory < preparedMemory {
		return false
	}
	b.hold(id, room{memory: preparedMemory}, false)
	return true
}

// hold notes what an instance counts with, which may only be promised. The caller
// holds mu.
func (b *budget) hold(id string, r room, promised bool) {
	b.release(id)
	b.used = b.used.plus(r)
	b.held[id] = r
	if promised {
		b.promised[id] = true
		b.promises += r.memory
	}
}

// release takes back what hold has noted. The caller holds mu.
func (b *budget) release(id string) {
	r := b.held[id]
	b.used = b.used.minus(r)
	if b.promised[id] {
		b.promises -= r.memory
	}
	delete(b.held, id)
	delete(b.promised, id)
}

// set notes what memory an instance was found to hold.
func (b *budget) set(id string, memory int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r, ok := b.held[id]; ok {
		b.hold(id, room{memory, r.cpu}, false)
		b.tell()
	}
}

// drop forgets an instance.
func (b *budget) drop(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release(id)
	delete(b.leaving, id)
	b.tell()
}

// follow notes what becomes of instances. limit is what one of their revision may
// take.
func (b *budget) follow(e instancepool.Event, limit room) {
	switch {
	case e.State == instancepool.Starting && e.Adopted: // it is there, whatever it needs
		b.mu.Lock()
		defer b.mu.Unlock()
		if e.Memory > 0 {
			limit.memory = e.Memory
		}
		b.hold(e.Instance, limit, e.Memory == 0)
	case e.State == instancepool.Stopped, e.State == instancepool.Failed && !e.Holds:
		b.drop(e.Instance)
	}
}

// BudgetStatus is how the host is used.
type BudgetStatus struct {
	// Total is what all instances may hold, in bytes, 0 without a bound; Used is what
	// they count with.
	Total, Used int64
	// CPU is how many processors the limits of all instances may add up to, 0 without
	// a bound; UsedCPU is what they do.
	CPU, UsedCPU float64
	// Evictions counts the instances that were stopped for the sake of others.
	Evictions int
	// Waiting counts the starts that wait for room.
	Waiting int
	// Strained is for how long the host's processors were found used up while
	// instances were in use: none is started ahead of need then.
	Strained time.Duration
}

func (b *budget) status() BudgetStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	total := b.total()
	return BudgetStatus{
		Total: total.memory, Used: b.used.memory, CPU: float64(total.cpu) / 1000, UsedCPU: float64(b.used.cpu) / 1000,
		Evictions: b.evicted, Waiting: len(b.queue),
	}
}
