package caddymodule

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/serving/pkg/apis/autoscaling"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

// Service is a service declared in Caddy's config. It becomes a Knative Service:
// each field says which of its fields or annotations it sets.
type Service struct {
	// The container image. A local image of that name is used without asking a
	// registry; the tag is resolved to a digest once, when the revision is made.
	// Knative: `spec.template.spec.containers[0].image`.
	Image string `json:"image,omitempty"`
	// What to run instead of the image's entrypoint. Knative: `…command`.
	Command []string `json:"command,omitempty"`
	// The arguments, instead of the image's. Knative: `…args`.
	Args []string `json:"args,omitempty"`
	// The port that the container listens on; it is told in `PORT`. Default:
	// `8080`. Knative: `…ports[0].containerPort`.
	Port int `json:"port,omitempty"`
	// Speak HTTP/2 without TLS to the container, as gRPC needs. Knative: a port
	// named `h2c`.
	H2C bool `json:"h2c,omitempty"`
	// Environment variables. Placeholders such as `{env.TOKEN}` are replaced when
	// the config is loaded. Knative: `…env`.
	Env map[string]string `json:"env,omitempty"`
	// The hard limit of requests in flight in one instance, 1 to 1000. Default:
	// `80`. Knative: `spec.template.spec.containerConcurrency`.
	Concurrency *int `json:"concurrency,omitempty"`
	// How many instances are kept running at least. Default: `0`. Knative:
	// annotation `autoscaling.knative.dev/min-scale`.
	MinInstances int `json:"min_instances,omitempty"`
	// How many instances may run at most; 0 means no limit. Default: `100`.
	// Knative: annotation `autoscaling.knative.dev/max-scale`.
	MaxInstances *int `json:"max_instances,omitempty"`
	// How many instances the first revision starts without waiting for a request,
	// so that a mistake shows at once. Default: `0`. Knative: annotation
	// `autoscaling.knative.dev/initial-scale`.
	InitialScale int `json:"initial_scale,omitempty"`
	// How long an instance may be without a request before it is stopped.
	// Default: `15m`. Annotation `run.fairway/idle-timeout`.
	IdleTimeout caddy.Duration `json:"idle_timeout,omitempty"`
	// How long a request may take in all, the wait for an instance included; whole
	// seconds up to one hour. WebSockets are free of it. Default: `300s`. Knative:
	// `spec.template.spec.timeoutSeconds`.
	Timeout caddy.Duration `json:"timeout,omitempty"`
	// How long it may take until its response begins; whole seconds up to `timeout`.
	// Default: `timeout`. Knative: `…responseStartTimeoutSeconds`.
	ResponseStartTimeout caddy.Duration `json:"response_start_timeout,omitempty"`
	// How long an instance that has the request may send nothing; whole seconds up to
	// `timeout`. Default: `timeout`. Knative: `…idleTimeoutSeconds`.
	ResponseIdleTimeout caddy.Duration `json:"response_idle_timeout,omitempty"`
	// How long a revision that was replaced may take for the requests that it has,
	// streams and WebSockets included, before they are ended. Default: `timeout`.
	// Annotation `run.fairway/drain-timeout`.
	DrainTimeout caddy.Duration `json:"drain_timeout,omitempty"`
	// Who may send requests: `all`, or `internal`: instances on this host only; others
	// get 404. Default: `all`. Annotation `run.googleapis.com/ingress` of the service.
	Ingress string `json:"ingress,omitempty"`
	// How many requests may wait for a free slot. Default: `10000`. Annotation
	// `run.fairway/queue-depth`.
	QueueDepth int `json:"queue_depth,omitempty"`
	// Give an instance CPU only while it has requests: it is frozen while it has
	// none. Default: `true`. Annotation `run.googleapis.com/cpu-throttling`.
	CPUThrottling *bool `json:"cpu_throttling,omitempty"`
	// How many instances are kept made but not started, which makes a start from
	// nothing several times quicker. Default: the app's. Annotation
	// `run.fairway/prepared`.
	Prepared *int `json:"prepared,omitempty"`
	// The part of an instance's slots from whose use on another is started ahead of
	// need, `0.1` to `0.95`, or `off`. Default: `0.6`. Annotation
	// `run.googleapis.com/scaling-concurrency-target`.
	ConcurrencyTarget string `json:"concurrency_target,omitempty"`
	// The same of its CPU. Default: `0.6`. Annotation
	// `run.googleapis.com/scaling-cpu-target`.
	CPUTarget string `json:"cpu_target,omitempty"`
	// How long an instance is kept idle that the load of the same time does not need
	// on the average, 6s to 1h. Default: as long as any, `idle_timeout`. Annotation
	// `autoscaling.knative.dev/window`.
	Window caddy.Duration `json:"window,omitempty"`
	// The CPUs of one instance, such as `1`, `0.5` or `500m`. Default: `1`.
	// Knative: `…resources.limits.cpu`.
	CPU string `json:"cpu,omitempty"`
	// The memory of one instance, such as `512MiB` or `1Gi`. Default: `512MiB`.
	// Knative: `…resources.limits.memory`.
	Memory string `json:"memory,omitempty"`
	// What decides that an instance has started. Default: the port accepts a
	// connection. Knative: `…startupProbe`.
	StartupProbe *Probe `json:"startup_probe,omitempty"`
	// What is asked from then on: an instance that fails is replaced. Default:
	// nothing. Knative: `…livenessProbe`.
	LivenessProbe *Probe `json:"liveness_probe,omitempty"`
	// What is asked from then on: an instance that fails gets no new requests until
	// it succeeds again. Default: nothing. Knative: `…readinessProbe`.
	ReadinessProbe *Probe `json:"readiness_probe,omitempty"`
}

// Probe asks an instance how it is. Of a startup probe the first success counts;
// between attempts Fairway waits milliseconds only, however long the period is. A
// frozen instance is not asked.
type Probe struct {
	// `tcp`, `http` or `grpc`. Default: `tcp`.
	Type string `json:"type,omitempty"`
	// The path of an HTTP probe. Default: `/`.
	Path string `json:"path,omitempty"`
	// Header fields of an HTTP probe.
	Headers map[string]string `json:"headers,omitempty"`
	// The service that a gRPC probe asks for. Default: the whole server.
	Service string `json:"service,omitempty"`
	// The port to ask. Default: the service's port.
	Port int `json:"port,omitempty"`
	// Wait before the first attempt, up to 1h, of a startup probe up to 240s; whole
	// seconds. Default: `0s`.
	InitialDelay caddy.Duration `json:"initial_delay,omitempty"`
	// The time between attempts, up to 1h for a liveness probe, 5m for a readiness
	// probe. Of a startup probe it only bounds, with failure_threshold, the whole:
	// their product, up to 240s. Whole seconds. Default: `10s`; startup: `240s`, or
	// `10s` when a failure_threshold is given.
	Period caddy.Duration `json:"period,omitempty"`
	// Bounds one attempt; whole seconds, up to the period. Default: `1s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`
	// So many attempts in a row that fail are a failure. Default: `3`; startup: `1`.
	FailureThreshold int `json:"failure_threshold,omitempty"`
	// So many in a row make an instance ready again; for a readiness probe only.
	// Default: `2`.
	SuccessThreshold int `json:"success_threshold,omitempty"`
}

// The kinds of probes, by the names of their options.
const (
	startupProbe   = "startup_probe"
	livenessProbe  = "liveness_probe"
	readinessProbe = "readiness_probe"
)

// probe returns the service's probe of a kind, or nil.
func (s *Service) probe(kind string) *Probe {
	switch kind {
	case startupProbe:
		return s.StartupProbe
	case livenessProbe:
		return s.LivenessProbe
	}
	return s.ReadinessProbe
}

// knative returns the service as a Knative Service, defaulted and validated.
func (s *Service) knative(name string) (*servingv1.Service, error) {
	if s.Image == "" {
		return nil, fmt.Errorf("service %s: missing image", name)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("service %s: %w", name, err)
	}
	svc := &servingv1.Service{}
	svc.APIVersion, svc.Kind, svc.Name = servingv1.SchemeGroupVersion.String(), "Service", name
	if s.Ingress != "" {
		svc.Annotations = map[string]string{revisions.IngressAnnotation: s.Ingress}
	}
	t := &svc.Spec.Template
	t.Annotations = s.annotations()
	c := corev1.Container{Image: s.Image, Command: s.Command, Args: s.Args}
	if s.Port != 0 || s.H2C {
		port := corev1.ContainerPort{ContainerPort: int32(s.Port)}
		if s.Port == 0 {
			port.ContainerPort = revisions.DefaultPort
		}
		if s.H2C {
			port.Name = "h2c"
		}
		c.Ports = []corev1.ContainerPort{port}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		c.Env = append(c.Env, corev1.EnvVar{Name: k, Value: s.Env[k]})
	}
	c.Resources.Limits = make(corev1.ResourceList)
	for kind, text := range map[corev1.ResourceName]string{corev1.ResourceCPU: s.CPU, corev1.ResourceMemory: s.Memory} {
		if text == "" {
			continue
		}
		q, err := parseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("service %s: %s: %w", name, kind, err)
		}
		c.Resources.Limits[kind] = q
	}
	c.StartupProbe = s.StartupProbe.knative(startupProbe)
	c.LivenessProbe = s.LivenessProbe.knative(livenessProbe)
	c.ReadinessProbe = s.ReadinessProbe.knative(readinessProbe)
	if s.Concurrency != nil {
		n := int64(*s.Concurrency)
		t.Spec.ContainerConcurrency = &n
	}
	for field, d := range map[**int64]caddy.Duration{
		&t.Spec.TimeoutSeconds: s.Timeout, &t.Spec.ResponseStartTimeoutSeconds: s.ResponseStartTimeout, &t.Spec.IdleTimeoutSeconds: s.ResponseIdleTimeout,
	} {
		if d != 0 {
			n := int64(time.Duration(d) / time.Second)
			*field = &n
		}
	}
	t.Spec.Containers = []corev1.Container{c}
	return revisions.Prepare(svc)
}

// validate checks the service as far as is possible before its placeholders are
// replaced.
func (s *Service) validate(name string) error {
	c := *s
	if strings.Contains(c.Image, "{") {
		c.Image = "placeholder"
	}
	_, err := c.knative(name)
	return err
}

// expand returns a copy with the placeholders replaced that are known when the
// config is loaded.
func (s *Service) expand(repl *caddy.Replacer) *Service {
	e := *s
	known := func(text string) string { return repl.ReplaceKnown(text, "") }
	all := func(texts []string) []string {
		texts = slices.Clone(texts)
		for i := range texts {
			texts[i] = known(texts[i])
		}
		return texts
	}
	e.Image, e.Command, e.Args = known(s.Image), all(s.Command), all(s.Args)
	e.Env = maps.Clone(s.Env)
	for name, value := range e.Env {
		e.Env[name] = known(value)
	}
	return &e
}

// check finds what Knative's validation cannot, or says it less plainly.
func (s *Service) check() error {
	if s.Concurrency != nil && (*s.Concurrency < 1 || *s.Concurrency > revisions.MaxConcurrency) {
		return fmt.Errorf("concurrency %d is not from 1 to %d", *s.Concurrency, revisions.MaxConcurrency)
	}
	if s.MaxInstances != nil && *s.MaxInstances > 0 && s.MinInstances > *s.MaxInstances {
		return fmt.Errorf("instances: the minimum %d is above the maximum %d", s.MinInstances, *s.MaxInstances)
	}
	if s.MinInstances < 0 || (s.MaxInstances != nil && *s.MaxInstances < 0) {
		return fmt.Errorf("instances: a number below zero")
	}
	if s.Port < 0 || s.Port > 65535 {
		return fmt.Errorf("port %d is not from 1 to 65535", s.Port)
	}
	most := time.Duration(cmp.Or(s.Timeout, caddy.Duration(revisions.DefaultTimeout)))
	for _, f := range []struct {
		name  string
		value caddy.Duration
		most  time.Duration
	}{
		{"timeout", s.Timeout, revisions.MaxTimeout},
		{"response_start_timeout", s.ResponseStartTimeout, most},
		{"response_idle_timeout", s.ResponseIdleTimeout, most},
	} {
		if t := time.Duration(f.value); t < 0 || t > f.most || t%time.Second != 0 {
			return fmt.Errorf("%s %s is not in whole seconds up to %s", f.name, t, f.most)
		}
	}
	if s.IdleTimeout < 0 {
		return fmt.Errorf("idle_timeout %s is below zero", time.Duration(s.IdleTimeout))
	}
	if s.DrainTimeout < 0 {
		return fmt.Errorf("drain_timeout %s is below zero", time.Duration(s.DrainTimeout))
	}
	if s.QueueDepth < 0 || s.QueueDepth > revisions.MaxQueueDepth {
		return fmt.Errorf("queue_depth %d is not from 1 to %d", s.QueueDepth, revisions.MaxQueueDepth)
	}
	if s.Prepared != nil && (*s.Prepared < 0 || *s.Prepared > revisions.MaxPrepared) {
		return fmt.Errorf("prepared %d is not from 0 to %d", *s.Prepared, revisions.MaxPrepared)
	}
	for name, text := range map[string]string{"concurrency_target": s.ConcurrencyTarget, "cpu_target": s.CPUTarget} {
		if text == "" || text == "off" {
			continue
		}
		if part, err := strconv.ParseFloat(text, 64); err != nil || !(part >= 0.1 && part <= 0.95) {
			return fmt.Errorf("%s %q is not a number from 0.1 to 0.95, or off", name, text)
		}
	}
	if s.Window != 0 && (time.Duration(s.Window) < autoscaling.WindowMin || time.Duration(s.Window) > autoscaling.WindowMax) {
		return fmt.Errorf("window %s is not from %s to %s", time.Duration(s.Window), autoscaling.WindowMin, autoscaling.WindowMax)
	}
	for _, kind := range []string{startupProbe, livenessProbe, readinessProbe} {
		if err := s.probe(kind).check(kind); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
	}
	return nil
}

func (s *Service) annotations() map[string]string {
	a := make(map[string]string)
	setInt := func(key string, n int) { a[key] = strconv.Itoa(n) }
	if s.MinInstances > 0 {
		setInt(autoscaling.MinScaleAnnotationKey, s.MinInstances)
	}
	if s.MaxInstances != nil {
		setInt(autoscaling.MaxScaleAnnotationKey, *s.MaxInstances)
	}
	if s.InitialScale > 0 {
		setInt(autoscaling.InitialScaleAnnotationKey, s.InitialScale)
	}
	if s.IdleTimeout > 0 {
		a[revisions.IdleTimeoutAnnotation] = time.Duration(s.IdleTimeout).String()
	}
	if s.DrainTimeout > 0 {
		a[revisions.DrainTimeoutAnnotation] = time.Duration(s.DrainTimeout).String()
	}
	if s.QueueDepth > 0 {
		setInt(revisions.QueueDepthAnnotation, s.QueueDepth)
	}
	if s.CPUThrottling != nil {
		a[revisions.ThrottlingAnnotation] = strconv.FormatBool(*s.CPUThrottling)
	}
	if s.Prepared != nil {
		setInt(revisions.PreparedAnnotation, *s.Prepared)
	}
	for key, text := range map[string]string{
		revisions.ConcurrencyTargetAnnotation: s.ConcurrencyTarget, revisions.CPUTargetAnnotation: s.CPUTarget,
	} {
		switch text {
		case "":
		case "off":
			a[key] = "disabled"
		default:
			a[key] = text
		}
	}
	if s.Window > 0 {
		a[autoscaling.WindowAnnotationKey] = time.Duration(s.Window).String()
	}
	return a
}

// check finds what is wrong with a probe of a kind, which may be nil.
func (p *Probe) check(kind string) error {
	if p == nil {
		return nil
	}
	switch p.Type {
	case "", "tcp", "http", "grpc":
	default:
		return fmt.Errorf("unknown type %q: it is tcp, http or grpc", p.Type)
	}
	for name, d := range map[string]caddy.Duration{"initial_delay": p.InitialDelay, "period": p.Period, "timeout": p.Timeout} {
		if d < 0 || time.Duration(d)%time.Second != 0 {
			return fmt.Errorf("%s %s is not in whole seconds", name, time.Duration(d))
		}
	}
	if p.Port < 0 || p.Port > 65535 {
		return fmt.Errorf("port %d is not from 1 to 65535", p.Port)
	}
	if p.FailureThreshold < 0 {
		return fmt.Errorf("failure_threshold %d is below zero", p.FailureThreshold)
	}
	if p.SuccessThreshold < 0 || p.SuccessThreshold > 0 && kind != readinessProbe {
		return fmt.Errorf("success_threshold %d: only a readiness_probe has one, from 1 on", p.SuccessThreshold)
	}
	mostDelay, most := revisions.MaxLivenessPeriod, revisions.MaxLivenessPeriod
	switch kind {
	case startupProbe:
		mostDelay, most = revisions.MaxStartupTime, revisions.MaxStartupTime
	case readinessProbe:
		most = revisions.MaxReadinessPeriod
	}
	period := p.period(kind)
	switch {
	case time.Duration(p.InitialDelay) > mostDelay:
		return fmt.Errorf("initial_delay %s is longer than %s", time.Duration(p.InitialDelay), mostDelay)
	case period > most:
		return fmt.Errorf("period %s is longer than %s", period, most)
	case time.Duration(p.Timeout) > period:
		return fmt.Errorf("timeout %s is longer than the period, %s", time.Duration(p.Timeout), period)
	case kind == startupProbe && p.FailureThreshold > int(most/period):
		return fmt.Errorf("failure_threshold %d with a period of %s is longer than %s", p.FailureThreshold, period, most)
	}
	return nil
}

// period is the time between attempts. A startup probe of which nothing is said has
// a single period of all the time that there is.
func (p *Probe) period(kind string) time.Duration {
	if kind == startupProbe && p.FailureThreshold == 0 {
		return cmp.Or(time.Duration(p.Period), revisions.DefaultStartupTimeout)
	}
	return cmp.Or(time.Duration(p.Period), revisions.DefaultPeriod)
}

// knative returns a probe of a kind, which may be nil, in Knative's words.
func (p *Probe) knative(kind string) *corev1.Probe {
	if p == nil {
		return nil
	}
	seconds := func(d time.Duration) int32 { return int32(d / time.Second) }
	failures, successes := revisions.DefaultFailureThreshold, 1
	switch kind {
	case startupProbe:
		failures = 1
	case readinessProbe:
		successes = revisions.DefaultSuccessThreshold
	}
	k := &corev1.Probe{
		InitialDelaySeconds: seconds(time.Duration(p.InitialDelay)),
		PeriodSeconds:       seconds(p.period(kind)),
		TimeoutSeconds:      seconds(cmp.Or(time.Duration(p.Timeout), time.Second)),
		FailureThreshold:    int32(cmp.Or(p.FailureThreshold, failures)),
		SuccessThreshold:    int32(cmp.Or(p.SuccessThreshold, successes)),
	}
	port := intstr.FromInt32(int32(p.Port))
	switch p.Type {
	case "http":
		k.HTTPGet = &corev1.HTTPGetAction{Path: p.Path, Port: port}
		for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
			k.HTTPGet.HTTPHeaders = append(k.HTTPGet.HTTPHeaders, corev1.HTTPHeader{Name: name, Value: p.Headers[name]})
		}
	case "grpc":
		k.GRPC = &corev1.GRPCAction{Port: int32(p.Port), Service: &p.Service}
	default:
		k.TCPSocket = &corev1.TCPSocketAction{Port: port}
	}
	return k
}

// parseQuantity reads an amount as Kubernetes writes it (512Mi) or as people do
// (512MiB, 512MB).
func parseQuantity(text string) (resource.Quantity, error) {
	short := strings.TrimSuffix(text, "B")
	if n := len(short); n < len(text) && (n == 0 || !strings.ContainsAny(short[n-1:], "ikMGTPEK")) {
		short = text // "5B" is no quantity
	}
	if n := len(short); n > 1 && short[n-1] == 'K' {
		short = short[:n-1] + "k"
	}
	q, err := resource.ParseQuantity(short)
	if err != nil || q.Sign() <= 0 {
		return q, fmt.Errorf("%q is not an amount such as 1, 500m, 512MiB or 1Gi", text)
	}
	return q, nil
}
