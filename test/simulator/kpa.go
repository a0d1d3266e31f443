package simulator

import (
	"math"
	"time"
)

// Knative's autoscaler, by the formulas and the defaults of its source, where
// nothing is said of a revision. Where they leave room it has the benefit of the
// doubt: all requests wait in one queue before all pods, so that none waits for a
// busy pod while another is free; a pod that is to go finishes what it has, and an
// idle one goes first; what its parts tell one another takes no time.
// Source: Knative Serving, pkg/autoscaler/scaling.
const (
	kpaTick        = 2 * time.Second
	kpaStable      = 60 // buckets of a second
	kpaPanic       = 6
	kpaPanicAt     = 2.0
	kpaUtilization = 0.7
	kpaUpRate      = 1000.0
	kpaDownRate    = 2.0
	kpaGrace       = 30 * time.Second
	kpaBucket      = time.Second
	kpaLeastTarget = 0.01
)

// kpa is the autoscaler of one revision.
type kpa struct {
	f       *fleet
	target  float64
	buckets []float64 // mean concurrency by second
	sum     float64   // of the present one
	at      time.Duration
	seen    int // requests, then

	panicking bool
	panicAt   time.Duration // when it was last over the threshold
	panicMost int
	zeroAt    time.Duration // since when nothing is wanted; below 0: something is
	ticking   bool
}

func knative(s service) result {
	k := &kpa{f: newFleet(s), target: max(kpaLeastTarget, kpaUtilization*float64(s.concurrency)), zeroAt: -1}
	k.f.changed = k.observe
	k.f.run()
	return k.f.result
}

// observe accounts for the concurrency up to now, queued requests included, and
// wakes the autoscaler when there is no pod: the activator does so at once. It
// starts one; how many more are needed the next tick says.
func (k *kpa) observe() {
	k.account()
	ready, starting, inFlight := k.f.counts()
	k.seen = inFlight + len(k.f.queue)
	if k.seen > 0 && !k.ticking {
		k.ticking = true
		k.buckets, k.sum = nil, 0
		k.f.after(kpaTick, k.tick)
	}
	if ready+starting == 0 && len(k.f.queue) > 0 {
		k.f.start()
		k.zeroAt = -1
	}
}

// account fills the buckets up to now.
func (k *kpa) account() {
	for k.at < k.f.now {
		end := min(k.f.now, k.at.Truncate(kpaBucket)+kpaBucket)
		k.sum += (end - k.at).Seconds() * float64(k.seen)
		k.at = end
		if end%kpaBucket == 0 {
			k.buckets = append(k.buckets, k.sum)
			k.sum = 0
			if len(k.buckets) > kpaStable {
				k.buckets = k.buckets[1:]
			}
		}
	}
}

// mean is that of the last buckets, or of those that there are.
func (k *kpa) mean(buckets int) float64 {
	all := k.buckets[max(0, len(k.buckets)-buckets):]
	if len(all) == 0 {
		return float64(k.seen)
	}
	sum := 0.0
	for _, b := range all {
		sum += b
	}
	return sum / float64(len(all))
}

func (k *kpa) tick() {
	k.account()
	ready, starting, _ := k.f.counts()
	want := k.desired(float64(ready))
	switch have := ready + starting; {
	case want > have:
		k.zeroAt = -1
		for range want - have {
			k.f.start()
		}
	case want == 0 && have > 0:
		if k.zeroAt < 0 {
			k.zeroAt = k.f.now
		}
		k.shrink(1) // the last one stays for the grace period
		if k.f.now-k.zeroAt >= kpaGrace {
			k.shrink(0)
		}
	default:
		k.zeroAt = -1
		k.shrink(want)
	}
	if len(k.f.all) == 0 && k.seen == 0 {
		k.ticking, k.panicking, k.zeroAt = false, false, -1
		return
	}
	k.f.after(kpaTick, k.tick)
}

// desired is the number of pods that are wanted.
func (k *kpa) desired(readyPods float64) int {
	ready := max(1, readyPods)
	stable, panicky := math.Ceil(k.mean(kpaStable)/k.target), math.Ceil(k.mean(kpaPanic)/k.target)
	over := panicky/ready >= kpaPanicAt
	clamp := func(n float64) int {
		return int(min(max(n, math.Floor(ready/kpaDownRate)), math.Ceil(ready*kpaUpRate)))
	}
	s, p := clamp(stable), clamp(panicky)
	switch {
	case over && !k.panicking:
		k.panicking, k.panicAt, k.panicMost = true, k.f.now, 0
	case over:
		k.panicAt = k.f.now
	case k.panicking && k.f.now-k.panicAt >= kpaStable*kpaBucket:
		k.panicking = false
	}
	if !k.panicking {
		return s
	}
	k.panicMost = max(k.panicMost, s, p)
	return k.panicMost
}

// shrink stops pods until there are want: those that start first, then those with
// the least to do.
func (k *kpa) shrink(want int) {
	for {
		ready, starting, _ := k.f.counts()
		if ready+starting <= want {
			return
		}
		var least *instance
		for _, i := range k.f.all {
			if !i.leaving && (least == nil || !i.ready && least.ready || i.ready == least.ready && i.inFlight < least.inFlight) {
				least = i
			}
		}
		k.f.stop(least)
	}
}
