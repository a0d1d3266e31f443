package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
)

// fromNothing makes a service start from nothing at each request: its instance is
// gone at once, and none is prepared.
var fromNothing = []string{"idle_timeout 20ms", "prepared 0"}

// cold compares a request that finds no instance with the bare containerd calls
// that start the same container: the very spec that Fairway made.
func cold(ctx context.Context, s *settings, h *host) (err error) {
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	if err := c.load(ctx, c.config(site(siteAddr, service("hello", helloImage, fromNothing...)))); err != nil {
		return err
	}
	client, err := containerd.New(h.daemon.Address(), containerd.WithDefaultNamespace(namespace))
	if err != nil {
		return err
	}
	defer client.Close()
	var raw *rawStarter
	for try := 0; raw == nil; try++ { // the instance may be gone before its spec is read
		if _, err := firstByte(ctx, siteAddr); err != nil {
			return err
		}
		if raw, err = newRaw(ctx, client, helloImage, c.dir); err != nil && try == 5 {
			return err
		}
	}
	rounds := s.roundsOr(60)
	var ours, theirs []time.Duration
	for i := range rounds + 3 {
		if err := c.await(ctx, 30*time.Second, "the instance is gone", nothing); err != nil {
			return err
		}
		if err := rest(ctx); err != nil {
			return err
		}
		bare, err := raw.once(ctx, fmt.Sprintf("raw-%d", i))
		if err != nil {
			return fmt.Errorf("raw start: %w", err)
		}
		if err := rest(ctx); err != nil {
			return err
		}
		took, err := firstByte(ctx, siteAddr)
		if err != nil {
			return err
		}
		if i >= 3 { // the first ones warm the caches of both
			ours, theirs = append(ours, took), append(theirs, bare)
		}
	}
	fmt.Printf("cold start, request to first byte, %d of each in turn\n", rounds)
	fmt.Printf("%-6s %12s %12s %8s\n", "", "fairway", "containerd", "ratio")
	for _, q := range []float64{0.5, 0.9, 0.99} {
		a, b := quantile(ours, q), quantile(theirs, q)
		fmt.Printf("p%-5.0f %12s %12s %8.2f\n", q*100, brief(a), brief(b), float64(a)/float64(b))
	}
	return nil
}

// once starts a container, removes it, and returns how long the start took.
func (r *rawStarter) once(ctx context.Context, id string) (took time.Duration, err error) {
	c, err := r.prepare(id)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.remove()) }()
	began := time.Now()
	err = c.start(ctx)
	return time.Since(began), err
}
