// Package simulation compares ways to decide how many instances there are, and
// which of them gets a request, on virtual time: Fairway's, by the code that
// decides on a real host, Knative's, simpler ones, and what somebody could do who
// knew the future.
package simulation

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"time"
)

// Trace is the load of a host.
type Trace struct {
	Name string
	// Length is when the last request comes, or somewhat later.
	Length   time.Duration
	Services []Service
	// Steady is set when the load changes by chance only.
	Steady bool
}

// Service is what requests are for. Its load is open, Arrivals, or closed, Clients.
type Service struct {
	Name        string
	Concurrency int
	Startup     time.Duration // of an instance, until it takes requests
	Arrivals    []Arrival     // in their order
	Clients     []Client
}

// Arrival is a request that comes whatever became of those before it.
type Arrival struct {
	At    time.Duration // since the trace's begin
	Takes time.Duration // in an instance
}

// Client sends a request, waits for its response and then for the rest of Every,
// from From until To. So it sends less when it has to wait.
type Client struct {
	From, To time.Duration
	Every    time.Duration
	Takes    []time.Duration // of each of its requests
}

// random returns numbers that depend on nothing but the name: what is added to
// the traces does not change the others.
func random(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(h.Sum64(), 0))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// dice draws a duration or a number from a distribution.
type dice func() float64

// logNormal has that median, and so has the mean exp(sigma²/2) times that.
func logNormal(r *rand.Rand, median, sigma float64) dice {
	return func() float64 { return median * math.Exp(sigma*r.NormFloat64()) }
}

// pareto is never below least, rarely but then far above it, and never above most.
func pareto(r *rand.Rand, least, alpha, most float64) dice {
	return func() float64 { return min(least*math.Pow(1-r.Float64(), -1/alpha), most) }
}

// exponential makes the gaps of requests that know nothing of one another.
func exponential(r *rand.Rand, mean float64) dice {
	return func() float64 { return mean * r.ExpFloat64() }
}

// renewal makes arrivals with these gaps, in seconds.
func renewal(length time.Duration, gap, takes dice) []Arrival {
	var all []Arrival
	for at := seconds(gap()); at < length; at += seconds(gap()) {
		all = append(all, Arrival{at, seconds(takes())})
	}
	return all
}
