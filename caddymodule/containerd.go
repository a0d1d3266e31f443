package caddymodule

import (
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/containerd"
	"github.com/fairway-run/fairway/revisions"
)

func init() {
	caddy.RegisterModule(new(Containerd))
}

// Containerd runs instances on a containerd of this host.
type Containerd struct {
	// The path of containerd's socket. Default: `/run/containerd/containerd.sock`.
	Address string `json:"address,omitempty"`
	// The containerd namespace that images and containers are kept in. Default:
	// `fairway`.
	Namespace string `json:"namespace,omitempty"`
	// `bridge` gives each instance a network of its own, `host` the host's and a
	// port of its own. Default: `bridge`.
	Network string `json:"network,omitempty"`
	// The addresses of the bridge network. Default: `10.63.0.0/16`.
	Subnet string `json:"subnet,omitempty"`
	// Where addresses, network namespaces and logs are kept. Default:
	// `/var/lib/fairway/<namespace>`.
	StateDir string `json:"state_dir,omitempty"`
	// Where the instances' output is kept. Default: `logs` in the state directory.
	LogDir string `json:"log_dir,omitempty"`
	// Where the CNI plugins are. Default: the distributions' usual places.
	CNIBin []string `json:"cni_bin,omitempty"`
}

// CaddyModule tells Caddy what the module is.
func (*Containerd) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "fairway.runtimes.containerd", New: func() caddy.Module { return new(Containerd) }}
}

// UnmarshalCaddyfile reads the block of `runtime containerd`.
func (c *Containerd) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		if seen[name] {
			return d.Errf("duplicate option '%s'", name)
		}
		seen[name] = true
		texts := map[string]*string{
			"address": &c.Address, "namespace": &c.Namespace, "network": &c.Network,
			"subnet": &c.Subnet, "state_dir": &c.StateDir, "log_dir": &c.LogDir,
		}
		switch to := texts[name]; {
		case to != nil:
			if !d.AllArgs(to) {
				return d.ArgErr()
			}
		case name == "cni_bin":
			if c.CNIBin = d.RemainingArgs(); len(c.CNIBin) == 0 {
				return d.ArgErr()
			}
		default:
			return d.Errf("unrecognized option '%s'", name)
		}
		if _, err := containerd.New(c.options(zap.NewNop())); err != nil {
			return d.Errf("%s: %v", name, err)
		}
	}
	return nil
}

// Key implements Runtime: what it names cannot be shared by two engines.
func (c *Containerd) Key() string {
	o := c.options(zap.NewNop()).WithDefaults()
	return fmt.Sprintf("containerd %s %s", o.Address, o.Namespace)
}

// Settings implements Runtime.
func (c *Containerd) Settings() string {
	o := c.options(zap.NewNop()).WithDefaults()
	return fmt.Sprintf("network %s, subnet %s, state_dir %s, log_dir %s", o.Network, o.Subnet, o.StateDir, o.LogDir)
}

// Dir implements Runtime.
func (c *Containerd) Dir() string { return c.options(zap.NewNop()).WithDefaults().StateDir }

// Open implements Runtime.
func (c *Containerd) Open(log *zap.Logger, values *revisions.Values) (instancepool.Runtime, error) {
	o := c.options(log)
	o.Values = values
	return containerd.New(o)
}

func (c *Containerd) options(log *zap.Logger) containerd.Options {
	repl := caddy.NewReplacer()
	known := func(text string) string { return repl.ReplaceKnown(text, "") }
	o := containerd.Options{
		Address: known(c.Address), Namespace: c.Namespace, Network: c.Network, Subnet: c.Subnet,
		StateDir: known(c.StateDir), LogDir: known(c.LogDir), Logger: log.Named("containerd"),
	}
	for _, dir := range c.CNIBin {
		o.CNIBinDirs = append(o.CNIBinDirs, known(dir))
	}
	return o
}

var (
	_ Runtime               = (*Containerd)(nil)
	_ caddyfile.Unmarshaler = (*Containerd)(nil)
)
