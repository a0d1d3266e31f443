package simulation

import (
	"math"
	"time"
)

// perRequest starts an instance for each request that finds no free slot, and keeps
// one that is idle for that long.
func perRequest(keep time.Duration) func(*clock, *meter, Service) server {
	return func(c *clock, m *meter, s Service) server {
		f := newFleet(c, m, s, oldest)
		f.policy = &oneEach{f, keep}
		return f
	}
}

type oneEach struct {
	f    *fleet
	keep time.Duration
}

func (p *oneEach) waits() { p.f.start(1) }

func (p *oneEach) idles(i *instance) { p.f.whenIdle(i, p.keep, func() { p.f.stop(i) }) }

// What the reactive policy does as Fairway does it.
const (
	reactiveKeep   = 90 * time.Second
	reactiveThaw   = time.Millisecond
	surplusAfter   = 10 * time.Second
	surplusEvery   = 5 * time.Second
	surplusOver    = 60 // seconds
	surplusPerSlot = 0.8
)

// reactive starts what those that wait need besides the instances that start already,
// freezes what is idle, keeps it for a while, and does not keep more of it than the
// load of the last minute needs. It stands in for Fairway where only the instance
// that is picked, or only the time to a freeze, is to differ.
func reactive(pick func() picker, freezeAfter time.Duration) func(*clock, *meter, Service) server {
	return func(c *clock, m *meter, s Service) server {
		f := newFleet(c, m, s, pick())
		f.freezeAfter, f.thaw = freezeAfter, reactiveThaw
		f.policy = &reacting{f}
		return f
	}
}

type reacting struct{ f *fleet }

func (p *reacting) waits() {
	_, starting := p.f.count()
	if missing := len(p.f.queue) - starting*p.f.of.Concurrency; missing > 0 {
		p.f.start(int(math.Ceil(float64(missing) / float64(p.f.of.Concurrency))))
	}
}

func (p *reacting) idles(i *instance) {
	p.f.whenIdle(i, reactiveKeep, func() { p.f.stop(i) })
	p.f.whenIdle(i, surplusAfter, func() { p.spare(i) })
}

// spare stops an idle instance if there are more than the load of late needs, and
// else looks again later.
func (p *reacting) spare(i *instance) {
	p.f.note()
	sum, _ := p.f.load.last(surplusOver)
	needed := int(math.Ceil(sum / surplusOver / (surplusPerSlot * float64(p.f.of.Concurrency))))
	if ready, _ := p.f.count(); ready > max(1, needed) {
		p.f.stop(i)
		return
	}
	p.f.whenIdle(i, surplusEvery, func() { p.spare(i) })
}
