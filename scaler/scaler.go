// Package scaler decides: how many instances each revision should have, which
// revision gets a request, and when a new revision takes over.
package scaler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

const (
	// pullTimeout bounds the pull of an image, whoever waits for it.
	pullTimeout = 10 * time.Minute
	// loadPatience is how long services wait for the first look at what runs
	// already; an engine that does not answer must not hold up Caddy for longer.
	loadPatience = 5 * time.Second
	// loadRetry is the pause between such looks.
	loadRetry = time.Second
	// listTimeout bounds one look.
	listTimeout = 30 * time.Second
	// startTurn is how long a start keeps others from theirs. One that takes
	// longer does not work but wait, which others can do at the same time.
	startTurn = time.Second
)

var (
	// ErrUnknownService means that nobody wants a service of that name (any more).
	ErrUnknownService = errors.New("no such service")
	// ErrUnknownTag means that no traffic target of the service has that tag.
	ErrUnknownTag = errors.New("no such tag")
	// ErrRemoved means that the service was removed while the request waited.
	ErrRemoved = errors.New("the service was removed")
	// ErrNotReady means that no revision of the service has been ready yet.
	ErrNotReady = errors.New("no revision of the service is ready yet")
	// ErrDisabled means that the service is scaled to no instance by hand.
	ErrDisabled = errors.New("the service is scaled to zero instances by hand")
	// ErrInternal means that the service takes requests of instances only.
	ErrInternal = errors.New("the service is for instances on this host only")
)

// Request says what a request is for.
type Request struct {
	// Service is its name.
	Service string
	// Tag is that of a traffic target; empty: whichever its percent chooses.
	Tag string
	// AnyTag is set when a tag that is not known does not count.
	AnyTag bool
	// Revision and Instance are those that the client had before: they win over
	// the split (Cloud Run: session affinity).
	Revision, Instance string
	// NoWake is set when it must start and thaw no instance, and keep none from being
	// stopped: then it waits for nothing.
	NoWake bool
	// Inside is set when an instance on this host sends it.
	Inside bool
	// Brief is how long it waits for an instance that is started for it before it gets
	// instancepool.ErrStarting, and is to come back. 0: for as long as any other.
	Brief time.Duration
	// Arrived is when its time has begun to count. Default: now.
	Arrived time.Time
}

// Observer is told what happens. Its methods may be called from any goroutine,
// must return soon and must not call the scaler.
type Observer interface {
	Instance(instancepool.Event)
	Revision(RevisionEvent)
}

// RevisionEvent is one change in the life of a revision.
type RevisionEvent struct {
	// Kind is "created", "ready", "promoted", "failed", "draining", "retired",
	// "image_pulling", "image_resolved" or "image_failed"; of a service alone,
	// "failed" when it cannot be as a config wants it, "removed" when nothing of it is
	// left; or, of no service, "load_failed" when the engine does not say what runs, "prune_failed" when
	// images that no revision has cannot be removed.
	Kind              string
	Service, Revision string
	Err               error
	Digest            string
	Took              time.Duration
	// Warnings says what of its template has no effect, when it is created.
	Warnings []string
}

// Options are what a Scaler needs.
type Options struct {
	Runtime  instancepool.Runtime
	Observer Observer
	// Registry are the options of the registry; Changed, Routing, Created and
	// Removed are set by New.
	Registry revisions.Options
	// StartLimit is how many instances start at the same time: more only makes
	// all of them later. Default: 2 per CPU.
	StartLimit int
	// StopGrace is the time from SIGTERM to SIGKILL. Default: 10 s.
	StopGrace time.Duration

	// Limits hold until they are changed by Limit.
	Limits Limits
	// Probe returns nil once an instance may get requests. Default: what the
	// revision's startup probes say, over the network.
	Probe func(context.Context, instancepool.Handle) error
}

// Limits are what the host gives.
type Limits struct {
	// Memory is what all instances together may hold, in bytes; below 0 as much as
	// they want. Default: MemoryPart of what the engine says the host has, which is
	// nine tenths unless it says otherwise.
	Memory     int64
	MemoryPart float64
	// CPU is how many processors the limits of all instances together may add up to,
	// CPUPart the same as a part of those that the host has: 2 is twice as many.
	// Default: any number.
	CPU, CPUPart float64
	// Prepared is how many instances are prepared of a revision that says nothing
	// of it. Default: none.
	Prepared int
}

// Limit changes the limits. What runs already goes on running.
func (s *Scaler) Limit(l Limits) {
	s.budget.setLimits(l)
	s.prepared.Store(int64(l.Prepared))
	s.pools(func(p *instancepool.Pool) bool {
		p.TrimPrepared()
		return true
	})
	s.prepareSoon()
}

// Scaler is the engine of one host: the services that are wanted and the pools
// of their revisions. It is safe for concurrent use.
type Scaler struct {
	opts     Options
	registry *revisions.Registry
	starts   *semaphore.Weighted
	pulls    singleflight.Group
	// resolving is held for reading from when an image is looked for until its
	// revision is pinned to it, and for writing while images are removed.
	resolving sync.RWMutex
	prunable  chan struct{} // revisions are gone, and their images may be too
	budget    *budget
	strain    *strain
	short     chan struct{} // fewer instances are prepared than are to be
	stirred   chan struct{} // something is in active
	prepared  atomic.Int64  // Limits.Prepared
	active    sync.Map      // *instancepool.Pool → true: what it uses may change

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// discards counts the instances of wg that are being stopped.
	discards sync.WaitGroup
	start    sync.Once
	loaded   chan struct{} // closed when what ran before is known, or was waited for in vain

	services sync.Map // name → *service: read for each request
	pulling  sync.Map // revision's name → instancepool.Progress: while its image is fetched
	retiring sync.Map // *service → true: unwanted, but not yet without instances

	declaring sync.Mutex // guards owners; taken before mu, and held while the registry changes
	owners    []*declaration

	mu    sync.Mutex                       // guards all below; taken before a service's own lock
	found map[string][]instancepool.Handle // by service: runs, but is in no pool yet
	// own has the names of what this process started, until the engine has told
	// what runs: that comes from an earlier process only if it is not in own.
	own    map[string]bool
	ready  bool // loaded is closed
	closed bool
	// declared is set at the first declaration: before that, what Caddy's config
	// wants may only just be on its way.
	declared bool
}

// declaration is what one owner wants.
type declaration struct {
	owner    any
	services map[string]*wanted
}

type wanted struct {
	service  *servingv1.Service
	applied  bool
	revision *revisions.Revision // set once applied, unless its name is taken
}

// New returns a scaler that does nothing before Start.
func New(opts Options) *Scaler {
	if opts.StartLimit == 0 {
		opts.StartLimit = 2 * runtime.NumCPU()
	}
	if opts.StopGrace == 0 {
		opts.StopGrace = instancepool.DefaultStopGrace
	}
	s := &Scaler{
		opts:   opts,
		starts: semaphore.NewWeighted(int64(opts.StartLimit)),
		loaded: make(chan struct{}), prunable: make(chan struct{}, 1),
		short: make(chan struct{}, 1), stirred: make(chan struct{}, 1),
		found: make(map[string][]instancepool.Handle),
		own:   make(map[string]bool),
	}
	s.budget = newBudget(opts.Limits, opts.Runtime, s.spares)
	s.strain = newStrain(opts.Runtime)
	s.prepared.Store(int64(opts.Limits.Prepared))
	opts.Registry.Changed = s.follow
	opts.Registry.Routing = s.routing
	opts.Registry.Removed = func(string) { s.pruneSoon() }
	opts.Registry.Created = func(rev *revisions.Revision) {
		template := servingv1.Service{Spec: servingv1.ServiceSpec{ConfigurationSpec: servingv1.ConfigurationSpec{Template: rev.Spec().Template}}}
		s.opts.Observer.Revision(RevisionEvent{Kind: "created", Service: rev.Service, Revision: rev.Name, Warnings: revisions.Warnings(&template)})
	}
	s.registry = revisions.NewRegistry(opts.Registry)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Registry is what the scaler follows: whoever changes it changes what runs.
func (s *Scaler) Registry() *revisions.Registry { return s.registry }

// Start looks, once, for the instances that an earlier process left, in the
// background.
func (s *Scaler) Start() {
	s.start.Do(func() {
		s.wg.Go(s.load)
		s.wg.Go(s.pruneLoop)
		s.wg.Go(s.measureLoop)
		s.wg.Go(s.prepareLoop)
	})
}

// load adopts what runs already. Services that were declared meanwhile are
// applied when it is known, or when the engine has not answered for
// loadPatience; then what is found later still joins its revision.
func (s *Scaler) load() {
	patience := time.AfterFunc(loadPatience, s.open)
	defer patience.Stop()
	for {
		ctx, cancel := context.WithTimeout(s.ctx, listTimeout)
		handles, err := s.opts.Runtime.List(ctx)
		cancel()
		if err == nil {
			s.find(handles)
			s.open()
			return
		}
		s.opts.Observer.Revision(RevisionEvent{Kind: "load_failed", Err: fmt.Errorf("looking for running instances: %w", err)})
		retry := time.NewTimer(loadRetry)
		select {
		case <-s.ctx.Done():
			retry.Stop()
			return
		case <-retry.C:
		}
	}
}

// find notes what runs and was not started by this process.
func (s *Scaler) find(handles []instancepool.Handle) {
	s.mu.Lock()
	ready, own := s.ready, maps.Clone(s.own) // claim may add to it
	s.mu.Unlock()
	byService := make(map[string][]instancepool.Handle)
	for _, h := range handles {
		rev := h.Revision()
		switch {
		case own[h.ID()]:
			continue
		case ready: // too late to decide what the service is, but its names are taken
			s.registry.Reserve(rev.Service, rev.Generation)
		default:
			s.registry.Adopt(rev)
		}
		byService[rev.Service] = append(byService[rev.Service], h)
	}
	if !ready {
		for name := range byService {
			s.believe(name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, all := range byService {
		s.found[name] = append(s.found[name], all...)
	}
	s.own = nil
}

// believe takes revisions for ready that ran without a record of theirs. Of
// several the newest has to prove itself again, as it may have been on trial
// when its process ended.
func (s *Scaler) believe(name string) {
	st := s.registry.State(name)
	if st == nil || st.Service != nil {
		return
	}
	revs := st.Revisions
	if len(revs) > 1 {
		revs = revs[:len(revs)-1]
	}
	for _, rev := range revs {
		if rev.Readiness() == revisions.ReadinessUnknown {
			s.registry.MarkReady(rev)
		}
	}
}

// open lets services go to work, with what was found running.
func (s *Scaler) open() {
	s.declaring.Lock()
	defer s.declaring.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	first := !s.ready
	s.ready = true
	s.mu.Unlock()
	if first {
		for _, d := range s.owners {
			s.apply(d)
		}
	}
	s.followAll()
	if first {
		close(s.loaded)
	}
}

// followAll follows every service, and forgets those of Caddy's config that it
// does not declare any more. The caller holds declaring.
func (s *Scaler) followAll() {
	s.mu.Lock()
	ready, declared := s.ready, s.declared
	names := slices.Collect(maps.Keys(s.found))
	s.mu.Unlock()
	if !ready {
		return
	}
	for _, name := range append(names, s.registry.Names()...) {
		if st := s.registry.State(name); st != nil && (st.Owner == revisions.OwnerConfig || st.Service == nil) && s.latestOwner(name) < 0 {
			if !declared {
				continue
			}
			s.registry.Forget(name)
		}
		s.follow(name)
	}
}

// follow does what the registry says of a service.
func (s *Scaler) follow(name string) {
	s.mu.Lock()
	if !s.ready || s.closed {
		s.mu.Unlock()
		return
	}
	st, svc := s.registry.State(name), s.lookup(name)
	found := s.found[name]
	wanted := st != nil && st.Service != nil
	if !wanted && !s.declared {
		found = nil // it may be wanted yet
	} else {
		delete(s.found, name)
	}
	switch {
	case !wanted && svc != nil:
		s.services.Delete(name)
	case wanted && svc == nil:
		svc = newService(s, name)
		s.services.Store(name, svc)
	}
	s.mu.Unlock()
	switch {
	case wanted:
		svc.sync(found)
		return
	case svc != nil:
		svc.retire()
		s.wg.Go(func() { s.reclaim(name) })
	}
	for _, h := range found {
		s.discard(h, "its service is not configured any more")
	}
}

// discard stops an instance that belongs to no pool.
func (s *Scaler) discard(h instancepool.Handle, reason string) {
	s.discards.Add(1)
	s.wg.Go(func() {
		defer s.discards.Done()
		e := instancepool.Event{
			State: instancepool.Draining, Instance: h.ID(), Service: h.Revision().Service,
			Revision: h.Revision().Name, PID: h.PID(), Address: h.Address(), Reason: reason, Adopted: true,
		}
		s.opts.Observer.Instance(e)
		ctx, cancel := context.WithTimeout(s.ctx, s.opts.StopGrace+listTimeout)
		defer cancel()
		e.State = instancepool.Stopped
		if e.Err = h.Stop(ctx, s.opts.StopGrace); e.Err != nil {
			e.State = instancepool.Failed
		}
		s.opts.Observer.Instance(e)
		if !s.registry.Known(e.Service) && !s.retires(e.Service) {
			s.opts.Observer.Revision(RevisionEvent{Kind: "removed", Service: e.Service})
		}
	})
}

// retires tells whether there are instances of a service that nobody wants.
func (s *Scaler) retires(name string) bool {
	found := false
	s.retiring.Range(func(svc, _ any) bool {
		found = svc.(*service).name == name
		return !found
	})
	return found
}

// Declare makes services wanted by owner, a config, in addition to what other
// configs want. Of several that want the same service the latest one decides
// what it is, which is how a new config takes over from the old one. services
// are what revisions.Prepare returned.
func (s *Scaler) Declare(owner any, services []*servingv1.Service) error {
	d := &declaration{owner: owner, services: make(map[string]*wanted, len(services))}
	for _, svc := range services {
		if d.services[svc.Name] != nil {
			return fmt.Errorf("service %s is declared twice", svc.Name)
		}
		d.services[svc.Name] = &wanted{service: svc}
	}
	s.declaring.Lock()
	defer s.declaring.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.New("declaring services: the engine is closed")
	}
	first, ready := !s.declared, s.ready
	s.declared = true
	s.mu.Unlock()
	s.owners = append(s.owners, d)
	if ready {
		s.apply(d)
	}
	if first {
		s.followAll()
	}
	return nil
}

// apply brings about what d wants. The caller holds declaring.
func (s *Scaler) apply(d *declaration) {
	for name, w := range d.services {
		rev, _, err := s.registry.Apply(w.service, revisions.OwnerConfig)
		if err != nil {
			s.opts.Observer.Revision(RevisionEvent{Kind: "failed", Service: name, Err: err})
			continue
		}
		w.applied, w.revision = true, rev
		s.follow(name)
	}
}

// reclaim applies what a config declares of a service that somebody else had, now
// that it is gone.
func (s *Scaler) reclaim(name string) {
	s.declaring.Lock()
	defer s.declaring.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if at := s.latestOwner(name); at >= 0 && !closed && !s.registry.Known(name) {
		s.apply(&declaration{services: map[string]*wanted{name: s.owners[at].services[name]}})
	}
}

// Withdraw takes back what owner declared. A service that another owner still
// wants becomes what the latest of those wants; one that nobody wants drains
// and stops.
func (s *Scaler) Withdraw(owner any) {
	s.declaring.Lock()
	defer s.declaring.Unlock()
	i := slices.IndexFunc(s.owners, func(d *declaration) bool { return d.owner == owner })
	if i < 0 {
		return
	}
	d := s.owners[i]
	s.owners = slices.Delete(s.owners, i, i+1)
	for name, w := range d.services {
		if !w.applied { // it never got there
			continue
		}
		at := s.latestOwner(name)
		switch {
		case at < 0:
			s.registry.Forget(name)
		case at < i: // the one that left had decided
			before := s.owners[at].services[name]
			if before.revision == nil || !s.registry.Restore(before.service, before.revision) {
				s.apply(&declaration{services: map[string]*wanted{name: before}})
			}
		}
	}
}

// latestOwner returns the index of the latest declaration of a service, or -1.
// The caller holds declaring.
func (s *Scaler) latestOwner(name string) int {
	for i, owner := range slices.Backward(s.owners) {
		if owner.services[name] != nil {
			return i
		}
	}
	return -1
}

func (s *Scaler) lookup(name string) *service {
	if v, ok := s.services.Load(name); ok {
		return v.(*service)
	}
	return nil
}

// Acquire returns a lease on an instance of the revision that the request is
// routed to, waiting for it as long as ctx lets it. Errors: ErrUnknownService,
// ErrUnknownTag, ErrRemoved, ErrNotReady, instancepool.ErrQueueFull,
// instancepool.ErrStarting, *instancepool.StartError, or the cause of ctx's end.
func (s *Scaler) Acquire(ctx context.Context, r Request) (*instancepool.Lease, error) {
	for tried := false; ; {
		svc := s.lookup(r.Service)
		if svc == nil && tried {
			return nil, fmt.Errorf("%w: %s", ErrRemoved, r.Service)
		}
		if svc == nil {
			if err := s.awaitLoaded(ctx, r.Service); err != nil {
				return nil, err
			}
			continue
		}
		routes := svc.route.Load()
		if routes != nil && routes.disabled {
			return nil, fmt.Errorf("%w: %s", ErrDisabled, r.Service)
		}
		if routes != nil && routes.internal && !r.Inside {
			return nil, fmt.Errorf("%w: %s", ErrInternal, r.Service)
		}
		if routes == nil {
			if s.lookup(r.Service) == svc { // just made
				runtime.Gosched()
			}
			continue // it was removed a moment ago; another of that name may be there
		}
		pool := routes.before(r)
		if pool == nil {
			pool = routes.pick(r.Tag)
		}
		if pool == nil && r.Tag != "" && r.AnyTag {
			pool = routes.pick("")
		}
		switch {
		case pool != nil:
		case r.Tag != "" && !r.AnyTag:
			return nil, fmt.Errorf("%w: %s of service %s", ErrUnknownTag, r.Tag, r.Service)
		default:
			return nil, fmt.Errorf("%w: %s", ErrNotReady, r.Service)
		}
		if r.NoWake {
			return pool.AcquireAwake()
		}
		lease, err := pool.AcquireBriefly(ctx, r.Instance, r.Arrived, r.Brief)
		if err == nil {
			return lease, nil
		}
		// What failed on a revision that has been replaced meanwhile is tried on
		// the new one.
		if ctx.Err() == nil && !errors.Is(err, instancepool.ErrTimeout) && (svc.route.Load() != routes || s.lookup(r.Service) != svc) {
			tried = true
			continue
		}
		if errors.Is(err, instancepool.ErrDraining) {
			return nil, fmt.Errorf("%w: %s", ErrRemoved, r.Service)
		}
		return nil, err
	}
}

// awaitLoaded returns nil when a service that was not known may be known now.
func (s *Scaler) awaitLoaded(ctx context.Context, name string) error {
	if err := s.Loaded(ctx); err != nil {
		return err
	}
	if s.lookup(name) == nil {
		return fmt.Errorf("%w: %s", ErrUnknownService, name)
	}
	return nil
}

// Loaded returns when it is known what an earlier process has left, or that was waited
// for in vain: until then a service that was declared may not be known. It returns the
// cause of ctx's end if that comes first.
func (s *Scaler) Loaded(ctx context.Context) error {
	select {
	case <-s.loaded:
		return nil
	default:
	}
	select {
	case <-s.loaded:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return nil
	}
}

// newPool makes a pool of a service's revision.
func (s *Scaler) newPool(v *service, rev *revisions.Revision, observe func(instancepool.Event)) *instancepool.Pool {
	spec := rev.Spec()
	opts := instancepool.Options{
		Prepare: func(ctx context.Context) error { return s.resolve(ctx, rev) },
		Turn: func(ctx context.Context, id string) (done func(), err error) {
			if err := s.budget.take(ctx, id, roomFor(spec)); err != nil {
				return nil, err
			}
			return s.turn(ctx)
		},
		Start: func(ctx context.Context, spec instancepool.StartSpec) (instancepool.Handle, error) {
			s.claim(spec.ID)
			return s.opts.Runtime.Start(ctx, spec)
		},
		Decide: func(sn instancepool.Snapshot) instancepool.Decision {
			return decide(sn, spec, s.opts.StartLimit, s.strain.allows)
		},
		Observe: func(e instancepool.Event) {
			s.budget.follow(e, roomFor(spec))
			observe(e)
		},
		Probe:     s.opts.Probe,
		StopGrace: s.opts.StopGrace,
		Startups:  &v.startups,
		Rhythm:    &v.rhythm,
		Prepared: func() int {
			if spec.Prepared >= 0 {
				return spec.Prepared
			}
			return int(s.prepared.Load())
		},
		Short: s.prepareSoon,
	}
	if engine, ok := s.opts.Runtime.(instancepool.Preparer); ok {
		opts.Ahead = func(ctx context.Context, spec instancepool.StartSpec) (instancepool.Prepared, error) {
			if !s.budget.spare(spec.ID) {
				return nil, instancepool.ErrNoRoom
			}
			s.claim(spec.ID)
			a, err := engine.Prepare(ctx, spec)
			if err != nil {
				s.budget.drop(spec.ID)
			}
			return a, err
		}
	}
	var pool *instancepool.Pool
	opts.Active = func() { s.stir(pool) }
	pool = instancepool.New(rev, opts)
	return pool
}

// turn waits until no more instances start than are good for all of them.
func (s *Scaler) turn(ctx context.Context) (done func(), err error) {
	if err := s.starts.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	pass := sync.OnceFunc(func() { s.starts.Release(1) })
	late := time.AfterFunc(startTurn, pass)
	return func() {
		late.Stop()
		pass()
	}, nil
}

// claim notes that an instance is this process's own.
func (s *Scaler) claim(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own != nil {
		s.own[id] = true
	}
}

// resolve pins the revision's images, pulling them where needed. However many ask,
// one asks the engine, and it goes on when the first of them leaves.
func (s *Scaler) resolve(ctx context.Context, rev *revisions.Revision) error {
	if rev.Pinned() {
		return nil
	}
	pull := func() (any, error) {
		if rev.Pinned() {
			return nil, nil
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, pullTimeout)
		defer cancel()
		defer s.pulling.Delete(rev.Name)
		s.resolving.RLock()
		defer s.resolving.RUnlock()
		digests, err := s.resolveAll(ctx, rev)
		e := RevisionEvent{Kind: "image_resolved", Service: rev.Service, Revision: rev.Name, Digest: digests[rev.Spec().Image], Took: time.Since(began)}
		if err != nil {
			e.Kind, e.Err = "image_failed", err
		} else {
			s.registry.Pin(rev, digests)
		}
		s.opts.Observer.Revision(e)
		return nil, e.Err
	}
	result := make(chan error, 1)
	s.wg.Go(func() {
		_, err, _ := s.pulls.Do(rev.Name, pull)
		result <- err
	})
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// resolveAll returns the digests of the images of all of a revision's containers.
func (s *Scaler) resolveAll(ctx context.Context, rev *revisions.Revision) (map[string]string, error) {
	digests := make(map[string]string, 1)
	for _, image := range rev.Spec().Images() {
		digest, err := s.opts.Runtime.Resolve(ctx, image, func(p instancepool.Progress) {
			if _, known := s.pulling.Swap(rev.Name, p); !known {
				s.opts.Observer.Revision(RevisionEvent{Kind: "image_pulling", Service: rev.Service, Revision: rev.Name})
			}
		})
		if err != nil {
			return nil, fmt.Errorf("resolving image %s: %w", image, err)
		}
		digests[image] = digest
	}
	return digests, nil
}

// Dismiss answers every waiting request with ErrRemoved.
func (s *Scaler) Dismiss() {
	s.services.Range(func(_, v any) bool {
		v.(*service).dismiss()
		return true
	})
}

// Ending is what becomes of the instances when a Scaler is closed.
type Ending int

const (
	// Keep leaves them to the next process, which adopts them.
	Keep Ending = iota
	// Drain lets their requests end, then stops them.
	Drain
	// Stop stops them whatever they do, within their grace.
	Stop
)

// Close ends the scaler. It waits for Drain and Stop as long as ctx lets it;
// what has not ended by then is left behind.
func (s *Scaler) Close(ctx context.Context, ending Ending) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	var all []*service
	s.services.Range(func(name, v any) bool {
		all = append(all, v.(*service))
		s.services.Delete(name)
		return true
	})
	s.retiring.Range(func(svc, _ any) bool {
		all = append(all, svc.(*service))
		return true
	})
	for _, svc := range all {
		switch ending {
		case Keep:
		case Drain:
			svc.retire()
		case Stop:
			svc.retire()
			svc.hurry()
		}
	}
	var err error
	for _, svc := range all {
		if ending != Keep {
			err = errors.Join(err, svc.wait(ctx))
		}
	}
	// Each may have clients who are to hear of it: all do at the same time.
	var detaching sync.WaitGroup
	for _, svc := range all {
		detaching.Go(svc.detach)
	}
	detaching.Wait()
	if ending != Keep {
		discarded := make(chan struct{})
		s.wg.Go(func() {
			s.discards.Wait()
			close(discarded)
		})
		select {
		case <-discarded:
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("stopping instances that nobody wants: %w", context.Cause(ctx)))
		}
	}
	s.cancel()
	s.wg.Wait()
	return errors.Join(err, s.registry.Close(ctx), s.opts.Runtime.Close())
}
