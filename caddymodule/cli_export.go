package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairway-run/fairway/revisions"
)

func exportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export SERVICE [flags]",
		Short: "Prints a service in YAML that Cloud Run and Knative take",
		Long: `
Prints what is wanted of a service, and nothing of how it does, in YAML that
'caddy fairway deploy -f', 'gcloud run services replace' and 'kubectl apply'
take. Deploying it where it came from changes nothing.`,
		Example: `  caddy fairway export hello > service.yaml
  caddy fairway export hello | ssh other caddy fairway deploy -f -`,
		RunE: runE(func(ctx context.Context, c *cli, args []string) error {
			name, err := oneArg(args, "service", true)
			if err != nil {
				return err
			}
			svc, err := c.service(ctx, name)
			if err != nil {
				return err
			}
			doc, err := document(svc)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(doc)
			}
			b, err := yaml.Marshal(doc)
			if err != nil {
				return fmt.Errorf("encoding service %s: %w", name, err)
			}
			_, err = c.out.Write(b)
			return err
		}),
	}
}

// document is a service as people write it: without its status, and without
// the defaults that only Knative knows, which Cloud Run refuses.
func document(svc *servingv1.Service) (map[string]any, error) {
	b := bare(svc)
	delete(b.Spec.Template.Labels, nonceLabel)
	for _, simpler := range []func(*servingv1.Service){
		func(s *servingv1.Service) { s.Spec.Template.Spec.EnableServiceLinks = nil },
		containers(func(c *corev1.Container) { c.ReadinessProbe = nil }),
		containers(func(c *corev1.Container) { c.Resources.Requests = nil }),
		containers(func(c *corev1.Container) {
			for i := range c.VolumeMounts {
				c.VolumeMounts[i].ReadOnly = false
			}
		}),
		containers(func(c *corev1.Container) { c.Name = "" }),
	} {
		b = unlessDifferent(b, simpler)
	}
	js, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encoding service %s: %w", svc.Name, err)
	}
	var doc map[string]any
	if err := json.Unmarshal(js, &doc); err != nil {
		return nil, fmt.Errorf("encoding service %s: %w", svc.Name, err)
	}
	dropEmpty(doc)
	return doc, nil
}

func containers(f func(*corev1.Container)) func(*servingv1.Service) {
	return func(s *servingv1.Service) {
		for i := range s.Spec.Template.Spec.Containers {
			f(&s.Spec.Template.Spec.Containers[i])
		}
	}
}

// unlessDifferent returns svc as simpler makes it, if that means the same.
func unlessDifferent(svc *servingv1.Service, simpler func(*servingv1.Service)) *servingv1.Service {
	candidate := svc.DeepCopy()
	simpler(candidate)
	before, err := revisions.Prepare(svc)
	if err != nil {
		return svc
	}
	after, err := revisions.Prepare(candidate)
	if err != nil || !equality.Semantic.DeepEqual(before.Spec, after.Spec) {
		return svc
	}
	return candidate
}

// dropEmpty removes what Kubernetes' types write though it says nothing: null
// times, a status, empty objects.
func dropEmpty(doc map[string]any) {
	delete(doc, "status")
	for key, v := range doc {
		// The port of a probe is then the container's, whose name is a default.
		if v == nil || key == "port" && v == 0.0 || key == "name" && v == "" {
			delete(doc, key)
			continue
		}
		dropEmptyIn(v)
		if m, ok := v.(map[string]any); ok && len(m) == 0 && !meaningful[key] {
			delete(doc, key)
		}
	}
}

// meaningful are objects that say something by being there.
var meaningful = map[string]bool{"emptyDir": true, "httpGet": true, "tcpSocket": true, "grpc": true}

func dropEmptyIn(v any) {
	switch v := v.(type) {
	case map[string]any:
		dropEmpty(v)
	case []any:
		for _, item := range v {
			dropEmptyIn(item)
		}
	}
}
