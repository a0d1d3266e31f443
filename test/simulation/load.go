package simulation

import "time"

const (
	loadPart = time.Second
	// loadKept is how many whole seconds can be asked for; loadRing has room for the
	// one that goes on as well.
	loadKept = 60
	loadRing = loadKept + 1
)

// load keeps the mean number of requests of each second of the last minute. The zero
// value has seen nothing yet.
type load struct {
	parts [loadRing]float64
	at    time.Duration // what was before is in parts
	first int64         // the part in which the number was first known
	known bool
}

// begin forgets what was before now.
func (l *load) begin(now time.Duration) {
	*l = load{at: now, first: int64(now / loadPart), known: true}
}

// note accounts for the time until now, in which the number was n.
func (l *load) note(now time.Duration, n int) {
	if !l.known {
		l.begin(now)
	}
	if kept := (now/loadPart - loadRing) * loadPart; l.at < kept {
		l.at = kept // what was before that is overwritten
	}
	for l.at < now {
		part := int64(l.at / loadPart)
		at := &l.parts[part%loadRing]
		if l.at%loadPart == 0 {
			*at = 0
		}
		until := min(now, time.Duration(part+1)*loadPart)
		*at += (until - l.at).Seconds() * float64(n)
		l.at = until
	}
}

// last is the sum over the last n seconds that are over, of which so many were
// known.
func (l *load) last(n int) (sum float64, known int) {
	end := int64(l.at / loadPart)
	for part := max(end-int64(n), l.first); part < end; part++ {
		sum += l.parts[part%loadRing]
		known++
	}
	return sum, known
}

// mean is that of the last n seconds, or of as many as are known.
func (l *load) mean(n int) float64 {
	sum, known := l.last(n)
	if known == 0 {
		return 0
	}
	return sum / float64(known)
}
