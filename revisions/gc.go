package revisions

import (
	"slices"
	"time"

	"knative.dev/serving/pkg/apis/serving"
)

// When revisions that no request can get to are removed. Source: Knative
// Serving, config-gc.
const (
	// A revision is stale when it is older than the first, and has not been routed
	// to for the second.
	retainSinceCreate = 48 * time.Hour
	retainSinceActive = 15 * time.Hour
	// So many are kept even when they are stale, and no more than the second are
	// kept at all.
	retainMin = 20
	retainMax = 1000
)

// garbage returns the revisions that nobody will miss: those that nothing
// routes to, from the one whose turn ended first.
func (s *State) garbage(now time.Time) []*Revision {
	idle := slices.DeleteFunc(slices.Clone(s.Revisions), func(r *Revision) bool {
		return s.Routed(r) || r == s.Latest() || r == s.LatestReady() || slices.Contains(s.Pending(), r) ||
			r.annotation(serving.RevisionPreservedAnnotationKey) == "true"
	})
	if len(idle) <= retainMin {
		return nil
	}
	slices.SortStableFunc(idle, func(a, b *Revision) int { return a.activeUntil().Compare(b.activeUntil()) })
	var old []*Revision
	for i, r := range idle {
		left := len(idle) - i
		stale := now.Sub(r.Created) > retainSinceCreate && now.Sub(r.activeUntil()) > retainSinceActive
		if left > retainMax || (stale && left > retainMin) {
			old = append(old, r)
		}
	}
	return old
}

// activeUntil is when the last request could get to the revision.
func (r *Revision) activeUntil() time.Time {
	if routed := r.meta.Load().routed; routed.After(r.Created) {
		return routed
	}
	return r.Created
}

// annotation is one that the revision has now.
func (r *Revision) annotation(key string) string {
	if m := r.meta.Load(); m.annotations != nil {
		return m.annotations[key]
	}
	return r.Spec().Template.Annotations[key]
}

// collect removes the garbage of a service that has got a new revision.
func (e *edit) collect() {
	if len(e.added) == 0 || e.next.Service == nil {
		return
	}
	old := e.next.garbage(e.now)
	if len(old) == 0 {
		return
	}
	e.removed = append(e.removed, old...)
	e.next.Revisions = slices.DeleteFunc(e.next.Revisions, func(r *Revision) bool { return slices.Contains(old, r) })
}
