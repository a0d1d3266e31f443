package containerd

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// describe adds files that say something about the instance.
// Source: Kubernetes: Downward API.
func (v *volumes) describe(all map[string]file, items []corev1.DownwardAPIVolumeFile, mode *int32) error {
	for i := range items {
		item := &items[i]
		text, err := v.described(item)
		if err != nil {
			return fmt.Errorf("downwardAPI %s: %w", item.Path, err)
		}
		if err := put(all, item.Path, file{[]byte(text), modeOf(item.Mode, mode)}); err != nil {
			return err
		}
	}
	return nil
}

func (v *volumes) described(item *corev1.DownwardAPIVolumeFile) (string, error) {
	if item.ResourceFieldRef != nil {
		return v.resource(item.ResourceFieldRef)
	}
	field := ""
	if item.FieldRef != nil {
		field = item.FieldRef.FieldPath
	}
	name, key, entry := strings.Cut(strings.TrimSuffix(field, "']"), "['")
	switch name {
	case "metadata.name":
		return v.instance, nil
	case "metadata.labels":
		return entryOf(v.rev.Object().Labels, key, entry), nil
	case "metadata.annotations":
		return entryOf(v.rev.Object().Annotations, key, entry), nil
	}
	return "", fmt.Errorf("fieldRef %q is not supported: metadata.name, metadata.labels and metadata.annotations are", field)
}

func entryOf(m map[string]string, key string, entry bool) string {
	if entry {
		return m[key]
	}
	return formatMap(m)
}

// formatMap writes a map as Kubernetes does.
func formatMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, key+"="+strconv.Quote(m[key]))
	}
	return strings.Join(lines, "\n")
}

// resource is a limit or request of a container, in units of the divisor,
// rounded up.
func (v *volumes) resource(ref *corev1.ResourceFieldSelector) (string, error) {
	n := slices.IndexFunc(v.rev.Spec().Template.Spec.Containers, func(c corev1.Container) bool { return c.Name == ref.ContainerName })
	if n < 0 {
		return "", fmt.Errorf("resourceFieldRef: there is no container %q", ref.ContainerName)
	}
	r := &v.rev.Spec().Template.Spec.Containers[n].Resources
	kind, name, _ := strings.Cut(ref.Resource, ".")
	list, known := map[string]corev1.ResourceList{"limits": r.Limits, "requests": r.Requests}[kind]
	q, set := list[corev1.ResourceName(name)]
	if !known || !set {
		return "", fmt.Errorf("resourceFieldRef: container %q has no %q", ref.ContainerName, ref.Resource)
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == string(corev1.ResourceCPU) {
		return ceil(q.MilliValue(), divisor.MilliValue())
	}
	return ceil(q.Value(), divisor.Value())
}

func ceil(n, by int64) (string, error) {
	if by <= 0 {
		return "", fmt.Errorf("resourceFieldRef: a divisor of %d", by)
	}
	return strconv.FormatInt((n+by-1)/by, 10), nil
}
