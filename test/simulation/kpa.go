package simulation

import (
	"math"
	"slices"
	"time"
)

// The settings of Knative's autoscaler that nobody has changed.
// Source: Knative: config-autoscaler.
const (
	kpaTick        = 2 * time.Second
	kpaStable      = 60 // seconds; the stable window
	kpaPanic       = 6  // seconds; the panic window
	kpaPanicAt     = 2.0
	kpaUpRate      = 1000.0
	kpaDownRate    = 2.0
	kpaUtilization = 0.7
	kpaGrace       = 30 * time.Second // to zero
	// kpaFirstUpTo is the concurrency up to which the activator takes the first pod that
	// is free; above that it takes them in turn.
	kpaFirstUpTo = 3
)

// kpa scales as Knative's autoscaler does. Where its description leaves room, it is
// given the benefit of the doubt:
//
//   - Its metrics are exact and a moment old. Really they are scraped from a sample
//     of the pods.
//   - Requests wait in one queue and get the first slot that is free, as if the activator
//     were in their path all the time and alone. Really it is only while the pods have
//     little capacity to spare (target-burst-capacity, 211 requests), and with several
//     activators, or with none, requests are bound to pods that are busy. That is why the
//     excess burst capacity is not calculated here: it could only make things worse.
//   - The first request after none starts one pod. By the formulas it would be two
//     at a concurrency of 1, as 1/0.7 is more than 1.
//   - Pods that are not needed any more are chosen by how little they do, and are gone when
//     their requests are. Kubernetes does not look at requests.
//   - Scaling to a number of pods, and telling that one is ready, take no time.
type kpa struct {
	f     *fleet
	grace time.Duration
	panic panicking
	// ticks is set while pods, or requests without any, are looked at.
	ticks bool
	// unused is since when no pod is wanted; below 0 while some are.
	unused time.Duration
}

// knative is its policy, with the grace from when nothing is wanted to zero.
func knative(grace time.Duration) func(*clock, *meter, Service) server {
	return func(c *clock, m *meter, s Service) server {
		pick := oldest
		if s.Concurrency > kpaFirstUpTo {
			pick = roundRobin
		}
		f := newFleet(c, m, s, pick)
		f.policy = &kpa{f: f, grace: grace, unused: -1}
		return f
	}
}

// panicking is what Knative's autoscaler remembers.
type panicking struct {
	on    bool
	since time.Duration // when the load was last too much
	most  int           // pods that were wanted since it began
}

// desired is how many pods are wanted of those with so many slots each, when so many
// are ready and the mean load of the two windows is this.
// Source: Knative: autoscaler/scaling.
func (p *panicking) desired(now time.Duration, concurrency, ready int, stable, panicked float64) int {
	target := kpaUtilization * float64(concurrency)
	there := math.Max(1, float64(ready))
	low, high := math.Floor(there/kpaDownRate), math.Ceil(there*kpaUpRate)
	wanted := math.Ceil(stable / target)
	soon := math.Ceil(panicked / target)
	switch over := soon/there >= kpaPanicAt; {
	case over && !p.on:
		*p = panicking{on: true, since: now}
	case over:
		p.since = now
	case p.on && now-p.since > kpaStable*time.Second:
		*p = panicking{}
	}
	n := int(min(max(wanted, low), high))
	if !p.on {
		return n
	}
	p.most = max(p.most, n, int(min(max(soon, low), high)))
	return p.most
}

// waits asks for a pod at once if there is none, and none on its way.
func (k *kpa) waits() {
	if k.ticks {
		return
	}
	// A window without any data makes the averages begin anew.
	if k.f.now-k.f.load.at >= kpaStable*time.Second {
		k.f.load.begin(k.f.now)
	}
	k.ticks = true
	k.f.start(1)
	k.f.after(kpaTick-k.f.now%kpaTick, k.tick)
}

func (k *kpa) idles(*instance) {}

func (k *kpa) tick() {
	f := k.f
	f.note()
	ready, starting := f.count()
	want := k.panic.desired(f.now, f.of.Concurrency, ready, f.load.mean(kpaStable), f.load.mean(kpaPanic))
	want = k.reluctant(want, ready+starting)
	if ready+starting < want {
		f.start(want - ready - starting)
	}
	for n := ready + starting; n > want; n-- {
		f.stop(k.dispensable())
	}
	if k.ticks = want > 0; k.ticks {
		f.after(kpaTick, k.tick)
	}
}

// reluctant lets nothing change for the grace when no pod is wanted, which is so
// once a whole stable window was without a request.
// Source: Knative: scale-to-zero-grace-period.
func (k *kpa) reluctant(want, have int) int {
	switch {
	case want > 0:
		k.unused = -1
		return want
	case k.unused < 0:
		k.unused = k.f.now
	}
	if k.f.now-k.unused < k.grace {
		return have
	}
	k.unused = -1
	return 0
}

// dispensable is the pod that goes first: one that still starts, or else the one with
// the fewest requests; of several the youngest.
func (k *kpa) dispensable() *instance {
	var found *instance
	for _, i := range slices.Backward(k.f.instances) {
		switch {
		case i.leaving:
		case found == nil, !i.ready && found.ready, i.ready == found.ready && i.inFlight < found.inFlight:
			found = i
		}
	}
	return found
}
