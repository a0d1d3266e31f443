package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// internalDomain is the parent of services for instances, beside the app's domain.
// Source: ICANN: .internal is for private use.
const internalDomain = "internal"

// namesPause is the time between two looks at which names there are. It is doubled up to
// namesPauseMax while there are others each time: services may come by the thousand.
const (
	namesPause    = 10 * time.Millisecond
	namesPauseMax = time.Second
)

// neighbours lets instances reach this host's services without leaving it: the
// names under which Caddy serves them lead to it from within each instance.
type neighbours struct {
	registry *revisions.Registry
	namer    instancepool.Namer
	log      *zap.Logger

	mu    sync.Mutex // guards all below
	sites []string   // hosts that Caddy's config has, such as "*.example.com"; nil: no names
	told  []string   // what the instances have been told
}

// use tells instances of the hosts of a config that has been started. Without any
// they are told nothing more.
func (n *neighbours) use(sites []string) {
	n.mu.Lock()
	n.sites = sites
	n.mu.Unlock()
	n.tell()
}

// follow tells instances of services that come, until ctx ends.
func (n *neighbours) follow(ctx context.Context) {
	for {
		watcher, err := n.registry.Watch(n.registry.Version())
		if err == nil {
			n.tell()
			err = n.next(ctx, watcher)
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, revisions.ErrExpired) {
			n.log.Error("following the services", zap.Error(err))
			return
		}
	}
}

func (n *neighbours) next(ctx context.Context, watcher *revisions.Watcher) error {
	pause, quiet := namesPause, time.Now()
	for {
		changes, err := watcher.Next(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(changes, renames) {
			continue
		}
		if time.Since(quiet) > namesPauseMax {
			pause = namesPause
		}
		n.tell()
		select {
		case <-time.After(pause):
			pause, quiet = min(2*pause, namesPauseMax), time.Now()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// renames tells whether a change may be one of a service's names.
func renames(c revisions.Change) bool {
	if c.Revision != nil || c.State == nil {
		return false
	}
	return c.Kind != revisions.Modified || c.Before == nil || !slices.Equal(c.Before.Hosts(), c.State.Hosts()) ||
		!slices.Equal(tagsOf(c.Before), tagsOf(c.State))
}

// tagsOf are the tags that lead to revisions of a service.
func tagsOf(st *revisions.State) []string {
	var tags []string
	for _, target := range st.Targets {
		if target.Tag != "" {
			tags = append(tags, target.Tag)
		}
	}
	return tags
}

// tell tells instances of all names, if there are others than before.
func (n *neighbours) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sites == nil && n.told == nil {
		return
	}
	names := n.names()
	if slices.Equal(names, n.told) {
		return
	}
	if err := n.namer.SetNames(names); err != nil {
		n.log.Warn("not all instances know of all services", zap.Error(err))
	}
	n.told = names
}

// names are the hosts that Caddy serves, and of those with a wildcard those that
// the services have below it. The caller holds mu.
func (n *neighbours) names() []string {
	if n.sites == nil {
		return []string{}
	}
	names := make(map[string]bool)
	add := func(name string) {
		// Not "localhost": that is the instance itself.
		if _, err := netip.ParseAddr(name); err != nil && strings.Contains(name, ".") && len(validation.IsDNS1123Subdomain(name)) == 0 {
			names[name] = true
		}
	}
	var parents []string
	if host, _, _ := strings.Cut(n.registry.Domain().Host, ":"); host != "" {
		parents = append(parents, strings.ToLower(host))
	}
	for _, site := range n.sites {
		site = strings.ToLower(site)
		if parent, ok := strings.CutPrefix(site, "*."); ok {
			parents = append(parents, parent)
			continue
		}
		add(site)
	}
	for _, service := range n.registry.Names() {
		st := n.registry.State(service)
		if st == nil || st.Service == nil {
			continue
		}
		for _, host := range st.Hosts() {
			add(host)
		}
		for _, parent := range parents {
			add(service + "." + parent)
			for _, tag := range tagsOf(st) {
				add(tag + "---" + service + "." + parent)
			}
		}
	}
	all := make([]string, 0, len(names))
	for name := range names {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// sitesOf are the hosts of a config that can be reached at an address of this host.
func sitesOf(app *caddyhttp.App, gateway netip.Addr) []string {
	sites := []string{}
	for _, server := range app.Servers {
		if !slices.ContainsFunc(server.Listen, func(text string) bool { return reaches(text, gateway) }) {
			continue
		}
		sites = appendHosts(sites, server.Routes)
	}
	return sites
}

// appendHosts appends the hosts that routes match, those within others too.
func appendHosts(sites []string, routes caddyhttp.RouteList) []string {
	for _, route := range routes {
		for _, set := range route.MatcherSets {
			for _, matcher := range set {
				switch hosts := matcher.(type) {
				case caddyhttp.MatchHost:
					sites = append(sites, hosts...)
				case *caddyhttp.MatchHost:
					sites = append(sites, *hosts...)
				}
			}
		}
		for _, handler := range route.Handlers {
			if inner, ok := handler.(*caddyhttp.Subroute); ok {
				sites = appendHosts(sites, inner.Routes)
			}
		}
	}
	return sites
}

// reaches tells whether who dials an address meets a listener.
func reaches(listener string, a netip.Addr) bool {
	l, err := caddy.ParseNetworkAddress(listener)
	if err != nil || l.IsUnixNetwork() || l.IsFdNetwork() {
		return false
	}
	if l.Host == "" {
		return true
	}
	host, err := netip.ParseAddr(l.Host)
	return err == nil && (host.Unmap() == a || host.IsUnspecified() && (host.Is4() == a.Is4() || host.Is6()))
}

// caller returns the instance that sends a request, or nil. inside is set for all
// that come from an instance, even if nobody knows which.
func (e *engine) caller(r *http.Request) (h instancepool.Handle, inside bool) {
	if e.locator == nil {
		return nil, false
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil { // such as that of a Unix socket
		return nil, false
	}
	return e.locator.InstanceAt(peer.Addr().Unmap().WithZone(""))
}
