package revisions

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

func TestStartOrder(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "a b c",
		`{}`:                               "a b c",
		`{"a":["c"]}`:                      "c a b",
		`{"a":["b"],"b":["c"]}`:            "c b a",
		`{"a":["b","c"],"b":[],"c":["b"]}`: "b c a",
		`{"c":["c"]}`:                      "error",
		`{"a":["b"],"b":["c"],"c":["a"]}`:  "error",
		`{"x":[]}`:                         "error",
		`{"a":["x"]}`:                      "error",
		`{"a":"b"}`:                        "error",
	} {
		template := new(servingv1.RevisionTemplateSpec)
		template.Annotations = map[string]string{DependenciesAnnotation: text}
		template.Spec.Containers = []corev1.Container{{Name: "a"}, {Name: "b"}, {Name: "c"}}
		order, _, err := startOrder(template)
		got := strings.Join(order, " ")
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s: %s %v; want %s", text, got, err, want)
		}
	}
}

// FuzzStartOrder reads anything: what comes of it has all containers, once each.
func FuzzStartOrder(f *testing.F) {
	f.Add(`{"a":["c"]}`)
	f.Add(`{"a":["b"],"b":["a"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		template := new(servingv1.RevisionTemplateSpec)
		template.Annotations = map[string]string{DependenciesAnnotation: text}
		template.Spec.Containers = []corev1.Container{{Name: "a"}, {Name: "b"}, {Name: "c"}}
		if order, _, err := startOrder(template); err == nil && !slices.Equal(slices.Sorted(slices.Values(order)), []string{"a", "b", "c"}) {
			t.Errorf("%q", order)
		}
	})
}

// An order that cannot be is refused before anything is made of it.
func TestStartOrderIsChecked(t *testing.T) {
	for text, want := range map[string]string{
		`{"app":["x"]}`:                     `there is no container "x"`,
		`{"app":["proxy"],"proxy":["app"]}`: `container "proxy" depends on itself`,
		`[]`:                                `it is not like {"app":["proxy"]}: json`,
	} {
		svc := parse(t, hello(sidecars, "{}"))
		svc.Spec.Template.Annotations = map[string]string{DependenciesAnnotation: text}
		want = "annotation run.googleapis.com/container-dependencies: " + want
		if _, err := Prepare(svc); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v; want it to say %s", text, err, want)
		}
	}
	rev := revise(t, hello(sidecars, `{run.googleapis.com/container-dependencies: '{"proxy":["app"]}'}`))
	var order []string
	for _, h := range rev.Spec().Health {
		order = append(order, strings.Join(append([]string{h.Container}, h.After...), " after "))
	}
	match(t, "order", order, []string{"app", "proxy after app", "other", "again"})
}
