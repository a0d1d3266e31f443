package revisions

import (
	"slices"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Routing is where the requests of a service really get to.
type Routing struct {
	// Targets are the last ones that it was brought to.
	Targets []Target
	// Waits says what it waits for if these are not the present ones: "revision …
	// is being brought up".
	Waits string
}

// behind says why requests do not get to the targets yet, where r is how they are
// routed; it is empty when they do, or when nobody tells.
func (s *State) behind(r *Routing) string {
	const text = "Traffic is not yet migrated"
	switch {
	case r == nil, slices.EqualFunc(s.Targets, r.Targets, Target.routesAs):
		return ""
	case r.Waits != "":
		return text + ": " + r.Waits
	case s.rollout != nil: // which is not done, and whose steps are for nobody to see
		return ""
	}
	return text + "."
}

// routesAs reports whether the same requests get to t as to o.
func (t Target) routesAs(o Target) bool {
	return t.Revision == o.Revision && t.Percent == o.Percent && t.Tag == o.Tag
}

// settleIngress says whether requests get to the targets. Source: Knative Serving:
// a Route is ready, and its Service with it, when the traffic is migrated.
func (s *State) settleIngress() {
	const ready = servingv1.RouteConditionIngressReady
	st := &s.Route
	manager := new(servingv1.Route).GetConditionSet().Manage(st)
	behind := s.behind(s.routing)
	switch {
	case len(s.Targets) == 0:
		st.MarkIngressNotConfigured()
	case behind != "":
		manager.MarkUnknown(ready, ReasonTrafficNotMigrated, "%s", behind)
	case s.rollout != nil:
		st.MarkIngressRolloutInProgress()
	default:
		manager.MarkTrue(ready)
	}
}

// ReasonTrafficNotMigrated is, in Knative's words, why a route is not ready whose
// requests do not get to its targets yet.
const ReasonTrafficNotMigrated = "TrafficNotMigrated"

// Confirm brings the status of a service into line with its routing, when that has
// changed without a change of the service.
func (g *Registry) Confirm(name string) {
	if rec := g.known(name); rec != nil {
		g.confirm(rec, nil)
	}
}

// confirm is Confirm for a record that was made to be st, which may be nil, a moment
// ago. It returns what that has become. Where requests go it leaves alone: so nobody
// has to follow. The caller must not hold following, as whoever makes a change holds
// mu when taking that.
func (g *Registry) confirm(rec *record, st *State) *State {
	if !g.overtaken(rec.name, rec.state.Load()) { // so most often nobody waits for a disk
		return st
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	before := rec.state.Load()
	if !g.overtaken(rec.name, before) {
		return st
	}
	e := &edit{g: g, rec: rec, next: before.clone(), now: time.Now()}
	e.next.routing = g.opts.Routing(rec.name)
	e.next.settle(g.Domain(), time.Time{})
	g.commit(e, before)
	g.saver.later(rec, e)
	if before == st {
		return e.next
	}
	return st
}

// overtaken reports whether the status of a service says other than its routing.
func (g *Registry) overtaken(name string, st *State) bool {
	if st.Service == nil {
		return false
	}
	now := g.opts.Routing(name)
	return now != nil && st.behind(now) != st.behind(st.routing)
}
