package instancepool

import (
	"cmp"
	"math"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// cpuOver is what the mean use of CPU is taken over.
const cpuOver = time.Minute

// spread sets up to how many requests an instance is preferred over one with
// fewer: as many as it may have, as that needs the fewest instances, unless they use
// more of the CPU than one is to use. Then it is so many as use that: else the
// instances that are started for the CPU's sake would have nothing to do. load is the
// mean number of requests that have used the CPU. The caller holds mu.
// Source: Cloud Run: an instance that is busy may get fewer requests.
func (p *Pool) spread(used, load float64) {
	target, share := p.spec.Gather(), cmp.Or(p.spec.Scaling.CPU, revisions.DefaultTarget)*p.spec.CPU
	if share > 0 && used > share {
		target = min(target, max(1, int(load*share/used)))
	}
	if target == p.target {
		return
	}
	p.target = target
	for _, i := range p.instances {
		p.place(i)
	}
}

// fade is what is left of a mean use of the CPU after so long without any.
func fade(after time.Duration) float64 { return math.Exp(-after.Seconds() / cpuOver.Seconds()) }

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
	p.advance(now)
	if dt := now.Sub(p.cpuAt); p.cpuAt.IsZero() {
		p.cpu = used
	} else {
		p.cpu = used + (p.cpu-used)*fade(dt)
		if dt > 0 {
			p.spread(used, (p.load.busy-p.busyThen).Seconds()/dt.Seconds())
		}
	}
	p.cpuAt, p.busyThen = now, p.load.busy
	if active {
		p.scale()
	}
	return found, active
}
