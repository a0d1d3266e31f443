package instancepool

import (
	"sync/atomic"
	"time"
)

// Startups knows how long the instances of a service take to start, in the mean
// of the last few. The zero value knows nothing. It is safe for concurrent use.
type Startups struct {
	mean     atomic.Int64
	prepared atomic.Int64 // the same of those that were prepared
}

// startupWeight is what the last start counts in the mean.
const startupWeight = 0.3

// Mean is that of starts from nothing; 0 while none has succeeded.
func (s *Startups) Mean() time.Duration { return time.Duration(s.mean.Load()) }

// next is what the next start takes, from an instance that is prepared or not.
func (s *Startups) next(prepared bool) time.Duration {
	if mean := s.prepared.Load(); prepared && mean > 0 {
		return time.Duration(mean)
	}
	return s.Mean()
}

func (s *Startups) add(took time.Duration, prepared bool) {
	of := &s.mean
	if prepared {
		of = &s.prepared
	}
	for {
		before := of.Load()
		mean := int64(max(took, 1))
		if before > 0 {
			mean = before + int64(startupWeight*float64(mean-before))
		}
		if of.CompareAndSwap(before, mean) {
			return
		}
	}
}
