package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// load is what clients send to the site that each have one request in flight at
// most, at times of their own: they come one by one over the ramp, and stop all
// together after the hold.
type load struct {
	clients    int
	rate       float64 // requests a second of each client
	ramp, hold time.Duration
	path       string
	// answered counts the answers while the load runs.
	answered atomic.Int64
}

// request is one that was sent.
type request struct {
	at   time.Duration // since the load's begin
	took time.Duration
	// late is how long it was sent after it could have been: after its time, and
	// after the answer to the one before.
	late time.Duration
	err  error
}

// outcome is what became of a load.
type outcome struct {
	// offered is how many requests had their time before the end. Those whose time
	// came while the one before was not answered were sent after that, or never when
	// the end was there first.
	offered  int
	requests []request
}

// run sends the load.
func (l *load) run(ctx context.Context, begin time.Time) (outcome, error) {
	// Random, as clients that come at even distances would send in the same moments
	// later; but the same in each run.
	phases := rand.New(rand.NewPCG(1, 2))
	period := time.Duration(float64(time.Second) / l.rate)
	outcomes := make([]outcome, l.clients)
	var group sync.WaitGroup
	for i := range outcomes {
		first := l.ramp*time.Duration(i)/time.Duration(l.clients) + time.Duration(phases.Int64N(int64(period)))
		group.Go(func() { outcomes[i] = l.client(ctx, begin, first, period) })
	}
	group.Wait()
	var all outcome
	for _, o := range outcomes {
		all.offered += o.offered
		all.requests = append(all.requests, o.requests...)
	}
	if len(all.requests) == 0 {
		return all, errors.Join(errors.New("not one request was sent"), ctx.Err())
	}
	return all, ctx.Err()
}

// client sends the requests of one client, of which the first is due so long after
// the begin. One that is late is sent as soon as the one before is answered.
func (l *load) client(ctx context.Context, begin time.Time, first, period time.Duration) (o outcome) {
	var c *conn
	drop := func() {
		if c != nil {
			_ = c.Close()
			c = nil
		}
	}
	defer drop()
	var answered time.Duration
	for due := first; due < l.ramp+l.hold; due += period {
		o.offered++
		var err error
		if c == nil {
			c, err = dialSite(ctx)
		}
		if pause(ctx, time.Until(begin.Add(due))) != nil {
			return o
		}
		r := request{at: time.Since(begin), err: err}
		if r.at >= l.ramp+l.hold {
			continue
		}
		r.late = r.at - max(due, answered)
		if err == nil {
			r.err = c.get(siteAddr, l.path)
		}
		answered = time.Since(begin)
		r.took = answered - r.at
		if r.err != nil {
			drop()
		} else {
			l.answered.Add(1)
		}
		o.requests = append(o.requests, r)
	}
	return o
}
