package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// quantile returns the q-th part of durations, q from 0 to 1.
func quantile(all []time.Duration, q float64) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// brief is a duration for a table.
func brief(d time.Duration) string {
	if d >= time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}

// goals prints what there is a goal for, and remembers whether one is missed.
type goals struct{ missed bool }

func (g *goals) row(name, value, bound string, met bool) {
	verdict := "met"
	if !met {
		verdict, g.missed = "MISSED", true
	}
	fmt.Printf("%-24s %28s   %-10s %s\n", name, value, bound, verdict)
}

func (g *goals) err() error {
	if g.missed {
		return errors.New("a goal is missed")
	}
	return nil
}
