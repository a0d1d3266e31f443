package instancepool

import (
	"sync/atomic"
	"time"
)

// Startups knows how long the instances of a service take to start, in the mean
// of the last few. The zero value knows nothing. It is safe for concurrent use.
type Startups struct{ mean atomic.Int64 }

// startupWeight is what the last start counts in the mean.
const startupWeight = 0.3

// Mean is 0 while no start has succeeded.
func (s *Startups) Mean() time.Duration { return time.Duration(s.mean.Load()) }

func (s *Startups) add(took time.Duration) {
	for {
		before := s.mean.Load()
		mean := int64(max(took, 1))
		if before > 0 {
			mean = before + int64(startupWeight*float64(mean-before))
		}
		if s.mean.CompareAndSwap(before, mean) {
			return
		}
	}
}
