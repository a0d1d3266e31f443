package caddymodule

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

// nonceLabel makes a template differ from one that says the same.
// Source: gcloud.
const nonceLabel = "client.knative.dev/nonce"

// managed are annotations that systems set and that say nothing of what is
// wanted.
var managed = []string{
	serving.CreatorAnnotation, serving.UpdaterAnnotation, "kubectl.kubernetes.io/last-applied-configuration",
	"run.googleapis.com/operation-id", "run.googleapis.com/ingress-status", "run.googleapis.com/urls",
}

// bare is a service without what a system says of it: what its owner wants.
func bare(svc *servingv1.Service) *servingv1.Service {
	b := &servingv1.Service{TypeMeta: metav1.TypeMeta{APIVersion: servingv1.SchemeGroupVersion.String(), Kind: "Service"}}
	b.Name, b.Labels, b.Annotations = svc.Name, maps.Clone(svc.Labels), maps.Clone(svc.Annotations)
	svc.Spec.DeepCopyInto(&b.Spec)
	for _, key := range managed {
		delete(b.Annotations, key)
	}
	for i := range b.Spec.Traffic {
		b.Spec.Traffic[i].URL = nil
	}
	return b
}

// readServices reads the services of a file, or of standard input.
func readServices(file string, stdin io.Reader) ([]*servingv1.Service, error) {
	var b []byte
	var err error
	if file == "-" {
		file = "standard input"
		b, err = io.ReadAll(stdin)
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	docs, err := revisions.DecodeServices(file, b)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: there is no service in it", file)
	}
	return docs, nil
}

// replacement is what a document wants in place of before, or nil.
func replacement(doc, before *servingv1.Service) *servingv1.Service {
	next := bare(doc)
	if before == nil {
		return next
	}
	for _, key := range []string{serving.CreatorAnnotation, serving.UpdaterAnnotation} {
		if v, ok := before.Annotations[key]; ok {
			if next.Annotations == nil {
				next.Annotations = make(map[string]string)
			}
			next.Annotations[key] = v // nobody may change them
		}
	}
	return next
}

// wanted completes what is to be put in place of before, or nil: the defaults,
// and a template that differs from the one before only if it says something
// else. A latest revision that has failed gets another try.
func wanted(next, before *servingv1.Service) (*servingv1.Service, error) {
	next = next.DeepCopy()
	next.Namespace, next.Status = "", servingv1.ServiceStatus{}
	next, err := revisions.Prepare(next)
	if err != nil {
		return nil, usageError("%s", err)
	}
	if before == nil {
		return next, nil
	}
	t, old := &next.Spec.Template, &before.Spec.Template
	named := t.Name != ""
	switch {
	case (!named || t.Name == old.Name) && sameTemplate(t, old):
		old.DeepCopyInto(t)
		if named {
			break // what has that name has failed, or has not
		}
		if before.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady).IsFalse() {
			t.Name = ""
			if t.Labels == nil {
				t.Labels = make(map[string]string)
			}
			t.Labels[nonceLabel] = utilrand.String(10)
		}
	case t.Labels[nonceLabel] == old.Labels[nonceLabel]:
		delete(t.Labels, nonceLabel)
	}
	return next, nil
}

// sameTemplate reports whether two templates say the same, however they say it.
func sameTemplate(a, b *servingv1.RevisionTemplateSpec) bool {
	return equality.Semantic.DeepEqual(canonical(a), canonical(b))
}

func canonical(t *servingv1.RevisionTemplateSpec) *servingv1.RevisionTemplateSpec {
	t = t.DeepCopy()
	t.Name = ""
	delete(t.Labels, nonceLabel)
	for _, spellings := range [][]string{autoscaling.MinScaleAnnotation, autoscaling.MaxScaleAnnotation} {
		for _, key := range slices.Backward(spellings[1:]) {
			if v, ok := t.Annotations[key]; ok {
				delete(t.Annotations, key)
				t.Annotations[spellings[0]] = v
			}
		}
	}
	return t
}
