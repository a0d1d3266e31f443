package instancepool

import (
	"context"
	"slices"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// discardTimeout bounds the removal of an instance that was prepared in vain: a
// pool that lets go waits for it. What is left then is the engine's to remove.
const discardTimeout = 3 * time.Second

// prepareRetry is the pause of a pool after an instance could not be prepared, or one
// that was has been given up for others.
const prepareRetry = 30 * time.Second

// ahead is an instance that is prepared.
type ahead struct {
	Prepared
	since time.Time
}

// Prepare makes one instance but for its start, if the revision wants more of
// such than there are.
func (p *Pool) Prepare(ctx context.Context) error {
	p.mu.Lock()
	if !p.wantsPrepared() {
		p.mu.Unlock()
		return nil
	}
	p.preparing++
	p.wg.Add(1)
	defer p.wg.Done()
	p.mu.Unlock()
	made, err := p.opts.Ahead(ctx, StartSpec{ID: instanceID(p.rev.Name), Revision: p.rev})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.preparing--
	if err != nil {
		p.prepareLater()
		return err
	}
	a := &ahead{made, time.Now()}
	if p.detached || p.phase != open {
		p.discardLater(a)
		return nil
	}
	p.prepared = append(p.prepared, a)
	return nil
}

// prepareLater has nothing prepared for a while. The caller holds mu.
func (p *Pool) prepareLater() {
	if p.unprepared = time.Now().Add(prepareRetry); p.opts.Short != nil && !p.detached && p.phase == open {
		p.reprepare = reset(p.reprepare, prepareRetry, p.opts.Short)
	}
}

// TrimPrepared removes what is prepared beyond what the revision wants by now.
func (p *Pool) TrimPrepared() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.prepared) > 0 && len(p.prepared) > p.opts.Prepared() {
		p.giveUp(p.prepared[len(p.prepared)-1].ID())
	}
}

// WantsPrepared reports whether Prepare would make an instance.
func (p *Pool) WantsPrepared() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wantsPrepared()
}

// wantsPrepared is WantsPrepared. The caller holds mu. What has not been ready yet
// has to prove that it works first.
func (p *Pool) wantsPrepared() bool {
	proven := p.proven || p.rev.Readiness() == revisions.ReadinessTrue // by an earlier process
	return p.opts.Ahead != nil && !p.detached && p.phase == open && proven && !p.failing() && p.rev.Pinned() &&
		!time.Now().Before(p.unprepared) && len(p.prepared)+p.preparing < p.opts.Prepared()
}

// takePrepared returns an instance that is prepared, or nil. The caller holds mu.
func (p *Pool) takePrepared() *ahead {
	if len(p.prepared) == 0 {
		return nil
	}
	a := p.prepared[0]
	p.prepared = p.prepared[1:]
	if p.opts.Short != nil {
		p.opts.Short()
	}
	return a
}

// giveUp removes the instance of that ID if it is only prepared, and reports whether
// it was. The caller holds mu.
func (p *Pool) giveUp(id string) bool {
	at := slices.IndexFunc(p.prepared, func(a *ahead) bool { return a.ID() == id })
	if at < 0 {
		return false
	}
	p.discardLater(p.prepared[at])
	p.prepared = slices.Delete(p.prepared, at, at+1)
	return true
}

// dropPrepared removes all that is prepared. The caller holds mu.
func (p *Pool) dropPrepared() {
	for _, a := range p.prepared {
		p.discardLater(a)
	}
	p.prepared = nil
}

// discardLater removes a in the background. The caller holds mu.
func (p *Pool) discardLater(a *ahead) { p.wg.Go(func() { p.discard(a) }) }

func (p *Pool) discard(a *ahead) {
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), discardTimeout) // the pool may have let go
	defer cancel()
	err := a.Discard(ctx)
	e := Event{State: Stopped, Instance: a.ID(), Revision: p.rev.Name, Service: p.rev.Service, Reason: "prepared in vain"}
	if err != nil {
		e.State, e.Reason, e.Err = Failed, "what was prepared is removed later", err
	}
	p.opts.Observe(e)
}
