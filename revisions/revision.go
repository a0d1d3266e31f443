// Package revisions holds what is wanted: services and their immutable
// revisions, in Knative's own types, with Knative's defaults and validation
// and Cloud Run's where the two differ. It is a leaf: nothing in it knows how
// instances are run or requests are routed.
package revisions

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"knative.dev/pkg/apis"
	"knative.dev/pkg/kmeta"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Revision is one immutable snapshot of a service's template: what an instance
// of it runs and how many requests it takes. Nothing of it changes afterwards but
// how it does, see ReadyCondition.
// Source: Cloud Run resource model; Knative Serving v1, Revision.
type Revision struct {
	// Name is unique among all revisions, such as "hello-00002".
	Name string
	// Service is the name of the service (and configuration) it belongs to.
	Service string
	// Generation counts the service's templates, from 1.
	Generation int64
	// Hash identifies the template: equal templates have equal hashes.
	Hash string
	// Created is when the revision was made, to the second, as Knative has it.
	Created time.Time

	uid types.UID
	// spec is read when it is asked for first: of most revisions that are kept it
	// never is.
	spec func() *Spec
	// digests are those that images were pinned to; nil while none is known.
	digests atomic.Pointer[map[string]string]
	meta    atomic.Pointer[revisionMeta]
}

// New returns a revision of which nothing is known yet but what it says.
func New(service, name string, generation int64, spec *Spec) *Revision {
	r := &Revision{
		Name: name, Service: service, Generation: generation, Hash: templateHash(&spec.Template),
		Created: time.Now().Truncate(time.Second), uid: uuid.NewUUID(), spec: func() *Spec { return spec },
	}
	m := new(revisionMeta)
	m.status.InitializeConditions()
	r.meta.Store(m)
	return r
}

// Spec is what the revision's template says. It must not be modified.
func (r *Revision) Spec() *Spec { return r.spec() }

// revisionMeta is what changes of a revision: how it does. It is replaced as a
// whole.
type revisionMeta struct {
	version uint64
	status  servingv1.RevisionStatus
	// labels and annotations are those that were changed after it was made; nil
	// means the template's.
	labels, annotations map[string]string
	// routed is when requests began, or ceased, to get to it.
	routed time.Time
}

// Readiness says whether a revision is known to work.
type Readiness int

const (
	// ReadinessUnknown means that it has still to prove itself.
	ReadinessUnknown Readiness = iota
	// ReadinessTrue means that an instance of it has been ready.
	ReadinessTrue
	// ReadinessFalse means that it could not start.
	ReadinessFalse
)

// ReadyCondition is Knative's condition "Ready" of the revision.
func (r *Revision) ReadyCondition() *apis.Condition {
	return r.meta.Load().status.GetCondition(servingv1.RevisionConditionReady)
}

// Readiness is ReadyCondition in one word.
func (r *Revision) Readiness() Readiness {
	c := r.ReadyCondition()
	switch {
	case c.IsTrue():
		return ReadinessTrue
	case c.IsFalse():
		return ReadinessFalse
	}
	return ReadinessUnknown
}

// with returns the revision's present meta, changed.
func (m *revisionMeta) with(change func(*revisionMeta)) *revisionMeta {
	c := *m
	m.status.DeepCopyInto(&c.status)
	change(&c)
	return &c
}

// Env is the environment of every container of the revision that the platform
// sets, without PORT. Source: Cloud Run: container contract.
func (r *Revision) Env() []string {
	return []string{"K_SERVICE=" + r.Service, "K_REVISION=" + r.Name, "K_CONFIGURATION=" + r.Service}
}

// Object is the revision as Knative's own type, for APIs.
func (r *Revision) Object() *servingv1.Revision {
	obj := r.made()
	m := r.meta.Load()
	if m.labels != nil {
		obj.Labels = withDefaultLabels(m.labels, r.systemLabels())
	}
	if m.annotations != nil {
		obj.Annotations = maps.Clone(m.annotations)
	}
	if m.version > 0 {
		obj.ResourceVersion = formatVersion(m.version)
	}
	return obj
}

// systemLabels are those that say whose revision it is.
func (r *Revision) systemLabels() map[string]string {
	return map[string]string{
		serving.ServiceLabelKey:                 r.Service,
		serving.ConfigurationLabelKey:           r.Service,
		serving.ConfigurationGenerationLabelKey: strconv.FormatInt(r.Generation, 10),
	}
}

// made is the revision as it was made, with its status: its labels and
// annotations are the template's, which are part of its identity.
func (r *Revision) made() *servingv1.Revision {
	obj := &servingv1.Revision{
		TypeMeta:   metav1.TypeMeta{APIVersion: servingv1.SchemeGroupVersion.String(), Kind: "Revision"},
		ObjectMeta: *r.Spec().Template.ObjectMeta.DeepCopy(),
		Spec:       *r.Spec().Template.Spec.DeepCopy(),
	}
	m := r.meta.Load()
	obj.Name, obj.UID = r.Name, r.uid
	obj.Generation = 1
	obj.CreationTimestamp = metav1.NewTime(r.Created)
	m.status.DeepCopyInto(&obj.Status)
	obj.Status.ObservedGeneration = 1
	obj.Labels = withDefaultLabels(obj.Labels, r.systemLabels())
	if all := r.containerStatuses(); len(all) > 0 {
		obj.Status.ContainerStatuses = all
	}
	return obj
}

// MarshalJSON writes the revision as a Knative Revision, for the record that an
// instance carries so that a later process can adopt it.
func (r *Revision) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(r.made())
	if err != nil {
		return nil, fmt.Errorf("encoding revision %s: %w", r.Name, err)
	}
	return b, nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Revision) UnmarshalJSON(b []byte) error {
	var obj servingv1.Revision
	if err := json.Unmarshal(b, &obj); err != nil {
		return fmt.Errorf("decoding revision: %w", err)
	}
	return r.from(&obj)
}

// from makes r what made has returned.
func (r *Revision) from(obj *servingv1.Revision) error {
	service := obj.Labels[serving.ServiceLabelKey]
	generation, err := strconv.ParseInt(obj.Labels[serving.ConfigurationGenerationLabelKey], 10, 64)
	if err != nil || generation < 1 || service == "" || obj.Name == "" {
		return fmt.Errorf("decoding revision %q: labels %s and %s are needed",
			obj.Name, serving.ServiceLabelKey, serving.ConfigurationGenerationLabelKey)
	}
	template := servingv1.RevisionTemplateSpec{Spec: obj.Spec}
	template.Annotations, template.Labels = obj.Annotations, obj.Labels
	spec, err := newSpec(template)
	if err != nil {
		return fmt.Errorf("decoding revision %s: %w", obj.Name, err)
	}
	r.Name, r.Service, r.Generation, r.Hash = obj.Name, service, generation, templateHash(&spec.Template)
	r.Created, r.uid, r.spec = obj.CreationTimestamp.Time, obj.UID, func() *Spec { return spec }
	r.meta.Store(&revisionMeta{status: obj.Status})
	for _, s := range obj.Status.ContainerStatuses {
		_, digest, _ := strings.Cut(s.ImageDigest, "@")
		if c := r.container(s.Name); c != nil && digest != "" {
			r.Pin(c.Image, digest)
		}
	}
	return nil
}

// deploying notes that nothing is known of the revision yet.
func (r *Revision) deploying() {
	r.meta.Store(r.meta.Load().with(func(m *revisionMeta) {
		m.status.MarkResourcesAvailableUnknown(servingv1.ReasonDeploying, "")
		m.status.MarkContainerHealthyUnknown(servingv1.ReasonResolvingDigests, "")
	}))
}

// newRevision reads a defaulted and validated template, which must not be modified
// afterwards.
func newRevision(service string, generation int64, template servingv1.RevisionTemplateSpec) (*Revision, error) {
	name := template.Name
	if name == "" {
		name = kmeta.ChildName(service, fmt.Sprintf("-%05d", generation))
	}
	spec, err := newSpec(template)
	if err != nil {
		return nil, err
	}
	return New(service, name, generation, spec), nil
}
