package instancepool

import (
	"context"
	"fmt"
)

// Probe is what a pool asks with unless its options say otherwise.
func Probe(ctx context.Context, h Handle) error { return probe(ctx, h) }

// Check counts everything again and returns what does not agree with what the
// pool has counted on the way.
func (p *Pool) Check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var inFlight, free, ready, frozen, starting, suspects, unready, waiting int
	for _, i := range p.instances {
		inFlight += i.inFlight
		if i.inFlight < 0 || i.inFlight > p.spec.Concurrency {
			return fmt.Errorf("%s has %d requests in flight, the limit is %d", i.id, i.inFlight, p.spec.Concurrency)
		}
		switch i.state {
		case Starting:
			starting++
		case Suspect:
			suspects++
		case Unready:
			unready++
		case Ready:
			ready++
			free += p.spec.Concurrency - i.inFlight
		default: // counted nowhere
		}
		if i.rest != awake {
			frozen++
		}
		if i.rest == asleep && i.inFlight > 0 || i.rest != awake && i.state != Ready {
			return fmt.Errorf("%s, %s, is frozen with %d in flight", i.id, i.state, i.inFlight)
		}
		if listed, want := i.list != nil, i.state == Ready && i.inFlight < p.spec.Concurrency; listed != want {
			return fmt.Errorf("%s, %s with %d in flight: among the free ones: %t", i.id, i.state, i.inFlight, listed)
		}
	}
	for w := p.waiters.head; w != nil; w = w.next {
		waiting++
	}
	type counts struct{ free, ready, frozen, starting, suspects, unready, waiting int }
	counted := counts{p.free, p.ready, p.frozen, p.starting, p.suspects, p.unready, p.waiters.length}
	if found := (counts{free, ready, frozen, starting, suspects, unready, waiting}); found != counted {
		return fmt.Errorf("the pool has counted %+v, there are %+v", counted, found)
	}
	if inFlight > p.inFlight { // requests of instances that are gone are in none
		return fmt.Errorf("the pool has counted %d in flight, there are %d", p.inFlight, inFlight)
	}
	if free > 0 && waiting > 0 {
		return fmt.Errorf("%d requests wait while %d slots are free", waiting, free)
	}
	return nil
}
