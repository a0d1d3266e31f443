package caddymodule

import (
	"maps"
	"net"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/fairway-run/fairway/instancepool"
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
		return coreList(q, "Service", placeholderPrinter, q.placeholders())
	case "pods":
		return coreList(q, "Pod", podPrinter, q.pods())
	}
	return notFound(q.URL.Path)
}

// coreList answers with one object, by name, or all of them.
func coreList[T any, P interface {
	*T
	apiObject
}](q kubeRequest, kind string, p *printer, all []T) error {
	if q.watches() {
		return methodNotAllowed("watch", q.resource)
	}
	f, err := q.form(p)
	if err != nil {
		return err
	}
	for i := range all {
		obj := P(&all[i])
		if q.resource != "namespaces" {
			obj.SetNamespace(q.engine.namespace())
		}
		if q.name != "" && obj.GetName() == q.name {
			writeJSON(q.w, http.StatusOK, f.object(obj))
			return nil
		}
	}
	if q.name != "" {
		return apierrors.NewNotFound(schema.GroupResource{Resource: q.resource}, q.name)
	}
	sel, only, err := q.selector()
	if err != nil {
		return err
	}
	list := f.list(q.w, "v1", kind)
	for i := range all {
		if obj := P(&all[i]); matches(obj, sel, only) {
			if err := list.add(obj); err != nil {
				return nil //nolint:nilerr // the client has left
			}
		}
	}
	list.end(metav1.ListMeta{})
	return nil
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
				p.CreationTimestamp = metav1.NewTime(i.Born)
				p.Labels = map[string]string{
					serving.ServiceLabelKey: s.Name, serving.ConfigurationLabelKey: s.Name, serving.RevisionLabelKey: r.Revision.Name,
				}
				r.Revision.Spec().Template.Spec.PodSpec.DeepCopyInto(&p.Spec)
				podState(&p, i)
				all = append(all, p)
			}
		}
	}
	return all
}

// podState says of a pod how its instance does.
func podState(p *corev1.Pod, i instancepool.InstanceStatus) {
	since := metav1.NewTime(i.Since)
	ready := i.State == instancepool.Ready || i.State == instancepool.Frozen
	p.Status.Phase = corev1.PodRunning
	state := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: since}}
	switch {
	case i.State == instancepool.Draining:
		p.DeletionTimestamp = &since
	case i.PID == 0:
		p.Status.Phase = corev1.PodPending
		state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
	}
	if ip, _, err := net.SplitHostPort(i.Address); err == nil {
		p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	}
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: ready, State: state,
		})
	}
}
