package scaler

import (
	"math"
	"sync"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

const (
	// strainedPart of the host's processors at work means that they are used up, and
	// relievedPart or more that they still are.
	strainedPart, relievedPart = 0.95, 0.85
	// strainOver is what that is seen over at least.
	strainOver = 500 * time.Millisecond
	// strainLasts is after how long without a question nothing is known any more.
	strainLasts = 2 * measureEvery
)

// strain bounds how many instances of a service may start at the same time where the
// host's processors are used up: what starts takes from what runs. Afterwards the bound
// is doubled until it is none, or they are used up again. Nobody watches the processors
// while no instance is in use.
type strain struct {
	worked func() (busy, idle time.Duration, err error) // nil if the engine does not know

	mu         sync.Mutex // guards all below
	at         time.Time  // of the last look; zero before the first
	busy, idle time.Duration
	most       int           // how many may start; 0 while the processors are used up
	lasted     time.Duration // for how long they were
}

func newStrain(engine instancepool.Runtime) *strain {
	s := &strain{most: math.MaxInt}
	if g, ok := engine.(instancepool.Gauger); ok {
		s.worked = g.Worked
	}
	return s
}

// allows is how many instances of a service may start at the same time without need; 0
// while the host's processors are used up. The first answer in a long time is that any
// number may.
func (s *strain) allows() int {
	if s.worked == nil {
		return math.MaxInt
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	since := now.Sub(s.at)
	if since < strainOver {
		return s.most
	}
	s.at = now
	busy, idle, err := s.worked()
	if err != nil {
		s.most = math.MaxInt // nothing is held back for what is not known
		return s.most
	}
	worked, had := busy-s.busy, busy-s.busy+idle-s.idle
	s.busy, s.idle = busy, idle
	part := worked.Seconds() / max(had.Seconds(), 1e-3)
	switch {
	case since > strainLasts:
		s.most = math.MaxInt
	case part >= strainedPart, s.most == 0 && part >= relievedPart:
		s.most = 0
		s.lasted += since
	default:
		s.most = max(1, s.most, 2*s.most) // which overflows in the end
	}
	return s.most
}

// total is for how long the processors were found used up, since ever.
func (s *strain) total() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lasted
}
