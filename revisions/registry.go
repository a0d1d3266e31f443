package revisions

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Options are what a Registry needs; all may be left out.
type Options struct {
	// Store is where records are kept. Default: nowhere.
	Store Store
	// Domain is where services are served.
	Domain Domain
	// Changed is called after each change of a service that others must follow,
	// outside of all locks, at times more than once for one change.
	Changed func(service string)
	// Routing tells where the requests of a service get to by now, or nil if that is
	// not known. It must return at once and not call the registry. Who changes it
	// other than within Changed calls Confirm. Default: wherever they should.
	Routing func(service string) *Routing
	// Created is called for each new revision before anybody can see it. It must
	// not change its service.
	Created func(*Revision)
	// Removed is called after revisions of a service are gone.
	Removed func(service string)
	// Report is told what could not be read or written; nothing stops for it.
	Report func(error)
}

// Registry holds the services that are wanted, their revisions, and where
// requests go. It is safe for concurrent use; what it returns must not be
// modified. Every change of a service is made as a whole or not at all, one
// after the other, whoever asks for it; changes of different services do not
// wait for each other.
//
// Errors are those of Kubernetes' API (k8s.io/apimachinery/pkg/api/errors).
type Registry struct {
	opts    Options
	domain  atomic.Pointer[Domain]
	changes *changes
	saver   *saver
	hosts   sync.Map // host → service's name: read for each request

	mu       sync.RWMutex // guards all below; held for moments only
	services map[string]*record
	names    map[string]*Revision // of revisions: unique among all services
	version  uint64               // the last one given out
	floor    uint64               // the version when the registry was made
	problems []RecordError
}

// record is one service. Its state is replaced as a whole.
type record struct {
	name string
	mu   sync.Mutex // held by whoever changes the service, while it is written too
	// following is held for reading from when a change is visible until Changed
	// has returned.
	following sync.RWMutex
	state     atomic.Pointer[State]
	// floor is the highest generation ever given out: none is used twice while
	// this process lives, as instances of the old one may still be there.
	floor int64
	// lost is set while the revisions of a service wait for its record.
	lost bool
}

// NewRegistry returns an empty registry.
func NewRegistry(opts Options) *Registry {
	if opts.Changed == nil {
		opts.Changed = func(string) {}
	}
	if opts.Routing == nil {
		opts.Routing = func(string) *Routing { return nil }
	}
	if opts.Created == nil {
		opts.Created = func(*Revision) {}
	}
	if opts.Removed == nil {
		opts.Removed = func(string) {}
	}
	if opts.Report == nil {
		opts.Report = func(error) {}
	}
	g := &Registry{
		opts: opts, changes: newChanges(), services: make(map[string]*record), names: make(map[string]*Revision),
		version: uint64(time.Now().UnixMicro()), // above those of any earlier process
	}
	g.floor = g.version
	g.domain.Store(&opts.Domain)
	g.saver = newSaver(g)
	return g
}

// SetDomain changes where services are served.
func (g *Registry) SetDomain(d Domain) {
	if old := g.domain.Swap(&d); *old == d {
		return
	}
	for _, name := range g.Names() {
		_, _ = g.edit(name, func(*edit) error { return nil })
	}
}

// Domain is where services are served.
func (g *Registry) Domain() Domain { return *g.domain.Load() }

// Prepare returns a copy of svc with every default filled in, or one error that
// names each field that is wrong, in Knative's words.
func Prepare(svc *servingv1.Service) (*servingv1.Service, error) {
	return prepare(svc, nil, OwnerConfig)
}

// prepare is Prepare for a service that replaces before, unless that is nil.
func prepare(svc, before *servingv1.Service, owner Owner) (*servingv1.Service, error) {
	ctx := apis.WithinCreate(context.Background())
	if before != nil {
		ctx = apis.WithinUpdate(context.Background(), before)
	}
	ctx = withKnativeConfig(ctx)
	if owner == OwnerAPI {
		ctx = apis.WithUserInfo(ctx, &authv1.UserInfo{Username: "admin"}) // whoever reaches the admin endpoint
	}
	svc = svc.DeepCopy()
	if svc.Name == "" {
		return nil, errors.New("missing field(s): metadata.name")
	}
	svc.SetDefaults(ctx)
	// Knative compares what clients send, where nothing and empty are the same.
	b, err := json.Marshal(svc)
	if err != nil {
		return nil, fmt.Errorf("encoding service %s: %w", svc.Name, err)
	}
	svc = new(servingv1.Service)
	if err := json.Unmarshal(b, svc); err != nil {
		return nil, fmt.Errorf("decoding service: %w", err)
	}
	if err := svc.Validate(ctx).Filter(apis.ErrorLevel); err != nil {
		return nil, &invalidError{service: svc.Name, fields: err}
	}
	if err := validateProbes(&svc.Spec.Template.Spec); err != nil {
		return nil, &invalidError{service: svc.Name, fields: err}
	}
	if _, err := newRevision(svc.Name, 1, svc.Spec.Template); err != nil {
		return nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	if _, err := boundsOf(svc); err != nil {
		return nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	if err := checkIngress(svc); err != nil {
		return nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	for _, t := range svc.Spec.Traffic {
		if label := t.Tag + "---" + svc.Name; t.Tag != "" && len(label) > 63 {
			return nil, fmt.Errorf("service %s: the tag %s makes the host %s, which is longer than 63 characters", svc.Name, t.Tag, label)
		}
	}
	return svc, nil
}

// invalidError says what of a service Knative does not take.
type invalidError struct {
	service string
	fields  *apis.FieldError
}

// Error says it in one line.
func (e *invalidError) Error() string {
	all := e.fields.WrappedErrors()
	problems := make([]string, 0, len(all))
	for _, p := range all {
		problems = append(problems, strings.ReplaceAll(p.Error(), "\n", "; "))
	}
	return fmt.Sprintf("service %s: %s", e.service, strings.Join(problems, "; "))
}

// Create makes a service. Its generated name, uid and versions are in the result.
func (g *Registry) Create(svc *servingv1.Service, owner Owner) (*State, error) {
	if svc.ResourceVersion != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	st, _, err := g.put(svc, owner, putCreate)
	return st, err
}

// Update replaces what is wanted of a service. A resourceVersion or uid in svc
// must be the present one.
func (g *Registry) Update(svc *servingv1.Service, owner Owner) (*State, error) {
	st, _, err := g.put(svc, owner, putUpdate)
	return st, err
}

// Apply makes svc what is wanted of its service, new or not. When its template
// differs from the one before, a new revision is made; else the latest one is
// returned and created is false; if that had failed, it gets another try. What
// Prepare has returned may be kept as it is, and must not be modified any more.
// Source: Knative Serving API, "Configuration": a changed template makes a new
// Revision, anything else does not.
func (g *Registry) Apply(svc *servingv1.Service, owner Owner) (rev *Revision, created bool, err error) {
	st, created, err := g.put(svc, owner, putApply)
	if err != nil {
		return nil, false, err
	}
	return st.Latest(), created, nil
}

type putMode int

const (
	putCreate putMode = iota
	putUpdate
	putApply
)

func (g *Registry) put(svc *servingv1.Service, owner Owner, mode putMode) (*State, bool, error) {
	if mode == putUpdate && !g.Known(svc.Name) {
		return nil, false, apierrors.NewNotFound(resource("services"), svc.Name)
	}
	created := false
	st, err := g.edit(svc.Name, func(e *edit) (err error) {
		created, err = e.put(svc, owner, mode)
		return err
	})
	return st, created, err
}

// edit is one change of one service in the making.
type edit struct {
	g    *Registry
	rec  *record
	next *State
	// now is the time of the change.
	now time.Time
	// durable is set when the change is made only if it could be written.
	durable bool
	quiet   bool // nothing has changed
	added   []*Revision
	touched []*Revision
	removed []*Revision
	// undo is what was known of the touched before.
	undo []*revisionMeta
}

// edit changes a service by f, under its lock, and makes the result known.
func (g *Registry) edit(name string, f func(*edit) error) (*State, error) {
	rec := g.record(name)
	rec.mu.Lock()
	before := rec.state.Load()
	e := &edit{g: g, rec: rec, next: before.clone(), now: time.Now()}
	if err := f(e); err != nil {
		rec.mu.Unlock()
		return nil, err
	}
	if e.quiet {
		rec.mu.Unlock()
		return before, nil
	}
	if r := g.opts.Routing(name); r != nil && e.next.Service != nil {
		e.next.routing = r
	}
	e.next.settle(g.Domain(), e.now)
	e.noteRouting(before)
	e.collect()
	if e.durable {
		if err := g.saver.write(e); err != nil {
			e.revert()
			rec.mu.Unlock()
			return nil, apierrors.NewInternalError(err)
		}
	}
	for _, rev := range e.added {
		g.opts.Created(rev)
	}
	rec.following.RLock()
	g.commit(e, before)
	if !e.durable {
		g.saver.later(rec, e)
	}
	next := e.next
	rec.mu.Unlock()
	e.tell()
	return g.confirm(rec, next), nil
}

// tell has the change followed. It ends the caller's hold of following.
func (e *edit) tell() {
	defer e.rec.following.RUnlock()
	if len(e.removed) > 0 {
		e.g.opts.Removed(e.rec.name)
	}
	e.g.opts.Changed(e.rec.name)
}

// record returns the record of a service, which is kept for ever once it is
// made: see its floor.
func (g *Registry) record(name string) *record {
	g.mu.Lock()
	defer g.mu.Unlock()
	rec := g.services[name]
	if rec == nil {
		rec = &record{name: name}
		rec.state.Store(new(State))
		g.services[name] = rec
	}
	return rec
}

// noteRouting notes which revisions requests have begun, or ceased, to get to.
func (e *edit) noteRouting(before *State) {
	for _, r := range e.next.Revisions {
		if before.Routed(r) != e.next.Routed(r) {
			e.touch(r, func(m *revisionMeta) { m.routed = e.now })
		}
	}
}

// touch changes how a revision does, visibly at once: others only read it.
func (e *edit) touch(r *Revision, change func(*revisionMeta)) {
	before := r.meta.Load()
	r.meta.Store(before.with(change))
	if !slices.Contains(e.touched, r) {
		e.touched, e.undo = append(e.touched, r), append(e.undo, before)
	}
}

// revert takes back what of an edit is visible already.
func (e *edit) revert() {
	for i, r := range e.touched {
		r.meta.Store(e.undo[i])
	}
	e.g.forgetNames(e.added)
}

// commit makes the result of an edit known. The caller holds the record's lock.
func (g *Registry) commit(e *edit, before *State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.version += 2 // see State.Written
	version := g.version
	var log []Change
	if e.next.Service != nil {
		e.next.Service.ResourceVersion = formatVersion(version)
		e.next.changed = e.now
	}
	switch {
	case before.Service == nil && e.next.Service != nil:
		log = append(log, Change{Kind: Added, Version: version, State: e.next})
	case before.Service != nil && e.next.Service == nil:
		log = append(log, Change{Kind: Deleted, Version: version, State: before, Before: before})
	case e.next.Service != nil:
		log = append(log, Change{Kind: Modified, Version: version, State: e.next, Before: before})
	}
	revisions := func(kind ChangeKind, all []*Revision) {
		for _, r := range all {
			if kind == Modified && (slices.Contains(e.added, r) || slices.Contains(e.removed, r)) {
				continue
			}
			r.meta.Store(r.meta.Load().with(func(m *revisionMeta) { m.version = version }))
			st := e.next
			if st.Service == nil && before.Service != nil {
				st = before
			}
			log = append(log, Change{Kind: kind, Version: version, State: st, Revision: r})
		}
	}
	revisions(Added, e.added)
	revisions(Modified, e.touched)
	revisions(Deleted, e.removed)
	for _, r := range e.removed {
		if g.names[r.Name] == r {
			delete(g.names, r.Name)
		}
	}
	e.rec.state.Store(e.next)
	g.mapHosts(e.rec.name, hostsOf(before.Service), hostsOf(e.next.Service))
	g.changes.add(log...)
}

// uidError says, in Kubernetes' words, that an object is another one.
func uidError(want, have types.UID) error {
	return fmt.Errorf("Precondition failed: UID in precondition: %s, UID in object meta: %s", want, have) //nolint:staticcheck // see above
}

func resource(kind string) schema.GroupResource {
	return schema.GroupResource{Group: servingv1.SchemeGroupVersion.Group, Resource: kind}
}

// put makes svc what is wanted.
func (e *edit) put(svc *servingv1.Service, owner Owner, mode putMode) (created bool, err error) {
	cur := e.next
	e.durable = owner != OwnerConfig // which would only make a container wait for a disk
	switch {
	case cur.Service != nil && mode == putCreate:
		return false, apierrors.NewAlreadyExists(resource("services"), svc.Name)
	case cur.Service == nil && mode == putUpdate:
		return false, apierrors.NewNotFound(resource("services"), svc.Name)
	case cur.Service != nil && cur.Owner != owner:
		return false, apierrors.NewConflict(resource("services"), svc.Name,
			fmt.Errorf("it belongs to %s: change it there", cur.Owner))
	case svc.ResourceVersion != "" && mode == putUpdate && !cur.hasVersion(svc.ResourceVersion):
		return false, apierrors.NewConflict(resource("services"), svc.Name,
			errors.New("the object has been modified; please apply your changes to the latest version and try again"))
	case svc.UID != "" && mode == putUpdate && svc.UID != cur.Service.UID:
		return false, apierrors.NewConflict(resource("services"), svc.Name,
			uidError(svc.UID, cur.Service.UID))
	}
	var before *servingv1.Service
	if mode != putApply {
		before = cur.Service
	}
	want, err := prepare(keepUnsaid(svc, cur.Service), before, owner)
	var invalid *invalidError
	switch {
	case errors.As(err, &invalid): // clients know Knative's own words
		return false, apierrors.NewBadRequest("validation failed: " + invalid.fields.Error())
	case err != nil:
		return false, apierrors.NewBadRequest("validation failed: " + err.Error())
	}
	if owner != OwnerAPI && reflect.DeepEqual(want.Spec, svc.Spec) {
		want.Spec = svc.Spec // the owner keeps it anyway, and one copy is enough
	}
	if err := e.g.checkHosts(want); err != nil {
		return false, apierrors.NewBadRequest("validation failed: " + err.Error())
	}
	e.adoptMeta(want, owner)
	cur.Owner, before, cur.Service = owner, cur.Service, want
	if before == nil {
		cur.routeGeneration = 1
		return e.revise(true)
	}
	templateChanged := !equality.Semantic.DeepEqual(before.Spec.Template, want.Spec.Template)
	trafficChanged := !equality.Semantic.DeepEqual(before.Spec.Traffic, want.Spec.Traffic)
	if trafficChanged {
		cur.routeGeneration++
	}
	if templateChanged || trafficChanged {
		want.Generation++
	}
	e.quiet = want.Generation == before.Generation && metaEqual(&before.ObjectMeta, &want.ObjectMeta)
	if !templateChanged {
		return false, e.retry()
	}
	return e.revise(false)
}

// keepUnsaid returns svc with what Knative's webhooks set when the service was
// made and what clients that write manifests do not know of: the same manifest
// twice must be the same service.
func keepUnsaid(svc, before *servingv1.Service) *servingv1.Service {
	if before == nil {
		return svc
	}
	svc = svc.DeepCopy()
	for _, key := range []string{serving.CreatorAnnotation, serving.UpdaterAnnotation} {
		if v, ok := before.Annotations[key]; ok && svc.Annotations[key] == "" {
			svc.Annotations = withDefaultLabels(svc.Annotations, map[string]string{key: v})
		}
	}
	if svc.Spec.Template.Spec.EnableServiceLinks == nil {
		svc.Spec.Template.Spec.EnableServiceLinks = before.Spec.Template.Spec.EnableServiceLinks
	}
	return svc
}

// adoptMeta fills in what the registry itself says of a service.
func (e *edit) adoptMeta(want *servingv1.Service, owner Owner) {
	m := metav1.ObjectMeta{
		Name: want.Name, GenerateName: want.GenerateName, Labels: want.Labels, Annotations: want.Annotations,
		UID: uuid.NewUUID(), Generation: 1, CreationTimestamp: metav1.NewTime(e.now.Truncate(time.Second)),
	}
	want.Status = servingv1.ServiceStatus{}
	if before := e.next.Service; before != nil {
		m.UID, m.Generation, m.CreationTimestamp = before.UID, before.Generation, before.CreationTimestamp
		m.GenerateName = before.GenerateName
		m.ResourceVersion = before.ResourceVersion
		before.Status.DeepCopyInto(&want.Status)
	}
	want.ObjectMeta = m
	e.next.PlaceholderLabels = withDefaultLabels(e.next.PlaceholderLabels, m.Labels)
	e.next.PlaceholderAnnotations = withDefaultLabels(e.next.PlaceholderAnnotations, m.Annotations)
}

func metaEqual(a, b *metav1.ObjectMeta) bool {
	return maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}

// retry gives the latest revision another try if it has failed and is declared
// again by those who can say it no other way.
func (e *edit) retry() error {
	latest := e.next.Latest()
	if e.next.Owner == OwnerAPI || latest == nil || latest.Readiness() != ReadinessFalse {
		return nil
	}
	e.quiet = false
	e.touch(latest, func(m *revisionMeta) {
		m.status.MarkContainerHealthyUnknown(servingv1.ReasonDeploying, "It is tried again.")
		m.status.MarkResourcesAvailableUnknown(servingv1.ReasonDeploying, "It is tried again.")
	})
	return nil
}

// revise makes the revision of a new template, the service's first or a later
// one, or finds that it exists.
func (e *edit) revise(first bool) (created bool, err error) {
	st := e.next
	template := st.Service.Spec.Template
	st.generation = max(st.generation, e.rec.floor) + 1
	rev, err := newRevision(st.Service.Name, st.generation, template)
	if err != nil {
		return false, apierrors.NewBadRequest("validation failed: " + err.Error())
	}
	if same := e.known(rev, template.Name != "", first); same != nil {
		st.latest = same.Name
		if template.Name == "" {
			st.generation-- // none was needed
		}
		e.rec.floor = max(e.rec.floor, st.generation)
		return false, nil
	}
	for !e.g.reserveName(rev) {
		if template.Name != "" {
			st.latest = ""
			e.rec.floor = max(e.rec.floor, st.generation)
			return false, nil // shown in the status, as Knative does
		}
		st.generation++
		if rev, err = newRevision(st.Service.Name, st.generation, template); err != nil {
			return false, apierrors.NewBadRequest("validation failed: " + err.Error())
		}
	}
	rev.deploying()
	e.rec.floor = max(e.rec.floor, st.generation)
	st.latest = rev.Name
	st.Revisions = append(st.Revisions, rev)
	e.added = append(e.added, rev)
	return true, nil
}

// known returns the revision that says what rev does already: one of the same
// name that the user has given, or the one that an earlier process ran last.
func (e *edit) known(rev *Revision, named, first bool) *Revision {
	st := e.next
	if named {
		if same := st.Revision(rev.Name); same != nil && same.Hash == rev.Hash {
			return same
		}
		return nil
	}
	if !first || len(st.Revisions) == 0 {
		return nil
	}
	if last := st.Revisions[len(st.Revisions)-1]; last.Hash == rev.Hash {
		return last
	}
	return nil
}

// reserveName takes the revision's name, or reports that another has it.
func (g *Registry) reserveName(rev *Revision) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.names[rev.Name] != nil {
		return false
	}
	g.names[rev.Name] = rev
	return true
}

func (g *Registry) forgetNames(revs []*Revision) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range revs {
		if g.names[r.Name] == r {
			delete(g.names, r.Name)
		}
	}
}

// Delete removes a service with all it has. Its generations go on where they
// were if it comes back, while this process lives: instances of the old
// revisions may still be draining, and two things must never have one name.
func (g *Registry) Delete(name string, owner Owner, pre *metav1.Preconditions) (*State, error) {
	var last *State
	if !g.Known(name) {
		return nil, apierrors.NewNotFound(resource("services"), name)
	}
	_, err := g.edit(name, func(e *edit) error {
		svc := e.next.Service
		switch {
		case svc == nil:
			return apierrors.NewNotFound(resource("services"), name)
		case e.next.Owner != owner:
			return apierrors.NewConflict(resource("services"), name, fmt.Errorf("it belongs to %s: remove it there", e.next.Owner))
		case pre != nil && pre.UID != nil && *pre.UID != svc.UID, pre != nil && pre.ResourceVersion != nil && !e.next.hasVersion(*pre.ResourceVersion):
			return apierrors.NewConflict(resource("services"), name, errors.New("the object is not the one that the preconditions name"))
		}
		last = e.rec.state.Load()
		e.durable = owner != OwnerConfig
		e.clear()
		return nil
	})
	return last, err
}

// clear removes all of the service.
func (e *edit) clear() {
	e.rec.lost = false
	e.removed = e.next.Revisions
	*e.next = State{}
}

// Disown gives the services of directories that are not watched, all but the one
// of the owner kept, to the API: nobody else could change them any more.
func (g *Registry) Disown(kept Owner) {
	for _, name := range g.Names() {
		if st := g.State(name); st == nil || !strings.HasPrefix(string(st.Owner), ownerDirectory) || st.Owner == kept {
			continue
		}
		_, _ = g.edit(name, func(e *edit) error {
			e.next.Owner = OwnerAPI
			return nil
		})
	}
}

// Forget removes a service that Caddy's config declared, or of which nothing is
// there but what runs.
func (g *Registry) Forget(name string) {
	if g.State(name) == nil {
		return
	}
	_, _ = g.edit(name, func(e *edit) error {
		if e.next.Service == nil {
			e.quiet = e.rec.lost
		} else {
			e.quiet = e.next.Owner != OwnerConfig
		}
		if !e.quiet {
			e.clear()
		}
		return nil
	})
}

// Restore takes back what was applied after rev: svc is wanted again, and rev
// is its latest revision. It reports whether rev was still known. Generations
// that were given out since are not used again.
func (g *Registry) Restore(svc *servingv1.Service, rev *Revision) bool {
	if st := g.State(svc.Name); st == nil || !slices.Contains(st.Revisions, rev) {
		return false
	}
	_, err := g.edit(svc.Name, func(e *edit) error {
		i := slices.Index(e.next.Revisions, rev)
		if i < 0 {
			return errors.New("it is gone")
		}
		want := svc.DeepCopy()
		e.adoptMeta(want, e.next.Owner)
		want.Generation++
		e.removed = slices.Clone(e.next.Revisions[i+1:])
		e.next.Service, e.next.latest, e.next.Revisions = want, rev.Name, e.next.Revisions[:i+1]
		e.next.routeGeneration++
		return nil
	})
	return err == nil
}

// Adopt makes a revision known that an earlier process ran. It returns the one
// already known by that name when there is one, so that each revision exists
// once.
func (g *Registry) Adopt(rev *Revision) *Revision {
	known := rev
	_, _ = g.edit(rev.Service, func(e *edit) error {
		if same := e.next.Revision(rev.Name); same != nil {
			known, e.quiet = same, true
			return nil
		}
		if e.next.Service != nil || !g.reserveName(rev) {
			e.quiet = true
			return nil
		}
		i, _ := slices.BinarySearchFunc(e.next.Revisions, rev.Generation, func(r *Revision, gen int64) int {
			return cmp.Compare(r.Generation, gen)
		})
		e.next.Revisions = slices.Insert(e.next.Revisions, i, rev)
		e.next.generation = max(e.next.generation, rev.Generation)
		e.rec.floor = max(e.rec.floor, rev.Generation)
		return nil
	})
	return known
}

// Reserve keeps generations up to and including this one from being given out.
func (g *Registry) Reserve(service string, generation int64) {
	_, _ = g.edit(service, func(e *edit) error {
		e.quiet = true
		e.rec.floor = max(e.rec.floor, generation)
		return nil
	})
}

// Drop forgets a revision of Caddy's config that nothing can route to any more.
// The latest one stays: the next generation is counted from it.
func (g *Registry) Drop(rev *Revision) {
	st := g.State(rev.Service)
	if st == nil || st.Owner != OwnerConfig {
		return
	}
	_, _ = g.edit(rev.Service, func(e *edit) error {
		i := slices.Index(e.next.Revisions, rev)
		if i < 0 || e.next.latest == rev.Name || i == len(e.next.Revisions)-1 || e.next.Routed(rev) {
			e.quiet = true
			return nil
		}
		e.next.Revisions = slices.Delete(e.next.Revisions, i, i+1)
		e.removed = []*Revision{rev}
		return nil
	})
}

// DeleteRevision removes a revision that requests can not get to.
func (g *Registry) DeleteRevision(name string) (*State, error) {
	rev := g.Revision(name)
	if rev == nil {
		return nil, apierrors.NewNotFound(resource("revisions"), name)
	}
	return g.edit(rev.Service, func(e *edit) error {
		i := slices.Index(e.next.Revisions, rev)
		switch {
		case i < 0:
			return apierrors.NewNotFound(resource("revisions"), name)
		case e.next.Routed(rev):
			return apierrors.NewConflict(resource("revisions"), name, errors.New("requests are routed to it: move the traffic, and remove its tags, first"))
		case e.next.latest == name:
			return apierrors.NewConflict(resource("revisions"), name, fmt.Errorf("it is the latest revision of service %s: deploy another one first", rev.Service))
		}
		e.next.Revisions = slices.Delete(e.next.Revisions, i, i+1)
		e.removed = []*Revision{rev}
		e.durable = true
		return nil
	})
}

// UpdateRevision replaces the labels and annotations of a revision, which are
// all of it that may change.
func (g *Registry) UpdateRevision(want *servingv1.Revision) (*State, *Revision, error) {
	rev := g.Revision(want.Name)
	if rev == nil {
		return nil, nil, apierrors.NewNotFound(resource("revisions"), want.Name)
	}
	st, err := g.edit(rev.Service, func(e *edit) error {
		if !slices.Contains(e.next.Revisions, rev) {
			return apierrors.NewNotFound(resource("revisions"), want.Name)
		}
		obj := e.next.RevisionObject(rev)
		if want.ResourceVersion != "" && want.ResourceVersion != obj.ResourceVersion {
			return apierrors.NewConflict(resource("revisions"), want.Name,
				errors.New("the object has been modified; please apply your changes to the latest version and try again"))
		}
		if want.UID != "" && want.UID != obj.UID {
			return apierrors.NewConflict(resource("revisions"), want.Name, uidError(want.UID, obj.UID))
		}
		next := want.DeepCopy()
		ctx := apis.WithinUpdate(withKnativeConfig(context.Background()), obj)
		next.SetDefaults(ctx)
		if !equality.Semantic.DeepEqual(next.Spec, obj.Spec) {
			return apierrors.NewBadRequest("validation failed: " + next.Validate(ctx).Filter(apis.ErrorLevel).Error())
		}
		if metaEqual(&next.ObjectMeta, &obj.ObjectMeta) {
			e.quiet = true
			return nil
		}
		e.durable = true
		// What the registry says itself is not kept: it may change.
		labels, annotations := withDefaultLabels(withoutSystemLabels(next.Labels), nil), withDefaultLabels(next.Annotations, nil)
		delete(annotations, serving.RoutesAnnotationKey)
		delete(annotations, serving.RoutingStateModifiedAnnotationKey)
		e.touch(rev, func(m *revisionMeta) { m.labels, m.annotations = labels, annotations })
		return nil
	})
	return st, rev, err
}

// Mark notes how a revision does: change sets conditions of its status.
func (g *Registry) Mark(rev *Revision, change func(*servingv1.RevisionStatus)) {
	_, _ = g.edit(rev.Service, func(e *edit) error {
		if !slices.Contains(e.next.Revisions, rev) {
			e.quiet = true
			return nil
		}
		before := rev.meta.Load()
		after := before.with(func(m *revisionMeta) { change(&m.status) })
		if equality.Semantic.DeepEqual(before.status, after.status) {
			e.quiet = true
			return nil
		}
		e.touch(rev, func(m *revisionMeta) { change(&m.status) })
		return nil
	})
}

// MarkReady notes that an instance of the revision has been ready.
func (g *Registry) MarkReady(rev *Revision) {
	if rev.Readiness() == ReadinessTrue {
		return
	}
	g.Mark(rev, func(st *servingv1.RevisionStatus) {
		st.MarkResourcesAvailableTrue()
		st.MarkContainerHealthyTrue()
	})
}

// MarkWaiting notes what a revision that has still to prove itself waits for. It
// is so until its images are there, or it is known whether it works.
func (g *Registry) MarkWaiting(rev *Revision, reason, message string) {
	g.Mark(rev, func(st *servingv1.RevisionStatus) {
		if st.GetCondition(servingv1.RevisionConditionReady).IsUnknown() {
			st.MarkResourcesAvailableUnknown(reason, message)
		}
	})
}

// MarkFailed notes why the revision could not start. One that has been ready
// before stays ready: what fails may be the host.
func (g *Registry) MarkFailed(rev *Revision, reason, message string) {
	g.Mark(rev, func(st *servingv1.RevisionStatus) {
		if st.GetCondition(servingv1.RevisionConditionReady).IsTrue() {
			return
		}
		if reason == servingv1.ReasonProgressDeadlineExceeded {
			st.MarkResourcesAvailableFalse(reason, message)
			return
		}
		st.MarkResourcesAvailableTrue()
		st.MarkContainerHealthyFalse(reason, message)
	})
}

// Pin records the digests that the revision's images were resolved to. Of
// several calls for an image the first counts: a revision means one image for
// ever.
func (g *Registry) Pin(rev *Revision, digests map[string]string) {
	for image, digest := range digests {
		rev.Pin(image, digest)
	}
	g.Mark(rev, func(st *servingv1.RevisionStatus) {
		st.ContainerStatuses = rev.containerStatuses()
		if c := st.GetCondition(servingv1.RevisionConditionResourcesAvailable); c.IsUnknown() {
			st.MarkResourcesAvailableUnknown(servingv1.ReasonDeploying, "")
		}
		if c := st.GetCondition(servingv1.RevisionConditionContainerHealthy); c.IsUnknown() && c.GetReason() == servingv1.ReasonResolvingDigests {
			st.MarkContainerHealthyUnknown(servingv1.ReasonDeploying, "")
		}
	})
}

// Advance takes the next step of a gradual rollout that is due.
func (g *Registry) Advance(service string) {
	_, _ = g.edit(service, func(e *edit) error {
		e.quiet = e.next.rollout == nil
		return nil
	})
}

// State returns the present state of a service, or nil when nothing is known by
// that name.
func (g *Registry) State(name string) *State {
	rec := g.known(name)
	if rec == nil {
		return nil
	}
	if st := rec.state.Load(); st.Service != nil || len(st.Revisions) > 0 {
		return st
	}
	return nil
}

// known returns the record of a service, or nil.
func (g *Registry) known(name string) *record {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.services[name]
}

// Settled is State after Changed has returned for it: what it says has been done,
// or its status says that it has not.
func (g *Registry) Settled(name string) *State {
	rec := g.known(name)
	if rec == nil {
		return nil
	}
	for {
		st := g.State(name)
		rec.following.Lock()
		rec.following.Unlock() //nolint:staticcheck // whoever is at it has ended by now
		g.confirm(rec, st)
		if g.State(name) == st {
			return st
		}
	}
}

// Known reports whether a service of that name is wanted.
func (g *Registry) Known(name string) bool {
	st := g.State(name)
	return st != nil && st.Service != nil
}

// ServiceOfHost returns the service that a host of its own is mapped to, or "".
func (g *Registry) ServiceOfHost(host string) string {
	name, _ := g.hosts.Load(host)
	service, _ := name.(string)
	return service
}

// Revision returns the revision of that name, or nil.
func (g *Registry) Revision(name string) *Revision {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.names[name]
}

// Names returns the names of all services that are wanted, in order.
func (g *Registry) Names() []string {
	g.mu.RLock()
	names := make([]string, 0, len(g.services))
	for name, rec := range g.services {
		if rec.state.Load().Service != nil {
			names = append(names, name)
		}
	}
	g.mu.RUnlock()
	slices.Sort(names)
	return names
}

// Pins are the images of all revisions whose digests are known, with these.
func (g *Registry) Pins() iter.Seq2[string, string] {
	g.mu.RLock()
	all := slices.Collect(maps.Values(g.names))
	g.mu.RUnlock()
	return func(yield func(string, string) bool) {
		for _, rev := range all {
			for image, digest := range rev.Pins() {
				if !yield(image, digest) {
					return
				}
			}
		}
	}
}

// RevisionNames returns the names of all revisions, in order.
func (g *Registry) RevisionNames() []string {
	g.mu.RLock()
	names := slices.Collect(maps.Keys(g.names))
	g.mu.RUnlock()
	slices.Sort(names)
	return names
}

// Version is the version of the last change.
func (g *Registry) Version() uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.version
}

// Problems are the records that could not be read.
func (g *Registry) Problems() []RecordError {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return slices.Clone(g.problems)
}

// Close writes what has not been written yet.
func (g *Registry) Close(ctx context.Context) error { return g.saver.close(ctx) }

func ownerReference(kind, name string, uid types.UID) metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{
		APIVersion: servingv1.SchemeGroupVersion.String(), Kind: kind, Name: name, UID: uid, Controller: &yes, BlockOwnerDeletion: &yes,
	}
}
