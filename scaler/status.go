package scaler

import (
	"slices"
	"strings"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// ServiceStatus is what a service is doing.
type ServiceStatus struct {
	Name string
	// Serving is the revision that new requests go to, Latest the one that was
	// asked for last; they differ while Latest is on trial or has failed.
	Serving, Latest *revisions.Revision
	// Failure is why Latest, or Serving while nothing of it runs, cannot start.
	Failure error
	// Waiting and InFlight count the requests of all revisions.
	Waiting, InFlight int
	Revisions         []RevisionStatus
}

// RevisionStatus is what one revision of a service is doing.
type RevisionStatus struct {
	Revision *revisions.Revision
	// Role is "serving", "next" while it is on trial, "failed" or "draining".
	Role string
	// Pulling tells how far the pull of its image has come, nil while there is none.
	Pulling *instancepool.Progress
	instancepool.Status
}

// Status tells what every service is doing, by name.
func (s *Scaler) Status() []ServiceStatus {
	var all []ServiceStatus
	s.services.Range(func(_, v any) bool {
		all = append(all, v.(*service).status())
		return true
	})
	slices.SortFunc(all, func(a, b ServiceStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (v *service) status() ServiceStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	st := ServiceStatus{Name: v.name}
	add := func(d *deployment, role string) {
		r := RevisionStatus{Revision: d.rev, Role: role, Status: d.pool.Status()}
		if p, ok := v.s.pulling.Load(d.rev.Name); ok {
			progress := p.(instancepool.Progress)
			r.Pulling = &progress
		}
		st.Waiting += r.Waiting
		st.InFlight += r.InFlight
		st.Revisions = append(st.Revisions, r)
	}
	if v.serving != nil {
		st.Serving, st.Latest = v.serving.rev, v.serving.rev
		if f := v.serving.pool.Failure(); f != nil {
			st.Failure = f
		}
		add(v.serving, "serving")
	}
	if v.next != nil {
		st.Latest = v.next.rev
		role := "next"
		if v.next.failure != nil {
			role, st.Failure = "failed", v.next.failure
		}
		add(v.next, role)
	}
	for _, d := range v.leaving {
		if d != v.next { // a failed one is there already, and may still be stopping
			add(d, "draining")
		}
	}
	return st
}
