// Package scaler decides: how many instances each revision should have, which
// revision gets a request, and when a new revision takes over.
package scaler

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

const (
	// progressDeadline bounds what a new revision may take to become ready,
	// the pull of its image included (Knative: progress-deadline, 600 s).
	progressDeadline = 10 * time.Minute
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

// ErrUnknownService means that nobody wants a service of that name (any more).
var ErrUnknownService = errors.New("no such service")

// Observer is told what happens. Its methods may be called from any goroutine,
// must return soon and must not call the scaler.
type Observer interface {
	Instance(instancepool.Event)
	Revision(RevisionEvent)
}

// RevisionEvent is one change in the life of a revision.
type RevisionEvent struct {
	// Kind is "created", "ready", "promoted", "failed", "draining", "retired",
	// "image_pulling", "image_resolved" or "image_failed"; or "load_failed", of
	// no service, when the engine does not say what runs.
	Kind              string
	Service, Revision string
	Err               error
	Digest            string
	Took              time.Duration
}

// Options are what a Scaler needs.
type Options struct {
	Runtime  instancepool.Runtime
	Observer Observer
	// StartLimit is how many instances start at the same time: more only makes
	// all of them later. Default: 2 per CPU.
	StartLimit int
	// StopGrace is the time from SIGTERM to SIGKILL. Default: 10 s.
	StopGrace time.Duration

	// probe stands in for the startup probe in tests.
	probe func(context.Context, instancepool.Handle) error
}

// Scaler is the engine of one host: the services that are wanted and the pools
// of their revisions. It is safe for concurrent use.
type Scaler struct {
	opts     Options
	registry *revisions.Registry
	starts   *semaphore.Weighted
	pulls    singleflight.Group

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

	mu     sync.Mutex // guards all below; taken before a service's own lock
	owners []*declaration
	found  map[string][]instancepool.Handle // by service: runs, but is in no pool yet
	// own has the names of what this process started, until the engine has told
	// what runs: that comes from an earlier process only if it is not in own.
	own    map[string]bool
	ready  bool // loaded is closed
	closed bool
}

// declaration is what one owner wants.
type declaration struct {
	owner    any
	services map[string]*wanted
}

type wanted struct {
	service  *servingv1.Service
	revision *revisions.Revision // set once applied
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
		opts:     opts,
		registry: revisions.NewRegistry(),
		starts:   semaphore.NewWeighted(int64(opts.StartLimit)),
		loaded:   make(chan struct{}),
		found:    make(map[string][]instancepool.Handle),
		own:      make(map[string]bool),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Start looks, once, for the instances that an earlier process left, in the
// background.
func (s *Scaler) Start() {
	s.start.Do(func() { s.wg.Go(s.load) })
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
	defer s.mu.Unlock()
	for _, h := range handles {
		if s.own[h.ID()] {
			continue
		}
		rev := h.Revision()
		if s.ready { // too late to decide what the service is, but its names are taken
			s.registry.Reserve(rev.Service, rev.Generation)
		} else {
			s.registry.Adopt(rev)
		}
		s.found[rev.Service] = append(s.found[rev.Service], h)
	}
	s.own = nil
}

// open lets declared services go to work, with what was found running.
func (s *Scaler) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if !s.ready {
		s.ready = true
		for _, d := range s.owners {
			s.apply(d)
		}
		close(s.loaded)
	}
	s.placeFound()
}

// placeFound gives each instance that was found to its service, and stops those
// whose service nobody wants. Nothing is decided before the first declaration:
// it may only just be on its way. The caller holds mu.
func (s *Scaler) placeFound() {
	if !s.ready || len(s.owners) == 0 {
		return
	}
	for name, handles := range s.found {
		delete(s.found, name)
		if svc := s.lookup(name); svc != nil {
			svc.adopt(handles)
			continue
		}
		s.registry.Forget(name)
		for _, h := range handles {
			s.discard(h, "its service is not configured any more")
		}
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
	})
}

// Declare makes services wanted by owner, in addition to what other owners
// want. Of several owners that want the same service the latest one decides
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("declaring services: the engine is closed")
	}
	s.owners = append(s.owners, d)
	if s.ready {
		s.apply(d)
		s.placeFound()
	}
	return nil
}

// apply brings about what d wants. The caller holds mu.
func (s *Scaler) apply(d *declaration) {
	for name, w := range d.services {
		rev, created, err := s.registry.Apply(w.service)
		if err != nil { // Prepare has made sure that it cannot be.
			s.opts.Observer.Revision(RevisionEvent{Kind: "failed", Service: name, Err: err})
			continue
		}
		w.revision = rev
		if created {
			s.opts.Observer.Revision(RevisionEvent{Kind: "created", Service: name, Revision: rev.Name})
		}
		if svc := s.lookup(name); svc != nil {
			svc.want(rev)
			continue
		}
		svc := newService(s, name)
		svc.adopt(s.found[name])
		delete(s.found, name)
		svc.want(rev)
		s.services.Store(name, svc)
	}
}

// Withdraw takes back what owner declared. A service that another owner still
// wants becomes what the latest of those wants; one that nobody wants drains
// and stops.
func (s *Scaler) Withdraw(owner any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.owners, func(d *declaration) bool { return d.owner == owner })
	if i < 0 {
		return
	}
	d := s.owners[i]
	s.owners = slices.Delete(s.owners, i, i+1)
	if !s.ready {
		return
	}
	for name := range d.services {
		svc := s.lookup(name)
		if svc == nil {
			continue
		}
		at := s.latestOwner(name)
		switch {
		case at < 0:
			s.services.Delete(name)
			s.registry.Forget(name)
			svc.retire()
		case at < i: // the one that left had decided
			w := s.owners[at].services[name]
			if w.revision == nil || !s.registry.Restore(w.service, w.revision) {
				rev, created, err := s.registry.Apply(w.service)
				if err != nil {
					continue
				}
				w.revision = rev
				if created {
					s.opts.Observer.Revision(RevisionEvent{Kind: "created", Service: name, Revision: rev.Name})
				}
			}
			svc.want(w.revision)
		}
	}
}

// latestOwner returns the index of the latest declaration of a service, or -1.
// The caller holds mu.
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

// Acquire returns a lease on an instance of the revision that the service
// routes to, waiting for it as long as ctx lets it. Errors: ErrUnknownService,
// instancepool.ErrQueueFull, *instancepool.StartError, or the cause of ctx's end.
func (s *Scaler) Acquire(ctx context.Context, name string) (*instancepool.Lease, error) {
	for {
		svc := s.lookup(name)
		if svc == nil {
			if err := s.awaitLoaded(ctx, name); err != nil {
				return nil, err
			}
			continue
		}
		pool := svc.route.Load()
		if pool == nil {
			continue // it was removed a moment ago; another of that name may be there
		}
		lease, err := pool.Acquire(ctx)
		if err == nil {
			return lease, nil
		}
		// What failed on a revision that has been replaced meanwhile is tried on
		// the new one.
		if ctx.Err() == nil && !errors.Is(err, instancepool.ErrTimeout) && (svc.route.Load() != pool || s.lookup(name) != svc) {
			continue
		}
		if errors.Is(err, instancepool.ErrDraining) {
			return nil, fmt.Errorf("%w: %s", ErrUnknownService, name)
		}
		return nil, err
	}
}

// awaitLoaded returns nil when a service that was not known may be known now.
func (s *Scaler) awaitLoaded(ctx context.Context, name string) error {
	select {
	case <-s.loaded:
	default:
		select {
		case <-s.loaded:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.ctx.Done():
		}
	}
	if s.lookup(name) == nil {
		return fmt.Errorf("%w: %s", ErrUnknownService, name)
	}
	return nil
}

// Pool settings common to all pools.
func (s *Scaler) newPool(rev *revisions.Revision) *instancepool.Pool {
	return instancepool.New(rev, instancepool.Options{
		Prepare:   func(ctx context.Context) error { return s.resolve(ctx, rev) },
		Start:     s.startInstance,
		Decide:    decide,
		Observe:   s.opts.Observer.Instance,
		Probe:     s.opts.probe,
		StopGrace: s.opts.StopGrace,
	})
}

func (s *Scaler) startInstance(ctx context.Context, spec instancepool.StartSpec) (instancepool.Handle, error) {
	began := time.Now()
	if err := s.starts.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	pass := sync.OnceFunc(func() { s.starts.Release(1) })
	defer pass()
	defer time.AfterFunc(startTurn, pass).Stop()
	if spec.Observe != nil {
		spec.Observe("turn", time.Since(began))
	}
	s.mu.Lock()
	if s.own != nil {
		s.own[spec.ID] = true
	}
	s.mu.Unlock()
	return s.opts.Runtime.Start(ctx, spec)
}

// resolve pins the revision's image, pulling it where needed. However many ask,
// one asks the engine, and it goes on when the first of them leaves.
func (s *Scaler) resolve(ctx context.Context, rev *revisions.Revision) error {
	if rev.Digest() != "" {
		return nil
	}
	pull := func() (any, error) {
		if rev.Digest() != "" {
			return nil, nil
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, progressDeadline)
		defer cancel()
		defer s.pulling.Delete(rev.Name)
		digest, err := s.opts.Runtime.Resolve(ctx, rev.Image, func(p instancepool.Progress) {
			if _, known := s.pulling.Swap(rev.Name, p); !known {
				s.opts.Observer.Revision(RevisionEvent{Kind: "image_pulling", Service: rev.Service, Revision: rev.Name})
			}
		})
		e := RevisionEvent{Kind: "image_resolved", Service: rev.Service, Revision: rev.Name, Digest: digest, Took: time.Since(began)}
		if err != nil {
			e.Kind, e.Err = "image_failed", fmt.Errorf("resolving image %s: %w", rev.Image, err)
		} else {
			rev.Pin(digest)
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

// Dismiss answers every waiting request with ErrUnknownService.
func (s *Scaler) Dismiss() {
	s.services.Range(func(_, v any) bool {
		if pool := v.(*service).route.Load(); pool != nil {
			pool.Dismiss()
		}
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
	s.owners = nil
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
		svc.detach()
	}
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
	return errors.Join(err, s.opts.Runtime.Close())
}
