// Package revisions holds what is wanted: services and their immutable
// revisions, in Knative's own types, with Knative's defaults and validation
// and Cloud Run's where the two differ. It is a leaf: nothing in it knows how
// instances are run or requests are routed.
package revisions

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	// InitialScale is set when the first revision of a service proves itself at once.
	InitialScale int

	digest atomic.Pointer[string]
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

// Env is the environment of every container of the revision that the platform
// sets, without PORT. Source: Cloud Run: container contract.
func (r *Revision) Env() []string {
	return []string{"K_SERVICE=" + r.Service, "K_REVISION=" + r.Name, "K_CONFIGURATION=" + r.Service}
}

// Object is the revision as Knative's own type, for APIs and for the record an
// instance carries so that a later process can adopt it.
func (r *Revision) Object() *servingv1.Revision {
	obj := &servingv1.Revision{
		TypeMeta:   metav1.TypeMeta{APIVersion: servingv1.SchemeGroupVersion.String(), Kind: "Revision"},
		ObjectMeta: *r.Template.ObjectMeta.DeepCopy(),
		Spec:       *r.Template.Spec.DeepCopy(),
	}
	obj.Name = r.Name
	obj.Generation = 1
	obj.CreationTimestamp = metav1.NewTime(r.Created)
	obj.Labels = withDefaultLabels(obj.Labels, map[string]string{
		serving.ServiceLabelKey:                 r.Service,
		serving.ConfigurationLabelKey:           r.Service,
		serving.ConfigurationGenerationLabelKey: strconv.FormatInt(r.Generation, 10),
	})
	if d := r.Digest(); d != "" {
		obj.Status.ContainerStatuses = []servingv1.ContainerStatus{{Name: r.Container().Name, ImageDigest: d}}
	}
	return obj
}

// MarshalJSON writes the revision as a Knative Revision.
func (r *Revision) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(r.Object())
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
	service := obj.Labels[serving.ServiceLabelKey]
	generation, err := strconv.ParseInt(obj.Labels[serving.ConfigurationGenerationLabelKey], 10, 64)
	if err != nil || generation < 1 || service == "" || obj.Name == "" {
		return fmt.Errorf("decoding revision %q: labels %s and %s are needed",
			obj.Name, serving.ServiceLabelKey, serving.ConfigurationGenerationLabelKey)
	}
	template := servingv1.RevisionTemplateSpec{Spec: obj.Spec}
	template.Annotations, template.Labels = obj.Annotations, obj.Labels
	read, err := newRevision(service, generation, template)
	if err != nil {
		return fmt.Errorf("decoding revision %s: %w", obj.Name, err)
	}
	r.Name, r.Service, r.Generation, r.Template, r.Hash = obj.Name, service, generation, read.Template, read.Hash
	r.Created = obj.CreationTimestamp.Time
	r.Image, r.Port, r.Concurrency, r.Timeout = read.Image, read.Port, read.Concurrency, read.Timeout
	r.MinInstances, r.MaxInstances, r.IdleTimeout = read.MinInstances, read.MaxInstances, read.IdleTimeout
	r.QueueDepth, r.Startup, r.InitialScale = read.QueueDepth, read.Startup, read.InitialScale
	for _, s := range obj.Status.ContainerStatuses {
		if s.ImageDigest != "" && s.Name == r.Container().Name {
			r.Pin(s.ImageDigest)
		}
	}
	return nil
}

// newRevision reads a defaulted and validated template.
func newRevision(service string, generation int64, template servingv1.RevisionTemplateSpec) (*Revision, error) {
	template.ObjectMeta = templateMeta(template.ObjectMeta)
	r := &Revision{
		Name:       fmt.Sprintf("%s-%05d", service, generation),
		Service:    service,
		Generation: generation,
		Template:   template,
		Hash:       templateHash(&template),
		Created:    time.Now().Truncate(time.Second),
	}
	c := ingressContainer(&template.Spec)
	if c == nil {
		return nil, fmt.Errorf("service %s: the template has no container", service)
	}
	r.Image = c.Image
	r.Port = Port{Number: DefaultPort}
	if len(c.Ports) > 0 {
		r.Port = Port{Number: int(c.Ports[0].ContainerPort), H2C: c.Ports[0].Name == "h2c"}
	}
	r.Concurrency = int(deref(template.Spec.ContainerConcurrency, DefaultConcurrency))
	if r.Concurrency < 1 || r.Concurrency > MaxConcurrency {
		return nil, fmt.Errorf("containerConcurrency %d is not a number from 1 to %d", r.Concurrency, MaxConcurrency)
	}
	r.Timeout = time.Duration(deref(template.Spec.TimeoutSeconds, int64(DefaultTimeout/time.Second))) * time.Second
	var err error
	a := annotations(template.Annotations)
	if r.MinInstances, err = a.integer(0, math.MaxInt32, 0, autoscaling.MinScaleAnnotation...); err != nil {
		return nil, err
	}
	if r.MaxInstances, err = a.integer(0, math.MaxInt32, DefaultMaxInstances, autoscaling.MaxScaleAnnotation...); err != nil {
		return nil, err
	}
	if r.InitialScale, err = a.integer(0, math.MaxInt32, 0, autoscaling.InitialScaleAnnotation...); err != nil {
		return nil, err
	}
	if r.QueueDepth, err = a.integer(1, MaxQueueDepth, DefaultQueueDepth, QueueDepthAnnotation); err != nil {
		return nil, err
	}
	if r.IdleTimeout, err = a.duration(DefaultIdleTimeout, IdleTimeoutAnnotation); err != nil {
		return nil, err
	}
	r.Startup = startupProbe(c, r.Port)
	return r, nil
}
