package instancepool

import (
	"math"
	"time"
)

// The parts that the averages of a load are kept in.
const (
	shortParts = 60 // of a second: the last minute
	longParts  = 60 // of ten seconds: the last ten minutes
	// trendParts is what a trend is seen over, and against the same before and the
	// same before that.
	trendParts = 3
	// meanOver is about how many requests the mean time of one is taken over.
	meanOver = 200
)

// load is what is known of the requests that a pool has and has had: it says how
// many instances they need, and how long a slot is held. The pool's lock guards
// it.
type load struct {
	at    time.Time // of the last change
	short window
	long  window
	// busy is the time that slots have been held since ever.
	busy time.Duration
	// held is the time that slots were held, by done requests and those that go on;
	// both are halved from time to time, so that what was long ago fades.
	held time.Duration
	done int
}

func newLoad(now time.Time) load {
	return load{at: now, short: newWindow(now, time.Second, shortParts), long: newWindow(now, 10*time.Second, longParts)}
}

// advance notes that until now so many requests were in flight and so many
// waited. It is called before either changes.
func (l *load) advance(now time.Time, inFlight, waiting int) {
	dt := now.Sub(l.at)
	if dt <= 0 {
		return
	}
	l.at = now
	l.busy += dt * time.Duration(inFlight)
	l.held += dt * time.Duration(inFlight)
	l.short.add(now, dt, inFlight+waiting)
	l.long.add(now, dt, inFlight+waiting)
}

// finish notes the end of a request.
func (l *load) finish() {
	if l.done++; l.done >= 2*meanOver {
		l.done /= 2
		l.held /= 2
	}
}

// trend is the mean number of requests of the last few seconds, and by how much it
// grows per second, as far as that is more than chance and not a step.
func (l *load) trend() (now, growth float64) {
	now = l.short.lastParts(trendParts, 0)
	before, earlier := l.short.lastParts(trendParts, trendParts), l.short.lastParts(trendParts, 2*trendParts)
	grown := min(now-before, before-earlier)
	if grown <= math.Sqrt(before+1) {
		return now, 0
	}
	// After a step it has grown too, but does so no longer.
	if growth = grown / trendParts; l.short.lastParts(2, 0)-l.short.lastParts(2, 2) < growth {
		return now, 0
	}
	return now, growth
}

// service is the mean time that a request holds its slot, or 0 while no request
// has ended.
func (l *load) service() time.Duration {
	if l.done == 0 {
		return 0
	}
	return l.held / time.Duration(l.done)
}

// window is the average of a number over the last parts of time.
type window struct {
	began time.Time // when it was first known
	part  time.Duration
	parts int
	sums  []float64 // number × seconds, by part; a ring. Nil while it has always been 0
	last  int64     // the part that is being filled, counted from began
	total float64
}

func newWindow(now time.Time, part time.Duration, parts int) window {
	return window{began: now, part: part, parts: parts}
}

// add notes that the number was n in the time dt before now.
func (w *window) add(now time.Time, dt time.Duration, n int) {
	to := now.Sub(w.began)
	from := max(to-dt, to-w.part*time.Duration(w.parts))
	if w.sums == nil && n > 0 {
		w.sums = make([]float64, w.parts)
	}
	for w.sums != nil && from < to {
		part := int64(from / w.part)
		w.turn(part)
		end := min(to, time.Duration(part+1)*w.part)
		sum := (end - from).Seconds() * float64(n)
		w.sums[part%int64(w.parts)] += sum
		w.total += sum
		from = end
	}
	w.turn(int64(to / w.part))
}

// turn empties the parts up to part, which are those of long ago.
func (w *window) turn(part int64) {
	if part-w.last >= int64(w.parts) || w.sums == nil {
		clear(w.sums)
		w.total, w.last = 0, part
	}
	for w.last < part {
		w.last++
		at := &w.sums[w.last%int64(w.parts)]
		w.total -= *at
		*at = 0
	}
}

// lastParts is the average of n whole parts, of which so many are younger.
func (w *window) lastParts(n, younger int) float64 {
	sum := 0.0
	for i := range n {
		if part := w.last - int64(younger+i) - 1; part >= 0 && w.sums != nil {
			sum += w.sums[part%int64(w.parts)]
		}
	}
	return sum / (time.Duration(n) * w.part).Seconds()
}

// mean is the average of all parts. Before it was known the number was zero, so
// that a burst does not pass for a load.
func (w *window) mean() float64 {
	return max(0, w.total) / (w.part * time.Duration(w.parts)).Seconds()
}
