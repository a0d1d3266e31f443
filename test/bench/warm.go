package main

import (
	"context"
	"fmt"
	"time"
)

const warmRounds = 5

// warm compares the throughput of a ready instance through Fairway with that of
// Caddy's own reverse_proxy to the same instance, in the same process.
func warm(ctx context.Context, s *settings, h *host) (err error) {
	if err := needWrk(); err != nil {
		return err
	}
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	// Never frozen: Fairway does not know of the requests of the other side.
	ours := site(siteAddr, service("hello", helloImage, "concurrency 1000", "instances 1 1", "cpu_throttling false"))
	if err := c.load(ctx, c.config(ours)); err != nil {
		return err
	}
	address, err := c.address(ctx)
	if err != nil {
		return err
	}
	if err := c.load(ctx, c.config(ours, site(proxyAddr, "\treverse_proxy "+address+"\n"))); err != nil {
		return err
	}
	length := time.Duration(s.seconds) * time.Second
	var fairway, proxy sides
	for range warmRounds {
		if err := fairway.measure(ctx, "http://"+siteAddr+"/", length); err != nil {
			return err
		}
		if err := proxy.measure(ctx, "http://"+proxyAddr+"/", length); err != nil {
			return err
		}
	}
	fmt.Printf("warm, %d connections, median of %d rounds of %s in turn, the same instance behind both\n", connections, warmRounds, length)
	fmt.Printf("%-14s %12s %14s %8s\n", "", "fairway", "reverse_proxy", "ratio")
	row := func(name string, a, b float64, unit string) {
		fmt.Printf("%-14s %10.0f%-2s %12.0f%-2s %8.2f\n", name, a, unit, b, unit, a/b)
	}
	row("requests/s", median(fairway.rate), median(proxy.rate), "")
	row("p50", median(fairway.p50), median(proxy.p50), "µs")
	row("p99", median(fairway.p99), median(proxy.p99), "µs")
	return nil
}

// address is where the only instance listens.
func (c *caddy) address(ctx context.Context) (string, error) {
	if _, err := firstByte(ctx, siteAddr); err != nil {
		return "", err
	}
	all, err := c.instances(ctx)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("one instance should run; there are %s", count(all))
	}
	return all[0].Address, nil
}

// sides are the measurements of one of the two.
type sides struct{ rate, p50, p99 []float64 }

func (s *sides) measure(ctx context.Context, url string, length time.Duration) error {
	l, err := wrk(ctx, url, length)
	if err != nil {
		return err
	}
	s.rate, s.p50, s.p99 = append(s.rate, l.rate), append(s.p50, l.p50), append(s.p99, l.p99)
	return nil
}
