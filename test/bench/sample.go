package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// sampleEvery is how often it is looked at what goes on.
const sampleEvery = 250 * time.Millisecond

// sample is what there was at one moment of a load.
type sample struct {
	at   time.Duration // since the load's begin
	rate float64       // answers a second since the sample before
	// instances have been started, and of them are so many frozen; starting are not
	// there yet, and most of them may only wait for their turn.
	instances, frozen, starting int
}

// sample samples until ctx ends.
func (c *caddy) sample(ctx context.Context, begin time.Time, answered *atomic.Int64) ([]sample, error) {
	samples := []sample{{}}
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	before, last := int64(0), time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return samples, nil
		case <-tick.C:
		}
		all, err := c.instances(ctx)
		if ctx.Err() != nil {
			return samples, nil
		}
		if err != nil {
			return nil, fmt.Errorf("sampling: %w", err)
		}
		now, at := answered.Load(), time.Since(begin)
		samples = append(samples, sample{
			at: at, rate: float64(now-before) / (at - last).Seconds(),
			instances: len(all) - in(all, "", "prepared") - in(all, "", "starting"),
			frozen:    in(all, "", "frozen"), starting: in(all, "", "starting"),
		})
		before, last = now, at
	}
}

// most is the highest of what f counts.
func most(samples []sample, f func(sample) int) int {
	highest := 0
	for _, s := range samples {
		highest = max(highest, f(s))
	}
	return highest
}

// seconds is the sum of what f counts, over the time from one moment to another.
func seconds(samples []sample, from, to time.Duration, f func(sample) int) float64 {
	sum := 0.0
	for i := 1; i < len(samples); i++ {
		begin, end := max(samples[i-1].at, from), min(samples[i].at, to)
		if end > begin {
			sum += float64(f(samples[i])) * (end - begin).Seconds()
		}
	}
	return sum
}

func started(s sample) int  { return s.instances }
func awake(s sample) int    { return s.instances - s.frozen }
func starting(s sample) int { return s.starting }
func wanted(s sample) int   { return s.instances + s.starting }
