package revisions

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Store keeps records. Caddy's storage is one (certmagic.Storage). Keys are
// paths; Store replaces a value atomically; Load's error for a key that is not
// there is an fs.ErrNotExist.
type Store interface {
	Store(ctx context.Context, key string, value []byte) error
	Load(ctx context.Context, key string) ([]byte, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, prefix string, recursive bool) ([]string, error)
}

const (
	keyServices   = "fairway/services"
	keyRevisions  = "fairway/revisions"
	keyQuarantine = "fairway/quarantine"
	// recordVersion is the version of the records that are written. Older ones are
	// understood, and replaced when what they are about changes; a newer one is left
	// to the Fairway that wrote it.
	//
	//	1: a revision is one JSON object, a Knative Revision in it
	//	2: a revision is two: how it does, and on a second line its template
	recordVersion = 2
	// storeTimeout bounds one access to the store.
	storeTimeout = 10 * time.Second
	// saveRetry is the pause after a write that failed.
	saveRetry = 2 * time.Second
)

// RecordError says that a record could not be read. It was moved out of the way, and
// nothing else was lost.
type RecordError struct {
	// Key is where it was, Moved where it is now.
	Key, Moved string
	Err        error
}

// Error says what is wrong, in one line.
func (p RecordError) Error() string {
	return fmt.Sprintf("record %s, now %s: %v", p.Key, p.Moved, p.Err)
}

// serviceRecord is a service as it is kept.
type serviceRecord struct {
	Version         int                           `json:"version"`
	Owner           Owner                         `json:"owner,omitempty"`
	Generation      int64                         `json:"generation"`
	RouteGeneration int64                         `json:"routeGeneration"`
	Latest          string                        `json:"latest,omitempty"`
	Rollout         *rolloutRecord                `json:"rollout,omitempty"`
	Service         *servingv1.Service            `json:"service"`
	Configuration   servingv1.ConfigurationStatus `json:"configuration"`
	Route           servingv1.RouteStatus         `json:"route"`
}

// rolloutRecord is a rollout as it is kept.
type rolloutRecord struct {
	To       string                   `json:"to"`
	Since    time.Time                `json:"since"`
	Duration time.Duration            `json:"nanoseconds"`
	Base     map[string][]shareRecord `json:"base"`
}

type shareRecord struct {
	Revision string `json:"revision"`
	Percent  int    `json:"percent"`
}

// revisionRecord is a revision as it is kept, but for its template, which follows
// on a line of its own: that is most of it, and seldom wanted.
type revisionRecord struct {
	Version    int       `json:"version"`
	Name       string    `json:"name"`
	Service    string    `json:"service"`
	Generation int64     `json:"generation"`
	UID        types.UID `json:"uid"`
	Created    time.Time `json:"created"`
	// Hash is that of the template, and so the sum that its line is checked by.
	Hash    string                   `json:"hash"`
	Status  servingv1.RevisionStatus `json:"status"`
	Digests map[string]string        `json:"digests,omitempty"`
	// Labels and Annotations are those changed later.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Routed      time.Time         `json:"routed,omitzero"`
	// Revision is all of it, in records of version 1.
	Revision *servingv1.Revision `json:"revision,omitempty"`
}

func serviceKey(name string) string { return path.Join(keyServices, name+".json") }

func revisionKey(rev *Revision) string { return path.Join(keyRevisions, rev.Service, rev.Name+".json") }

func encodeService(st *State) ([]byte, error) {
	b, err := json.Marshal(serviceRecord{
		Version: recordVersion, Owner: st.Owner, Generation: st.generation, RouteGeneration: st.routeGeneration,
		Latest: st.latest, Rollout: st.rollout.record(), Service: st.Service, Configuration: st.Configuration, Route: st.Route,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding service %s: %w", st.Name(), err)
	}
	return b, nil
}

func encodeRevision(rev *Revision) ([]byte, error) {
	m := rev.meta.Load()
	r := revisionRecord{
		Version: recordVersion, Name: rev.Name, Service: rev.Service, Generation: rev.Generation, UID: rev.uid, Created: rev.Created,
		Hash: rev.Hash, Status: m.status, Labels: m.labels, Annotations: m.annotations, Routed: m.routed,
	}
	r.Status.ContainerStatuses = nil // they follow from the digests
	if all := rev.digests.Load(); all != nil {
		r.Digests = *all
	}
	head, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding revision %s: %w", rev.Name, err)
	}
	return slices.Concat(head, []byte("\n"), encodeTemplate(&rev.Spec().Template), []byte("\n")), nil
}

// decode reads a record. Its version counts first: what else it says depends on
// it.
func decode(b []byte, record any, version *int) error {
	err := json.Unmarshal(b, record)
	if err != nil {
		*version = 0
		var v struct {
			Version int `json:"version"`
		}
		if json.Unmarshal(b, &v) == nil {
			*version = v.Version
		}
	}
	switch {
	case *version > recordVersion:
		return fmt.Errorf("it has version %d, which only a newer Fairway understands", *version)
	case err != nil:
		return fmt.Errorf("it is damaged: %w", err)
	case *version < 1:
		return errors.New("it has no version")
	}
	return nil
}

func decodeService(key string, b []byte) (*serviceRecord, error) {
	var r serviceRecord
	if err := decode(b, &r, &r.Version); err != nil {
		return nil, err
	}
	if r.Service == nil || serviceKey(r.Service.Name) != key {
		return nil, errors.New("it is damaged: it is not about the service that its name says")
	}
	return &r, nil
}

func decodeRevision(key string, b []byte) (*Revision, error) {
	head, template, _ := bytes.Cut(b, []byte("\n"))
	var r revisionRecord
	if err := decode(head, &r, &r.Version); err != nil {
		return nil, err
	}
	rev, err := r.revision(bytes.TrimSuffix(template, []byte("\n")))
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if revisionKey(rev) != key {
		return nil, errors.New("it is damaged: it is not about the revision that its name says")
	}
	return rev, nil
}

// revision is what the record and its template say.
func (r *revisionRecord) revision(template []byte) (*Revision, error) {
	meta := &revisionMeta{status: r.Status, labels: r.Labels, annotations: r.Annotations, routed: r.Routed}
	rev := new(Revision)
	if r.Version == 1 {
		if r.Revision == nil {
			return nil, errors.New("it says nothing")
		}
		if err := rev.from(r.Revision); err != nil {
			return nil, err
		}
		if r.Hash != "" {
			rev.Hash = r.Hash
		}
		meta.status = r.Revision.Status
		rev.meta.Store(meta)
		return rev, nil
	}
	rev.Name, rev.Service, rev.Generation, rev.uid, rev.Created, rev.Hash = r.Name, r.Service, r.Generation, r.UID, r.Created, r.Hash
	rev.meta.Store(meta)
	if r.Digests != nil {
		rev.digests.Store(&r.Digests)
	}
	if sum(template) == r.Hash {
		// It is what was written. If it was so by another Fairway's rules, what is
		// understood of it counts.
		rev.spec = sync.OnceValue(func() *Spec {
			spec, _ := decodeTemplate(template)
			return spec
		})
		return rev, nil
	}
	// Somebody has changed it, or it is half of it.
	spec, err := decodeTemplate(template)
	if err != nil {
		return nil, fmt.Errorf("its template: %w", err)
	}
	rev.spec = func() *Spec { return spec }
	return rev, nil
}

// decodeTemplate returns what it can read, whatever the error.
func decodeTemplate(b []byte) (*Spec, error) {
	var template servingv1.RevisionTemplateSpec
	err := json.Unmarshal(b, &template)
	spec, specErr := newSpec(template)
	return spec, cmp.Or(err, specErr)
}

// Open reads all records from the store and keeps them there from now on. It is
// called once, before anything else. What cannot be read is quarantined, see
// Problems; an error means that the store could not be used at all.
func (g *Registry) Open(ctx context.Context, store Store) error {
	var services []*serviceRecord
	var keys []string
	group, listing := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		keys, err = list(listing, store, keyRevisions)
		return err
	})
	group.Go(func() error {
		keys, err := list(listing, store, keyServices)
		if err == nil {
			services, err = loadAll(listing, g, store, keys, decodeService)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	revs, err := loadAll(ctx, g, store, keys, decodeRevision)
	if err != nil {
		return err
	}
	g.saver.store = store
	byService := make(map[string][]*Revision, len(services))
	for _, r := range revs {
		byService[r.Service] = append(byService[r.Service], r)
	}
	_ = each(len(services), runtime.GOMAXPROCS(0), func(i int) error {
		g.load(services[i], byService[services[i].Service.Name])
		return nil
	})
	for _, r := range services {
		delete(byService, r.Service.Name)
	}
	if len(byService) == 0 {
		return nil
	}
	// The record of their service is lost, or was not written any more, or is
	// deleted already.
	lost, err := list(ctx, store, path.Join(keyQuarantine, path.Base(keyServices)))
	if err != nil {
		return err
	}
	for name, all := range byService {
		g.loadOrphans(name, all, slices.ContainsFunc(lost, func(key string) bool { return strings.HasPrefix(path.Base(key), name+".json.") }))
	}
	return nil
}

// load makes a service known as its records say.
func (g *Registry) load(r *serviceRecord, all []*Revision) {
	name := r.Service.Name
	slices.SortFunc(all, func(a, b *Revision) int { return cmp.Compare(a.Generation, b.Generation) })
	st := &State{
		Owner: r.Owner, Service: r.Service, Configuration: r.Configuration, Route: r.Route,
		generation: r.Generation, routeGeneration: r.RouteGeneration, latest: r.Latest,
		PlaceholderLabels: withDefaultLabels(r.Service.Labels, nil), PlaceholderAnnotations: withDefaultLabels(r.Service.Annotations, nil),
	}
	rec := &record{name: name, floor: r.Generation}
	e := &edit{g: g, rec: rec, next: st, now: time.Now()}
	for _, rev := range all {
		if rev.Generation > r.Generation {
			e.removed = append(e.removed, rev) // not finished by the process that began it
			rec.floor = max(rec.floor, rev.Generation)
			continue
		}
		st.Revisions = append(st.Revisions, rev)
	}
	e.remake()
	for _, t := range st.Route.Traffic {
		if rev := st.Revision(t.RevisionName); rev != nil {
			st.Targets = append(st.Targets, Target{
				Revision: rev, Tag: t.Tag, Percent: int(deref(t.Percent, 0)), Latest: deref(t.LatestRevision, false),
			})
		}
	}
	st.rollout = r.Rollout.rollout(st)
	st.Service.ResourceVersion = formatVersion(g.floor)
	st.settle(g.Domain(), e.now)
	rec.state.Store(st)
	g.mu.Lock()
	g.enter(rec, st.Revisions)
	g.mapHosts(name, nil, hostsOf(st.Service))
	g.mu.Unlock()
	if len(e.added)+len(e.removed) > 0 {
		g.saver.later(rec, e)
	}
}

// remake makes the latest revision again if its own record is lost: its
// template is in that of the service.
func (e *edit) remake() {
	st := e.next
	if st.latest == "" || st.Latest() != nil {
		return
	}
	rev, err := newRevision(st.Service.Name, st.generation, st.Service.Spec.Template)
	if err != nil {
		return // by another Fairway's rules
	}
	rev.Name = st.latest
	rev.deploying()
	st.Revisions = append(st.Revisions, rev)
	e.added = append(e.added, rev)
}

// loadOrphans makes revisions known whose service has no record. If that is lost
// they wait for it, and the service goes on with their generations when it is
// wanted again; else it was being made or deleted when its process ended, and
// they go too.
func (g *Registry) loadOrphans(name string, all []*Revision, lost bool) {
	slices.SortFunc(all, func(a, b *Revision) int { return cmp.Compare(a.Generation, b.Generation) })
	floor := all[len(all)-1].Generation
	rec := &record{name: name, floor: floor, lost: lost}
	st := &State{generation: floor}
	if lost {
		st.Revisions = all
	}
	rec.state.Store(st)
	g.mu.Lock()
	g.enter(rec, st.Revisions)
	g.mu.Unlock()
	if !lost {
		g.saver.later(rec, &edit{removed: all})
	}
}

// enter makes a service and the names of its revisions known. The caller holds
// mu.
func (g *Registry) enter(rec *record, revs []*Revision) {
	g.services[rec.name] = rec
	for _, rev := range revs {
		rev.meta.Load().version = g.floor
		g.names[rev.Name] = rev
	}
}

// list returns the keys of all records below prefix.
func list(ctx context.Context, store Store, prefix string) ([]string, error) {
	keys, err := store.List(ctx, prefix, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s in the storage: %w", prefix, err)
	}
	return keys, nil
}

// each calls f with 0 to n-1, several at a time, until one fails.
func each(n, atATime int, f func(int) error) error {
	var next atomic.Int64
	var workers errgroup.Group
	for range atATime {
		workers.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := f(i); err != nil {
					next.Store(int64(n))
					return err
				}
			}
		})
	}
	return workers.Wait()
}

// loadAll reads the records of all keys, several at a time.
func loadAll[T any](ctx context.Context, g *Registry, store Store, keys []string, decode func(key string, b []byte) (T, error)) ([]T, error) {
	keys = slices.DeleteFunc(keys, func(key string) bool { return !strings.HasSuffix(key, ".json") })
	all := make([]T, len(keys))
	ok := make([]bool, len(keys))
	err := each(len(keys), 4*runtime.GOMAXPROCS(0), func(i int) error {
		b, err := store.Load(ctx, keys[i])
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s from the storage: %w", keys[i], err)
		}
		if all[i], err = decode(keys[i], b); err != nil {
			return g.quarantine(ctx, store, keys[i], b, err)
		}
		ok[i] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	n := 0
	for i := range all {
		if ok[i] {
			all[n] = all[i]
			n++
		}
	}
	return all[:n], nil
}

// quarantine moves a record that cannot be read out of the way.
func (g *Registry) quarantine(ctx context.Context, store Store, key string, b []byte, why error) error {
	moved := path.Join(keyQuarantine, strings.TrimPrefix(key, "fairway/")+time.Now().UTC().Format(".20060102T150405.000000000Z"))
	if err := store.Store(ctx, moved, b); err != nil {
		return fmt.Errorf("moving the unreadable %s out of the way: %w", key, err)
	}
	if err := store.Delete(ctx, key); err != nil {
		return fmt.Errorf("moving the unreadable %s out of the way: %w", key, err)
	}
	p := RecordError{Key: key, Moved: moved, Err: why}
	g.mu.Lock()
	g.problems = append(g.problems, p)
	g.mu.Unlock()
	g.opts.Report(p)
	return nil
}

// saver writes what has changed: at once where the change depends on it, else
// in the background, as often as it takes.
type saver struct {
	g     *Registry
	store Store // set by Open; nil: nothing is kept

	mu      sync.Mutex // guards all below
	pending map[*record]*unsaved
	running sync.WaitGroup
	working bool
	closed  chan struct{}
}

// unsaved is what of a service has not been written yet.
type unsaved struct {
	changed map[*Revision]bool
	removed map[*Revision]bool
}

func newSaver(g *Registry) *saver {
	return &saver{g: g, pending: make(map[*record]*unsaved), closed: make(chan struct{})}
}

// write writes an edit that is not made unless this succeeds, with all that was
// to be written later. The caller holds the record's lock.
func (s *saver) write(e *edit) error {
	if s.store == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	u := s.take(e.rec)
	todo := newUnsaved()
	todo.merge(u)
	todo.note(e)
	err := s.writeAll(ctx, e.rec.name, e.next, todo)
	if err == nil {
		return nil
	}
	// What is kept now may be anything between the state before and the one that
	// was to be. It becomes the one before again, and what is written next, too.
	for _, r := range e.added {
		u.removed[r] = true
	}
	for _, r := range slices.Concat(e.touched, e.removed) {
		if !slices.Contains(e.added, r) {
			u.changed[r] = true
		}
	}
	s.put(e.rec, u)
	return err
}

// writeAll writes the state of a service. The service's own record decides what
// counts: it is written last, but goes first. A crash in between leaves nothing
// but revisions that it does not know, see Open.
func (s *saver) writeAll(ctx context.Context, name string, st *State, u *unsaved) error {
	if st.Service == nil {
		if err := s.delete(ctx, serviceKey(name)); err != nil {
			return fmt.Errorf("removing service %s: %w", name, err)
		}
	}
	for rev := range u.changed {
		if !slices.Contains(st.Revisions, rev) {
			continue
		}
		b, err := encodeRevision(rev)
		if err != nil {
			return err
		}
		if err := s.store.Store(ctx, revisionKey(rev), b); err != nil {
			return fmt.Errorf("writing revision %s: %w", rev.Name, err)
		}
	}
	if st.Service != nil {
		b, err := encodeService(st)
		if err != nil {
			return err
		}
		if err := s.store.Store(ctx, serviceKey(name), b); err != nil {
			return fmt.Errorf("writing service %s: %w", name, err)
		}
	}
	for rev := range u.removed {
		if st.Revision(rev.Name) != nil { // it is another one by now
			continue
		}
		if err := s.delete(ctx, revisionKey(rev)); err != nil {
			return fmt.Errorf("removing revision %s: %w", rev.Name, err)
		}
	}
	if st.Service == nil && len(st.Revisions) == 0 {
		if err := s.delete(ctx, path.Join(keyRevisions, name)); err != nil {
			return fmt.Errorf("removing service %s: %w", name, err)
		}
	}
	return nil
}

func (s *saver) delete(ctx context.Context, key string) error {
	if err := s.store.Delete(ctx, key); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func newUnsaved() *unsaved {
	return &unsaved{changed: make(map[*Revision]bool), removed: make(map[*Revision]bool)}
}

func (u *unsaved) merge(other *unsaved) {
	maps.Copy(u.changed, other.changed)
	maps.Copy(u.removed, other.removed)
}

// note adds what an edit changes.
func (u *unsaved) note(e *edit) {
	for _, r := range slices.Concat(e.added, e.touched) {
		u.changed[r] = true
	}
	for _, r := range e.removed {
		u.removed[r] = true
	}
}

// take returns what has not been written of a service, which then nobody else
// writes.
func (s *saver) take(rec *record) *unsaved {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.pending[rec]
	if u == nil {
		return newUnsaved()
	}
	delete(s.pending, rec)
	return u
}

// later writes the service's present state soon.
func (s *saver) later(rec *record, e *edit) {
	u := newUnsaved()
	u.note(e)
	s.put(rec, u)
}

// put has u, of the service's present state, written soon.
func (s *saver) put(rec *record, u *unsaved) {
	if s.store == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.pending[rec]; before != nil {
		before.merge(u)
	} else {
		s.pending[rec] = u
	}
	if !s.working && !s.isClosed() {
		s.working = true
		s.running.Go(s.work)
	}
}

func (s *saver) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// work writes until nothing is left to write, or the saver is closed.
func (s *saver) work() {
	for {
		rec := s.next()
		if rec == nil {
			return
		}
		err := s.save(context.Background(), rec)
		if err == nil {
			continue
		}
		s.g.opts.Report(fmt.Errorf("%w; it is tried again", err))
		retry := time.NewTimer(saveRetry)
		select {
		case <-retry.C:
		case <-s.closed:
			retry.Stop()
		}
	}
}

// next returns a service that is to be written; nil ends the work.
func (s *saver) next() *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isClosed() {
		for rec := range s.pending {
			return rec
		}
	}
	s.working = false
	return nil
}

// save writes what has not been written of a service.
func (s *saver) save(ctx context.Context, rec *record) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	u := s.take(rec)
	err := s.writeAll(ctx, rec.name, rec.state.Load(), u)
	if err != nil {
		s.put(rec, u)
	}
	return err
}

// close writes what is left, within ctx.
func (s *saver) close(ctx context.Context) error {
	s.mu.Lock()
	if s.isClosed() {
		s.mu.Unlock()
		return nil
	}
	close(s.closed)
	s.mu.Unlock()
	s.running.Wait()
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.pending))
	s.mu.Unlock()
	var err error
	for _, rec := range left {
		err = errors.Join(err, s.save(ctx, rec))
	}
	return err
}
