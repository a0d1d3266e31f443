package caddymodule

import (
	"strings"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// openAPI says, where kubectl looks for it, that the server itself checks the
// fields of what it is sent: kubectl then does without their description. It
// returns nil for other paths.
// Source: Kubernetes API, "Server-side field validation".
func openAPI(path string) any {
	groups := map[string][]string{
		"apis/" + servingv1.SchemeGroupVersion.String(): {"Service", "Revision"},
		"api/v1": {"Secret", "ConfigMap", "Namespace"},
	}
	rest, ok := strings.CutPrefix(path, "openapi/v3")
	if !ok {
		return nil
	}
	if rest == "" {
		paths := make(map[string]any)
		for group := range groups {
			paths[group] = map[string]string{"serverRelativeURL": "/openapi/v3/" + group}
		}
		return map[string]any{"paths": paths}
	}
	kinds, ok := groups[strings.TrimPrefix(rest, "/")]
	if !ok {
		return nil
	}
	group := ""
	if strings.HasPrefix(rest, "/apis/") {
		group = servingv1.SchemeGroupVersion.Group
	}
	paths := make(map[string]any)
	for _, kind := range kinds {
		paths[rest+"/namespaces/{namespace}/"+strings.ToLower(kind)+"s/{name}"] = map[string]any{
			"patch": map[string]any{
				"x-kubernetes-action":             "patch",
				"x-kubernetes-group-version-kind": map[string]string{"group": group, "version": "v1", "kind": kind},
				"parameters": []map[string]any{
					{"name": "fieldValidation", "in": "query", "schema": map[string]string{"type": "string"}},
					{"name": "dryRun", "in": "query", "schema": map[string]string{"type": "string"}},
				},
				"responses": map[string]any{"200": map[string]string{"description": "OK"}},
			},
		}
	}
	return map[string]any{"openapi": "3.0.0", "info": map[string]string{"title": "Fairway", "version": "v1"}, "paths": paths}
}
