// Package instancepool holds the instances of one revision: it admits requests
// under the revision's hard concurrency limit, queues what has to wait, first
// in, first out, and starts, probes, watches and stops instances through a
// Runtime. How many there should be is decided elsewhere.
package instancepool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

const (
	// DefaultStopGrace is how long an instance may take to end after SIGTERM
	// (Cloud Run: container contract, 10 seconds).
	DefaultStopGrace = 10 * time.Second
	// startAllowance is what a start may take besides its probe's own time.
	startAllowance = time.Minute
	// stopAllowance is what a stop may take besides its grace.
	stopAllowance = 30 * time.Second
	// settledAfter is how long an instance must have been ready for its end not to
	// count as a failure to start; failures are forgotten when none has followed
	// for forgivenAfter.
	settledAfter  = 10 * time.Second
	forgivenAfter = 2 * failureBackoffMax
	// A revision that fails to start is tried again after the first of these,
	// then ever less often up to the second.
	failureBackoffMin = time.Second
	failureBackoffMax = time.Minute
	// The same when the engine does not answer, which is nobody's fault. Waiting
	// requests are patient with it for outagePatience.
	outageBackoffMin = 100 * time.Millisecond
	outageBackoffMax = 2 * time.Second
	outagePatience   = 10 * time.Second
	// What is nobody's fault counts for so long after a start may be tried again.
	passedAfter = 10 * time.Second
	// suspectPatience is how long an instance that could not be dialled may take to
	// pass its probe again.
	suspectPatience = 5 * time.Second
	// A request waits for an instance for the first of these, or so many times the
	// mean of its service's starts if that is longer (Cloud Run: pending requests).
	pendingLeast  = 10 * time.Second
	pendingStarts = 3.5
	// logTail is how much of an instance's last output an error carries.
	logTail = 2 << 10
)

// Snapshot is what a decision about the number of instances is made from.
type Snapshot struct {
	// Waiting is the number of queued requests, InFlight of those in instances.
	Waiting, InFlight int
	// Free is the number of free slots of ready instances.
	Free int
	// Ready, Starting, Suspect and Unready count instances. Those that stop are in
	// none.
	Ready, Starting, Suspect, Unready int
	// Concurrency is the number of slots of an instance.
	Concurrency int
	// Min and Max bound the number of instances; Max 0 means no bound, below 0 that
	// there are to be none.
	Min, Max int
	// Floor is how many instances are awaited, within the bounds.
	Floor int
	// Oldest is how long the first in the queue has waited.
	Oldest time.Duration
	// Held is the mean time that a request holds its slot, Startup that an instance
	// of the service takes to start; 0 while not known.
	Held, Startup time.Duration
	// Load is the mean number of requests, waiting and in flight, over the last minute
	// and over the last ten.
	Load [2]float64
	// Recent is the mean number of requests over the last few seconds, Growth by how
	// much it grows per second; 0 when it does not.
	Recent, Growth float64
	// CPU is the mean number of processors that all instances together have used in
	// the last minute.
	CPU float64
}

// Decision is what is to be done about the number of instances.
type Decision struct {
	// Start is how many are to be started now, and Reason says why.
	Start  int
	Reason string
	// Again is when the same question is to be asked again though nothing has
	// changed; 0: not before something has.
	Again time.Duration
	// Keep is how many the load of late needs on the average.
	Keep int
}

// Options are what a pool needs from others.
type Options struct {
	// Prepare, when not nil, is called before the start of an instance and may take its
	// time, which a start may not: it pulls the image.
	Prepare func(ctx context.Context) error
	// Turn, when not nil, is called after Prepare, and returns when the start of the
	// instance of that ID may go on: there is room, and not too many start. done is
	// called when it is over. Starts that wait for it are withdrawn when nobody wants
	// them any more.
	Turn func(ctx context.Context, id string) (done func(), err error)
	// Start makes an instance: Runtime.Start.
	Start func(context.Context, StartSpec) (Handle, error)
	// Ahead makes an instance but for its start; nil when the engine cannot. Prepared
	// is how many such there are to be.
	Ahead    func(context.Context, StartSpec) (Prepared, error)
	Prepared func() int
	// Short, when not nil, is called when there are fewer instances prepared than the
	// revision wants, with the pool's lock held: Prepare is to be called soon.
	Short func()
	// Active, when not nil, is called with the pool's lock held when an instance has
	// the CPU that had not: Measure is to be called from time to time.
	Active func()
	// Decide returns what to do about the number of instances. It is called with the
	// pool's lock held, whenever its answer may have changed: it must be quick
	// and must not call the pool.
	Decide func(Snapshot) Decision
	// Startups and Rhythm are what is known of the service, whatever its revision.
	// Default: nothing.
	Startups *Startups
	Rhythm   *Rhythm
	// Observe, when not nil, is told of each change of an instance's state, in
	// order per instance and outside the pool's lock.
	Observe func(Event)
	// Probe returns nil once an instance may get requests, or why it never did.
	// Default: what the revision's startup probes say, over the network.
	Probe func(context.Context, Handle) error
	// StopGrace is the time from SIGTERM to SIGKILL. Default: DefaultStopGrace.
	StopGrace time.Duration
}

type phase int

const (
	open     phase = iota
	draining       // no new requests; ends when those it has are done
	closing        // at the drain's deadline: nothing is waited for
)

// Pool holds the instances of one revision. It is safe for concurrent use.
type Pool struct {
	rev     *revisions.Revision
	spec    *revisions.Spec // the revision's
	opts    Options
	checked bool // its instances are asked how they are

	ctx    context.Context // ends when the pool lets go of its instances
	cancel context.CancelFunc
	wg     sync.WaitGroup // one for each instance
	done   chan struct{}  // closed when a drained pool has no instance left

	mu        sync.Mutex // guards all below, and what Instance says it guards
	phase     phase
	detached  bool
	instances []*Instance // in the order they were made, until they are gone
	below     freeList    // ready, fewer than target in flight; last used first
	cold      freeList    // ready and frozen, or about to be; last used first
	above     freeList    // ready, from target up to the limit; in turn
	waiters   queue
	awaiting  []*await
	floor     int // instances that Await wants
	// target is the number of requests from which an instance is no longer
	// preferred over others with fewer, see spread.
	target    int
	free      int // slots
	inFlight  int
	quiet     int // of inFlight: requests that are no use
	ready     int
	starting  int
	suspects  int
	unready   int
	frozen    int // of those that are ready
	min, max  int // of the service's share, see Bound
	load      load
	asked     time.Time     // when a decision was last made without a queue
	again     *time.Timer   // to the next decision
	restedAt  time.Time     // since when there is no request; zero while there is
	promised  time.Time     // until when an instance is kept for who comes back, see leaveStarting
	due       *time.Timer   // to the start for a request that is expected
	cpu       float64       // see Snapshot.CPU
	cpuAt     time.Time     // when that was measured
	busyThen  time.Duration // load.busy at that time
	prepared  []*ahead
	preparing int
	// After one could not be prepared: until when no other is, and the timer to then.
	unprepared time.Time
	reprepare  *time.Timer

	proven      bool // an instance has been ready
	failures    int  // in a row
	failedAt    time.Time
	failure     *StartError
	retryAt     time.Time // no start before
	retry       *time.Timer
	outageSince time.Time // since when the engine has not answered
	outageAt    time.Time // when that was last noticed
	outages     int
	deadline    *time.Timer // of the drain
}

// New returns an empty pool. Nothing starts before the first Acquire, Await,
// Adopt or Wake.
func New(rev *revisions.Revision, opts Options) *Pool {
	if opts.StopGrace == 0 {
		opts.StopGrace = DefaultStopGrace
	}
	if opts.Observe == nil {
		opts.Observe = func(Event) {}
	}
	if opts.Probe == nil {
		opts.Probe = probe
	}
	if opts.Startups == nil {
		opts.Startups = new(Startups)
	}
	if opts.Rhythm == nil {
		opts.Rhythm = new(Rhythm)
	}
	if opts.Active == nil {
		opts.Active = func() {}
	}
	spec := rev.Spec()
	p := &Pool{rev: rev, spec: spec, opts: opts, target: spec.Gather(), done: make(chan struct{}), load: newLoad(time.Now())}
	for _, h := range spec.Health {
		p.checked = p.checked || len(h.Checks) > 0
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Revision is what the pool's instances run.
func (p *Pool) Revision() *revisions.Revision { return p.rev }

// Acquire returns a lease on a slot of an instance: at once while one is free,
// else when the request's turn has come. Errors: ErrQueueFull, ErrNoInstance,
// ErrTimeout, ErrDraining, *StartError, or the cause of ctx's end.
func (p *Pool) Acquire(ctx context.Context) (*Lease, error) {
	return p.AcquireOn(ctx, "", time.Time{})
}

// AcquireOn is Acquire for a request that would rather go to the instance of
// that ID, if it is there and has a free slot, and whose time has begun to count
// when it arrived; zero means now.
func (p *Pool) AcquireOn(ctx context.Context, instance string, arrived time.Time) (*Lease, error) {
	return p.AcquireBriefly(ctx, instance, arrived, 0)
}

// AcquireBriefly is AcquireOn for a request that would rather come back than wait
// for longer than that for an instance that is started for it: then it gets
// ErrStarting. It waits like any other while an instance is ready, and after a
// start has failed, until it is known how that ends. brief 0 means like AcquireOn.
func (p *Pool) AcquireBriefly(ctx context.Context, instance string, arrived time.Time, brief time.Duration) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	now := time.Now()
	if arrived.IsZero() {
		arrived = now
	}
	for {
		g, err := p.slot(ctx, now, arrived, instance, brief)
		if err != nil {
			return nil, err
		}
		lease := &Lease{instance: g.instance, Cold: g.cold}
		if g.frozen && p.thaw(ctx, g.instance) != nil {
			p.leaveFrozen(g.instance)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			continue // on another: nothing was sent
		}
		if g.waited || g.frozen {
			lease.Waited = time.Since(now)
		}
		return lease, nil
	}
}

// AcquireAwake returns a lease on an instance that is awake and has a free slot, for
// a request that starts and thaws none and keeps none: it is no use as far as idle
// timeouts and predictions are concerned. Errors: ErrAsleep, ErrDraining.
func (p *Pool) AcquireAwake() (*Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != open {
		return nil, ErrDraining
	}
	for _, list := range []*freeList{&p.below, &p.above} {
		for i := list.head; i != nil; i = i.next {
			if i.rest != awake { // it is about to be: who waits for that has woken it
				continue
			}
			p.advance(time.Now())
			p.free--
			due := i.due
			p.admit(i)
			i.due = due
			i.quiet++
			p.quiet++
			return &Lease{instance: i, quiet: true}, nil
		}
	}
	return nil, ErrAsleep
}

// slot returns when a slot of an instance is taken for a request that asks for one
// since then, and whose time counts since it arrived; brief is AcquireBriefly's.
func (p *Pool) slot(ctx context.Context, since, arrived time.Time, instance string, brief time.Duration) (grant, error) {
	p.mu.Lock()
	if p.phase != open {
		p.mu.Unlock()
		return grant{}, ErrDraining
	}
	p.note(since)
	i := p.preferred(instance)
	if i == nil {
		i = p.take()
	}
	if i != nil {
		g := grant{instance: i, frozen: i.rest != awake}
		p.lookAhead(since)
		p.mu.Unlock()
		return g, nil
	}
	if err := p.refusal(); err != nil {
		p.mu.Unlock()
		return grant{}, err
	}
	w := &waiter{since: since, settled: make(chan grant, 1)}
	p.waiters.push(w)
	p.scale()
	patience, late := p.patience(arrived)
	p.mu.Unlock()

	wait := patience
	if brief > 0 {
		wait = min(brief, patience)
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		select {
		case g := <-w.settled:
			g.waited = true
			return g, g.err
		case <-ctx.Done():
			p.leave(w)
			return grant{}, context.Cause(ctx)
		case <-timeout.C:
		}
		if brief > 0 {
			if err := p.leaveStarting(w); err != nil {
				return grant{}, err
			}
		}
		if wait == patience {
			p.leave(w)
			return grant{}, late
		}
		timeout.Reset(patience - wait)
		wait = patience
	}
}

// patience is how long a request may wait for its slot, and what it is told when
// it has waited in vain. While it is not known how long the start takes that it waits
// for, or an image has to be fetched, only the request's own time counts: the first
// request of a slow app must not be refused because it is slow. The caller holds mu.
// Source: Cloud Run: pending requests.
func (p *Pool) patience(arrived time.Time) (time.Duration, error) {
	patience, late := p.spec.AnswerWithin()-time.Since(arrived), ErrTimeout
	mean := p.opts.Startups.Mean()
	if mean == 0 && (p.ready == 0 || p.starting > 0) || !p.rev.Pinned() {
		return patience, late
	}
	if pending := max(pendingLeast, time.Duration(pendingStarts*float64(mean))); pending < patience {
		return pending, &pendingError{after: pending, failure: p.failure}
	}
	return patience, late
}

// advance notes what the load was up to now. It is called before that changes. The
// caller holds mu.
func (p *Pool) advance(now time.Time) {
	p.load.advance(now, p.inFlight-p.quiet, p.waiters.length)
}

// note accounts for the time up to now, before a request comes or goes; the first
// after a pause tells how long that was. The caller holds mu.
func (p *Pool) note(now time.Time) {
	p.advance(now)
	if !p.restedAt.IsZero() {
		p.opts.Rhythm.Note(now.Sub(p.restedAt))
		p.restedAt = time.Time{}
	}
}

// leave takes a waiter whose request has ended out of the queue; a slot that it
// was given in the same moment goes to the next.
func (p *Pool) leave(w *waiter) {
	p.mu.Lock()
	if w.queued {
		p.advance(time.Now())
		p.waiters.remove(w)
		p.withdraw()
		p.settle()
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	if g := <-w.settled; g.err == nil {
		p.release(g.instance)
	}
}

// leaveStarting takes a waiter out of the queue whose request would rather come back
// than wait for a start, if that is what it waits for. The start goes on, and what
// it makes is kept until the request can have come back. Once a start has failed
// nobody is sent away any more: who comes back after the failure would be in time
// for the next start, and might never hear of it.
func (p *Pool) leaveStarting(w *waiter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.queued || p.phase != open || p.ready > 0 || p.starting == 0 || p.failing() {
		return nil
	}
	now := time.Now()
	p.advance(now)
	p.waiters.remove(w)
	p.promised = now.Add(keepLeast)
	if !p.rev.Pinned() {
		return errFetching
	}
	return ErrStarting
}

// refusal says why a request may not even wait. The caller holds mu.
func (p *Pool) refusal() error {
	if p.failure != nil && p.alive() == 0 && time.Now().Before(p.retryAt) {
		return p.failureNow()
	}
	if p.waiters.length >= p.spec.QueueDepth {
		return ErrQueueFull
	}
	return nil
}

// failing reports whether the last start has failed, and another would probably too.
// The caller holds mu.
func (p *Pool) failing() bool {
	return p.failure != nil && (!p.failure.Passing() || time.Since(p.retryAt) < passedAfter)
}

func (p *Pool) failureNow() *StartError {
	e := *p.failure
	e.RetryAfter = max(0, time.Until(p.retryAt))
	return &e
}

// alive counts the instances that take or will take requests. The caller holds mu.
func (p *Pool) alive() int { return p.ready + p.starting + p.suspects }

// take gives a free slot of the best instance to a request, or returns nil.
// Requests are gathered on few instances up to target, so that the others can
// go idle and be frozen. Only when all that are awake have that many a frozen one is
// thawed, and when there is none they are spread over all: which matters when target
// is below the limit. Of several idle instances the one used last is taken, whose
// caches are warm. The caller holds mu.
func (p *Pool) take() *Instance {
	for _, list := range []*freeList{&p.below, &p.cold, &p.above} {
		if i := list.head; i != nil {
			p.free--
			p.admit(i)
			return i
		}
	}
	return nil
}

// preferred gives a free slot of one instance to a request, or returns nil. The
// caller holds mu.
func (p *Pool) preferred(id string) *Instance {
	if id == "" {
		return nil
	}
	for _, i := range p.instances {
		if i.id == id && i.list != nil { // it is ready, and not full
			p.free--
			p.admit(i)
			return i
		}
	}
	return nil
}

// admit counts one more request in i. The caller holds mu and has accounted for
// the slot.
func (p *Pool) admit(i *Instance) {
	i.inFlight++
	p.inFlight++
	if i.rest == asleep {
		i.rest = waking
		p.opts.Active()
	}
	i.due = time.Time{}
	p.place(i)
	if i.list == &p.above {
		p.above.remove(i)
		p.above.pushBack(i)
	}
}

// place puts i into the list that its state and load belong in. The caller
// holds mu.
func (p *Pool) place(i *Instance) {
	var want *freeList
	switch {
	case i.state != Ready || i.inFlight >= p.spec.Concurrency:
	case i.rest == asleep:
		want = &p.cold
	case i.inFlight < p.target:
		want = &p.below
	default:
		want = &p.above
	}
	if i.list == want {
		return
	}
	if i.list != nil {
		i.list.remove(i)
	}
	if want != nil {
		want.pushFront(i)
	}
}

// release takes one request out of i and hands the slot to the oldest waiter.
func (p *Pool) release(i *Instance) { p.giveBack(i, false) }

// giveBack is release, also of a request that was no use.
func (p *Pool) giveBack(i *Instance, quiet bool) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(now)
	if !quiet {
		p.load.finish()
	} else {
		i.quiet--
		p.quiet--
	}
	i.inFlight--
	p.inFlight--
	if i.state == Ready {
		p.free++
		p.place(i)
		p.handOver(false)
	}
	if i.state == Ready || i.state == Unready {
		if !quiet && i.inFlight == i.quiet {
			i.idleAt = now
		}
		if i.inFlight == 0 {
			p.startIdling(i, now, i.idleAt)
		}
	}
	if p.inFlight == 0 && p.waiters.length == 0 && (!quiet || p.restedAt.IsZero()) {
		p.restedAt = now
	}
	p.settle()
}

// handOver gives free slots to waiters in their order. The caller holds mu.
func (p *Pool) handOver(cold bool) {
	for p.waiters.length > 0 {
		i := p.take()
		if i == nil {
			return
		}
		p.waiters.pop().settled <- grant{instance: i, cold: cold, frozen: i.rest != awake}
		if p.waiters.length == 0 {
			p.withdraw()
		}
	}
}

// failWaiters answers every waiter with err. The caller holds mu.
func (p *Pool) failWaiters(err error) {
	for w := p.waiters.pop(); w != nil; w = p.waiters.pop() {
		w.settled <- grant{err: err}
	}
}

// Wake starts what the revision's minimum, or what waits, asks for.
func (p *Pool) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scale()
}

// Bound sets how many instances there are to be of what is the service's own,
// besides the revision's: at least min, and at most max unless that is 0; below 0
// it means none.
func (p *Pool) Bound(min, max int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.min, p.max = min, max
	p.answerAwaits(nil)
	p.scale()
	p.lookAgain()
}

// lookAhead asks from time to time, as long as requests come, whether their number
// wants more instances. The caller holds mu.
func (p *Pool) lookAhead(now time.Time) {
	if now.Sub(p.asked) >= lookEvery {
		p.asked = now
		p.scale()
	}
}

// scale starts the instances that Decide wants; only one at a time while the
// last start failed. The caller holds mu.
func (p *Pool) scale() {
	if p.detached || p.phase != open {
		return
	}
	d := p.opts.Decide(p.snapshot())
	if d.Again > 0 {
		p.again = reset(p.again, d.Again, p.Wake)
	}
	p.start(d.Start, d.Reason)
}

// start starts n instances, as far as failures allow. The caller holds mu.
func (p *Pool) start(n int, reason string) {
	if p.failing() || p.outages > 0 {
		n = min(n, 1-p.starting)
	}
	if n <= 0 {
		return
	}
	if wait := time.Until(p.retryAt); wait > 0 {
		p.retry = reset(p.retry, wait, p.Wake)
		return
	}
	for range n {
		p.startOne(reason)
	}
}

// startOne starts an instance, one that was prepared if there is one. The caller
// holds mu.
func (p *Pool) startOne(reason string) *Instance {
	var i *Instance
	if a := p.takePrepared(); a != nil {
		i = p.add(a.ID(), reason)
		i.ahead = a
	} else {
		i = p.add(instanceID(p.rev.Name), reason)
	}
	p.wg.Go(func() { p.run(i, nil) })
	return i
}

// withdraw stops starts that wait for their turn, and that nobody wants any more: those
// for whom they were to be have been served by others, or have left. The caller holds
// mu.
func (p *Pool) withdraw() {
	s, pending := p.snapshot(), 0
	s.Starting = 0
	for _, i := range p.instances {
		switch {
		case i.pending():
			pending++
		case i.state == Starting && !i.stopSent:
			s.Starting++
		}
	}
	if pending == 0 {
		return
	}
	// A slow guess of how many are needed would have them come and go: those that still
	// wait may keep one each.
	useful := max(p.opts.Decide(s).Start, (s.Waiting+s.Concurrency-1)/s.Concurrency)
	for _, i := range slices.Backward(p.instances) {
		if pending <= useful {
			return
		}
		if i.pending() {
			p.askToStop(i, "nobody waits for it any more")
			pending--
		}
	}
}

// pending reports whether the start of i is for those who wait, and waits itself. The
// caller holds the pool's mu.
func (i *Instance) pending() bool {
	return i.state == Starting && !i.stopSent && i.waits && i.due.IsZero()
}

// reset lets f be called after d, by a timer that may be nil.
func reset(t *time.Timer, d time.Duration, f func()) *time.Timer {
	if t == nil {
		return time.AfterFunc(d, f)
	}
	t.Reset(d)
	return t
}

func (p *Pool) snapshot() Snapshot {
	now := time.Now()
	p.advance(now)
	s := Snapshot{
		Waiting: p.waiters.length, InFlight: p.inFlight, Free: p.free,
		Ready: p.ready, Starting: p.starting, Suspect: p.suspects, Unready: p.unready,
		Concurrency: p.spec.Concurrency, Min: max(p.spec.MinInstances, p.min), Max: p.spec.MaxInstances,
		Held: p.load.service(), Startup: p.opts.Startups.next(len(p.prepared) > 0),
		Load: [2]float64{p.load.short.mean(), p.load.long.mean()}, CPU: p.cpu * fade(now.Sub(p.cpuAt)),
	}
	s.Recent, s.Growth = p.load.trend()
	if w := p.waiters.head; w != nil {
		s.Oldest = now.Sub(w.since)
	}
	if p.max != 0 && (s.Max == 0 || p.max < s.Max) {
		s.Max = p.max
	}
	s.Floor = p.floor
	if s.Max != 0 {
		s.Min, s.Floor = max(0, min(s.Min, s.Max)), max(0, min(s.Floor, s.Max))
	}
	return s
}

// add makes an instance known. The caller holds mu.
func (p *Pool) add(id, why string) *Instance {
	now := time.Now()
	i := &Instance{id: id, pool: p, state: Starting, since: now, born: now, why: why, ice: make(chan struct{}, 1), stop: make(chan struct{})}
	if p.checked {
		i.news = make(chan Event)
	}
	p.instances = append(p.instances, i)
	p.starting++
	return i
}

// Adopt takes over an instance that an earlier process started: it gets
// requests once its probe has succeeded. It reports false when the pool does not
// take instances any more.
func (p *Pool) Adopt(h Handle) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.detached || p.phase != open {
		return false
	}
	i := p.add(h.ID(), "adopted")
	i.adopted = true
	p.wg.Go(func() { p.run(i, h) })
	return true
}

// run is the life of an instance, from its start to when nothing of it is left.
func (p *Pool) run(i *Instance, h Handle) {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	began := time.Now()
	e := p.event(i, h, Starting, i.why)
	if m, ok := h.(Meter); ok {
		if u, err := m.Usage(); err == nil { // else it has just ended
			e.Memory = u.Memory
		}
	}
	p.opts.Observe(e)
	h, phases, err := p.bringUp(ctx, i, h)
	if err == nil {
		err = p.becomeReady(i, h)
	}
	if err != nil {
		p.startFailed(i, h, err, began)
		return
	}
	e = p.event(i, h, Ready, "probe succeeded")
	e.Phases, e.Took = phases, time.Since(began)
	p.opts.Observe(e)
	checking, stopChecks := context.WithCancel(ctx)
	defer stopChecks()
	p.startChecks(checking, i)
	failed := false
	for over := false; !over; {
		select {
		case e := <-i.news:
			p.opts.Observe(e)
			continue
		case <-h.Exited():
			failed = p.crashed(i, h)
		case <-i.stop:
			if p.faultOf(i) == nil {
				p.opts.Observe(p.event(i, h, Draining, i.stopReason))
			}
		case <-ctx.Done():
			i.carrier.close()
			i.sockets.part()
			return // let go: the instance runs on
		}
		over = true
	}
	stopChecks()
	fault := p.faultOf(i)
	if fault == nil {
		p.end(i, h, failed, p.opts.StopGrace)
		return
	}
	e = p.event(i, h, Failed, i.stopReason)
	e.Err, e.Took, e.Holds = fault, time.Since(i.readyAt), true
	p.opts.Observe(e)
	began = time.Now()
	if p.end(i, h, true, 0) {
		e = p.event(i, h, Stopped, i.stopReason)
		e.Took = time.Since(began)
		p.opts.Observe(e)
	}
}

// bringUp starts the instance, unless h is one that runs already, and returns
// when it may get requests. What it started is handed back with the error.
func (p *Pool) bringUp(ctx context.Context, i *Instance, h Handle) (Handle, map[string]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := ctx.Done()
	p.wg.Go(func() { // ends with this call
		select {
		case <-i.stop:
			cancel(errUnwanted)
		case <-ended:
		}
	})
	if h == nil && p.opts.Prepare != nil {
		if err := p.opts.Prepare(ctx); err != nil {
			p.discard(i.ahead)
			return nil, nil, err
		}
	}
	began := time.Now()
	limit := p.spec.StartupTime() + startAllowance
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: not started within %s", errNotReady, limit))
	defer stop()
	var mu sync.Mutex // guards phases: a runtime may report from several goroutines
	phases := make(map[string]time.Duration)
	observe := func(phase string, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		phases[phase] += took
	}
	if h == nil {
		var err error
		if h, err = p.launch(ctx, i, observe); err != nil {
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				err = context.Cause(ctx) // says more
			}
			return nil, nil, err
		}
	}
	probing := time.Now()
	err := p.rouse(ctx, i, h)
	if err == nil {
		err = p.opts.Probe(ctx, h)
	}
	mu.Lock()
	defer mu.Unlock()
	phases["probe"] = time.Since(probing)
	if err == nil && !i.adopted {
		p.opts.Startups.add(time.Since(began)-phases[PhaseTurn], i.ahead != nil)
	}
	return h, phases, err
}

// launch starts the process of i in its turn: what was prepared for it, if that
// still can be.
func (p *Pool) launch(ctx context.Context, i *Instance, observe func(string, time.Duration)) (Handle, error) {
	if p.opts.Turn != nil {
		began := time.Now()
		done, err := p.turn(ctx, i)
		if err != nil {
			p.discard(i.ahead)
			return nil, err
		}
		defer done()
		observe(PhaseTurn, time.Since(began))
	}
	if i.ahead != nil {
		if h, err := i.ahead.Start(ctx, observe); err == nil || ctx.Err() != nil {
			return h, err
		}
	}
	return p.opts.Start(ctx, StartSpec{ID: i.id, Revision: p.rev, Observe: observe})
}

// turn waits until i may start, or is withdrawn.
func (p *Pool) turn(ctx context.Context, i *Instance) (done func(), err error) {
	waits := func(yes bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		i.waits = yes
	}
	waits(true)
	defer waits(false)
	return p.opts.Turn(ctx, i.id)
}

// rouse thaws an instance that an earlier process may have left frozen: it could
// not answer a probe.
func (p *Pool) rouse(ctx context.Context, i *Instance, h Handle) error {
	f, can := h.(Freezer)
	if !can || !i.adopted {
		return nil
	}
	if err := f.Thaw(ctx); err != nil {
		return fmt.Errorf("thawing instance %s: %w", i.id, err)
	}
	return nil
}

var errUnwanted = errors.New("the instance is no longer wanted")

func (p *Pool) becomeReady(i *Instance, h Handle) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i.stopSent || p.detached {
		return errUnwanted
	}
	i.handle, i.carrier = h, newCarrier(h)
	p.makeReady(i)
	i.readyAt = i.since
	p.proven = true
	p.failure, p.retryAt = nil, time.Time{}
	p.outages, p.outageSince = 0, time.Time{}
	p.opts.Active()
	if p.opts.Short != nil && p.wantsPrepared() {
		p.opts.Short()
	}
	p.answerAwaits(nil)
	p.handOver(true)
	if i.inFlight == 0 {
		p.startIdling(i, i.since, i.since)
	}
	p.scale() // what was held back while starts failed
	p.settle()
	return nil
}

// makeReady opens the slots of i. The caller holds mu.
func (p *Pool) makeReady(i *Instance) {
	p.setState(i, Ready)
	p.ready++
	p.free += p.spec.Concurrency - i.inFlight
	p.place(i)
	p.lookAgain()
}

// setState moves i to another state, which closes its slots if it was ready.
// The caller holds mu.
func (p *Pool) setState(i *Instance, s State) {
	switch i.state {
	case Starting:
		p.starting--
	case Ready:
		p.ready--
		p.free -= p.spec.Concurrency - i.inFlight
		p.wakeUp(i) // whoever stops it sees to that
	case Suspect:
		p.suspects--
	case Unready:
		p.unready--
	default: // counted nowhere
	}
	switch s {
	case Suspect:
		p.suspects++
	case Unready:
		p.unready++
	default:
	}
	i.state, i.since = s, time.Now()
	p.place(i)
	p.lookAgain()
}

// startFailed ends an instance that never became ready.
func (p *Pool) startFailed(i *Instance, h Handle, err error, began time.Time) {
	failure := &StartError{Revision: p.rev.Name, Reason: "ContainerUnhealthy", Err: err}
	if h != nil {
		failure.Log = h.LogTail(logTail)
		select {
		case <-h.Exited():
			failure.Reason = fmt.Sprintf("ExitCode%d", h.Exit().Code)
		default:
		}
	}
	// The instance's end and what follows from it are one step: nobody may start
	// another in between, as if this one had not failed.
	p.mu.Lock()
	if p.detached {
		p.mu.Unlock()
		return // what was started is the next process's
	}
	unwanted := i.stopSent
	p.setState(i, Failed)
	if !unwanted {
		p.countFailure(failure, i)
	}
	p.scale()
	p.settle()
	p.mu.Unlock()

	e := p.event(i, h, Failed, "start failed")
	e.Took = time.Since(began)
	if unwanted {
		e.State, e.Reason = Stopped, "not wanted any more"
	} else {
		e.Err = failure
	}
	if h != nil {
		p.remove(h, p.opts.StopGrace)
	}
	p.mu.Lock()
	p.gone(i)
	p.mu.Unlock()
	p.opts.Observe(e)
}

// countFailure sets when the next start may be tried after the failure of i, and
// answers those who wait in vain. Instances that were started together and fail
// together are one failure: nothing is started before retryAt, so what fails
// until then was started before. The caller holds mu.
func (p *Pool) countFailure(f *StartError, i *Instance) {
	now := time.Now()
	same := now.Before(p.retryAt)
	outage, noRoom := errors.Is(f.Err, ErrUnavailable), errors.Is(f.Err, ErrNoRoom)
	if outage {
		f.Reason = "ResourcesUnavailable"
		if p.outages == 0 || i.born.Sub(p.outageAt) > outagePatience {
			p.outages, p.outageSince = 0, now
		}
		p.outageAt = now
		if !same {
			p.retryAt = now.Add(backoff(outageBackoffMin, outageBackoffMax, p.outages))
			p.outages++
		}
		p.outages = max(p.outages, 1)
		if now.Sub(p.outageSince) < outagePatience {
			return
		}
	} else if noRoom {
		f.Reason = "ResourcesUnavailable"
		p.retryAt = now.Add(failureBackoffMin)
	} else {
		p.outages = 0
		if !same {
			p.retryAt = now.Add(backoff(failureBackoffMin, failureBackoffMax, p.failedInARow(i)))
		}
	}
	if errors.Is(f.Err, ErrImage) {
		f.Reason = "ContainerMissing"
	}
	// The engine may know better, such as CreateContainerConfigError.
	var known interface{ Reason() string }
	if errors.As(f.Err, &known) {
		f.Reason = known.Reason()
	}
	p.failure = f
	if !f.Passing() {
		p.answerAwaits(p.failureNow())
	}
	if p.alive() == 0 {
		p.failWaiters(p.failureNow())
	}
}

// failedInARow counts the failure of i and returns how many there were before
// it. The caller holds mu.
func (p *Pool) failedInARow(i *Instance) int {
	if p.forgiven(i) {
		p.failures = 0
	}
	p.failedAt = time.Now()
	p.failures++
	return p.failures - 1
}

// forgiven reports whether the failures before i are too long ago to matter. How
// long i itself took to fail does not count. The caller holds mu.
func (p *Pool) forgiven(i *Instance) bool { return i.born.Sub(p.failedAt) > forgivenAfter }

func backoff(lowest, highest time.Duration, n int) time.Duration {
	d := lowest
	for range n {
		if d *= 2; d >= highest {
			return highest
		}
	}
	return d
}

// crashed notes that a ready instance ended by itself. It reports false when it
// had been asked to.
func (p *Pool) crashed(i *Instance, h Handle) bool {
	failure := &StartError{
		Revision: p.rev.Name,
		Reason:   fmt.Sprintf("ExitCode%d", h.Exit().Code),
		Err:      fmt.Errorf("the container %s", h.Exit()),
		Log:      h.LogTail(logTail),
	}
	p.mu.Lock()
	if i.stopSent {
		p.mu.Unlock()
		return false
	}
	lived := time.Since(i.readyAt)
	p.broke(i, failure)
	p.mu.Unlock()
	e := p.event(i, h, Failed, "exited")
	e.Err, e.Took = failure, lived
	p.opts.Observe(e)
	return true
}

// broke gives up a ready instance, and has it replaced if it is needed. The caller
// holds mu.
func (p *Pool) broke(i *Instance, failure *StartError) {
	p.setState(i, Failed)
	// One early end may be the fault of a single request; from the second in a
	// row on the revision is taken to be broken.
	if time.Since(i.readyAt) < settledAfter {
		if p.failures == 0 || p.forgiven(i) {
			p.failedInARow(i)
		} else {
			p.countFailure(failure, i)
		}
	}
	p.scale()
	p.settle()
}

// end stops what still runs, within grace, and removes what is left of an
// instance, unless it lets go in the middle. That it has failed is told by others.
func (p *Pool) end(i *Instance, h Handle, failed bool, grace time.Duration) (ended bool) {
	began := time.Now()
	i.carrier.close()
	if !failed {
		i.sockets.hold()
	}
	p.remove(h, grace)
	if failed {
		i.sockets.cut()
	} else {
		i.sockets.part()
	}
	if p.ctx.Err() != nil {
		return false // the next process finds what is left
	}
	p.mu.Lock()
	p.gone(i)
	p.mu.Unlock()
	if !failed {
		e := p.event(i, h, Stopped, i.stopReason)
		e.Took = time.Since(began)
		p.opts.Observe(e)
	}
	return true
}

// remove stops an instance and everything it had. A runtime that cannot now does
// so later by itself: what it does not know as running, it removes.
func (p *Pool) remove(h Handle, grace time.Duration) {
	if p.ctx.Err() != nil {
		return // it is the next process's
	}
	ctx, cancel := context.WithTimeout(p.ctx, grace+stopAllowance)
	defer cancel()
	if err := h.Stop(ctx, grace); err != nil && p.ctx.Err() == nil {
		p.opts.Observe(Event{
			State: Failed, Instance: h.ID(), Revision: p.rev.Name, Service: p.rev.Service,
			Reason: "stop failed; what is left is removed later", Err: err,
		})
	}
}

// gone forgets an instance. The caller holds mu.
func (p *Pool) gone(i *Instance) {
	if i.idle != nil {
		i.idle.Stop()
	}
	p.instances = slices.DeleteFunc(p.instances, func(o *Instance) bool { return o == i })
	p.settle()
}

func (p *Pool) event(i *Instance, h Handle, s State, reason string) Event {
	e := Event{
		State: s, Instance: i.id, Revision: p.rev.Name, Service: p.rev.Service,
		Reason: reason, Adopted: i.adopted,
	}
	if h != nil {
		e.PID, e.Address = h.PID(), h.Address()
	}
	return e
}

// askToStop tells the instance's goroutine to stop it. The caller holds mu.
func (p *Pool) askToStop(i *Instance, reason string) {
	if !i.stopSent {
		i.stopSent, i.stopReason = true, reason
		close(i.stop)
	}
}

// suspect takes an instance that could not be dialled out of use and probes it.
func (p *Pool) suspect(i *Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i.state != Ready || p.detached {
		return
	}
	p.setState(i, Suspect)
	p.scale()
	p.settle()
	p.wg.Go(func() {
		ctx, cancel := context.WithTimeout(p.ctx, suspectPatience)
		defer cancel()
		err := p.opts.Probe(ctx, i.handle)
		p.mu.Lock()
		defer p.mu.Unlock()
		if i.state != Suspect || p.detached {
			return
		}
		if err != nil {
			select {
			case <-i.handle.Exited():
				return // that is why, and run says so
			default:
			}
			p.setState(i, Draining)
			p.askToStop(i, "does not accept connections")
			p.scale()
			return
		}
		if i.lost > 0 { // meanwhile
			p.setState(i, Unready)
		} else {
			p.makeReady(i)
			p.handOver(false)
			p.answerAwaits(nil)
		}
		if i.inFlight == 0 {
			p.startIdling(i, i.since, i.since)
		}
		p.settle()
	})
}

// await is a call of Await.
type await struct {
	n      int
	result chan error
}

// Await starts instances until n are ready, or as many as there may be, and returns nil
// then, or why the first that failed did. An engine that does not answer is waited for,
// and so is room on the host.
func (p *Pool) Await(ctx context.Context, n int) error {
	if p.spec.MaxInstances > 0 {
		n = min(n, p.spec.MaxInstances)
	}
	a := &await{n: n, result: make(chan error, 1)}
	p.mu.Lock()
	if p.phase != open {
		p.mu.Unlock()
		return ErrDraining
	}
	p.floor = max(p.floor, n)
	p.awaiting = append(p.awaiting, a)
	p.answerAwaits(nil)
	p.scale()
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.awaiting = slices.DeleteFunc(p.awaiting, func(o *await) bool { return o == a })
		p.floor = 0
		for _, o := range p.awaiting {
			p.floor = max(p.floor, o.n)
		}
		p.lookAgain()
	}()
	select {
	case err := <-a.result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// answerAwaits answers those who wait for fewer instances than are ready, or
// all with a failure. The caller holds mu.
func (p *Pool) answerAwaits(failure error) {
	if len(p.awaiting) == 0 {
		return
	}
	most := p.snapshot().Max
	for _, a := range p.awaiting {
		n := a.n
		if most > 0 {
			n = min(n, most)
		}
		if failure == nil && (p.ready < n || most < 0) {
			continue
		}
		select {
		case a.result <- failure:
		default:
		}
	}
}

// Drain lets the pool end: it takes no new requests, finishes those it has and
// stops its instances; after timeout it stops them all the same. It returns at
// once; Done tells the end. Requests that wait while no instance is ready get
// ErrDraining, so that they can go where new requests go.
func (p *Pool) Drain(timeout time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.detached || p.phase == closing {
		return
	}
	if p.phase == open {
		p.phase = draining
		p.answerAwaits(ErrDraining)
	}
	if timeout <= 0 {
		p.close()
		return
	}
	if p.deadline == nil {
		p.deadline = time.AfterFunc(timeout, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.close()
		})
	}
	p.settle()
}

// close stops every instance, whatever it does. The caller holds mu.
func (p *Pool) close() {
	if p.detached {
		return
	}
	p.phase = closing
	p.failWaiters(ErrDraining)
	for _, i := range p.instances {
		if i.state == Ready || i.state == Suspect || i.state == Unready {
			p.setState(i, Draining)
		}
		p.askToStop(i, "its revision is retired")
	}
	p.settle()
}

// Dismiss answers all waiting requests with ErrDraining.
func (p *Pool) Dismiss() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failWaiters(ErrDraining)
	p.settle()
}

// Done is closed when a drained pool has no instance left.
func (p *Pool) Done() <-chan struct{} { return p.done }

// settle lets a draining pool come to its end: what nobody needs any more is
// stopped. The caller holds mu.
func (p *Pool) settle() {
	if p.phase == open || p.detached {
		return
	}
	p.dropPrepared()
	if p.ready == 0 {
		p.failWaiters(ErrDraining)
	}
	if p.waiters.length == 0 {
		for _, i := range p.instances {
			switch {
			case i.state == Starting:
				p.askToStop(i, "not wanted any more")
			case (i.state == Ready || i.state == Unready) && i.inFlight == 0:
				p.setState(i, Draining)
				p.askToStop(i, "its revision is retired")
			}
		}
	}
	if len(p.instances) == 0 && p.waiters.length == 0 {
		select {
		case <-p.done:
		default:
			p.phase = closing
			p.stopTimers()
			p.cancel()
			close(p.done)
		}
	}
}

// Detach lets go of the instances, which run on, and returns when nothing of
// the pool does. Waiting requests get ErrDraining.
func (p *Pool) Detach() {
	p.mu.Lock()
	p.detached = true
	if p.phase == open {
		p.phase = draining
	}
	p.failWaiters(ErrDraining)
	p.answerAwaits(ErrDraining)
	p.stopTimers()
	for _, i := range p.instances {
		if i.idle != nil {
			i.idle.Stop()
		}
	}
	p.dropPrepared()
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

func (p *Pool) stopTimers() {
	for _, t := range []*time.Timer{p.retry, p.again, p.due, p.deadline, p.reprepare} {
		if t != nil {
			t.Stop()
		}
	}
}

// Wait returns when no goroutine of the pool runs, which is soon after Done.
func (p *Pool) Wait() { p.wg.Wait() }

// Load returns how many requests the pool has, waiting and in flight.
func (p *Pool) Load() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiters.length + p.inFlight
}

// Proven reports whether an instance has ever been ready.
func (p *Pool) Proven() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proven
}

// Failure is why the last start failed, or nil since one has succeeded; what has
// passed by itself is none.
func (p *Pool) Failure() *StartError {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.failing() {
		return nil
	}
	return p.failureNow()
}

// Status tells what the pool is doing.
func (p *Pool) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Waiting: p.waiters.length, InFlight: p.inFlight, Instances: make([]InstanceStatus, 0, len(p.instances))}
	for _, i := range p.instances {
		st := InstanceStatus{ID: i.id, State: i.state, Since: i.since, Born: i.born, InFlight: i.inFlight, Why: i.why, Usage: i.usage}
		if i.state == Ready && i.rest == asleep {
			st.State, st.Since = Frozen, i.idleAt.Add(freezeAfter)
		}
		if i.handle != nil {
			st.PID, st.Address, st.Born = i.handle.PID(), i.handle.Address(), i.handle.Started()
		}
		s.Instances = append(s.Instances, st)
	}
	for _, a := range p.prepared {
		s.Instances = append(s.Instances, InstanceStatus{ID: a.ID(), State: Warmed, Since: a.since, Born: a.since, Why: "kept prepared"})
	}
	return s
}
