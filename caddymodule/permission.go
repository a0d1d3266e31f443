package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/fairway-run/fairway/revisions"
)

func init() {
	caddy.RegisterModule(new(Permission))
}

// Permission allows certificates on demand for the hosts of known services and
// of their tags, below the app's domain, and for hosts that are mapped to a
// service; for nothing else:
//
//	on_demand_tls {
//		permission fairway
//	}
type Permission struct {
	app *App
}

// CaddyModule tells Caddy what the module is.
func (*Permission) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "tls.permission.fairway", New: func() caddy.Module { return new(Permission) }}
}

// Provision finds the app.
func (p *Permission) Provision(ctx caddy.Context) error {
	app, err := ctx.App("fairway")
	if err != nil {
		return fmt.Errorf("loading the fairway app: %w", err)
	}
	p.app = app.(*App)
	return nil
}

// UnmarshalCaddyfile reads `permission fairway`.
func (p *Permission) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.ArgErr()
	}
	return nil
}

// CertificateAllowed implements caddytls.OnDemandPermission.
func (p *Permission) CertificateAllowed(ctx context.Context, name string) error {
	registry := p.app.engine.scaler.Registry()
	service, tag, err := p.app.serviceOf(ctx, name, false)
	switch {
	case err != nil:
	case registry.ServiceOfHost(name) != "":
	case registry.Domain().Host == "":
		// Anybody could have a host whose first label is that of a service.
		err = errors.New("the fairway app has no domain")
	case tag != "":
		if st := registry.State(service); st == nil || !slices.ContainsFunc(st.Targets, func(t revisions.Target) bool { return t.Tag == tag }) {
			err = fmt.Errorf("service %s has no tag %s", service, tag)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", name, caddytls.ErrPermissionDenied, err)
	}
	return nil
}

var (
	_ caddy.Provisioner           = (*Permission)(nil)
	_ caddyfile.Unmarshaler       = (*Permission)(nil)
	_ caddytls.OnDemandPermission = (*Permission)(nil)
)
