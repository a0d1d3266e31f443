package caddymodule

import (
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Cloud Run's defaults are what is said by default.
func TestProbesInKnativesWords(t *testing.T) {
	path := &corev1.HTTPGetAction{Path: "/up", Port: intstr.FromInt32(81)}
	p := &Probe{Type: "http", Path: "/up", Port: 81}
	for kind, want := range map[string]*corev1.Probe{
		startupProbe:   {PeriodSeconds: 240, TimeoutSeconds: 1, FailureThreshold: 1, SuccessThreshold: 1},
		livenessProbe:  {PeriodSeconds: 10, TimeoutSeconds: 1, FailureThreshold: 3, SuccessThreshold: 1},
		readinessProbe: {PeriodSeconds: 10, TimeoutSeconds: 1, FailureThreshold: 3, SuccessThreshold: 2},
	} {
		want.HTTPGet = path
		if diff := cmp.Diff(want, p.knative(kind)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
	}
	if k := (&Probe{Type: "tcp", FailureThreshold: 24}).knative(startupProbe); k.PeriodSeconds != 10 || k.FailureThreshold != 24 {
		t.Errorf("a startup probe's failures alone: %+v", k)
	}
	all := &Probe{
		Type: "grpc", Service: "a.B", InitialDelay: caddy.Duration(2 * time.Second), Period: caddy.Duration(time.Minute),
		Timeout: caddy.Duration(30 * time.Second), FailureThreshold: 5, SuccessThreshold: 6,
	}
	svc, err := (&Service{Image: "app:1", LivenessProbe: &Probe{Type: "tcp"}, ReadinessProbe: all}).knative("hello")
	if err != nil {
		t.Fatal(err)
	}
	c := svc.Spec.Template.Spec.Containers[0]
	want := &corev1.Probe{InitialDelaySeconds: 2, PeriodSeconds: 60, TimeoutSeconds: 30, FailureThreshold: 5, SuccessThreshold: 6}
	want.GRPC = &corev1.GRPCAction{Service: &all.Service}
	if diff := cmp.Diff(want, c.ReadinessProbe); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if c.LivenessProbe.TCPSocket == nil || c.StartupProbe != nil {
		t.Errorf("liveness %v, startup %v", c.LivenessProbe, c.StartupProbe)
	}
}
