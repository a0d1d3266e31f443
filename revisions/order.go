package revisions

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// startOrder returns the names of a template's containers in the order that they
// are started in: each after those that it needs, else as in the template.
func startOrder(t *servingv1.RevisionTemplateSpec) (order []string, needs map[string][]string, err error) {
	names := make([]string, len(t.Spec.Containers))
	for i := range t.Spec.Containers {
		names[i] = t.Spec.Containers[i].Name
	}
	text := t.Annotations[DependenciesAnnotation]
	if text == "" {
		return names, nil, nil
	}
	refuse := func(err error) ([]string, map[string][]string, error) {
		return names, nil, fmt.Errorf("annotation %s: %w", DependenciesAnnotation, err)
	}
	if err := json.Unmarshal([]byte(text), &needs); err != nil {
		return refuse(fmt.Errorf("it is not like {\"app\":[\"proxy\"]}: %w", err))
	}
	for name := range needs {
		if !slices.Contains(names, name) {
			return refuse(fmt.Errorf("there is no container %q", name))
		}
	}
	if order, err = sortByNeeds(names, needs); err != nil {
		return refuse(err)
	}
	return order, needs, nil
}

// sortByNeeds returns names, each after those that it needs.
func sortByNeeds(names []string, needs map[string][]string) ([]string, error) {
	order := make([]string, 0, len(names))
	visiting := make(map[string]bool, len(names))
	var visit func(name string) error
	visit = func(name string) error {
		switch {
		case slices.Contains(order, name):
			return nil
		case visiting[name]:
			return fmt.Errorf("container %q depends on itself", name)
		case !slices.Contains(names, name):
			return fmt.Errorf("there is no container %q", name)
		}
		visiting[name] = true
		var err error
		for _, need := range needs[name] {
			err = errors.Join(err, visit(need))
		}
		order = append(order, name)
		return err
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}
