package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sync/errgroup"
)

// The burst is that of Knative's TestActivatorOverload, on fewer clients.
const (
	burstClients   = 100
	burstInstances = 20
	burstService   = 300 * time.Millisecond
	burstWaves     = (burstClients + burstInstances - 1) / burstInstances
	burstGoal      = 1.2
)

// burst sends many requests at once to a service that has no instance and takes
// one request at a time, and compares the time to the last answer with the best
// that is possible by hand: as many containers started in parallel, and then the
// requests in waves.
func burst(ctx context.Context, s *settings, h *host) (err error) {
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	rounds := s.roundsOr(5)
	// A service for each round: Fairway learns when a service's requests are due, and
	// would start the next round's instances ahead.
	names := make([]string, rounds+1)
	sites := make([]string, len(names))
	for i := range names {
		names[i] = fmt.Sprintf("burst-%d", i)
		sites[i] = hosted(names[i], sleeperImage, smallMemory, "concurrency 1",
			fmt.Sprintf("instances 0 %d", burstInstances), "idle_timeout 2s", "prepared 0")
	}
	if err := c.load(ctx, c.config(sites...)); err != nil {
		return err
	}
	client, err := containerd.New(h.daemon.Address(), containerd.WithDefaultNamespace(namespace))
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := firstByte(ctx, hostOf(names[0])); err != nil {
		return err
	}
	raw, err := newRaw(ctx, client, sleeperImage, c.dir)
	if err != nil {
		return err
	}
	parallel := []int{2, 4, 8, burstInstances}
	var ours []time.Duration
	theirs := make([][]time.Duration, len(parallel))
	started := 0
	for i, name := range names {
		took, instances, err := c.burst(ctx, name)
		if err != nil {
			return err
		}
		if i > 0 { // the first one warms the caches
			ours, started = append(ours, took), max(started, instances)
		}
		for n, at := range parallel {
			if err := c.await(ctx, time.Minute, "all instances are gone", nothing); err != nil {
				return err
			}
			if err := rest(ctx); err != nil {
				return err
			}
			took, err := raw.together(ctx, fmt.Sprintf("raw-%d-%d", i, at), burstInstances, at)
			if err != nil {
				return fmt.Errorf("raw start, %d at a time: %w", at, err)
			}
			if i > 0 {
				theirs[n] = append(theirs[n], took)
			}
		}
	}
	fmt.Printf("burst from nothing: %d clients at once, concurrency 1, at most %d instances, %s a request, all answered 200\n",
		burstClients, burstInstances, burstService)
	fmt.Printf("first request to last answer, %d of each in turn\n", rounds)
	fmt.Printf("%-40s %10s %10s\n", "", "p50", "max")
	row := func(name string, all []time.Duration) {
		fmt.Printf("%-40s %10s %10s\n", name, quantile(all, 0.5).Round(time.Millisecond), quantile(all, 1).Round(time.Millisecond))
	}
	row(fmt.Sprintf("fairway, with up to %d instances", started), ours)
	for n, at := range parallel {
		row(fmt.Sprintf("containerd, %d starts, %d at a time", burstInstances, at), theirs[n])
	}
	best := slices.MinFunc(theirs, func(a, b []time.Duration) int { return int(quantile(a, 0.5) - quantile(b, 0.5)) })
	possible := quantile(best, 0.5) + burstWaves*burstService
	fmt.Printf("%-40s %10s\n", fmt.Sprintf("the best of these and %d waves", burstWaves), possible.Round(time.Millisecond))
	ratio := float64(quantile(ours, 0.5)) / float64(possible)
	var g goals
	g.row("fairway : possible, p50", fmt.Sprintf("%.2f", ratio), fmt.Sprintf("<= %.1f", burstGoal), ratio <= burstGoal)
	return g.err()
}

// burst sends the burst to a service, and returns how long it took and how many
// instances were there at its end. The service has had one request before, so that it
// is known how long a start takes.
func (c *caddy) burst(ctx context.Context, name string) (took time.Duration, instances int, err error) {
	if _, err := firstByte(ctx, hostOf(name)); err != nil {
		return 0, 0, err
	}
	if err := c.await(ctx, time.Minute, "the instance is gone", nothing); err != nil {
		return 0, 0, err
	}
	if err := rest(ctx); err != nil {
		return 0, 0, err
	}
	path := fmt.Sprintf("/?ms=%d&limit=1", burstService.Milliseconds())
	if _, took, err = atOnce(ctx, slices.Repeat([]string{hostOf(name)}, burstClients), path); err != nil {
		return 0, 0, err
	}
	all, err := c.instances(ctx)
	return took, len(all), err
}

// together starts n containers, so many at a time, removes them, and returns how
// long it took until the last of them answered.
func (r *rawStarter) together(ctx context.Context, prefix string, n, parallel int) (took time.Duration, err error) {
	containers := make([]*rawContainer, n)
	for i := range containers {
		c, err := r.prepare(fmt.Sprintf("%s-%d", prefix, i))
		if err != nil {
			return 0, err
		}
		containers[i] = c
	}
	began := time.Now()
	group, inGroup := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, c := range containers {
		group.Go(func() error { return c.start(inGroup) })
	}
	err = group.Wait()
	took = time.Since(began)
	var removals errgroup.Group
	removals.SetLimit(4)
	for _, c := range containers {
		removals.Go(c.remove)
	}
	return took, errors.Join(err, removals.Wait())
}
