package scaler

import (
	"cmp"
	"maps"
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

// ServiceStatus tells what one service is doing, or false.
func (s *Scaler) ServiceStatus(name string) (ServiceStatus, bool) {
	v := s.lookup(name)
	if v == nil {
		return ServiceStatus{}, false
	}
	return v.status(), true
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
	var latest *revisions.Revision
	if state := v.s.registry.State(v.name); state != nil {
		latest = state.Latest()
		for _, t := range state.Targets {
			if st.Serving == nil || t.Percent > percentOf(state, st.Serving) {
				st.Serving = t.Revision
			}
		}
	}
	st.Latest = latest
	all := slices.SortedFunc(maps.Values(v.deployed), func(a, b *deployment) int {
		if a.routed != b.routed { // those that serve come first
			return map[bool]int{true: -1, false: 1}[a.routed]
		}
		return cmp.Compare(a.rev.Generation, b.rev.Generation)
	})
	for _, d := range all {
		switch {
		case d.routed:
			add(d, "serving")
			if f := d.pool.Failure(); f != nil && d.rev == st.Serving {
				st.Failure = f
			}
		case d.failure != nil:
			add(d, "failed")
		default:
			add(d, "next")
		}
	}
	if d := v.deployed[latest]; d != nil && d.failure != nil {
		st.Failure = d.failure
	}
	for _, d := range v.leaving {
		if v.deployed[d.rev] != d { // a failed one is there already, and may still be stopping
			add(d, "draining")
		}
	}
	return st
}

func percentOf(state *revisions.State, rev *revisions.Revision) int {
	sum := 0
	for _, t := range state.Targets {
		if t.Revision == rev {
			sum += t.Percent
		}
	}
	return sum
}

// Budget tells how the host's memory is used.
func (s *Scaler) Budget() BudgetStatus {
	b := s.budget.status()
	b.Strained = s.strain.total()
	return b
}
