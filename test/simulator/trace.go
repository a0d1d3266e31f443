// Package simulator compares ways to scale on virtual time: Fairway's, by the
// very code that decides on a real host, with Knative's and with simpler ones, and
// with what somebody could do who knew the future.
package simulator

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// request is one request of a trace.
type request struct {
	at    time.Duration // after the trace's begin
	takes time.Duration // in an instance
}

// service is what the requests are for.
type service struct {
	name        string
	concurrency int
	startup     time.Duration // of an instance
	requests    []request     // in the order of their arrival
}

// trace is a load.
type trace struct {
	name     string
	services []service
	// steady is set when the load does not change but by chance.
	steady bool
}

// traces returns the set that policies are compared on. It was chosen before any
// result was seen, after what a host with a few busy and many quiet services has
// to do: a load that stays (three concurrencies), one that swells and ebbs, one
// with bursts, one of requests that take very differently long, sixty services
// that are asked now and then, as most are in the published traces of Azure
// Functions, twenty that are called by a clock, and the case study of Google's
// page about concurrency. Starts take 1 s where nothing else is said, which is
// what an app in a runtime such as Node's or Python's takes.
func traces() []trace {
	return []trace{
		steady("steady-1", 1, 20, 250*time.Millisecond, 20*time.Minute),
		steady("steady-10", 10, 40, 500*time.Millisecond, 20*time.Minute),
		steady("steady-80", 80, 200, 500*time.Millisecond, 10*time.Minute),
		diurnal(),
		spiky(),
		heavyTailed(),
		sparse(),
		rhythm(),
		caseStudy("case-1", 1),
		caseStudy("case-80", 80),
	}
}

// random is the same at each run, and another for each name.
func random(name string) *rand.Rand {
	seed := uint64(14695981039346656037)
	for _, b := range []byte(name) {
		seed = (seed ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // it is to be the same each time
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// poisson calls f at the arrivals of a load whose rate per second changes.
func poisson(r *rand.Rand, length time.Duration, most float64, rate func(at time.Duration) float64, f func(at time.Duration)) {
	for at := seconds(r.ExpFloat64() / most); at < length; at += seconds(r.ExpFloat64() / most) {
		if r.Float64()*most < rate(at) {
			f(at)
		}
	}
}

// logNormal has that median; a sigma of 0.5 is a common web request's.
func logNormal(r *rand.Rand, median time.Duration, sigma float64) time.Duration {
	return time.Duration(float64(median) * math.Exp(sigma*r.NormFloat64()))
}

func steady(name string, concurrency int, rate float64, takes, length time.Duration) trace {
	r := random(name)
	s := service{name: name, concurrency: concurrency, startup: time.Second}
	poisson(r, length, rate, func(time.Duration) float64 { return rate }, func(at time.Duration) {
		s.requests = append(s.requests, request{at, seconds(takes.Seconds() * r.ExpFloat64())})
	})
	return trace{name: name, services: []service{s}, steady: true}
}

// diurnal is a day in an hour: nothing at its ends, 60 requests a second at noon.
func diurnal() trace {
	r := random("diurnal")
	s := service{name: "diurnal", concurrency: 10, startup: time.Second}
	const length, most = time.Hour, 60
	rate := func(at time.Duration) float64 {
		return most * (1 - math.Cos(2*math.Pi*float64(at)/float64(length))) / 2
	}
	poisson(r, length, most, rate, func(at time.Duration) {
		s.requests = append(s.requests, request{at, logNormal(r, 250*time.Millisecond, 0.5)})
	})
	return trace{name: "diurnal", services: []service{s}}
}

// spiky has two requests a second, and 200 within two seconds every three minutes
// or so.
func spiky() trace {
	r := random("spiky")
	s := service{name: "spiky", concurrency: 10, startup: time.Second}
	add := func(at time.Duration) {
		s.requests = append(s.requests, request{at, logNormal(r, 180*time.Millisecond, 0.5)})
	}
	const length = time.Hour
	poisson(r, length, 2, func(time.Duration) float64 { return 2 }, add)
	poisson(r, length, 1./180, func(time.Duration) float64 { return 1 }, func(at time.Duration) {
		for range 200 {
			add(at + seconds(2*r.Float64()))
		}
	})
	return trace{name: "spiky", services: []service{sorted(s)}}
}

// heavyTailed has pauses and requests of very different lengths.
func heavyTailed() trace {
	r := random("heavy-tailed")
	s := service{name: "heavy", concurrency: 1, startup: time.Second}
	for at := time.Duration(0); at < time.Hour; {
		s.requests = append(s.requests, request{at, min(logNormal(r, 200*time.Millisecond, 1.5), time.Minute)})
		at += min(seconds(0.15*math.Pow(r.Float64(), -1/1.3)), 10*time.Minute) // Pareto
	}
	return trace{name: "heavy-tailed", services: []service{s}}
}

// sparse are sixty services that somebody uses for a moment, every few minutes or
// hours.
func sparse() trace {
	t := trace{name: "sparse"}
	for n := range 60 {
		r := random(fmt.Sprint("sparse-", n))
		s := service{name: fmt.Sprint("sparse-", n), concurrency: 80, startup: time.Second}
		median := logNormal(r, 10*time.Minute, 1) // of this service's pauses
		for at := seconds(600 * r.Float64()); at < 2*time.Hour; at += logNormal(r, median, 1) {
			for range 1 + r.IntN(8) { // pages of a visit
				s.requests = append(s.requests, request{at, logNormal(r, 100*time.Millisecond, 0.7)})
				at += seconds(5 * r.ExpFloat64())
			}
		}
		t.services = append(t.services, sorted(s))
	}
	return t
}

// rhythm are twenty services that are called by a clock, each minute to each
// quarter of an hour.
func rhythm() trace {
	t := trace{name: "rhythm"}
	for n := range 20 {
		r := random(fmt.Sprint("rhythm-", n))
		s := service{name: fmt.Sprint("rhythm-", n), concurrency: 80, startup: time.Second}
		period := []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute}[n%4]
		for at := seconds(period.Seconds() * r.Float64()); at < 4*time.Hour; at += period {
			late := seconds(min(2, 0.3*r.ExpFloat64())) // a scheduler's delay
			s.requests = append(s.requests, request{at + late, logNormal(r, time.Second, 0.5)})
		}
		t.services = append(t.services, s)
	}
	return t
}

// caseStudy is that of Google's page: 400 clients that make three requests a second
// each, which begin within half a minute and go on for two.
// Source: Cloud Run: maximum concurrent requests per instance.
func caseStudy(name string, concurrency int) trace {
	r := random(name)
	s := service{name: name, concurrency: concurrency, startup: time.Second}
	const every = time.Second / 3
	for client := range 400 {
		first := time.Duration(client) * 30 * time.Second / 400
		for at := first; at < 150*time.Second; at += every {
			jitter := seconds(0.02 * r.Float64())
			s.requests = append(s.requests, request{at + jitter, min(logNormal(r, 190*time.Millisecond, 0.25), every)})
		}
	}
	return trace{name: name, services: []service{sorted(s)}}
}

func sorted(s service) service {
	slices.SortStableFunc(s.requests, func(a, b request) int { return cmp.Compare(a.at, b.at) })
	return s
}
