package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netNS is a network namespace with nothing but its loopback interface.
type netNS struct {
	path string
	fd   int
}

// newNetNS makes a namespace that path keeps alive.
func newNetNS(path string) (*netNS, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding lo: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("setting lo up: %w", err)
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "none", unix.MS_BIND, "")
	}); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return &netNS{path: path, fd: fd}, nil
}

// dial connects from inside the namespace.
func (n *netNS) dial(ctx context.Context, address string) (conn net.Conn, err error) {
	return conn, onOwnThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the namespace: %w", err)
		}
		conn, err = new(net.Dialer).DialContext(ctx, "tcp4", address)
		return err
	})
}

func (n *netNS) close() error {
	return errors.Join(unix.Close(n.fd), unix.Unmount(n.path, unix.MNT_DETACH), os.Remove(n.path))
}

// onOwnThread runs do on a thread that nothing else ever uses: it stays locked,
// so it ends with its goroutine.
func onOwnThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- do()
	}()
	return <-done
}
