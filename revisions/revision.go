// Package revisions holds what is wanted: services and their immutable
// revisions, in Knative's own types, with Knative's defaults and validation
// and Cloud Run's where the two differ. It is a leaf: nothing in it knows how
// instances are run or requests are routed.
package revisions

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"knative.dev/pkg/apis"
	"knative.dev/pkg/kmeta"
	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Revision is one immutable snapshot of a service's template: what an instance
// of it runs and how many requests it takes. The fields are read once from the
// Knative template when the revision is made and never change afterwards.
// Source: Cloud Run resource model; Knative Serving v1, Revision.
type Revision struct {
	// Name is unique among all revisions, such as "hello-00002".
	Name string
	// Service is the name of the service (and configuration) it belongs to.
	Service string
	// Generation counts the service's templates, from 1.
	Generation int64
	// Template is the defaulted template. It must not be modified.
	Template servingv1.RevisionTemplateSpec
	// Hash identifies the template: equal templates have equal hashes.
	Hash string
	// Created is when the revision was made, to the second, as Knative has it.
	Created time.Time

	// Image is the reference as the user wrote it, such as "ghcr.io/acme/hello:1.4".
	Image string
	// Port is what the container listens on.
	Port Port
	// Concurrency is the hard limit of requests in flight in one instance, 1 to 1000.
	Concurrency int
	// Timeout bounds a request from its arrival, the wait for an instance included.
	Timeout time.Duration
	// MinInstances are kept running; MaxInstances is never exceeded.
	MinInstances, MaxInstances int
	// IdleTimeout is how long an instance may be without a request before it is stopped.
	IdleTimeout time.Duration
	// QueueDepth is how many requests may wait for a slot.
	QueueDepth int
	// Startup says when a started instance may get requests.
	Startup Probe
	// InitialScale is how many instances prove a new revision; -1 when nothing is
	// said of it.
	InitialScale int
	// Affinity sends a client's requests to the instance that it had before, if
	// that can take them (Cloud Run: session affinity).
	Affinity bool
	// ProgressDeadline bounds what it may take to become ready.
	ProgressDeadline time.Duration

	uid    types.UID
	digest atomic.Pointer[string]
	// digests are those of the other containers' images; nil while none is known.
	digests atomic.Pointer[map[string]string]
	meta    atomic.Pointer[revisionMeta]
}

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

// Port is a container's port and protocol.
type Port struct {
	// Number is 1 to 65535; Default: 8080.
	Number int
	// H2C means HTTP/2 without TLS, by prior knowledge.
	H2C bool
}

// Container is the ingress container: the one that gets the requests. It must
// not be modified.
func (r *Revision) Container() *corev1.Container {
	return ingressContainer(&r.Template.Spec)
}

// Digest is the digest the image was pinned to, such as "sha256:…", or "" while
// the image has not been resolved yet.
func (r *Revision) Digest() string {
	if d := r.digest.Load(); d != nil {
		return *d
	}
	return ""
}

// Pin records the digest that the image was resolved to. The first call wins:
// a revision means one image for ever.
func (r *Revision) Pin(digest string) {
	r.digest.CompareAndSwap(nil, &digest)
}

// pinned is the image by its digest: "ghcr.io/acme/hello@sha256:…".
func (r *Revision) pinned(digest string) string {
	return pinnedImage(r.Image, digest)
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
		ObjectMeta: *r.Template.ObjectMeta.DeepCopy(),
		Spec:       *r.Template.Spec.DeepCopy(),
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
	return r.from(&obj, "")
}

// from makes r what made has returned. Its hash takes a while to find out, if it
// is not known.
func (r *Revision) from(obj *servingv1.Revision, hash string) error {
	service := obj.Labels[serving.ServiceLabelKey]
	generation, err := strconv.ParseInt(obj.Labels[serving.ConfigurationGenerationLabelKey], 10, 64)
	if err != nil || generation < 1 || service == "" || obj.Name == "" {
		return fmt.Errorf("decoding revision %q: labels %s and %s are needed",
			obj.Name, serving.ServiceLabelKey, serving.ConfigurationGenerationLabelKey)
	}
	template := servingv1.RevisionTemplateSpec{Spec: obj.Spec}
	template.Annotations, template.Labels = obj.Annotations, obj.Labels
	r.Name, r.Service, r.Generation = obj.Name, service, generation
	r.Created, r.uid, r.Hash = obj.CreationTimestamp.Time, obj.UID, hash
	if err := r.read(template); err != nil {
		return fmt.Errorf("decoding revision %s: %w", obj.Name, err)
	}
	r.meta.Store(&revisionMeta{status: obj.Status})
	for _, s := range obj.Status.ContainerStatuses {
		_, digest, _ := strings.Cut(s.ImageDigest, "@")
		if c := r.container(s.Name); c != nil && digest != "" {
			r.PinImage(c.Image, digest)
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

// newRevision reads a defaulted and validated template.
func newRevision(service string, generation int64, template servingv1.RevisionTemplateSpec) (*Revision, error) {
	name := template.Name
	if name == "" {
		name = kmeta.ChildName(service, fmt.Sprintf("-%05d", generation))
	}
	r := &Revision{
		Name:       name,
		Service:    service,
		Generation: generation,
		Created:    time.Now().Truncate(time.Second),
		uid:        uuid.NewUUID(),
	}
	m := new(revisionMeta)
	m.status.InitializeConditions()
	r.meta.Store(m)
	if err := r.read(template); err != nil {
		return nil, err
	}
	return r, nil
}

// read fills in all that a defaulted and validated template says.
func (r *Revision) read(template servingv1.RevisionTemplateSpec) error {
	template.ObjectMeta = templateMeta(template.ObjectMeta)
	r.Template = template
	if r.Hash == "" {
		r.Hash = templateHash(&template)
	}
	c := ingressContainer(&template.Spec)
	if c == nil {
		return fmt.Errorf("service %s: the template has no container", r.Service)
	}
	r.Image = c.Image
	r.Port = Port{Number: DefaultPort}
	if len(c.Ports) > 0 {
		r.Port.H2C = c.Ports[0].Name == "h2c"
		if n := int(c.Ports[0].ContainerPort); n != 0 {
			r.Port.Number = n
		}
	}
	r.Concurrency = int(deref(template.Spec.ContainerConcurrency, DefaultConcurrency))
	if r.Concurrency < 1 || r.Concurrency > MaxConcurrency {
		return fmt.Errorf("containerConcurrency %d is not a number from 1 to %d", r.Concurrency, MaxConcurrency)
	}
	r.Timeout = time.Duration(deref(template.Spec.TimeoutSeconds, int64(DefaultTimeout/time.Second))) * time.Second
	var err error
	a := annotations(template.Annotations)
	if r.MinInstances, err = a.integer(0, math.MaxInt32, 0, autoscaling.MinScaleAnnotation...); err != nil {
		return err
	}
	if r.MaxInstances, err = a.integer(0, math.MaxInt32, DefaultMaxInstances, autoscaling.MaxScaleAnnotation...); err != nil {
		return err
	}
	if r.InitialScale, err = a.integer(0, math.MaxInt32, -1, autoscaling.InitialScaleAnnotation...); err != nil {
		return err
	}
	if r.ProgressDeadline, err = a.duration(DefaultProgressDeadline, serving.ProgressDeadlineAnnotation...); err != nil {
		return err
	}
	if r.QueueDepth, err = a.integer(1, MaxQueueDepth, DefaultQueueDepth, QueueDepthAnnotation); err != nil {
		return err
	}
	if r.IdleTimeout, err = a.duration(DefaultIdleTimeout, IdleTimeoutAnnotation); err != nil {
		return err
	}
	if r.Affinity, err = a.boolean(AffinityAnnotation); err != nil {
		return err
	}
	r.Startup = startupProbe(c, r.Port)
	return nil
}
