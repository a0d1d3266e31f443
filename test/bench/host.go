package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/fairway-run/fairway/test/containerdtest"
	"github.com/fairway-run/fairway/test/images"
)

const (
	namespace = "fairway-bench"
	// helloImage greets, sleeperImage takes as long as it is asked to.
	helloImage   = "localhost/fairway/hello:bench"
	sleeperImage = "localhost/fairway/sleeper:bench"
	// protocolsImage speaks WebSocket and gRPC.
	protocolsImage = "localhost/fairway/protocols:bench"
	// subnet has an address for each instance that a bench may want.
	subnet = "10.61.0.0/22"
)

// host is what benches share that run containers: a containerd of their own, and
// the Caddy that they measure.
type host struct {
	daemon  *containerdtest.Daemon
	program string
	lock    net.Listener
}

// newHost starts a containerd that has the images.
func newHost(ctx context.Context, caddy string) (*host, error) {
	if missing := containerdtest.Missing(); missing != "" {
		return nil, errors.New(missing)
	}
	// Two at a time would share addresses, and measure each other. The kernel lets go
	// of the name when this process ends, however it does.
	lock, err := net.Listen("unix", "@"+namespace)
	if err != nil {
		return nil, fmt.Errorf("another bench runs: %w", err)
	}
	daemon, err := containerdtest.New(ctx)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	h := &host{daemon: daemon, program: caddy, lock: lock}
	for name, pkg := range map[string]string{helloImage: "hello", sleeperImage: "sleeper", protocolsImage: "protocols"} {
		archive, err := images.Build(ctx, images.Options{Name: name, Package: "github.com/fairway-run/fairway/test/images/" + pkg})
		if err == nil {
			err = daemon.Import(ctx, archive, namespace)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("image %s: %w", name, err), h.close())
		}
	}
	return h, nil
}

func (h *host) close() error { return errors.Join(h.daemon.Close(), removeBridge(), h.lock.Close()) }

// removeBridge removes the bridge of the benches' subnet, which Fairway keeps for
// its next start.
func removeBridge() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	own := netip.MustParsePrefix(subnet)
	for _, link := range links {
		if link.Type() != "bridge" {
			continue
		}
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("listing addresses: %w", err)
		}
		for _, a := range addresses {
			if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && own.Contains(ip) {
				return netlink.LinkDel(link)
			}
		}
	}
	return nil
}
