package caddymodule

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fairway-run/fairway/revisions"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("fairway", parseApp)
	httpcaddyfile.RegisterHandlerDirective("fairway", parseHandler)
	httpcaddyfile.RegisterDirectiveOrder("fairway", httpcaddyfile.Before, "reverse_proxy")
}

// parseApp reads the global option:
//
//	fairway {
//		runtime containerd {
//			address   <socket>
//			namespace <name>
//			network   bridge|host
//			subnet    <cidr>
//			state_dir <path>
//			log_dir   <path>
//			cni_bin   <dirs...>
//		}
//		domain       [http://|https://]<host>[:<port>]
//		services_dir <path>
//		local_names  true|false
//		namespace    <name>
//		memory       <amount>|<percent>%|off
//		cpu          <number>|<percent>%|off
//		prepared     <number>
//		on_exit      keep|stop
//	}
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // the option's name
	if existing != nil {
		return nil, d.Err("the fairway option is given twice")
	}
	app := new(App)
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "fairway", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile reads what parseApp describes. The option's name has been
// consumed.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "runtime":
			if a.RuntimeRaw != nil {
				return d.Err("duplicate option 'runtime'")
			}
			if !d.NextArg() {
				return d.ArgErr()
			}
			name := d.Val()
			unmarshaled, err := caddyfile.UnmarshalModule(d, "fairway.runtimes."+name)
			if err != nil {
				return err
			}
			a.RuntimeRaw = caddyconfig.JSONModuleObject(unmarshaled, "engine", name, nil)
		case "on_exit":
			if a.OnExit != "" {
				return d.Err("duplicate option 'on_exit'")
			}
			if !d.AllArgs(&a.OnExit) {
				return d.ArgErr()
			}
			if a.OnExit != onExitKeep && a.OnExit != onExitStop {
				return d.Errf("on_exit is keep or stop, not '%s'", a.OnExit)
			}
		case "memory":
			if a.Memory != "" {
				return d.Err("duplicate option 'memory'")
			}
			if !d.AllArgs(&a.Memory) {
				return d.ArgErr()
			}
			if _, _, err := parseBudget(a.Memory); err != nil {
				return d.WrapErr(err)
			}
		case "cpu":
			if a.CPU != "" {
				return d.Err("duplicate option 'cpu'")
			}
			if !d.AllArgs(&a.CPU) {
				return d.ArgErr()
			}
			if _, _, err := parseCPUs(a.CPU); err != nil {
				return d.WrapErr(err)
			}
		case "prepared":
			if a.Prepared != 0 {
				return d.Err("duplicate option 'prepared'")
			}
			var text string
			if !d.AllArgs(&text) {
				return d.ArgErr()
			}
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 || n > revisions.MaxPrepared {
				return d.Errf("prepared: '%s' is not a number from 0 to %d", text, revisions.MaxPrepared)
			}
			a.Prepared = n
		case "domain":
			if a.Domain != "" {
				return d.Err("duplicate option 'domain'")
			}
			if !d.AllArgs(&a.Domain) {
				return d.ArgErr()
			}
			if _, err := parseDomain(a.Domain); err != nil {
				return d.WrapErr(err)
			}
		case "services_dir":
			if a.ServicesDir != "" {
				return d.Err("duplicate option 'services_dir'")
			}
			if !d.AllArgs(&a.ServicesDir) {
				return d.ArgErr()
			}
			if !strings.HasPrefix(a.ServicesDir, "/") && !strings.HasPrefix(a.ServicesDir, "{") {
				return d.Errf("services_dir is an absolute path, not '%s'", a.ServicesDir)
			}
		case "local_names":
			var text string
			if a.LocalNames != nil {
				return d.Err("duplicate option 'local_names'")
			}
			if !d.AllArgs(&text) {
				return d.ArgErr()
			}
			on, err := strconv.ParseBool(text)
			if err != nil {
				return d.Errf("local_names is true or false, not '%s'", text)
			}
			a.LocalNames = &on
		case "namespace":
			if a.Namespace != "" {
				return d.Err("duplicate option 'namespace'")
			}
			if !d.AllArgs(&a.Namespace) {
				return d.ArgErr()
			}
			if problems := validation.IsDNS1123Label(a.Namespace); len(problems) > 0 {
				return d.Errf("'%s' cannot be a namespace: %s", a.Namespace, problems[0])
			}
		default:
			return d.Errf("unrecognized option '%s'", option)
		}
	}
	return nil
}

// reserved are the options of reverse_proxy that make no sense here: Fairway
// itself knows which instances there are and how they are.
var reserved = []string{
	"to", "dynamic", "lb_policy", "lb_retries", "lb_try_duration", "lb_try_interval", "lb_retry_match",
	"health_uri", "health_path", "health_upstream", "health_port", "health_headers", "health_method",
	"health_request_body", "health_interval", "health_timeout", "health_status", "health_body",
	"health_follow_redirects", "health_passes", "health_fails", "max_fails", "fail_duration",
	"unhealthy_request_count", "unhealthy_status", "unhealthy_latency", "transport",
}

// parseHandler reads the directive:
//
//	fairway [<matcher>] [<service>] {
//		image         <reference>
//		command       <words...>
//		args          <words...>
//		port          [h2c] <number>
//		env           <name> <value>
//		concurrency   <1 to 1000>
//		instances     <min> <max>
//		initial_scale <number>
//		idle_timeout  <duration>
//		timeout       <duration>
//		response_start_timeout <duration>
//		response_idle_timeout  <duration>
//		drain_timeout <duration>
//		queue_depth   <number>
//		ingress       all|internal
//		prepared      <number>
//		window        <duration>
//		cpu_throttling     true|false
//		concurrency_target <0.1 to 0.95>|off
//		cpu_target         <0.1 to 0.95>|off
//		cpu           <amount>
//		memory        <amount>
//		startup_probe tcp|http|grpc [<path>|<service>] {
//			port              <number>
//			header            <name> <value>
//			initial_delay     <duration>
//			period            <duration>
//			timeout           <duration>
//			failure_threshold <number>
//		}
//		liveness_probe  … # like startup_probe
//		readiness_probe … # the same, and success_threshold <number>
//		max_request_body <size>
//		no_wake       <matcher> [<status>]
//		waiting_page  [<file>] {
//			after <duration>
//		}
//		# any option of reverse_proxy but those that choose and check upstreams
//	}
//
// Without any of Fairway's own options it routes to a service that is declared
// elsewhere; without a service's name, to the one that the request's host means.
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h.Next() // the directive's name
	start := h.Token()
	handler := new(Handler)
	if h.NextArg() {
		handler.Service = h.Val()
		if problems := validation.IsDNS1035Label(handler.Service); len(problems) > 0 {
			return nil, h.Errf("'%s' cannot be a service's name: %s", handler.Service, problems[0])
		}
	}
	if h.NextArg() {
		return nil, h.ArgErr()
	}
	p := serviceParser{Dispenser: h.Dispenser, seen: make(map[string]bool)}
	for nesting := h.Nesting(); h.NextBlock(nesting); {
		var err error
		switch h.Val() {
		case "max_request_body":
			err = handler.parseMaxRequestBody(h)
		case "no_wake":
			err = handler.parseNoWake(h)
		case "waiting_page":
			err = handler.parseWaitingPage(h)
		default:
			err = p.option()
		}
		if err != nil {
			return nil, err
		}
	}
	if len(p.seen) > 0 {
		if handler.Service == "" {
			return nil, h.Err("what is declared here needs a name: fairway <service> { … }")
		}
		handler.Definition = &p.service
		if err := declareOnce(h, handler); err != nil {
			return nil, err
		}
	}
	return handler, parseProxy(h, handler, start, p.proxy)
}

// declareOnce checks a declaration and that it is the only one of its service.
// Two that say the same are one: a snippet may be imported in several sites.
func declareOnce(h httpcaddyfile.Helper, handler *Handler) error {
	if err := handler.Definition.validate(handler.Service); err != nil {
		return h.WrapErr(err)
	}
	const key = "fairway.services"
	type declared struct {
		service *Service
		file    string
		line    int
	}
	all, _ := h.State[key].(map[string]declared)
	if all == nil {
		all = make(map[string]declared)
		h.State[key] = all
	}
	if before, ok := all[handler.Service]; ok && !reflect.DeepEqual(before.service, handler.Definition) {
		return h.Errf("service %s is declared twice, differently: also at %s:%d", handler.Service, before.file, before.line)
	}
	all[handler.Service] = declared{handler.Definition, h.File(), h.Line()}
	return nil
}

// parseProxy lets reverse_proxy read the options that are its own.
func parseProxy(h httpcaddyfile.Helper, handler *Handler, start caddyfile.Token, options []caddyfile.Token) error {
	if len(options) == 0 {
		return nil
	}
	word := func(text string, line int) caddyfile.Token {
		return caddyfile.Token{File: start.File, Line: line, Text: text}
	}
	d := caddyfile.NewDispenser(slices.Concat(
		[]caddyfile.Token{word("reverse_proxy", start.Line), word("{", start.Line)},
		options,
		[]caddyfile.Token{word("}", options[len(options)-1].Line+1)},
	))
	proxy := new(reverseproxy.Handler)
	if err := proxy.UnmarshalCaddyfile(d); err != nil {
		return err
	}
	if err := proxy.FinalizeUnmarshalCaddyfile(h.WithDispenser(d)); err != nil {
		return err
	}
	handler.ProxyRaw = caddyconfig.JSON(proxy, nil)
	return nil
}

// serviceParser reads the options of one directive.
type serviceParser struct {
	*caddyfile.Dispenser
	service Service
	seen    map[string]bool   // Fairway's own options
	proxy   []caddyfile.Token // those of reverse_proxy
}

// option reads one option; the dispenser stands on its name.
func (p *serviceParser) option() error {
	name := p.Val()
	s := &p.service
	var err error
	switch name {
	case "image":
		err = p.text(&s.Image)
	case "cpu":
		err = p.amount(&s.CPU)
	case "memory":
		err = p.amount(&s.Memory)
	case "command":
		err = p.words(&s.Command)
	case "args":
		err = p.words(&s.Args)
	case "port":
		err = p.port()
	case "env":
		return p.env() // may be repeated
	case "concurrency":
		s.Concurrency = new(int)
		err = p.number(s.Concurrency, 1, revisions.MaxConcurrency)
	case "instances":
		err = p.instances()
	case "initial_scale":
		err = p.number(&s.InitialScale, 0, 1000)
	case "prepared":
		s.Prepared = new(int)
		err = p.number(s.Prepared, 0, revisions.MaxPrepared)
	case "cpu_throttling":
		s.CPUThrottling = new(bool)
		err = p.onOff(s.CPUThrottling)
	case "concurrency_target":
		err = p.text(&s.ConcurrencyTarget)
	case "cpu_target":
		err = p.text(&s.CPUTarget)
	case "window":
		err = p.duration(&s.Window)
	case "queue_depth":
		err = p.number(&s.QueueDepth, 1, revisions.MaxQueueDepth)
	case "ingress":
		err = p.text(&s.Ingress)
	case "idle_timeout":
		err = p.duration(&s.IdleTimeout)
	case "timeout":
		err = p.duration(&s.Timeout)
	case "response_start_timeout":
		err = p.duration(&s.ResponseStartTimeout)
	case "response_idle_timeout":
		err = p.duration(&s.ResponseIdleTimeout)
	case "drain_timeout":
		err = p.duration(&s.DrainTimeout)
	case startupProbe:
		s.StartupProbe, err = p.probe(name)
	case livenessProbe:
		s.LivenessProbe, err = p.probe(name)
	case readinessProbe:
		s.ReadinessProbe, err = p.probe(name)
	default:
		if slices.Contains(reserved, name) {
			return p.Errf("'%s' has no place here: fairway itself knows the instances of a service", name)
		}
		p.proxy = append(p.proxy, p.NextSegment()...)
		return nil
	}
	if err != nil {
		return err
	}
	return p.once(name)
}

func (p *serviceParser) once(name string) error {
	if p.seen[name] {
		return p.Errf("duplicate option '%s'", name)
	}
	p.seen[name] = true
	return nil
}

func (p *serviceParser) text(to *string) error {
	if !p.AllArgs(to) {
		return p.ArgErr()
	}
	return nil
}

func (p *serviceParser) words(to *[]string) error {
	*to = p.RemainingArgs()
	if len(*to) == 0 {
		return p.ArgErr()
	}
	return nil
}

func (p *serviceParser) amount(to *string) error {
	name := p.Val()
	if err := p.text(to); err != nil {
		return err
	}
	if _, err := parseQuantity(*to); err != nil {
		return p.Errf("%s: %v", name, err)
	}
	return nil
}

func (p *serviceParser) onOff(to *bool) error {
	name := p.Val()
	var text string
	if err := p.text(&text); err != nil {
		return err
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return p.Errf("%s: '%s' is not true or false", name, text)
	}
	*to = v
	return nil
}

func (p *serviceParser) number(to *int, lowest, highest int) error {
	name := p.Val()
	var text string
	if err := p.text(&text); err != nil {
		return err
	}
	return p.parse(name, text, to, lowest, highest)
}

func (p *serviceParser) parse(name, text string, to *int, lowest, highest int) error {
	n, err := strconv.Atoi(text)
	if err != nil {
		return p.Errf("%s: '%s' is not a whole number", name, text)
	}
	if n < lowest || n > highest {
		return p.Errf("%s: %d is not from %d to %d", name, n, lowest, highest)
	}
	*to = n
	return nil
}

func (p *serviceParser) duration(to *caddy.Duration) error {
	name := p.Val()
	var text string
	if err := p.text(&text); err != nil {
		return err
	}
	d, err := caddy.ParseDuration(text)
	if err != nil || d <= 0 {
		return p.Errf("%s: '%s' is not a duration above zero", name, text)
	}
	*to = caddy.Duration(d)
	return nil
}

func (p *serviceParser) port() error {
	args := p.RemainingArgs()
	if len(args) == 2 && (args[0] == "h2c" || args[0] == "http1") {
		p.service.H2C = args[0] == "h2c"
		args = args[1:]
	}
	if len(args) != 1 {
		return p.Err("port takes a number, or h2c and a number")
	}
	return p.parse("port", args[0], &p.service.Port, 1, 65535)
}

func (p *serviceParser) env() error {
	var name, value string
	if !p.AllArgs(&name, &value) {
		return p.Err("env takes a name and a value")
	}
	if _, ok := p.service.Env[name]; ok {
		return p.Errf("env: %s is given twice", name)
	}
	if p.service.Env == nil {
		p.service.Env = make(map[string]string)
	}
	p.service.Env[name] = value
	p.seen["env"] = true
	return nil
}

func (p *serviceParser) instances() error {
	var low, high string
	if !p.AllArgs(&low, &high) {
		return p.Err("instances takes a minimum and a maximum")
	}
	const most = 1_000_000
	if err := p.parse("instances", low, &p.service.MinInstances, 0, most); err != nil {
		return err
	}
	p.service.MaxInstances = new(int)
	if err := p.parse("instances", high, p.service.MaxInstances, 1, most); err != nil {
		return err
	}
	if p.service.MinInstances > *p.service.MaxInstances {
		return p.Errf("instances: the minimum %s is above the maximum %s", low, high)
	}
	return nil
}

// probe reads a probe of a kind.
func (p *serviceParser) probe(kind string) (*Probe, error) {
	args := p.RemainingArgs()
	if len(args) == 0 || len(args) > 2 {
		return nil, p.ArgErr()
	}
	probe := &Probe{Type: args[0]}
	switch {
	case probe.Type != "tcp" && probe.Type != "http" && probe.Type != "grpc":
		return nil, p.Errf("%s is tcp, http or grpc, not '%s'", kind, probe.Type)
	case len(args) == 1:
	case probe.Type == "http":
		probe.Path = args[1]
	case probe.Type == "grpc":
		probe.Service = args[1]
	default:
		return nil, p.ArgErr()
	}
	for nesting := p.Nesting(); p.NextBlock(nesting); {
		if err := p.probeOption(kind, probe); err != nil {
			return nil, err
		}
	}
	if err := probe.check(kind); err != nil {
		return nil, p.Errf("%s: %v", kind, err)
	}
	return probe, nil
}

func (p *serviceParser) probeOption(kind string, probe *Probe) error {
	switch name := p.Val(); name {
	case "port":
		return p.number(&probe.Port, 1, 65535)
	case "failure_threshold":
		return p.number(&probe.FailureThreshold, 1, 10_000)
	case "success_threshold":
		return p.number(&probe.SuccessThreshold, 1, 10_000)
	case "initial_delay":
		return p.duration(&probe.InitialDelay)
	case "period":
		return p.duration(&probe.Period)
	case "timeout":
		return p.duration(&probe.Timeout)
	case "header":
		var field, value string
		if probe.Type != "http" {
			return p.Errf("a %s probe has no header", probe.Type)
		}
		if !p.AllArgs(&field, &value) {
			return p.ArgErr()
		}
		if probe.Headers == nil {
			probe.Headers = make(map[string]string)
		}
		probe.Headers[field] = value
		return nil
	default:
		return p.Errf("unrecognized %s option '%s'", kind, name)
	}
}
