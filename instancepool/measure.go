package instancepool

import (
	"math"
	"time"
)

// cpuOver is what the mean use of CPU is taken over.
const cpuOver = time.Minute

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
		if i.state != Ready {
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
	if active {
		p.scale()
	}
	return found, active
}
