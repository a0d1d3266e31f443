package scaler

import (
	"math"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// leastDoubt is how long the first in the queue must have waited for the mean time
// of a request to be in doubt.
const leastDoubt = 10 * time.Millisecond

const (
	// trendLag is how old the middle of what a trend is seen in is.
	trendLag = 1500 * time.Millisecond
	// keepPart is the part of their slots that the average load has of the instances
	// that are kept for it, where there is no target (Knative: target utilization).
	keepPart = 0.8
)

// busyPart of what busy instances will serve is for those who wait now: the rest
// is for those who come meanwhile.
const busyPart = 0.5

// The reasons of a start.
const (
	whyWaiting = "requests waited"
	whyMinimum = "the minimum"
	whyDeploy  = "its revision is to take requests"
	whyTarget  = "the load is above the scaling target"
	whyUnready = "another instance is not ready"
)

// decide returns what to do about the number of instances: parallel is how many
// start at the same time, and allowed how many may at most where the host's processors
// are used up, see strain.
// Started are as many as make waiting requests wait less, as the minimum lacks, and as
// the load wants that there be slots in reserve; never more than the maximum allows.
//
// Where processors are used up requests take longer, so that all slots are taken and more
// wait. The more instances started, the more would then seem to be wanted, as each start
// takes of what the requests need. So none is started ahead of need, and for those who
// wait one at a time, as slots may be what is lacking nevertheless. The first ones, a
// minimum and a deploy are not held back.
func decide(s instancepool.Snapshot, spec *revisions.Spec, parallel int, allowed func() int) instancepool.Decision {
	d := instancepool.Decision{Keep: keep(s, spec)}
	useful := s.Ready + s.Starting + s.Suspect // a suspect may come back
	alive := useful + s.Unready                // and so may these, but nobody knows when
	want := func(n int, why string) {
		if n > d.Start {
			d.Start, d.Reason = n, why
		}
	}
	n, again := forWaiting(s, parallel)
	if n > 0 && useful == 0 {
		n = max(n, spec.Scaling.Activation)
	}
	d.Again = again
	bounded := func(n, least int) int {
		if n <= 0 || useful == 0 {
			return n
		}
		most := max(least, allowed()) - s.Starting
		if n > most {
			d.Again = strainOver
		}
		return min(n, most)
	}
	want(bounded(n, 1), whyWaiting)
	want(s.Min-s.Ready-s.Starting-s.Unready, whyMinimum)
	want(s.Floor-s.Ready-s.Starting, whyDeploy)
	load := ahead(s, spec)
	want(bounded(load-alive, 0), whyTarget)
	want(bounded(load-useful, 0), whyUnready)
	if left := s.Max - alive; s.Max != 0 && (d.Start > left || left <= 0) {
		d.Start, d.Again = max(0, left), 0 // there is nothing to ask again
	}
	if d.Start == 0 {
		d.Reason = ""
	}
	return d
}

// forWaiting returns how many instances make those wait less who are in the queue.
// An instance that would be ready only when all of them have got a slot that
// others have left would come too late. again is when that is to be looked at
// again, as it relies on the mean time of a request.
func forWaiting(s instancepool.Snapshot, parallel int) (n int, again time.Duration) {
	missing := s.Waiting - s.Free - s.Starting*s.Concurrency
	if missing <= 0 {
		return 0, 0
	}
	all := ceil(float64(missing) / float64(s.Concurrency))
	if s.Held <= 0 || s.Startup <= 0 {
		return all, 0
	}
	// The queue's own wait tells when the requests of now are not like the mean: then
	// more are started, as many as there are at most at a time.
	if s.InFlight > 0 {
		expected := time.Duration(float64(s.Waiting) * float64(s.Held) / float64(s.InFlight))
		doubt := min(max(2*expected, leastDoubt), s.Startup)
		if s.Oldest >= doubt {
			return min(all, max(0, max(1, s.Ready)-s.Starting)), s.Startup
		}
		again = doubt - s.Oldest
	}
	held, turn := s.Held.Seconds(), s.Startup.Seconds()
	perSecond := busyPart * float64(s.InFlight) / held
	// Those that start already are taken to be half done.
	slots, since := float64(s.Starting*s.Concurrency), turn/2
	for at := turn; n < all; at += turn {
		served := float64(s.Free) + perSecond*at + slots
		if slots > 0 {
			served += slots * (at - since) / held
		}
		left := float64(s.Waiting) - served
		if left <= 0 {
			break
		}
		more := min(parallel, ceil(left/float64(s.Concurrency)), all-n)
		n += more
		// What has been ready for longer has served more: the sum of the slots keeps
		// the mean time since when.
		added := float64(more * s.Concurrency)
		since = (since*slots + at*added) / (slots + added)
		slots += added
	}
	return n, again
}

// ahead is how many instances there should be for the load to be within the
// targets: that of the last minute, unless less than that is going on now. A load
// that grows is looked at as what it will be when a start that begins now is done.
// Source: Cloud Run: about instance autoscaling.
func ahead(s instancepool.Snapshot, spec *revisions.Spec) int {
	if s.InFlight+s.Waiting == 0 {
		return 0
	}
	var n int
	if t := spec.Scaling.Concurrency; t > 0 {
		// Those that wait are not counted: what starts for them makes them wait longer
		// where the CPU is short, and would ask for ever more.
		n = ceil(min(s.Load[0], float64(s.InFlight)) / t)
	} else {
		// Clients that wait for their answers before they ask again make a queue that
		// never gets long enough for a start to be sooner: one that stays is a load.
		n = ceil(min(s.Recent, float64(s.InFlight+s.Waiting)) / float64(spec.Concurrency))
	}
	if s.Growth > 0 {
		// What is started now is there after a start: by then it is to be enough, and
		// the same again for the starts that follow. A queue grows too, and more by what
		// starts: no more than twice what is being served is believed.
		soon := min(s.Recent+s.Growth*(trendLag+2*s.Startup).Seconds(), 2*float64(s.InFlight))
		n = max(n, ceil(soon/float64(spec.Concurrency)))
	}
	return max(n, forCPU(s, spec))
}

// keep is how many instances the load of late needs on the average.
func keep(s instancepool.Snapshot, spec *revisions.Spec) int {
	load := s.Load[0]
	if spec.Scaling.Window > 2*time.Minute {
		load = max(load, s.Load[1])
	}
	per := spec.Scaling.Concurrency
	if per == 0 {
		per = keepPart * float64(spec.Concurrency)
	}
	return max(s.Min, ceil(load/per), forCPU(s, spec))
}

// forCPU is how many instances there should be for the CPU that the load has used in
// the last minute to be within its target.
func forCPU(s instancepool.Snapshot, spec *revisions.Spec) int {
	if spec.Scaling.CPU == 0 || spec.CPU == 0 {
		return 0
	}
	return ceil(s.CPU / (spec.Scaling.CPU * spec.CPU))
}

func ceil(x float64) int { return int(math.Ceil(x - 1e-9)) }
