package revisions

import (
	"fmt"

	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// IngressAnnotation, on a service, says who may send it requests: "all" (the
// default) or "internal". Source: Cloud Run: restrict network ingress.
const IngressAnnotation = "run.googleapis.com/ingress"

// The values of IngressAnnotation. There is no load balancer that could be told
// from all others.
const (
	ingressAll      = "all"
	IngressInternal = "internal"
)

// Internal reports whether only instances on this host may send requests to the
// service: Cloud Run's ingress is internal, or Knative's visibility is cluster-local.
func (s *State) Internal() bool {
	if s.Service == nil {
		return false
	}
	return s.Service.Annotations[IngressAnnotation] == IngressInternal ||
		s.Service.Labels[networking.VisibilityLabelKey] == serving.VisibilityClusterLocal
}

// checkIngress refuses what would leave a service open that was not meant to be.
func checkIngress(svc *servingv1.Service) error {
	switch value := svc.Annotations[IngressAnnotation]; value {
	case "", ingressAll, IngressInternal:
	default:
		return fmt.Errorf("annotation %s: %q is not all or internal", IngressAnnotation, value)
	}
	return nil
}
