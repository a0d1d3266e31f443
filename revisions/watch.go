package revisions

import (
	"context"
	"errors"
	"sync"
)

// watchLog is how many changes are remembered for those that watch, some KB each.
// Whoever falls further behind has to look at everything again.
const watchLog = 1024

// ErrExpired means that changes since the wanted version are forgotten.
var ErrExpired = errors.New("too old resource version")

// ChangeKind is what happened to an object, in Kubernetes' words.
type ChangeKind string

// What can happen to an object.
const (
	Added    ChangeKind = "ADDED"
	Modified ChangeKind = "MODIFIED"
	Deleted  ChangeKind = "DELETED"
)

// Change is one change of a service, or of a revision when Revision is set.
type Change struct {
	Kind    ChangeKind
	Version uint64
	// State is that of the service after the change, the last one when it was
	// deleted.
	State *State
	// Before is that before the change; nil when the service is new.
	Before   *State
	Revision *Revision
}

// changes remembers the latest changes, in order.
type changes struct {
	mu   sync.Mutex    // guards all below
	next chan struct{} // closed at the next change
	ring [watchLog]Change
	n    int // how many there ever were
}

func newChanges() *changes { return &changes{next: make(chan struct{})} }

func (c *changes) add(all ...Change) {
	if len(all) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range all {
		c.ring[c.n%watchLog] = one
		c.n++
	}
	close(c.next)
	c.next = make(chan struct{})
}

// Watcher tells of changes, in order and without gaps.
type Watcher struct {
	log *changes
	at  int
}

// Watch begins after the version since, such as a LIST has told.
// Errors: ErrExpired.
func (g *Registry) Watch(since uint64) (*Watcher, error) {
	c := g.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	first := max(0, c.n-watchLog)
	at := c.n
	for at > first && c.ring[(at-1)%watchLog].Version > since {
		at--
	}
	if at == first && (first > 0 || since < g.floor) && since != 0 {
		return nil, ErrExpired
	}
	return &Watcher{log: c, at: at}, nil
}

// Next waits for changes and returns them. Errors: ErrExpired when the watcher
// has fallen too far behind, or the cause of ctx's end.
func (w *Watcher) Next(ctx context.Context) ([]Change, error) {
	for {
		w.log.mu.Lock()
		if w.log.n-w.at > watchLog {
			w.log.mu.Unlock()
			return nil, ErrExpired
		}
		var all []Change
		for ; w.at < w.log.n; w.at++ {
			all = append(all, w.log.ring[w.at%watchLog])
		}
		next := w.log.next
		w.log.mu.Unlock()
		if len(all) > 0 {
			return all, nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
