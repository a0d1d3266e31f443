package revisions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Registry holds the services that are wanted and the revisions they have had.
// It is safe for concurrent use; what it returns must not be modified.
type Registry struct {
	mu       sync.Mutex // guards services
	services map[string]*record
}

type record struct {
	service    *servingv1.Service // nil while only adopted revisions are known
	revisions  []*Revision        // by generation, ascending; the last is the wanted one
	generation int64              // the highest ever given out: none is used twice
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{services: make(map[string]*record)}
}

// Prepare returns a copy of svc with every default filled in, or one error that
// names each field that is wrong, in Knative's words.
func Prepare(svc *servingv1.Service) (*servingv1.Service, error) {
	ctx := withKnativeConfig(apis.WithinCreate(context.Background()))
	svc = svc.DeepCopy()
	if svc.Name == "" {
		return nil, errors.New("missing field(s): metadata.name")
	}
	svc.SetDefaults(ctx)
	var problems []string
	for _, p := range svc.Validate(ctx).Filter(apis.ErrorLevel).WrappedErrors() {
		problems = append(problems, strings.ReplaceAll(p.Error(), "\n", "; "))
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("service %s: %s", svc.Name, strings.Join(problems, "; "))
	}
	if _, err := newRevision(svc.Name, 1, svc.Spec.Template); err != nil {
		return nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	return svc, nil
}

// Apply makes svc what is wanted of its service. When its template differs from
// that of the latest revision, a new revision is made; else that one is
// returned and created is false. svc is one that Prepare returned.
// Source: Knative Serving API, "Configuration": a changed template makes a new
// Revision, anything else does not.
func (g *Registry) Apply(svc *servingv1.Service) (rev *Revision, created bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rec := g.services[svc.Name]
	if rec == nil {
		rec = new(record)
	}
	rev, err = newRevision(svc.Name, rec.generation+1, *svc.Spec.Template.DeepCopy())
	if err != nil {
		return nil, false, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	g.services[svc.Name] = rec
	rec.service = svc
	if latest := rec.latest(); latest != nil && latest.Hash == rev.Hash {
		return latest, false, nil
	}
	rec.revisions = append(rec.revisions, rev)
	rec.generation = rev.Generation
	return rev, true, nil
}

// Restore takes back what was applied after rev: svc is wanted again, and rev
// is its latest revision. It reports whether rev was still known. Generations
// that were given out since are not used again.
func (g *Registry) Restore(svc *servingv1.Service, rev *Revision) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	rec := g.services[svc.Name]
	if rec == nil {
		return false
	}
	i := slices.Index(rec.revisions, rev)
	if i < 0 {
		return false
	}
	rec.service = svc
	rec.revisions = rec.revisions[: i+1 : i+1]
	return true
}

// Adopt makes a revision known that an earlier process made. It returns the one
// already known by that name when there is one, so that each revision exists
// once.
func (g *Registry) Adopt(rev *Revision) *Revision {
	g.mu.Lock()
	defer g.mu.Unlock()
	rec := g.services[rev.Service]
	if rec == nil {
		rec = new(record)
		g.services[rev.Service] = rec
	}
	i, found := slices.BinarySearchFunc(rec.revisions, rev.Generation, func(r *Revision, gen int64) int {
		return int(r.Generation - gen)
	})
	if found {
		return rec.revisions[i]
	}
	rec.revisions = slices.Insert(rec.revisions, i, rev)
	rec.generation = max(rec.generation, rev.Generation)
	return rev
}

// Reserve keeps generations up to and including this one from being given out.
func (g *Registry) Reserve(service string, generation int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rec := g.services[service]
	if rec == nil {
		rec = new(record)
		g.services[service] = rec
	}
	rec.generation = max(rec.generation, generation)
}

// Forget removes a service that nobody wants any more, with its revisions. Its
// generations go on where they were if it comes back: instances of the old
// revisions may still be draining, and two things must never have one name.
func (g *Registry) Forget(service string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if rec := g.services[service]; rec != nil {
		rec.service, rec.revisions = nil, nil
	}
}

// Drop forgets one revision that nothing can route to any more. The latest one
// stays: the next generation is counted from it.
func (g *Registry) Drop(rev *Revision) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rec := g.services[rev.Service]
	if rec == nil || rec.latest() == rev {
		return
	}
	rec.revisions = slices.DeleteFunc(rec.revisions, func(r *Revision) bool { return r == rev })
}

// Service returns the service by name and its revisions, oldest first, or nil.
func (g *Registry) Service(name string) (*servingv1.Service, []*Revision) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rec := g.services[name]
	if rec == nil {
		return nil, nil
	}
	return rec.service, slices.Clone(rec.revisions)
}

func (r *record) latest() *Revision {
	if len(r.revisions) == 0 {
		return nil
	}
	return r.revisions[len(r.revisions)-1]
}
