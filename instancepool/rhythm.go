package instancepool

import (
	"math"
	"sync"
	"time"
)

const (
	// A pause between two requests counts from restMin on: shorter ones say nothing
	// about whether an instance is worth its keep.
	restMin = 5 * time.Second
	restMax = 8 * 24 * time.Hour
	// restRatio is by how much the classes of pauses differ.
	restRatio = 1.02
	// restsKept is how many pauses count; older ones fade.
	restsKept = 200
	// A pause is expected when so many like it were seen, and they are at least this
	// part of all that had lasted as long.
	rhythmSeen  = 3
	rhythmShare = 0.5
	// That a pause will not end in time is believed when so many have lasted as long,
	// and at most this part of them ended in time.
	vainSeen  = 4
	vainShare = 0.05
)

var restClasses = restClass(restMax) + 1

// Rhythm learns how long the pauses between a service's requests are, as a
// histogram, and from it when the next request is due. The zero value knows
// nothing. It is safe for concurrent use.
// Source: Shahrad et al., "Serverless in the Wild" (2020): hybrid histogram
// policy.
type Rhythm struct {
	mu    sync.Mutex // guards all below
	seen  []uint16   // pauses by class; nil while there were none
	total int
}

// Rest is when a request is due, counted from the end of the one before.
type Rest struct {
	// From and To are where the pauses lie that are expected.
	From, To time.Duration
	// Seen is how many such there were, Of how many lasted at least as long as the
	// present one has.
	Seen, Of int
}

func restClass(d time.Duration) int {
	return int(math.Log(float64(d)/float64(restMin)) / math.Log(restRatio))
}

func restAt(class int) time.Duration {
	return time.Duration(float64(restMin) * math.Pow(restRatio, float64(class)))
}

// Note learns of a pause.
func (r *Rhythm) Note(pause time.Duration) {
	if pause < restMin || pause > restMax {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = make([]uint16, restClasses)
	}
	r.seen[restClass(pause)]++
	if r.total++; r.total >= restsKept {
		r.total = 0
		for i := range r.seen {
			r.seen[i] /= 2
			r.total += int(r.seen[i])
		}
	}
}

// InVain reports whether, after a pause that has lasted so long, hardly ever a
// request has come by a time.
func (r *Rhythm) InVain(lasted, by time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total < vainSeen {
		return false
	}
	inTime, all, last := 0, 0, restClass(by)
	for class := r.after(lasted); class < len(r.seen); class++ {
		n := int(r.seen[class])
		all += n
		if class <= last {
			inTime += n
		}
	}
	return all >= vainSeen && float64(inTime) <= vainShare*float64(all)
}

// VainAt is when, in a pause that has lasted so long, InVain becomes true of it, or
// false when it does not.
func (r *Rhythm) VainAt(lasted, by time.Duration) (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total < vainSeen {
		return 0, false
	}
	inTime, all, last := 0, 0, restClass(by)
	first, from := r.after(lasted), -1
	for class := len(r.seen) - 1; class >= first; class-- {
		n := int(r.seen[class])
		all += n
		if class <= last {
			inTime += n
		}
		if all >= vainSeen && float64(inTime) <= vainShare*float64(all) {
			from = class
		}
	}
	switch {
	case from < 0:
		return 0, false
	case from == first:
		return lasted, true
	}
	return restAt(from - 1), true
}

// after is the class of the pauses that are longer than one that has lasted so
// long. The caller holds mu.
func (r *Rhythm) after(lasted time.Duration) int {
	if lasted < restMin {
		return 0
	}
	return restClass(lasted) + 1
}

// Next tells when the next request is due after a pause that has lasted so long
// already, or false when nothing is known.
func (r *Rhythm) Next(lasted time.Duration) (Rest, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total < rhythmSeen {
		return Rest{}, false
	}
	var rest Rest
	from, to, gap := -1, -1, 0
	for class := r.after(lasted); class < len(r.seen); class++ {
		n := int(r.seen[class])
		rest.Of += n
		switch {
		case from >= 0 && gap > 1: // the next ones are of another kind
		case n > 0:
			if from < 0 {
				from = class
			}
			to, gap = class, 0
			rest.Seen += n
		case from >= 0:
			gap++
		}
	}
	if rest.Seen < rhythmSeen || float64(rest.Seen) < rhythmShare*float64(rest.Of) {
		return Rest{}, false
	}
	rest.From, rest.To = restAt(from), restAt(to+1)
	return rest, true
}
