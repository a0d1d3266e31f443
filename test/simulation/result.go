package simulation

import (
	"math"
	"slices"
	"time"
)

// Result is what a policy has made of a trace.
type Result struct {
	// Waits are the times from the arrivals of requests until they were in an instance
	// that ran, of those that got one.
	Waits    []time.Duration
	Rejected int
	// Starts counts instances, Freezes how often one was frozen, and Most is how many
	// there were at the same time.
	Starts, Freezes, Most int
	// Existing and Unfrozen are the times of all instances together, from when their
	// starts began. An instance that starts is not frozen.
	Existing, Unfrozen time.Duration
	// Series are the means of successive parts of the trace, each as long as Every.
	Series []Sample
	Every  time.Duration
}

// Sample is the mean number of requests, waiting or in an instance, and of
// instances.
type Sample struct{ Requests, Existing, Unfrozen float64 }

// Wait is what part of the requests did not wait for longer.
func (r *Result) Wait(part float64) time.Duration {
	if len(r.Waits) == 0 {
		return 0
	}
	slices.Sort(r.Waits)
	nth := int(math.Ceil(part * float64(len(r.Waits))))
	return r.Waits[max(nth, 1)-1]
}

// add joins the results of several traces. What there was at a time means nothing
// then.
func (r *Result) add(o *Result) {
	r.Waits = append(r.Waits, o.Waits...)
	r.Rejected += o.Rejected
	r.Starts += o.Starts
	r.Freezes += o.Freezes
	r.Existing += o.Existing
	r.Unfrozen += o.Unfrozen
}
