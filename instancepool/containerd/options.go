// Package containerd runs instances on containerd. It is the only package that
// imports it.
package containerd

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"path/filepath"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"go.uber.org/zap"
)

// The networks an instance can have.
const (
	// Bridge gives each instance a network namespace of its own on a bridge.
	Bridge = "bridge"
	// Host gives it the host's network and a port of its own on the loopback
	// interface. A sidecar's port is the host's too: two instances that have one
	// with a fixed port cannot run at the same time.
	Host = "host"
)

// Options are the settings of a Runtime. The zero value of each field means its
// default.
type Options struct {
	// Address is the absolute path of containerd's socket.
	// Default: /run/containerd/containerd.sock.
	Address string
	// Namespace is containerd's namespace. Default: fairway.
	Namespace string
	// Network is Bridge or Host. Default: Bridge.
	Network string
	// Subnet holds the addresses of the bridge network. Default: 10.63.0.0/16.
	Subnet string
	// StateDir holds addresses, network namespaces and files of instances.
	// Default: /var/lib/fairway/<namespace>.
	StateDir string
	// LogDir holds what instances write. Default: logs in StateDir.
	LogDir string
	// Snapshotter keeps the file systems. Default: overlayfs.
	Snapshotter string
	// CNIBinDirs are where the CNI plugins are. Default: the usual places.
	CNIBinDirs []string
	// Prepared is how many networks are made ahead of requests. Default: 4.
	Prepared int
	// Values holds the secrets and config maps that revisions refer to. Default:
	// none; a revision that refers to one cannot start.
	Values Values
	// Logger is told what goes wrong in the background. Default: none.
	Logger *zap.Logger
}

// WithDefaults returns the options with every default filled in.
func (o Options) WithDefaults() Options {
	orText := func(s *string, text string) {
		if *s == "" {
			*s = text
		}
	}
	orText(&o.Address, "/run/containerd/containerd.sock")
	orText(&o.Namespace, "fairway")
	orText(&o.Network, Bridge)
	orText(&o.Subnet, "10.63.0.0/16")
	orText(&o.StateDir, filepath.Join("/var/lib/fairway", o.Namespace))
	orText(&o.Snapshotter, defaults.DefaultSnapshotter)
	orText(&o.LogDir, filepath.Join(o.StateDir, "logs"))
	if len(o.CNIBinDirs) == 0 {
		o.CNIBinDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}
	}
	if o.Prepared == 0 {
		o.Prepared = 4
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return o
}

func (o Options) validate() error {
	if !filepath.IsAbs(o.Address) {
		return fmt.Errorf("address %q is not an absolute path", o.Address)
	}
	if err := identifiers.Validate(o.Namespace); err != nil {
		return fmt.Errorf("namespace %q: %w", o.Namespace, err)
	}
	if o.Network != Bridge && o.Network != Host {
		return fmt.Errorf("network is %s or %s, not %q", Bridge, Host, o.Network)
	}
	p, err := netip.ParsePrefix(o.Subnet)
	if err != nil || p != p.Masked() || p.Bits() > p.Addr().BitLen()-3 {
		return fmt.Errorf("subnet %q is not a network such as 10.63.0.0/16", o.Subnet)
	}
	for _, dir := range append([]string{o.StateDir, o.LogDir}, o.CNIBinDirs...) {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("directory %q is not an absolute path", dir)
		}
	}
	if o.Prepared < 0 {
		return errors.New("a negative number of prepared networks")
	}
	return nil
}

// bridge is the name of the network's bridge, at most 15 bytes and one per
// namespace and subnet.
func (o Options) bridge() string {
	if o.Namespace == "fairway" && o.Subnet == "10.63.0.0/16" {
		return "fairway0"
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(o.Namespace + "\x00" + o.Subnet))
	return fmt.Sprintf("fw-%08x", h.Sum32())
}
