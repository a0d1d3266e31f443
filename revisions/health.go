package revisions

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Defaults and limits of probes. The defaults are those of the probes that go on
// after the start. Source: Cloud Run: container health checks.
const (
	DefaultPeriod           = 10 * time.Second
	DefaultFailureThreshold = 3
	// DefaultSuccessThreshold is that of a readiness probe where Cloud Run's words are
	// used; in a Knative object it is 1.
	DefaultSuccessThreshold = 2
	// MaxLivenessPeriod bounds the period, the timeout and the delay of a liveness
	// probe, MaxReadinessPeriod those of a readiness probe but for its delay.
	MaxLivenessPeriod  = time.Hour
	MaxReadinessPeriod = 5 * time.Minute
	// MaxStartupTime bounds the delay of a startup probe, and all of its periods
	// together.
	MaxStartupTime = 4 * time.Minute
)

// Health says how it is found out that a container has started, and how it is
// from then on. A revision's containers are in the order that they are started in.
type Health struct {
	// Container is its name.
	Container string
	// After has the names of the containers that have to have started before its
	// process is (Cloud Run: container start order).
	After []string
	// Startup says when it has started; nil: when its process has.
	Startup *Probe
	// Checks are asked from when all have started, as long as the instance lives.
	Checks []Check
}

// Check is a probe that is asked again and again.
type Check struct {
	Probe
	// Liveness says what a failure means: the instance is replaced. Else it gets no
	// new requests until the check succeeds again.
	Liveness bool
	// Period is the time from one attempt to the next.
	Period time.Duration
	// Failures and Successes in a row are what it takes to fail, and to succeed again.
	Failures, Successes int
}

// Word is what Knative calls the kind of check: liveness or readiness.
func (c *Check) Word() string {
	if c.Liveness {
		return "liveness"
	}
	return "readiness"
}

// Ingress is the health of the container that gets the requests.
func (s *Spec) Ingress() *Health {
	name := s.Container().Name
	for i := range s.Health {
		if s.Health[i].Container == name {
			return &s.Health[i]
		}
	}
	return nil
}

// StartupTime is the longest that the startup probes may take in all.
func (s *Spec) StartupTime() time.Duration {
	total := time.Duration(0)
	for _, h := range s.Health {
		if h.Startup != nil {
			total += h.Startup.Delay + h.Startup.Total
		}
	}
	return total
}

// readHealth reads what the template says of its containers' health.
func (s *Spec) readHealth(a *annotations) {
	order, needs, err := startOrder(&s.Template)
	if err != nil {
		a.fail(err)
	}
	ingress := s.Container()
	byName := make(map[string]*corev1.Container, len(order))
	for i := range s.Template.Spec.Containers {
		c := &s.Template.Spec.Containers[i]
		byName[c.Name] = c
	}
	s.Health = make([]Health, 0, len(order))
	for _, name := range order {
		c := byName[name]
		h := Health{Container: name, Startup: startupProbe(c, s.Port, c == ingress), Checks: checks(c, s.Port)}
		if err == nil {
			h.After = needs[name]
		}
		s.Health = append(s.Health, h)
	}
}

func checks(c *corev1.Container, port Port) []Check {
	var all []Check
	if p := c.LivenessProbe; p != nil {
		all = append(all, newCheck(p, port, true))
	}
	if p := c.ReadinessProbe; p != nil && !isDefaultReadiness(p) {
		all = append(all, newCheck(p, port, false))
	}
	return all
}

// isDefaultReadiness reports whether p is what Knative fills in where no
// readiness probe is given. That the port accepts connections is seen by every
// request.
func isDefaultReadiness(p *corev1.Probe) bool {
	return p.TCPSocket != nil && p.TCPSocket.Port == (intstr.IntOrString{}) && p.PeriodSeconds == 0 && p.InitialDelaySeconds == 0
}

func newCheck(p *corev1.Probe, port Port, liveness bool) Check {
	c := Check{
		Probe: Probe{Kind: ProbeTCP, Port: port.Number, Attempt: time.Second}, Liveness: liveness,
		Period: seconds(periodOf(p)), Failures: int(failuresOf(p)), Successes: max(1, int(p.SuccessThreshold)),
	}
	c.read(p, port)
	return c
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// validateProbes finds what Knative's validation lets through and Kubernetes'
// does not, and what is beyond Cloud Run's limits.
func validateProbes(spec *servingv1.RevisionSpec) *apis.FieldError {
	var errs *apis.FieldError
	ingress := ingressContainer(spec)
	for i := range spec.Containers {
		c := &spec.Containers[i]
		var of *apis.FieldError
		if p := c.StartupProbe; p != nil {
			of = of.Also(validateStartup(p).ViaField("startupProbe"))
		}
		if p := c.LivenessProbe; p != nil {
			of = of.Also(validateCheck(p, MaxLivenessPeriod, MaxLivenessPeriod).Also(validateOneSuccess(p)).ViaField("livenessProbe"))
		}
		if p := c.ReadinessProbe; p != nil {
			of = of.Also(validateCheck(p, MaxLivenessPeriod, MaxReadinessPeriod).ViaField("readinessProbe"))
		}
		if c != ingress {
			for field, p := range map[string]*corev1.Probe{"startupProbe": c.StartupProbe, "livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe} {
				of = of.Also(validatePort(p).ViaField(field))
			}
		}
		errs = errs.Also(of.ViaFieldIndex("containers", i))
	}
	return errs.ViaField("spec", "template", "spec")
}

// validateStartup bounds the whole too: it is what a request may have to wait for.
func validateStartup(p *corev1.Probe) *apis.FieldError {
	errs := validateCheck(p, MaxStartupTime, MaxStartupTime).Also(validateOneSuccess(p))
	period, failures := periodOf(p), failuresOf(p)
	if total := time.Duration(failures) * seconds(period); errs == nil && total > MaxStartupTime {
		errs = &apis.FieldError{
			Message: fmt.Sprintf("%d periods of %d seconds are longer than %d seconds", failures, period, MaxStartupTime/time.Second),
			Paths:   []string{"failureThreshold"},
		}
	}
	return errs
}

func validateOneSuccess(p *corev1.Probe) *apis.FieldError {
	if p.SuccessThreshold < 0 || p.SuccessThreshold > 1 {
		return apis.ErrOutOfBoundsValue(p.SuccessThreshold, 0, 1, "successThreshold")
	}
	return nil
}

// periodOf is a probe's period in seconds.
func periodOf(p *corev1.Probe) int32 {
	if p.PeriodSeconds == 0 {
		return int32(DefaultPeriod / time.Second)
	}
	return p.PeriodSeconds
}

// failuresOf is how many periods a probe may fail for.
func failuresOf(p *corev1.Probe) int32 {
	if p.FailureThreshold == 0 {
		return DefaultFailureThreshold
	}
	return p.FailureThreshold
}

func validateCheck(p *corev1.Probe, mostDelay, most time.Duration) *apis.FieldError {
	var errs *apis.FieldError
	bound := func(field string, n int32, highest time.Duration) {
		if n < 0 || seconds(n) > highest {
			errs = errs.Also(apis.ErrOutOfBoundsValue(n, 0, int(highest/time.Second), field))
		}
	}
	bound("initialDelaySeconds", p.InitialDelaySeconds, mostDelay)
	bound("periodSeconds", p.PeriodSeconds, most)
	bound("timeoutSeconds", p.TimeoutSeconds, most)
	if p.FailureThreshold < 0 {
		errs = errs.Also(&apis.FieldError{Message: fmt.Sprintf("%d is below zero", p.FailureThreshold), Paths: []string{"failureThreshold"}})
	}
	if period := periodOf(p); errs == nil && p.TimeoutSeconds > period {
		errs = &apis.FieldError{Message: fmt.Sprintf("%d is longer than the period, %d", p.TimeoutSeconds, period), Paths: []string{"timeoutSeconds"}}
	}
	return errs
}

// validatePort refuses a sidecar's probe without a port's number: its containers'
// ports have no names.
func validatePort(p *corev1.Probe) *apis.FieldError {
	const needed = "a sidecar's probe needs the number of a port"
	switch {
	case p == nil:
	case p.HTTPGet != nil && p.HTTPGet.Port.IntValue() == 0:
		return &apis.FieldError{Message: needed, Paths: []string{"httpGet.port"}}
	case p.TCPSocket != nil && p.TCPSocket.Port.IntValue() == 0:
		return &apis.FieldError{Message: needed, Paths: []string{"tcpSocket.port"}}
	case p.GRPC != nil && p.GRPC.Port == 0:
		return &apis.FieldError{Message: needed, Paths: []string{"grpc.port"}}
	}
	return nil
}
