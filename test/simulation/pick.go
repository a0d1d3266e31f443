package simulation

import "math/rand/v2"

// picker chooses the instance that gets the next request, or returns nil when none
// has a free slot.
type picker func(*fleet) *instance

// best is the instance with a free slot that is better than all others, the oldest
// of those that are as good.
func best(f *fleet, better func(i, than *instance) bool) *instance {
	var found *instance
	for _, i := range f.instances {
		if i.ready && !i.leaving && i.inFlight < f.of.Concurrency && (found == nil || better(i, found)) {
			found = i
		}
	}
	return found
}

// awakeFirst lets others decide only between two that are awake or two that are
// frozen.
func awakeFirst(better func(i, than *instance) bool) func(i, than *instance) bool {
	return func(i, than *instance) bool {
		if i.frozen != than.frozen {
			return than.frozen
		}
		return better(i, than)
	}
}

// gathered is as Fairway picks: an instance that is awake, and of several the one that
// has last come to have a free slot. It gets requests until it is full, and the
// others can go idle.
func gathered(f *fleet) *instance {
	return best(f, awakeFirst(func(i, than *instance) bool { return i.opened > than.opened }))
}

// fullest takes the instance with the fewest free slots: best fit.
func fullest(f *fleet) *instance {
	return best(f, awakeFirst(func(i, than *instance) bool {
		return i.inFlight > than.inFlight || i.inFlight == than.inFlight && i.used > than.used
	}))
}

// oldest takes the first that is free, in the order of their starts: first fit.
func oldest(f *fleet) *instance {
	return best(f, func(_, _ *instance) bool { return false })
}

func leastLoaded(f *fleet) *instance {
	return best(f, func(i, than *instance) bool { return i.inFlight < than.inFlight })
}

// roundRobin takes the one that has waited for its turn for longest.
func roundRobin(f *fleet) *instance {
	return best(f, func(i, than *instance) bool { return i.used < than.used })
}

func atRandom(r *rand.Rand) picker {
	return func(f *fleet) *instance {
		seen := 0
		return best(f, func(_, _ *instance) bool {
			seen++
			return r.IntN(seen+1) == 0
		})
	}
}
