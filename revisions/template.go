package revisions

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// ingressContainer is the container that gets the requests: the only one, or
// the one with a port. It is nil when there is none.
func ingressContainer(spec *servingv1.RevisionSpec) *corev1.Container {
	for i := range spec.Containers {
		if len(spec.Containers) == 1 || len(spec.Containers[i].Ports) > 0 {
			return &spec.Containers[i]
		}
	}
	return nil
}

// templateMeta is what a revision keeps of its template's metadata: the user's
// labels and annotations. The rest says nothing about what runs, and a Revision
// object has no place for it.
func templateMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	kept := metav1.ObjectMeta{Labels: withoutSystemLabels(m.Labels)}
	if len(m.Annotations) > 0 {
		kept.Annotations = m.Annotations
	}
	return kept
}

// templateHash identifies what a template says.
func templateHash(t *servingv1.RevisionTemplateSpec) string { return sum(encodeTemplate(t)) }

// encodeTemplate is deterministic: maps are sorted and quantities canonical.
func encodeTemplate(t *servingv1.RevisionTemplateSpec) []byte {
	b, err := json.Marshal(t)
	if err != nil {
		panic("revisions: encoding a template: " + err.Error()) // Knative's types always encode.
	}
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// withDefaultLabels returns labels with system added, system winning.
func withDefaultLabels(labels, system map[string]string) map[string]string {
	all := maps.Clone(labels)
	if all == nil {
		all = make(map[string]string, len(system))
	}
	maps.Copy(all, system)
	return all
}

// withoutSystemLabels returns labels without those that Knative sets itself.
func withoutSystemLabels(labels map[string]string) map[string]string {
	var user map[string]string
	for k, v := range labels {
		if strings.HasPrefix(k, serving.GroupNamePrefix) {
			continue
		}
		if user == nil {
			user = make(map[string]string, len(labels))
		}
		user[k] = v
	}
	return user
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
