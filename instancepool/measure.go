package instancepool

import (
	"math"
	"time"
)

// cpuOver is what the mean use of CPU is taken over.
const cpuOver = time.Minute

// busyPart is the part of its CPU from whose use on an instance is spared.
const busyPart = 0.6

// spread sets up to how many requests an instance is preferred over one with
// fewer: as many as it may have, as that needs the fewest instances, unless those
// that are awake have used so much of their CPU that their requests slow one
// another down. The caller holds mu.
// Source: Cloud Run: an instance that is busy may get fewer requests.
func (p *Pool) spread(used float64) {
	target := p.spec.Concurrency
	if awake := p.ready - p.frozen; awake > 0 && p.spec.CPU > 0 && used > busyPart*p.spec.CPU*float64(awake) {
		target = max(1, target*7/10)
	}
	if target == p.target {
		return
	}
	p.target = target
	for _, i := range p.instances {
		p.place(i)
	}
}

// Measured is what an instance was found to use.
type Measured struct {
	ID string
	Usage
}

// Measure reads what the instances use that have had the CPU since it was last
// called. active is false when none has it now: then nothing changes before
// Options.Active is called.
func (p *Pool) Measure() (found []Measured, active bool) {
	p.mu.Lock()
	if p.detached {
		p.mu.Unlock()
		return nil, false
	}
	var all []*Instance
	for _, i := range p.instances {
		if i.state != Ready && i.state != Unready {
			continue
		}
		if i.rest != asleep {
			active = true
		} else if i.metered.After(i.idleAt.Add(freezeAfter)) {
			continue // it cannot have changed since
		}
		all = append(all, i)
	}
	p.mu.Unlock()

	now := time.Now()
	usages := make(map[*Instance]Usage, len(all))
	for _, i := range all {
		if m, ok := i.handle.(Meter); ok {
			if u, err := m.Usage(); err == nil { // else it has just ended
				usages[i] = u
			}
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	used := 0.0
	for i, u := range usages {
		if !i.metered.IsZero() && u.CPU > i.usage.CPU {
			used += (u.CPU - i.usage.CPU).Seconds() / max(now.Sub(i.metered).Seconds(), 1e-3)
		}
		i.usage, i.metered = u, now
		found = append(found, Measured{i.id, u})
	}
	if dt := now.Sub(p.cpuAt); p.cpuAt.IsZero() {
		p.cpu = used
	} else {
		p.cpu += (used - p.cpu) * (1 - math.Exp(-dt.Seconds()/cpuOver.Seconds()))
	}
	p.cpuAt = now
	p.spread(used)
	if active {
		p.scale()
	}
	return found, active
}
