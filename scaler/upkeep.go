package scaler

import (
	"context"
	"slices"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

const (
	// measureEvery is how often it is read what instances use that have the CPU.
	measureEvery = 5 * time.Second
	// prepareTimeout bounds the preparation of one instance.
	prepareTimeout = time.Minute
	// quietEvery is how often it is looked at whether the host is quiet enough to
	// prepare an instance.
	quietEvery = 100 * time.Millisecond
)

// stir has the instances of a pool measured from time to time, until none of them
// has the CPU.
func (s *Scaler) stir(p *instancepool.Pool) {
	if _, known := s.active.LoadOrStore(p, true); known {
		return
	}
	select {
	case s.stirred <- struct{}{}:
	default:
	}
}

// measureLoop measures what instances use, and the host. While all of them are frozen, or there
// are none, it does nothing.
func (s *Scaler) measureLoop() {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for {
		tick.Stop()
		select {
		case <-s.stirred:
		case <-s.ctx.Done():
			return
		}
		tick.Reset(measureEvery)
		for busy := true; busy; {
			select {
			case <-tick.C:
			case <-s.ctx.Done():
				return
			}
			busy = s.measure()
		}
	}
}

// measure reports whether there is anything left to measure.
func (s *Scaler) measure() bool {
	s.strain.allows() // so that more is known than nothing when one is wanted
	busy := false
	s.active.Range(func(key, _ any) bool {
		p := key.(*instancepool.Pool)
		s.active.Delete(p) // first: it may become active meanwhile
		found, active := p.Measure()
		for _, m := range found {
			if m.Memory > 0 {
				s.budget.set(m.ID, m.Memory)
			}
		}
		if active {
			s.active.Store(p, true)
		}
		busy = busy || active
		return true
	})
	s.budget.relieve()
	return busy
}

// pools calls f with each pool that has, or may have, instances, until it
// returns false.
func (s *Scaler) pools(f func(*instancepool.Pool) bool) {
	each := func(v *service) bool {
		v.mu.Lock()
		all := make([]*instancepool.Pool, 0, len(v.deployed)+len(v.leaving))
		for _, d := range v.deployed {
			all = append(all, d.pool)
		}
		for _, d := range v.leaving {
			all = append(all, d.pool)
		}
		v.mu.Unlock()
		for _, p := range all {
			if !f(p) {
				return false
			}
		}
		return true
	}
	s.services.Range(func(_, v any) bool { return each(v.(*service)) })
}

// spares are the instances that could be stopped for the sake of others: first those
// that are only prepared, which cost least, and then the ones, of all services, that
// have been idle for longest.
func (s *Scaler) spares() []spare {
	var all []spare
	s.pools(func(p *instancepool.Pool) bool {
		for _, i := range p.Spares() {
			all = append(all, spare{i, func() bool { return p.Evict(i.ID, "its room is needed") }})
		}
		return true
	})
	slices.SortStableFunc(all, func(a, b spare) int {
		switch {
		case a.Prepared == b.Prepared:
			return a.Since.Compare(b.Since)
		case a.Prepared:
			return -1
		}
		return 1
	})
	return all
}

// prepareSoon has instances prepared.
func (s *Scaler) prepareSoon() {
	select {
	case s.short <- struct{}{}:
	default:
	}
}

// prepareLoop prepares instances, one at a time, while no other starts.
func (s *Scaler) prepareLoop() {
	for {
		select {
		case <-s.short:
		case <-s.ctx.Done():
			return
		}
		for pause := quietEvery; pause > 0; {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-s.ctx.Done():
				timer.Stop()
				return
			}
			pause = s.prepareOne()
		}
	}
}

// prepareOne prepares an instance if one is wanted and the host is quiet. It
// returns the pause before the next, or 0 when all are there.
func (s *Scaler) prepareOne() (pause time.Duration) {
	var short *instancepool.Pool
	s.pools(func(p *instancepool.Pool) bool {
		if p.WantsPrepared() {
			short = p
		}
		return short == nil
	})
	if short == nil {
		return 0
	}
	all := int64(s.opts.StartLimit)
	if s.strain.allows() == 0 || !s.starts.TryAcquire(all) {
		return quietEvery
	}
	s.starts.Release(all - 1)
	defer s.starts.Release(1)
	ctx, cancel := context.WithTimeout(s.ctx, prepareTimeout)
	defer cancel()
	if err := short.Prepare(ctx); err != nil {
		return quietEvery // for another service: this one pauses
	}
	return time.Millisecond
}
