package instancepool

import (
	"sync/atomic"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// Lease is the right to have one request in flight in one instance. It is held
// from when Acquire returns it until Release.
type Lease struct {
	// Waited is how long the request was in the queue.
	Waited time.Duration
	// Cold is set when the request waited for an instance that had to be started.
	Cold bool

	instance *Instance
	quiet    bool
	released atomic.Bool
}

// Instance is where the request goes.
func (l *Lease) Instance() *Instance { return l.instance }

// Revision is what that instance runs.
func (l *Lease) Revision() *revisions.Revision { return l.instance.pool.rev }

// Release gives the slot back: to the oldest waiting request, if there is one.
// Only the first call counts.
func (l *Lease) Release() {
	if l.released.CompareAndSwap(false, true) {
		l.instance.pool.giveBack(l.instance, l.quiet)
	}
}

// Suspect says that the instance could not be dialled. It gets no further
// requests until it has been probed again; if it fails that, it is replaced.
// The lease is still to be released.
func (l *Lease) Suspect() { l.instance.pool.suspect(l.instance) }
