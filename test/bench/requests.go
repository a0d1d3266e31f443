package main

import (
	"context"
	"fmt"
	"time"
)

const (
	// requestsGoal is what many requests may leave in the heap.
	requestsGoal = 5 << 20
	// requestsRound is how long wrk runs at a time.
	requestsRound = 10 * time.Second
)

// manyRequests sends many requests to one warm service and compares what is in
// the heap before and after.
func manyRequests(ctx context.Context, s *settings, h *host) (err error) {
	if err := needWrk(); err != nil {
		return err
	}
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	if err := c.load(ctx, c.config(site(siteAddr, service("hello", helloImage, "concurrency 1000", "instances 1 1")))); err != nil {
		return err
	}
	// The same load before the first look, as connections have buffers that stay.
	if _, err := c.loadFor(ctx, 5*time.Second); err != nil {
		return err
	}
	before, err := c.heapAtRest(ctx)
	if err != nil {
		return err
	}
	sent, began := 0, time.Now()
	for length := requestsRound; sent < s.requests; {
		l, err := c.loadFor(ctx, length)
		if err != nil {
			return err
		}
		sent += l.requests
		left := time.Duration(float64(s.requests-sent) / l.rate * float64(time.Second))
		length = min(requestsRound, left.Truncate(time.Second)+time.Second)
	}
	took := time.Since(began)
	after, err := c.heapAtRest(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("heap in use after %d requests in %s, one warm service, %d connections\n", sent, took.Round(time.Second), connections)
	fmt.Printf("before %.1f MB, after %.1f MB\n", megabytes(before), megabytes(after))
	var g goals
	g.row("heap, after - before", fmt.Sprintf("%+.2f MB", megabytes(after-before)), fmt.Sprintf("< %.0f MB", megabytes(requestsGoal)), after-before < requestsGoal)
	return g.err()
}

func (c *caddy) loadFor(ctx context.Context, length time.Duration) (wrkLoad, error) {
	return wrk(ctx, "http://"+siteAddr+"/", length)
}

// heapAtRest is the heap when the clients' connections are gone.
func (c *caddy) heapAtRest(ctx context.Context) (int64, error) {
	if err := pause(ctx, 2*time.Second); err != nil {
		return 0, err
	}
	return c.heap(ctx)
}

func megabytes(n int64) float64 { return float64(n) / (1 << 20) }
