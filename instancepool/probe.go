package instancepool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/fairway-run/fairway/revisions"
)

// A startup probe asks again after a pause that grows from the first to the second of
// these: an instance must not stand ready unnoticed, and one that takes minutes
// must not be asked a thousand times a second all the while.
const (
	probePauseMin = time.Millisecond
	probePauseMax = 5 * time.Millisecond
	// A command is not so cheap to ask.
	execPauseMin = 100 * time.Millisecond
	execPauseMax = time.Second
)

// pause waits for d; it reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func describe(p revisions.Probe) string {
	if p.Kind == revisions.ProbeExec {
		return "exec " + strings.Join(p.Command, " ")
	}
	s := p.Kind.String() + " port " + strconv.Itoa(p.Port)
	if p.Kind == revisions.ProbeHTTP {
		s += " " + p.Path
	}
	return s
}

// prober returns a function that asks a container once, and one that lets go of
// what it held.
func prober(h Handle, container string, p revisions.Probe) (ask func(context.Context) error, done func()) {
	address := probeAddress(h, p)
	switch p.Kind {
	case revisions.ProbeHTTP:
		return httpProber(address, p, h.Revision().Spec().Port)
	case revisions.ProbeGRPC:
		return grpcProber(address, p)
	case revisions.ProbeExec:
		return func(ctx context.Context) error {
			e, ok := h.(Execer)
			if !ok {
				return errors.New("the container engine cannot run commands in an instance")
			}
			return e.Exec(ctx, container, p.Command)
		}, func() {}
	default:
		return func(ctx context.Context) error { return dialOnce(ctx, address) }, func() {}
	}
}

// probeAddress is where the probe asks: the instance's address, with the
// probe's port when that is another than the one requests go to.
func probeAddress(h Handle, p revisions.Probe) string {
	if p.Port == h.Revision().Spec().Port.Number {
		return h.Address()
	}
	host, _, err := net.SplitHostPort(h.Address())
	if err != nil {
		return h.Address()
	}
	return net.JoinHostPort(host, strconv.Itoa(p.Port))
}

func dialOnce(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func httpProber(address string, p revisions.Probe, port revisions.Port) (func(context.Context) error, func()) {
	t := &http.Transport{Proxy: nil, DisableKeepAlives: true}
	if port.H2C && p.Port == port.Number {
		t.DisableKeepAlives = false
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	url := "http://" + address + "/" + strings.TrimPrefix(p.Path, "/")
	ask := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		maps.Copy(req.Header, p.Header)
		if host := p.Header.Get("Host"); host != "" {
			req.Host = host
		}
		if req.Header.Get("User-Agent") == "" {
			req.Header.Set("User-Agent", "fairway-probe")
		}
		resp, err := t.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10))
		if resp.StatusCode < 200 || resp.StatusCode >= 400 {
			return fmt.Errorf("answered %s", resp.Status)
		}
		return nil
	}
	return ask, t.CloseIdleConnections
}

func grpcProber(address string, p revisions.Probe) (func(context.Context) error, func()) {
	// gRPC's own reconnection back-off starts at a second, so each attempt first
	// looks whether the port is open, and only then makes a client.
	ask := func(ctx context.Context) error {
		if err := dialOnce(ctx, address); err != nil {
			return err
		}
		conn, err := grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
		if err != nil {
			return err
		}
		defer conn.Close()
		resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: p.Service})
		if err != nil {
			return err
		}
		if s := resp.GetStatus(); s != healthpb.HealthCheckResponse_SERVING {
			return fmt.Errorf("answered %s", s)
		}
		return nil
	}
	return ask, func() {}
}
