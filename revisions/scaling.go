package revisions

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	"knative.dev/serving/pkg/apis/autoscaling"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Cloud Run's annotations about scaling, on a revision template.
const (
	// ThrottlingAnnotation is "true" (the default) or "false".
	ThrottlingAnnotation = "run.googleapis.com/cpu-throttling"
	// ConcurrencyTargetAnnotation is a part, "0.1" to "0.95", "disabled" or "default".
	ConcurrencyTargetAnnotation = "run.googleapis.com/scaling-concurrency-target"
	// CPUTargetAnnotation is the same, up to "0.95".
	CPUTargetAnnotation = "run.googleapis.com/scaling-cpu-target"
)

// Cloud Run's annotations about scaling, on a service: a change of them makes no
// new revision.
const (
	ServiceMinAnnotation = "run.googleapis.com/minScale"
	ServiceMaxAnnotation = "run.googleapis.com/maxScale"
	// ScalingModeAnnotation is "automatic" (the default) or "manual": then as many instances
	// run as ManualCountAnnotation says, and none takes requests at 0.
	ScalingModeAnnotation = "run.googleapis.com/scalingMode"
	ManualCountAnnotation = "run.googleapis.com/manualInstanceCount"
)

const (
	// knativeUtilization is the part of a Knative target that is aimed at.
	knativeUtilization = 0.7
	// knativeGrace is how long Knative keeps the last instance beyond its window
	// (Knative: scale-to-zero-grace-period).
	knativeGrace = 30 * time.Second
)

// Scaling says how many instances of a revision are started before they are
// needed, and how long they are kept after they were.
type Scaling struct {
	// Concurrency is the mean number of requests in an instance above which another
	// is started; 0 means that this starts none.
	Concurrency float64
	// CPU is the same for the part of an instance's CPUs that is used.
	CPU float64
	// Soft, when not 0, is how many requests an instance should have as long as there
	// are others (Knative: soft limit).
	Soft int
	// Window, when not 0, is what the load is averaged over: an idle instance beyond
	// those that the average needs is not kept. IdleTimeout bounds all of them.
	Window time.Duration
	// Activation is how many instances are started when there is none; 0 and 1: as
	// many as are needed.
	Activation int
}

// Bounds limit the instances of all revisions of a service together.
// Source: Cloud Run: service-level minimum and maximum instances, manual scaling.
type Bounds struct {
	// Min is shared among the revisions by their traffic; Max 0 means no bound.
	Min, Max int
	// Manual is set when the number is fixed; at 0 the service takes no requests.
	Manual bool
}

// Bounds are those of the service as it is wanted now.
func (s *State) Bounds() Bounds {
	if s.Service == nil {
		return Bounds{}
	}
	b, _ := boundsOf(s.Service) // what cannot be read was refused before, or is the default
	return b
}

func boundsOf(svc *servingv1.Service) (Bounds, error) {
	a := annotations{of: svc.Annotations}
	b := Bounds{
		Min: a.integer(0, math.MaxInt32, 0, ServiceMinAnnotation),
		Max: a.integer(1, math.MaxInt32, 0, ServiceMaxAnnotation),
	}
	if b.Max > 0 && b.Min > b.Max {
		a.fail(fmt.Errorf("annotation %s: %d is below %s, which is %d", ServiceMaxAnnotation, b.Max, ServiceMinAnnotation, b.Min))
		b.Min = b.Max
	}
	a.read([]string{ScalingModeAnnotation}, "automatic or manual", func(value string) bool {
		b.Manual = value == "manual"
		return b.Manual || value == "automatic"
	})
	if b.Manual {
		n := a.integer(0, math.MaxInt32, -1, ManualCountAnnotation)
		if n < 0 {
			a.fail(fmt.Errorf("missing annotation %s: manual scaling needs a number", ManualCountAnnotation))
		}
		b.Min, b.Max = max(n, 0), max(n, 0)
	}
	return b, a.err
}

// readScaling reads what Cloud Run and Knative have for it. Where both speak of
// the same, Cloud Run's word counts.
func (s *Spec) readScaling(a *annotations) {
	c := float64(s.Concurrency)
	part := a.number(1, 100, 100*knativeUtilization, autoscaling.TargetUtilizationPercentageAnnotation...) / 100
	soft := a.number(0.01, math.MaxInt32, 0, autoscaling.TargetAnnotation...)
	if metric := a.first(autoscaling.MetricAnnotation); metric != "" && metric != autoscaling.Concurrency {
		soft = 0 // it counts something else, such as requests a second
	}
	otherwise := DefaultTarget * c
	switch {
	case soft > 0:
		otherwise = min(soft, c) * part
	case a.has(autoscaling.TargetUtilizationPercentageAnnotation):
		otherwise = c * part
	}
	if soft > 0 && soft < c {
		s.Scaling.Soft = max(1, int(soft))
	}
	if t, ok := a.target(0.95, ConcurrencyTargetAnnotation); ok {
		otherwise, s.Scaling.Soft = t*c, 0
	}
	s.Scaling.Concurrency, s.Scaling.CPU = otherwise, DefaultTarget
	if t, ok := a.target(0.95, CPUTargetAnnotation); ok {
		s.Scaling.CPU = t
	}
	if s.Scaling.Concurrency == 0 && s.Scaling.CPU == 0 {
		a.fail(errors.New("annotations " + ConcurrencyTargetAnnotation + " and " + CPUTargetAnnotation + ": not both can be disabled"))
	}
	s.Scaling.Activation = a.integer(0, math.MaxInt32, 0, autoscaling.ActivationScaleKey)

	kept := a.span(0, autoscaling.WindowMax, "a duration up to 1h", 0, autoscaling.ScaleToZeroPodRetentionPeriodAnnotation...)
	delay := a.span(0, autoscaling.WindowMax, "a duration up to 1h", 0, autoscaling.ScaleDownDelayAnnotation...)
	s.Scaling.Window = a.span(autoscaling.WindowMin, autoscaling.WindowMax, "a duration from 6s to 1h", 0, autoscaling.WindowAnnotation...)
	if !a.has([]string{IdleTimeoutAnnotation}) {
		s.IdleTimeout = max(s.IdleTimeout, kept)
		if s.Scaling.Window > 0 {
			s.IdleTimeout = s.Scaling.Window + max(knativeGrace, kept)
		}
	}
	if s.Scaling.Window > 0 {
		s.Scaling.Window = max(s.Scaling.Window, delay)
	}
	s.IdleTimeout = max(s.IdleTimeout, s.Scaling.Window, delay)
}

func (a *annotations) has(keys []string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return a.of[key] != "" })
}

// first is the value of the first of keys that has one.
func (a *annotations) first(keys []string) string {
	for _, key := range keys {
		if value := a.of[key]; value != "" {
			return value
		}
	}
	return ""
}

// target reads one of Cloud Run's targets; ok is false when it is the default.
func (a *annotations) target(highest float64, key string) (part float64, ok bool) {
	switch a.of[key] {
	case "", "default":
		return 0, false
	case "disabled":
		return 0, true
	}
	return a.number(0.1, highest, DefaultTarget, key), true
}

// limits returns what all containers of an instance may use together.
func limits(containers []corev1.Container) (memory int64, cpu float64) {
	for i := range containers {
		of := containers[i].Resources.Limits
		memory += limit(of, corev1.ResourceMemory, DefaultMemory).Value()
		cpu += limit(of, corev1.ResourceCPU, DefaultCPU).AsApproximateFloat64()
	}
	return memory, cpu
}

func limit(of corev1.ResourceList, name corev1.ResourceName, otherwise string) *quantity.Quantity {
	q, ok := of[name]
	if !ok {
		q = quantity.MustParse(otherwise)
	}
	return &q
}
