// Package caddymodule is what Caddy sees of Fairway: the app, the HTTP handler,
// the Caddyfile, the admin API, metrics and logs. It is the only package that
// imports Caddy.
package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/util/validation"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
)

func init() {
	caddy.RegisterModule(new(App))
}

const (
	onExitKeep = "keep"
	onExitStop = "stop"

	defaultNamespace = "default"
)

// App is Fairway's part of a config: the container engine, and the services that
// the config declares. What runs outlives it: instances, queues and counters
// belong to the process and pass from one config to the next.
type App struct {
	// The container engine. Default: containerd at its usual address.
	RuntimeRaw json.RawMessage `json:"runtime,omitempty" caddy:"namespace=fairway.runtimes inline_key=engine"`
	// The services, by name. Those declared by a handler come in addition.
	Services map[string]*Service `json:"services,omitempty"`
	// What becomes of running instances when Caddy exits: `keep` leaves them to
	// the next process, which adopts them, `stop` stops them. Default: `keep`.
	OnExit string `json:"on_exit,omitempty"`
	// Where services are served that are reached by their names: `run.example.com`
	// makes `hello.run.example.com` the host of the service hello. A scheme says
	// how clients reach it, `http://localhost:8080`; it is `https` otherwise.
	// Default: none; handlers without a service then take the first label of the
	// host for its name, whatever follows.
	Domain string `json:"domain,omitempty"`
	// A directory of Knative `service.yaml` files. What is in them is deployed
	// within a second after a file was added or changed, and deleted with it.
	ServicesDir string `json:"services_dir,omitempty"`
	// What all instances together may hold: an amount such as `6GiB`, a part of the
	// host's memory such as `75%`, or `off`. Default: `90%` of what the host has, or
	// of what Caddy's own cgroup may have. A start that does not fit stops what has
	// been idle for longest; if nothing can go it waits.
	Memory string `json:"memory,omitempty"`
	// How many processors the limits of all instances together may add up to: a number
	// such as `6.5`, or a part of those that the host has such as `200%`; a start that
	// does not fit goes the same way. Default: `off`.
	CPU string `json:"cpu,omitempty"`
	// How many instances are kept made but not started of a service that says nothing
	// of it. Default: `0`.
	Prepared int `json:"prepared,omitempty"`
	// Whether instances find the hosts that this Caddy serves on the machine itself,
	// instead of asking DNS. Default: `true`.
	LocalNames *bool `json:"local_names,omitempty"`
	// The one namespace that the Knative API has. Default: `default`.
	Namespace string `json:"namespace,omitempty"`

	ctx     caddy.Context
	log     *zap.Logger
	engine  *engine
	key     string
	domain  revisions.Domain
	limits  scaler.Limits
	storage certmagic.Storage
	ready   chan struct{} // closed when the services are declared

	services []*servingv1.Service // made by Start

	mu       sync.Mutex          // guards declared: handlers are provisioned in any order
	declared map[string]*Service // what the handlers declare
	referred []string            // what the handlers use
}

// Runtime is a container engine's module, in the namespace fairway.runtimes.
type Runtime interface {
	// Key identifies the engine: two configs with the same key share it.
	Key() string
	// Settings says how the engine is set up, beyond what names it. It cannot
	// change while the engine is in use.
	Settings() string
	// Dir is where the engine keeps files on this host; secrets and config
	// maps are kept there too.
	Dir() string
	// Open returns the engine. It does not talk to it yet.
	Open(log *zap.Logger, values *revisions.Values) (instancepool.Runtime, error)
}

// CaddyModule tells Caddy what the app is.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "fairway", New: func() caddy.Module { return new(App) }}
}

// Provision has no effect outside the config: it also runs for configs that are
// only validated, or that fail later.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.log = ctx.Logger()
	a.ready = make(chan struct{})
	a.declared = make(map[string]*Service)
	a.storage = ctx.Storage()
	if a.Namespace == "" {
		a.Namespace = defaultNamespace
	}
	if problems := validation.IsDNS1123Label(a.Namespace); len(problems) > 0 {
		return fmt.Errorf("namespace %q is not a name: %s", a.Namespace, problems[0])
	}
	var err error
	if a.ServicesDir != "" {
		a.ServicesDir = caddy.NewReplacer().ReplaceKnown(a.ServicesDir, "")
		if !filepath.IsAbs(a.ServicesDir) {
			return fmt.Errorf("services_dir %q is not an absolute path", a.ServicesDir)
		}
	}
	if a.domain, err = parseDomain(a.Domain); err != nil {
		return err
	}
	if a.limits.Memory, a.limits.MemoryPart, err = parseBudget(a.Memory); err != nil {
		return err
	}
	if a.limits.CPU, a.limits.CPUPart, err = parseCPUs(a.CPU); err != nil {
		return err
	}
	a.limits.Prepared = a.Prepared
	if a.Prepared < 0 || a.Prepared > revisions.MaxPrepared {
		return fmt.Errorf("prepared %d is not from 0 to %d", a.Prepared, revisions.MaxPrepared)
	}
	switch a.OnExit {
	case "":
		a.OnExit = onExitKeep
	case onExitKeep, onExitStop:
	default:
		return fmt.Errorf("on_exit is %q or %q, not %q", onExitKeep, onExitStop, a.OnExit)
	}
	if a.RuntimeRaw == nil {
		a.RuntimeRaw = json.RawMessage(`{"engine": "containerd"}`)
	}
	mod, err := ctx.LoadModule(a, "RuntimeRaw")
	if err != nil {
		return fmt.Errorf("loading the runtime: %w", err)
	}
	rt, ok := mod.(Runtime)
	if !ok {
		return fmt.Errorf("loading the runtime: %T is not a container engine", mod)
	}
	for name, s := range a.Services {
		if err := a.declare(name, s); err != nil {
			return err
		}
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := a.subscribe(ctx); err != nil {
		return err
	}
	a.key = rt.Key()
	a.engine, err = loadEngine(a.key, rt)
	if err != nil {
		return fmt.Errorf("setting up the runtime: %w", err)
	}
	return nil
}

// parseBudget reads "6GiB", "75%" or "off", which is below zero.
func parseBudget(text string) (bytes int64, part float64, err error) {
	percent, isPart := strings.CutSuffix(text, "%")
	switch {
	case text == "":
		return 0, 0, nil
	case text == "off":
		return -1, 0, nil
	case isPart:
		n, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(n > 0 && n <= 100) {
			return 0, 0, fmt.Errorf("memory: %q is not a part from 0%% to 100%%", text)
		}
		return 0, n / 100, nil
	}
	q, err := parseQuantity(text)
	if err != nil {
		return 0, 0, fmt.Errorf("memory: %w, 75%% or off", err)
	}
	return q.Value(), 0, nil
}

// parseCPUs reads "6.5", "200%" or "off".
func parseCPUs(text string) (number, part float64, err error) {
	if text == "" || text == "off" {
		return 0, 0, nil
	}
	of, isPart := strings.CutSuffix(text, "%")
	n, err := strconv.ParseFloat(of, 64)
	switch {
	case err != nil || !(n > 0 && n <= 1e6):
		return 0, 0, fmt.Errorf("cpu: %q is not a number of processors above 0, such as 6.5, a part such as 200%%, or off", text)
	case isPart:
		return 0, n / 100, nil
	}
	return n, 0, nil
}

// parseDomain reads "run.example.com" or "http://localhost:8080".
func parseDomain(text string) (revisions.Domain, error) {
	d := revisions.Domain{Scheme: "https", Host: text}
	if scheme, host, ok := strings.Cut(text, "://"); ok {
		d.Scheme, d.Host = scheme, host
	}
	name := d.Host
	if host, port, err := net.SplitHostPort(d.Host); err == nil {
		name = host
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return d, fmt.Errorf("domain %q: %q is not a port", text, port)
		}
	}
	if d.Scheme != "http" && d.Scheme != "https" {
		return d, fmt.Errorf("domain %q: the scheme is http or https", text)
	}
	if text == "" {
		return d, nil
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return d, fmt.Errorf("domain %q is not a host name: %s", text, problems[0])
	}
	return d, nil
}

// subscribe asks Caddy to be told when the config has started and when it stops.
func (a *App) subscribe(ctx caddy.Context) error {
	app, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading the events app: %w", err)
	}
	events, ok := app.(*caddyevents.App)
	if !ok {
		return fmt.Errorf("loading the events app: it is a %T", app)
	}
	return events.Subscribe(&caddyevents.Subscription{
		Events: []string{eventStarted, eventStopping}, Handlers: []caddyevents.Handler{eventHandler{a}},
	})
}

// Caddy's own events: all apps of a config have started; they are about to stop.
const (
	eventStarted  = "started"
	eventStopping = "stopping"
)

type eventHandler struct{ app *App }

// Handle implements caddyevents.Handler.
func (h eventHandler) Handle(_ context.Context, e caddy.Event) error {
	a := h.app
	switch e.Name() {
	case eventStarted:
		return a.activate()
	case eventStopping:
		// Caddy waits for its requests when it exits; those that are queued would
		// wait for an instance, so they are let go.
		if caddy.Exiting() {
			a.engine.scaler.Dismiss()
		}
	}
	return nil
}

// declare adds a service of this config. A service has one owner: it may be
// declared again only with the same words.
func (a *App) declare(name string, s *Service) error {
	if s == nil {
		return fmt.Errorf("service %s: it is null", name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if before := a.declared[name]; before != nil {
		if reflect.DeepEqual(before, s) {
			return nil
		}
		return fmt.Errorf("service %s is declared twice, differently", name)
	}
	if err := s.validate(name); err != nil {
		return err
	}
	a.declared[name] = s
	return nil
}

// refer notes that a handler uses a service.
func (a *App) refer(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.referred = append(a.referred, name)
}

// Start checks the config's services as a whole. They are declared only when all
// apps have started: a config whose other parts fail must not have replaced a
// revision by then.
func (a *App) Start() error {
	a.mu.Lock()
	declared, referred := maps.Clone(a.declared), slices.Clone(a.referred)
	a.mu.Unlock()
	if err := a.engine.open(context.Background(), a.storage, a.domain); err != nil {
		return err
	}
	registry := a.engine.scaler.Registry()
	for name := range declared {
		if st := registry.State(name); st != nil && st.Service != nil && st.Owner != revisions.OwnerConfig {
			return fmt.Errorf("service %s belongs to %s: delete it there before the config declares it", name, st.Owner)
		}
	}
	for _, name := range referred {
		if declared[name] == nil && !registry.Known(name) {
			a.log.Warn("a handler uses a service that nobody has declared yet", zap.String("service", name))
		}
	}
	repl := caddy.NewReplacer()
	a.services = make([]*servingv1.Service, 0, len(declared))
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		svc, err := declared[name].expand(repl).knative(name)
		if err != nil {
			return err
		}
		a.services = append(a.services, svc)
	}
	return nil
}

// activate declares the config's services to the engine. It does not wait for
// the engine, nor start an instance that nobody asks for.
func (a *App) activate() error {
	a.engine.use(a)
	a.engine.scaler.Start()
	if err := a.engine.scaler.Declare(a, a.services); err != nil {
		a.log.Error("declaring services", zap.Error(err))
		return err
	}
	close(a.ready)
	return a.introduce()
}

// introduce tells instances which hosts are to be found on this machine.
func (a *App) introduce() error {
	n := a.engine.neighbours
	if n == nil {
		return nil
	}
	var sites []string
	if a.LocalNames == nil || *a.LocalNames {
		sites = []string{} // those of services may be served by a site for all hosts
		app, err := a.ctx.AppIfConfigured("http")
		if err != nil && !errors.Is(err, caddy.ErrNotConfigured) {
			return fmt.Errorf("looking for the http app: %w", err)
		}
		if app, ok := app.(*caddyhttp.App); ok && err == nil {
			sites = sitesOf(app, n.namer.Gateway())
		}
	}
	a.engine.introduce(sites)
	return nil
}

// Stop does nothing: requests of this config may go on after it, and the next
// config takes over what runs.
func (a *App) Stop() error { return nil }

// Cleanup withdraws what was declared. What no other config wants then drains
// and stops.
func (a *App) Cleanup() error {
	if a.engine == nil {
		return nil
	}
	if !caddy.Exiting() {
		a.engine.scaler.Withdraw(a)
	}
	_, err := engines.Delete(a.key)
	if err != nil {
		return fmt.Errorf("closing the engine: %w", err)
	}
	return nil
}

// serviceOf is serviceOfHost that waits like acquire before it says that there is no
// such service.
func (a *App) serviceOf(ctx context.Context, host string, inside bool) (service, tag string, err error) {
	registry := a.engine.scaler.Registry()
	if service, tag, err = serviceOfHost(registry, host, inside); err == nil {
		return service, tag, nil
	}
	select {
	case <-a.ready:
	case <-ctx.Done():
		return "", "", context.Cause(ctx)
	}
	if err := a.engine.scaler.Loaded(ctx); err != nil {
		return "", "", err
	}
	return serviceOfHost(registry, host, inside)
}

// acquire waits for the config to be started, and until it is known what runs: Caddy
// may serve requests before.
func (a *App) acquire(ctx context.Context, r scaler.Request) (*instancepool.Lease, error) {
	lease, err := a.engine.scaler.Acquire(ctx, r)
	if !errors.Is(err, errUnknownService) {
		return lease, err
	}
	select {
	case <-a.ready:
		return a.engine.scaler.Acquire(ctx, r)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
