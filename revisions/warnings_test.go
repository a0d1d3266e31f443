package revisions

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

func TestWarnings(t *testing.T) {
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		"run.googleapis.com/ingress": "all", "run.googleapis.com/iap-enabled": "true", "run.googleapis.com/default-url-disabled": "false",
	}}}
	svc.Spec.Template.Annotations = map[string]string{
		"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev", "autoscaling.knative.dev/metric": "rps",
		"autoscaling.knative.dev/panicWindowPercentage": "20", "autoscaling.knative.dev/target": "10", "example.com/own": "x",
	}
	want := []string{
		"annotation run.googleapis.com/iap-enabled has no effect: there is nothing of the kind on one host",
		"annotation autoscaling.knative.dev/class has no effect: there is one autoscaler, not hpa.autoscaling.knative.dev",
		"annotation autoscaling.knative.dev/metric has no effect, nor has the target: what counts is concurrency, and CPU, not rps",
		"annotation autoscaling.knative.dev/panicWindowPercentage has no effect: requests are counted as they come and go",
	}
	if got := Warnings(svc); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	svc.Annotations = nil
	svc.Spec.Template.Annotations = map[string]string{
		"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev", "autoscaling.knative.dev/metric": "concurrency", "run.googleapis.com/sessionAffinity": "true",
	}
	if got := Warnings(svc); got != nil {
		t.Errorf("what has an effect: %q", got)
	}
}
