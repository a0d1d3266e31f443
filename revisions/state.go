package revisions

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Owner says who decides what a service is: one service has one owner.
type Owner string

const (
	// OwnerAPI are the API and the CLI, whoever uses them.
	OwnerAPI Owner = ""
	// OwnerConfig is Caddy's config.
	OwnerConfig Owner = "config"
)

const ownerDirectory = "directory:"

// OwnerDirectory owns the services that the files of a watched directory have.
func OwnerDirectory(path string) Owner { return Owner(ownerDirectory + path) }

// String says it in words for a user.
func (o Owner) String() string {
	switch o {
	case OwnerAPI:
		return "the API"
	case OwnerConfig:
		return "Caddy's config"
	}
	return "the files in " + strings.TrimPrefix(string(o), ownerDirectory)
}

// State is one consistent view of a service: what is wanted, its revisions, and
// where its requests go. It never changes; a change makes a new one.
type State struct {
	Owner Owner
	// Service is what is wanted, with its status. It is nil while only revisions
	// are known that an earlier process ran.
	Service *servingv1.Service
	// Configuration and Route are the statuses of the two views that Knative
	// splits a service into.
	Configuration servingv1.ConfigurationStatus
	Route         servingv1.RouteStatus
	// Revisions are all that it has, by generation, ascending.
	Revisions []*Revision
	// Targets are where requests go, in the order of the service's traffic. They
	// follow Service.Spec.Traffic as far as that is possible: the revisions of all
	// of it exist and are ready. Until then they stay what they were.
	Targets []Target

	// PlaceholderLabels and PlaceholderAnnotations are all that the service ever
	// had: Knative's placeholder, a Kubernetes service, never loses one.
	PlaceholderLabels, PlaceholderAnnotations map[string]string

	// generation is that of the last template; generations of other things than
	// the template are not counted in it.
	generation int64
	// routeGeneration counts what was wanted of the traffic.
	routeGeneration int64
	// latest is the name of the revision that the last template made, or was found
	// to be; empty when its name was taken.
	latest string
	// changed is when the service changed last.
	changed time.Time
	// rollout is the gradual move to the latest ready revision, if there is one.
	rollout *rollout
	// routing is where requests got to when the state was made. It is not kept: a
	// process that begins routes by what is wanted.
	routing *Routing
}

// Target is a share of a service's requests.
type Target struct {
	Revision *Revision
	// Percent of the requests that name no tag: 0 to 100.
	Percent int
	// Tag, when not empty, names this target for requests that want it.
	Tag string
	// Latest is set when the target follows the latest ready revision.
	Latest bool
}

// Name is the name of the service.
func (s *State) Name() string {
	if s.Service != nil {
		return s.Service.Name
	}
	if len(s.Revisions) > 0 {
		return s.Revisions[0].Service
	}
	return ""
}

// Latest is the revision of the last template, or nil.
func (s *State) Latest() *Revision { return s.Revision(s.latest) }

// LatestReady is the latest revision that has been ready, or nil.
func (s *State) LatestReady() *Revision {
	return s.Revision(s.Configuration.LatestReadyRevisionName)
}

// Revision returns the service's revision of that name, or nil.
func (s *State) Revision(name string) *Revision {
	for _, r := range slices.Backward(s.Revisions) {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// Routed reports whether requests may get to rev: by percent or by tag.
func (s *State) Routed(rev *Revision) bool {
	return slices.ContainsFunc(s.Targets, func(t Target) bool { return t.Revision == rev })
}

// Pending are the revisions that have to prove themselves before they can be
// used as wanted: the latest one, and those that the traffic names.
func (s *State) Pending() []*Revision {
	if s.Service == nil {
		return nil
	}
	var all []*Revision
	add := func(rev *Revision) {
		if rev != nil && rev.Readiness() == ReadinessUnknown && !s.Routed(rev) && !slices.Contains(all, rev) {
			all = append(all, rev)
		}
	}
	add(s.Latest())
	for _, t := range s.Service.Spec.Traffic {
		if t.RevisionName != "" {
			add(s.Revision(t.RevisionName))
		}
	}
	return all
}

// clone returns a copy that settle and others may change. What is wanted of the
// service it shares with s: nobody changes that in place, and most changes are of
// the status only.
func (s *State) clone() *State {
	c := *s
	if s.Service != nil {
		service := *s.Service
		s.Service.Status.DeepCopyInto(&service.Status)
		c.Service = &service
	}
	s.Configuration.DeepCopyInto(&c.Configuration)
	s.Route.DeepCopyInto(&c.Route)
	c.Revisions = slices.Clone(s.Revisions)
	c.Targets = slices.Clone(s.Targets)
	return &c
}

// settle brings everything that follows from what is wanted and from how the
// revisions do into line: the statuses and the targets. s is a fresh clone. A
// gradual rollout takes its step unless now is zero.
// Source: Knative Serving's controllers of Configuration, Route and Service.
func (s *State) settle(d Domain, now time.Time) {
	if s.Service == nil {
		return
	}
	s.settleConfiguration()
	s.settleRoute(d, now)
	st := &s.Service.Status
	st.InitializeConditions()
	st.ObservedGeneration = s.Service.Generation
	st.PropagateConfigurationStatus(&s.Configuration)
	st.PropagateRouteStatus(&s.Route)
	ready := s.Configuration.LatestReadyRevisionName
	switch {
	case s.latest == "":
		st.MarkRevisionNameTaken(s.Service.Spec.Template.Name)
	case slices.ContainsFunc(s.Targets, func(t Target) bool { return t.Latest && ready != "" && t.Revision.Name != ready }):
		st.MarkRouteNotYetReady()
	}
}

// settleConfiguration finds the latest ready revision. It is never an older one
// than before: a revision that turns ready late does not displace a newer one.
func (s *State) settleConfiguration() {
	st := &s.Configuration
	st.InitializeConditions()
	st.ObservedGeneration = s.generation
	if st.LatestReadyRevisionName != "" && s.LatestReady() == nil {
		st.MarkLatestReadyDeleted()
		st.LatestReadyRevisionName = ""
	}
	created := s.Latest()
	if created == nil {
		st.MarkRevisionCreationFailed(fmt.Sprintf("the name %q is taken by another revision", s.Service.Spec.Template.Name))
		return
	}
	st.SetLatestCreatedRevisionName(created.Name)
	if created.Readiness() == ReadinessFalse {
		st.MarkLatestCreatedFailed(created.Name, created.ReadyCondition().GetMessage())
	}
	if ready := s.newestReady(created); ready != nil {
		st.SetLatestReadyRevisionName(ready.Name)
	}
	if created.Readiness() == ReadinessUnknown && st.LatestReadyRevisionName != created.Name {
		new(servingv1.Configuration).GetConditionSet().Manage(st).MarkUnknown(servingv1.ConfigurationConditionReady,
			created.ReadyCondition().GetReason(), "%s", created.ReadyCondition().GetMessage())
	}
}

func (s *State) newestReady(created *Revision) *Revision {
	if created.Readiness() == ReadinessTrue {
		return created
	}
	before := s.LatestReady()
	for _, r := range slices.Backward(s.Revisions) {
		if r == before {
			break
		}
		if r.Readiness() == ReadinessTrue {
			return r
		}
	}
	return before
}

// settleRoute assigns the traffic if all of it can be, or says why not.
func (s *State) settleRoute(d Domain, now time.Time) {
	st := &s.Route
	st.InitializeConditions()
	st.ObservedGeneration = s.routeGeneration
	targets := s.assign()
	if targets != nil {
		if !now.IsZero() {
			s.Targets = s.advance(targets, now)
		}
		st.MarkTrafficAssigned()
	}
	// What is gone cannot be routed to, whatever is wanted.
	s.Targets = slices.DeleteFunc(s.Targets, func(t Target) bool { return !slices.Contains(s.Revisions, t.Revision) })
	st.Traffic = nil
	for _, t := range s.Targets {
		percent, latest := int64(t.Percent), t.Latest
		st.Traffic = append(st.Traffic, servingv1.TrafficTarget{
			RevisionName: t.Revision.Name, Percent: &percent, LatestRevision: &latest, Tag: t.Tag, URL: d.URL(s.Service.Name, t.Tag),
		})
	}
	st.URL = d.URL(s.Service.Name, "")
	if st.URL != nil {
		st.Address = &duckv1.Addressable{URL: st.URL}
	}
	s.settleIngress()
	if d.TLS() {
		st.MarkCertificateReady(s.Service.Name)
	} else {
		st.MarkTLSNotEnabled(servingv1.ExternalDomainTLSNotEnabledMessage)
	}
	if targets == nil {
		s.assign() // of several reasons the one that is noted last is the route's
	}
}

// assign resolves the wanted traffic to revisions, or notes why that cannot be
// and returns nil.
func (s *State) assign() []Target {
	var targets []Target
	for _, t := range s.Service.Spec.Traffic {
		target := Target{Tag: t.Tag, Latest: t.RevisionName == ""}
		if t.Percent != nil {
			target.Percent = int(*t.Percent)
		}
		if target.Latest {
			target.Revision = s.latestUsable()
		} else {
			target.Revision = s.named(t.RevisionName)
		}
		if target.Revision == nil {
			return nil
		}
		targets = append(targets, target)
	}
	return targets
}

// latestUsable is the latest ready revision. What Caddy's config declares does
// without one until there is one: nothing is there that could be protected, and
// so no container has to prove anything before it is asked for.
func (s *State) latestUsable() *Revision {
	if ready := s.LatestReady(); ready != nil {
		return ready
	}
	created := s.Latest()
	if s.Owner == OwnerConfig && created != nil {
		for _, t := range s.Targets {
			if t.Latest && t.Revision.Readiness() != ReadinessFalse && slices.Contains(s.Revisions, t.Revision) {
				return t.Revision // it may only just be starting
			}
		}
		return created
	}
	if created == nil || created.Readiness() == ReadinessFalse {
		s.Route.MarkConfigurationFailed(s.Service.Name)
	} else {
		s.Route.MarkConfigurationNotReady(s.Service.Name)
	}
	return nil
}

func (s *State) named(name string) *Revision {
	rev := s.Revision(name)
	switch {
	case rev == nil:
		s.Route.MarkMissingTrafficTarget("Revision", name)
		return nil
	case rev.Readiness() == ReadinessTrue, s.Routed(rev):
		return rev
	case rev.Readiness() == ReadinessFalse:
		s.Route.MarkRevisionFailed(name)
	default:
		s.Route.MarkRevisionNotReady(name)
	}
	return nil
}

// ServiceObject is the service as Knative's own type, or nil. It is a copy.
func (s *State) ServiceObject() *servingv1.Service {
	if s.Service == nil {
		return nil
	}
	obj := s.Service.DeepCopy()
	obj.APIVersion, obj.Kind = servingv1.SchemeGroupVersion.String(), "Service"
	return obj
}

// Written is the service as who has written it is answered, where before is what
// it was, or nil. In Kubernetes what follows from a change comes after it, and
// clients wait for that: so the status is the one from before the change, and the
// version the one before that of the state. Clients such as kn take a status that
// has observed its generation for a sign that nothing has changed.
func (s *State) Written(before *servingv1.Service) *servingv1.Service {
	obj := s.ServiceObject()
	switch {
	case before == nil || before.UID != obj.UID:
		obj.Status = servingv1.ServiceStatus{}
	case before.Generation == obj.Generation:
		return obj
	default:
		before.Status.DeepCopyInto(&obj.Status)
	}
	obj.ResourceVersion = formatVersion(s.version() - 1)
	return obj
}

// ReadVersion is the version that who reads the service is told: for a moment the
// one before its last change. Who reads and then watches from there, as kn does
// to wait for what it has written, is told of that change: a failure is often
// there before kn has looked, and nothing more would come.
func (s *State) ReadVersion(now time.Time) string {
	if now.Sub(s.changed) < readAgain {
		return formatVersion(s.version() - 1)
	}
	return s.Service.ResourceVersion
}

// version is that of the service.
func (s *State) version() uint64 {
	v, err := strconv.ParseUint(s.Service.ResourceVersion, 10, 64)
	if err != nil {
		panic("revisions: a version that is no number: " + s.Service.ResourceVersion)
	}
	return v
}

// hasVersion reports whether a client that knows a version knows the service as
// it is: what it wrote itself, or what came of that.
func (s *State) hasVersion(text string) bool {
	return text == s.Service.ResourceVersion || text == formatVersion(s.version()-1)
}

// ConfigurationObject is the view of the service that makes revisions.
// Source: Knative Serving API, "Configuration".
func (s *State) ConfigurationObject() *servingv1.Configuration {
	obj := &servingv1.Configuration{
		TypeMeta:   metav1.TypeMeta{APIVersion: servingv1.SchemeGroupVersion.String(), Kind: "Configuration"},
		ObjectMeta: s.childMeta("configuration", s.generation),
		Spec:       *s.Service.Spec.ConfigurationSpec.DeepCopy(),
	}
	obj.Annotations = withDefaultLabels(obj.Annotations, map[string]string{serving.RoutesAnnotationKey: s.Service.Name})
	s.Configuration.DeepCopyInto(&obj.Status)
	return obj
}

// RouteObject is the view of the service that directs requests.
// Source: Knative Serving API, "Route".
func (s *State) RouteObject() *servingv1.Route {
	obj := &servingv1.Route{
		TypeMeta:   metav1.TypeMeta{APIVersion: servingv1.SchemeGroupVersion.String(), Kind: "Route"},
		ObjectMeta: s.childMeta("route", s.routeGeneration),
		Spec:       *s.Service.Spec.RouteSpec.DeepCopy(),
	}
	for i := range obj.Spec.Traffic {
		if obj.Spec.Traffic[i].RevisionName == "" {
			obj.Spec.Traffic[i].ConfigurationName = s.Service.Name
		}
	}
	s.Route.DeepCopyInto(&obj.Status)
	return obj
}

// childMeta is the metadata of a view. Labels and annotations of the service
// are those of its children too.
func (s *State) childMeta(kind string, generation int64) metav1.ObjectMeta {
	m := *s.Service.ObjectMeta.DeepCopy()
	m.UID = childUID(s.Service.UID, kind)
	m.Generation = generation
	m.GenerateName = ""
	m.Finalizers = nil
	m.Labels = withDefaultLabels(m.Labels, map[string]string{
		serving.ServiceLabelKey: s.Service.Name, serving.ServiceUIDLabelKey: string(s.Service.UID),
	})
	delete(m.Annotations, "kubectl.kubernetes.io/last-applied-configuration")
	m.OwnerReferences = []metav1.OwnerReference{ownerReference("Service", s.Service.Name, s.Service.UID)}
	return m
}

// RevisionObject is the revision as Knative's own type, with what only its
// service knows of it.
func (s *State) RevisionObject(rev *Revision) *servingv1.Revision {
	obj := rev.Object()
	routing := "reserve"
	switch {
	case s.Routed(rev):
		routing = "active"
	case slices.Contains(s.Pending(), rev):
		routing = "pending"
	}
	obj.Labels[serving.RoutingStateLabelKey] = routing
	if s.Service != nil {
		uid := childUID(s.Service.UID, "configuration")
		obj.Labels[serving.ServiceUIDLabelKey] = string(s.Service.UID)
		obj.Labels[serving.ConfigurationUIDLabelKey] = string(uid)
		obj.OwnerReferences = []metav1.OwnerReference{ownerReference("Configuration", rev.Service, uid)}
	}
	if obj.Annotations == nil {
		obj.Annotations = make(map[string]string, 2)
	}
	if routing == "active" {
		obj.Annotations[serving.RoutesAnnotationKey] = rev.Service
	}
	if at := rev.meta.Load().routed; !at.IsZero() {
		obj.Annotations[serving.RoutingStateModifiedAnnotationKey] = at.UTC().Format(time.RFC3339)
	}
	return obj
}

// childUID is the uid of a view, which is always the same for the same service.
func childUID(parent types.UID, kind string) types.UID {
	return types.UID(uuid.NewSHA1(uuid.NameSpaceOID, []byte(string(parent)+"/"+kind)).String())
}

// readAgain is for how long a change is told again, see State.ReadVersion.
const readAgain = 2 * time.Second

// formatVersion writes a version in the form that clients see.
func formatVersion(v uint64) string { return strconv.FormatUint(v, 10) }

// Domain is where services are served: each as a host below it.
type Domain struct {
	// Host is such as "run.example.com" or "localhost:8080"; empty when services
	// have no hosts of their own.
	Host string
	// Scheme is "http" or "https".
	Scheme string
}

// TLS reports whether clients speak TLS.
func (d Domain) TLS() bool { return d.Scheme == "https" }

// URL is where a service, or one tag of it, is reached; nil without a domain.
// Source: Cloud Run: <tag>---<service>.
func (d Domain) URL(service, tag string) *apis.URL {
	if d.Host == "" {
		return nil
	}
	host := service + "." + d.Host
	if tag != "" {
		host = tag + "---" + host
	}
	return &apis.URL{Scheme: d.Scheme, Host: host}
}
