package caddymodule

import (
	"errors"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddytls"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

func TestPermission(t *testing.T) {
	c := startCluster(t)
	svc := ksvc("hello", "app:1")
	svc.Annotations = map[string]string{revisions.HostsAnnotation: "www.example.org"}
	whole := int64(100)
	svc.Spec.Traffic = []servingv1.TrafficTarget{{Tag: "next", Percent: &whole}}
	c.create(svc)
	c.ready("hello")
	app := &App{engine: current.Load(), ready: make(chan struct{})}
	close(app.ready)
	p := &Permission{app: app}
	allowed := map[string]bool{
		"hello.run.example.com": true, "next---hello.run.example.com": true, "www.example.org": true,
		"other.run.example.com": false, "none---hello.run.example.com": false, "hello.example.net": false, "run.example.com": false,
		"a.hello.run.example.com": false, "hello": false, "": false,
	}
	for _, domain := range []string{"run.example.com", ""} {
		current.Load().scaler.Registry().SetDomain(revisions.Domain{Host: domain, Scheme: "https"})
		for name, want := range allowed {
			want := want && (domain != "" || name == "www.example.org")
			err := p.CertificateAllowed(t.Context(), name)
			if (err == nil) != want || err != nil && !errors.Is(err, caddytls.ErrPermissionDenied) {
				t.Errorf("domain %q, %q: %v", domain, name, err)
			}
		}
	}
}
