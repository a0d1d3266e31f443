package revisions

import (
	"fmt"
	"maps"
	"slices"

	"knative.dev/serving/pkg/apis/autoscaling"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// noCloud is why most of them have no effect.
const noCloud = "there is nothing of the kind on one host"

// pointless are annotations of Cloud Run and Knative that are accepted without
// effect, so that a service.yaml of theirs can be used as it is, by why that is.
var pointless = map[string]string{ //nolint:gosec // one has "secrets" in its name, and none is one
	"run.googleapis.com/binary-authorization":            noCloud,
	"run.googleapis.com/binary-authorization-breakglass": noCloud,
	"run.googleapis.com/cloudsql-instances":              noCloud,
	"run.googleapis.com/custom-audiences":                noCloud,
	"run.googleapis.com/encryption-key":                  noCloud,
	"run.googleapis.com/encryption-key-shutdown-hours":   noCloud,
	"run.googleapis.com/post-key-revocation-action-type": noCloud,
	"run.googleapis.com/gpu-zonal-redundancy-disabled":   noCloud,
	"run.googleapis.com/iap-enabled":                     noCloud,
	"run.googleapis.com/network-interfaces":              noCloud,
	"run.googleapis.com/vpc-access-connector":            noCloud,
	"run.googleapis.com/vpc-access-egress":               noCloud,
	"run.googleapis.com/base-images":                     "images are used as they are",
	"run.googleapis.com/default-url-disabled":            "the sites in Caddy's config decide which hosts there are",
	"run.googleapis.com/execution-environment":           "there is one, runc's",
	"run.googleapis.com/health-check-disabled":           "autoscaling.knative.dev/initial-scale: \"0\" has the same effect",
	"run.googleapis.com/secrets":                         "secrets are those of this host",
	"run.googleapis.com/startup-cpu-boost":               "an instance that starts has the CPU of one that runs",
}

// measures are Knative's annotations about how it estimates the load.
var measures = [][]string{
	autoscaling.MetricAggregationAlgorithmAnnotation, autoscaling.PanicThresholdPercentageAnnotation,
	autoscaling.PanicWindowPercentageAnnotation, autoscaling.TargetBurstCapacityAnnotation,
}

// Warnings says which annotations of a service have no effect, and why, one by one.
func Warnings(svc *servingv1.Service) (all []string) {
	for _, of := range []map[string]string{svc.Annotations, svc.Spec.Template.Annotations} {
		for _, key := range slices.Sorted(maps.Keys(of)) {
			value := of[key]
			if why := pointless[key]; why != "" && value != "" && value != "false" {
				all = append(all, fmt.Sprintf("annotation %s has no effect: %s", key, why))
			}
			switch {
			case slices.ContainsFunc(measures, func(keys []string) bool { return slices.Contains(keys, key) }):
				all = append(all, fmt.Sprintf("annotation %s has no effect: requests are counted as they come and go", key))
			case slices.Contains(autoscaling.ClassAnnotation, key) && value != autoscaling.KPA:
				all = append(all, fmt.Sprintf("annotation %s has no effect: there is one autoscaler, not %s", key, value))
			case slices.Contains(autoscaling.MetricAnnotation, key) && value != autoscaling.Concurrency:
				all = append(all, fmt.Sprintf("annotation %s has no effect, nor has the target: what counts is concurrency, and CPU, not %s", key, value))
			}
		}
	}
	return all
}
