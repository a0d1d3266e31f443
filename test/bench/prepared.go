package main

import (
	"context"
	"fmt"
	"time"
)

// preparedGoal is what a start from a prepared instance may take of one from
// nothing.
const preparedGoal = 0.3

// prepared compares a request that starts a prepared instance with one that
// starts one from nothing.
func prepared(ctx context.Context, s *settings, h *host) (err error) {
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	const ahead, none = "ahead", "none"
	if err := c.load(ctx, c.config(
		hosted(ahead, helloImage, "idle_timeout 20ms", "prepared 1"),
		hosted(none, helloImage, fromNothing...),
	)); err != nil {
		return err
	}
	// Only what has been ready once is prepared.
	for _, name := range []string{ahead, none} {
		if _, err := firstByte(ctx, hostOf(name)); err != nil {
			return err
		}
	}
	onlyPrepared := func(all []instance) bool { return len(all) == 1 && in(all, ahead, "prepared") == 1 }
	rounds := s.roundsOr(30)
	took := make(map[string][]time.Duration)
	for i := range rounds + 2 {
		for _, name := range []string{ahead, none} {
			if err := c.await(ctx, 30*time.Second, "one instance is prepared and no other is there", onlyPrepared); err != nil {
				return err
			}
			if err := rest(ctx); err != nil {
				return err
			}
			d, err := firstByte(ctx, hostOf(name))
			if err != nil {
				return err
			}
			if i >= 2 { // the first ones warm the caches
				took[name] = append(took[name], d)
			}
		}
	}
	fmt.Printf("start of an instance, request to first byte, %d of each in turn\n", rounds)
	fmt.Printf("%-6s %12s %12s %8s\n", "", "prepared", "from nothing", "ratio")
	for _, q := range []float64{0.5, 0.9, 0.99} {
		a, b := quantile(took[ahead], q), quantile(took[none], q)
		fmt.Printf("p%-5.0f %12s %12s %8.2f\n", q*100, brief(a), brief(b), float64(a)/float64(b))
	}
	var g goals
	ratio := float64(quantile(took[ahead], 0.5)) / float64(quantile(took[none], 0.5))
	g.row("prepared : nothing, p50", fmt.Sprintf("%.2f", ratio), fmt.Sprintf("<= %.1f", preparedGoal), ratio <= preparedGoal)
	return g.err()
}
