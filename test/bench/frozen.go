package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// frozenGoal is what a thaw may add to a warm request.
	frozenGoal = 4 * time.Millisecond
	// smallMemory is a limit that lets many instances run on a small host.
	smallMemory = "memory 32MiB"
)

// frozen measures what it costs a request that its instance was frozen: for one
// at a time, and for many services at once.
func frozen(ctx context.Context, s *settings, h *host) (err error) {
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	const throttled, awake = "throttled", "awake"
	sites := []string{
		hosted(throttled, helloImage, smallMemory, "cpu_throttling true"),
		hosted(awake, helloImage, smallMemory, "cpu_throttling false", "concurrency 1000"),
	}
	many := make([]string, cmp.Or(s.frozen, 100))
	for i := range many {
		many[i] = fmt.Sprintf("many-%03d", i)
		sites = append(sites, hosted(many[i], helloImage, smallMemory, "cpu_throttling true"))
	}
	if err := c.load(ctx, c.config(sites...)); err != nil {
		return err
	}
	if err := c.measureFrozen(ctx, throttled, awake, s.roundsOr(100)); err != nil {
		return err
	}
	return c.measureManyFrozen(ctx, many, awake, max(3, s.roundsOr(100)/10))
}

// measureFrozen compares three requests in turn: the first to a frozen instance,
// the next to the same, and one to an instance that had as long a silence but was
// not frozen, whose caches are as cold.
func (c *caddy) measureFrozen(ctx context.Context, throttled, awake string, rounds int) error {
	var frozen, warm, silent []time.Duration
	for i := range rounds + 3 {
		var took [3]time.Duration
		for n, name := range []string{throttled, throttled, awake} {
			if n != 1 && i > 0 {
				if err := c.await(ctx, 10*time.Second, "an instance is frozen", func(all []instance) bool {
					return in(all, throttled, "frozen") == 1
				}); err != nil {
					return err
				}
				if err := pause(ctx, 100*time.Millisecond); err != nil {
					return err
				}
			}
			var err error
			if took[n], err = firstByte(ctx, hostOf(name)); err != nil {
				return err
			}
		}
		if i >= 3 { // the first ones start the instances and warm the caches
			frozen, warm, silent = append(frozen, took[0]), append(warm, took[1]), append(silent, took[2])
		}
	}
	fmt.Printf("request to first byte, %d of each in turn\n", rounds)
	fmt.Printf("%-6s %12s %12s %28s\n", "", "frozen", "warm", "silent as long, not frozen")
	for _, q := range []float64{0.5, 0.9, 0.99} {
		fmt.Printf("p%-5.0f %12s %12s %28s\n", q*100, brief(quantile(frozen, q)), brief(quantile(warm, q)), brief(quantile(silent, q)))
	}
	more := quantile(frozen, 0.5) - quantile(warm, 0.5)
	var g goals
	g.row("frozen - warm, p50", brief(more), "<= "+frozenGoal.String(), more <= frozenGoal)
	return g.err()
}

// measureManyFrozen asks many services at once, which are all frozen, in turn with
// as many requests at once to one warm service: what the requests cost without
// the thaws.
func (c *caddy) measureManyFrozen(ctx context.Context, names []string, warm string, rounds int) error {
	hosts := make([]string, len(names))
	for i, name := range names {
		hosts[i] = hostOf(name)
	}
	if err := ask(ctx, hosts); err != nil {
		return err
	}
	var each, all [2][]time.Duration
	for i := range rounds + 1 {
		for side, hosts := range [][]string{hosts, slices.Repeat([]string{hostOf(warm)}, len(names))} {
			if err := c.await(ctx, 30*time.Second, "all are frozen", func(all []instance) bool {
				return in(all, "", "frozen") == len(names)+1
			}); err != nil {
				return err
			}
			if err := pause(ctx, 200*time.Millisecond); err != nil {
				return err
			}
			took, last, err := atOnce(ctx, hosts, "/")
			if err != nil {
				return err
			}
			if i > 0 {
				each[side], all[side] = append(each[side], took...), append(all[side], last)
			}
		}
	}
	fmt.Printf("\n%d requests at once, %d rounds in turn, all answered 200\n", len(names), rounds)
	fmt.Printf("%-12s %22s %12s\n", "", "frozen, one for each", "one, warm")
	row := func(name string, all [2][]time.Duration, q float64) {
		fmt.Printf("%-12s %22s %12s\n", name, brief(quantile(all[0], q)), brief(quantile(all[1], q)))
	}
	row("p50", each, 0.5)
	row("last, p50", all, 0.5)
	row("last, max", all, 1)
	return nil
}

// ask sends a request to each of the hosts, a few at a time, as starts take the
// whole processor.
func ask(ctx context.Context, hosts []string) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, host := range hosts {
		group.Go(func() error {
			_, err := firstByte(ctx, host)
			return err
		})
	}
	return group.Wait()
}
