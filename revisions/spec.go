package revisions

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Spec is what a revision's template says. The fields are read once from the
// Knative template.
type Spec struct {
	// Template is the defaulted template.
	Template servingv1.RevisionTemplateSpec
	// Image is the reference as the user wrote it, such as "ghcr.io/acme/hello:1.4".
	Image string
	// Health has all containers, in the order that they are started in.
	Health []Health
	// Port is what the container listens on.
	Port Port
	// Concurrency is the hard limit of requests in flight in one instance, 1 to 1000.
	Concurrency int
	// Timeout bounds a request from its arrival until its response has ended, the wait
	// for an instance included. What has switched protocols, a WebSocket, is free of
	// it. Source: Cloud Run: request timeout.
	Timeout time.Duration
	// ResponseStart bounds it until its response begins; 0 means that only Timeout
	// does. Source: Knative: responseStartTimeoutSeconds.
	ResponseStart time.Duration
	// StreamIdle bounds how long an instance that has the request may send nothing; 0
	// means no bound. Source: Knative: idleTimeoutSeconds.
	StreamIdle time.Duration
	// MinInstances are kept running; MaxInstances is never exceeded.
	MinInstances, MaxInstances int
	// IdleTimeout is how long an instance may be without a request before it is stopped.
	IdleTimeout time.Duration
	// DrainTimeout is how long a revision that gets no new requests may take for those
	// that it has, and for streams and WebSockets. Default: Timeout.
	DrainTimeout time.Duration
	// Scaling says more about how many instances there are.
	Scaling Scaling
	// Throttled gives an instance CPU only while it has requests (Cloud Run:
	// request-based billing).
	Throttled bool
	// Prepared is how many instances are kept made but not started; -1 when nothing
	// is said of it.
	Prepared int
	// Memory is the limit of an instance, all of its containers together, in bytes.
	Memory int64
	// CPU is the same in processors.
	CPU float64
	// QueueDepth is how many requests may wait for a slot.
	QueueDepth int
	// InitialScale is how many instances prove a new revision; -1 when nothing is
	// said of it.
	InitialScale int
	// Affinity sends a client's requests to the instance that it had before, if
	// that can take them (Cloud Run: session affinity).
	Affinity bool
	// ProgressDeadline bounds what it may take to become ready.
	ProgressDeadline time.Duration
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
func (s *Spec) Container() *corev1.Container { return ingressContainer(&s.Template.Spec) }

// Gather is how many requests an instance gets before another one does that is
// there too.
func (s *Spec) Gather() int { return cmp.Or(s.Scaling.Soft, s.Concurrency) }

// AnswerWithin bounds a request from its arrival until its response begins.
func (s *Spec) AnswerWithin() time.Duration {
	if s.ResponseStart > 0 {
		return min(s.ResponseStart, s.Timeout)
	}
	return s.Timeout
}

// newSpec reads a defaulted and validated template. What an error says can not be
// read has its default.
func newSpec(template servingv1.RevisionTemplateSpec) (*Spec, error) {
	template.ObjectMeta = templateMeta(template.ObjectMeta)
	s := &Spec{Template: template, Port: Port{Number: DefaultPort}}
	a := annotations{of: template.Annotations}
	c := s.Container()
	if c == nil {
		a.fail(errors.New("the template has no container"))
		s.Template.Spec.Containers = make([]corev1.Container, 1)
		c = s.Container()
	}
	s.Image = c.Image
	if len(c.Ports) > 0 {
		s.Port.H2C = c.Ports[0].Name == "h2c"
		if n := int(c.Ports[0].ContainerPort); n != 0 {
			s.Port.Number = n
		}
	}
	s.Concurrency = int(deref(template.Spec.ContainerConcurrency, DefaultConcurrency))
	if s.Concurrency < 1 || s.Concurrency > MaxConcurrency {
		a.fail(fmt.Errorf("containerConcurrency %d is not a number from 1 to %d", s.Concurrency, MaxConcurrency))
		s.Concurrency = DefaultConcurrency
	}
	s.Timeout = time.Duration(deref(template.Spec.TimeoutSeconds, int64(DefaultTimeout/time.Second))) * time.Second
	s.ResponseStart = time.Duration(deref(template.Spec.ResponseStartTimeoutSeconds, 0)) * time.Second
	s.StreamIdle = time.Duration(deref(template.Spec.IdleTimeoutSeconds, 0)) * time.Second
	s.MinInstances = a.integer(0, math.MaxInt32, 0, autoscaling.MinScaleAnnotation...)
	s.MaxInstances = a.integer(0, math.MaxInt32, DefaultMaxInstances, autoscaling.MaxScaleAnnotation...)
	s.InitialScale = a.integer(0, math.MaxInt32, -1, autoscaling.InitialScaleAnnotation...)
	s.ProgressDeadline = a.duration(DefaultProgressDeadline, serving.ProgressDeadlineAnnotation...)
	s.QueueDepth = a.integer(1, MaxQueueDepth, DefaultQueueDepth, QueueDepthAnnotation)
	s.IdleTimeout = a.duration(DefaultIdleTimeout, IdleTimeoutAnnotation)
	s.DrainTimeout = a.duration(s.Timeout, DrainTimeoutAnnotation)
	s.Affinity = a.boolean(false, AffinityAnnotation)
	s.Throttled = a.boolean(true, ThrottlingAnnotation)
	s.Prepared = a.integer(0, MaxPrepared, -1, PreparedAnnotation)
	s.Memory, s.CPU = limits(template.Spec.Containers)
	s.readScaling(&a)
	s.readHealth(&a)
	return s, a.err
}

// annotations reads values. What can not be read has its default, and the first
// such is in err.
type annotations struct {
	of  map[string]string
	err error
}

func (a *annotations) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// read has f read the first of keys that is set: Knative accepts several
// spellings. f reports whether the value is what it says it wants.
func (a *annotations) read(keys []string, want string, f func(value string) bool) {
	for _, key := range keys {
		value, ok := a.of[key]
		if !ok {
			continue
		}
		if !f(value) {
			a.fail(fmt.Errorf("annotation %s: %q is not %s", key, value, want))
		}
		return
	}
}

func (a *annotations) integer(lowest, highest, otherwise int, keys ...string) int {
	n := otherwise
	a.read(keys, fmt.Sprintf("a number from %d to %d", lowest, highest), func(value string) bool {
		v, err := strconv.Atoi(value)
		if err != nil || v < lowest || v > highest {
			return false
		}
		n = v
		return true
	})
	return n
}

func (a *annotations) duration(otherwise time.Duration, keys ...string) time.Duration {
	return a.span(1, math.MaxInt64, "a duration above zero", otherwise, keys...)
}

func (a *annotations) span(lowest, highest time.Duration, want string, otherwise time.Duration, keys ...string) time.Duration {
	d := otherwise
	a.read(keys, want, func(value string) bool {
		v, err := time.ParseDuration(value)
		if err != nil || v < lowest || v > highest {
			return false
		}
		d = v
		return true
	})
	return d
}

func (a *annotations) boolean(otherwise bool, key string) bool {
	b := otherwise
	a.read([]string{key}, "true or false", func(value string) (ok bool) {
		v, err := strconv.ParseBool(value)
		if err == nil {
			b = v
		}
		return err == nil
	})
	return b
}

func (a *annotations) number(lowest, highest, otherwise float64, keys ...string) float64 {
	x := otherwise
	a.read(keys, fmt.Sprintf("a number from %g to %g", lowest, highest), func(value string) bool {
		v, err := strconv.ParseFloat(value, 64)
		if err != nil || !(v >= lowest && v <= highest) { // not a number is neither
			return false
		}
		x = v
		return true
	})
	return x
}
