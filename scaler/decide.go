package scaler

import "github.com/fairway-run/fairway/instancepool"

// decide returns how many instances to start now: as many as the waiting
// requests need beyond the slots that are free or on their way, and as many as
// the minimum lacks, never more than the maximum allows.
func decide(s instancepool.Snapshot) int {
	missing := s.Waiting - s.Free - s.Starting*s.Concurrency
	n := 0
	if missing > 0 {
		n = (missing + s.Concurrency - 1) / s.Concurrency
	}
	n = max(n, s.Min-s.Ready-s.Starting)
	if s.Max > 0 {
		n = min(n, s.Max-s.Ready-s.Starting-s.Suspect) // a suspect may come back
	}
	return max(n, 0)
}
