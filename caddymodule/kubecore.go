package caddymodule

import (
	"maps"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/fairway-run/fairway/revisions"
)

// protobufMagic begins what Kubernetes' clients send in protobuf.
var protobufMagic = []byte("k8s\x00")

// core answers for the few resources of Kubernetes itself that Knative's
// clients use.
func (q kubeRequest) core() error {
	if q.sub != "" {
		return notFound(q.URL.Path)
	}
	switch kind := revisions.ValueKind(q.resource); kind {
	case revisions.Secrets, revisions.ConfigMaps:
		return q.values(kind)
	}
	if q.Method != http.MethodGet {
		return methodNotAllowed(q.Method, q.resource)
	}
	switch q.resource {
	case "services":
		return coreList(q, "Service", q.placeholders())
	case "pods":
		return coreList(q, "Pod", q.pods())
	}
	return notFound(q.URL.Path)
}

// coreList answers with one object, by name, or all of them.
func coreList[T any, P interface {
	*T
	metav1.Object
}](q kubeRequest, kind string, all []T) error {
	for i := range all {
		P(&all[i]).SetNamespace(q.engine.namespace())
	}
	if q.name == "" {
		sel, only, err := q.selector()
		if err != nil {
			return err
		}
		items := make([]T, 0, len(all))
		for i := range all {
			if matches(P(&all[i]), sel, only) {
				items = append(items, all[i])
			}
		}
		writeJSON(q.w, http.StatusOK, map[string]any{
			"kind": kind + "List", "apiVersion": "v1", "items": items, "metadata": metav1.ListMeta{},
		})
		return nil
	}
	for i := range all {
		if P(&all[i]).GetName() == q.name {
			writeJSON(q.w, http.StatusOK, all[i])
			return nil
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{Resource: q.resource}, q.name)
}

// placeholders are the services of Kubernetes that Knative makes for its own:
// names for them inside the cluster.
func (q kubeRequest) placeholders() []corev1.Service {
	var all []corev1.Service
	names := q.registry.Names()
	if q.name != "" {
		names = []string{q.name}
	}
	for _, name := range names {
		st := q.registry.State(name)
		if st == nil || st.Service == nil {
			continue
		}
		s := corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
		s.Name, s.CreationTimestamp, s.ResourceVersion = name, st.Service.CreationTimestamp, st.Service.ResourceVersion
		s.Labels, s.Annotations = maps.Clone(st.PlaceholderLabels), maps.Clone(st.PlaceholderAnnotations)
		if s.Labels == nil {
			s.Labels = make(map[string]string, 2)
		}
		s.Labels[serving.ServiceLabelKey], s.Labels[serving.RouteLabelKey] = name, name
		s.Spec.Type = corev1.ServiceTypeExternalName
		if url := q.registry.Domain().URL(name, ""); url != nil {
			s.Spec.ExternalName = url.Host
		}
		all = append(all, s)
	}
	return all
}

// pods are the instances.
func (q kubeRequest) pods() []corev1.Pod {
	var all []corev1.Pod
	for _, s := range q.engine.scaler.Status() {
		for _, r := range s.Revisions {
			for _, i := range r.Instances {
				p := corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
				p.Name = i.ID
				p.CreationTimestamp = metav1.NewTime(i.Since)
				p.Labels = map[string]string{
					serving.ServiceLabelKey: s.Name, serving.ConfigurationLabelKey: s.Name, serving.RevisionLabelKey: r.Revision.Name,
				}
				r.Revision.Spec().Template.Spec.PodSpec.DeepCopyInto(&p.Spec)
				p.Status.Phase = corev1.PodRunning
				for _, c := range p.Spec.Containers {
					p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
						Name: c.Name, Image: c.Image, Ready: i.State.String() == "ready",
					})
				}
				all = append(all, p)
			}
		}
	}
	return all
}
