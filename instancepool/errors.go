package instancepool

import (
	"errors"
	"fmt"
	"time"
)

// The reasons why Acquire gives no lease, besides its context's end and
// *StartError.
var (
	// ErrQueueFull means that as many requests wait as may.
	ErrQueueFull = errors.New("too many requests wait for an instance")
	// ErrNoInstance means that no instance could be had in time: all are busy, and
	// there may not be more (Cloud Run: 429).
	ErrNoInstance = errors.New("no instance was available in time")
	// ErrNoRoom means that the host has no memory left for another instance. It is
	// not the revision's fault, and may be otherwise in a moment.
	ErrNoRoom = errors.New("the host has no room for another instance")
	// ErrTooLarge is an ErrNoRoom that stays: the instance may use more than all
	// instances together may.
	ErrTooLarge = fmt.Errorf("%w, ever", ErrNoRoom)
	// ErrAsleep means that no instance is awake and has a slot at once, and that the
	// request must not change that.
	ErrAsleep = errors.New("no instance is awake")
	// ErrStarting means that an instance is being started, and that the request would
	// rather come back than wait for it.
	ErrStarting = errors.New("an instance is starting")
	// ErrTimeout means that the request's time was over before its turn came, or
	// before its response began.
	ErrTimeout = errors.New("the request has timed out")
	// ErrDraining means that the pool takes no new requests: another revision has
	// taken its place, or its service is gone. Nothing was sent.
	ErrDraining = errors.New("the revision takes no new requests")
)

// errFetching is ErrStarting while the start waits for an image.
var errFetching = fmt.Errorf("%w: its image is being fetched", ErrStarting)

// pendingError is ErrNoInstance with how long that was, and why there are no
// more.
type pendingError struct {
	after   time.Duration
	failure *StartError
}

func (e *pendingError) Error() string {
	if e.failure != nil {
		return fmt.Sprintf("%v (%s): %v", ErrNoInstance, e.after, e.failure)
	}
	return fmt.Sprintf("%v (%s)", ErrNoInstance, e.after)
}

func (e *pendingError) Unwrap() error { return ErrNoInstance }

// StartError says why a revision has no instance that could take a request.
type StartError struct {
	Revision string
	// Reason is Knative's word for it: ContainerMissing, ExitCode3,
	// ContainerUnhealthy, ResourcesUnavailable.
	Reason string
	// Err is the cause.
	Err error
	// Log is the end of what the instance wrote, in whole lines.
	Log string
	// RetryAfter is when the next start will be tried, from when the error was
	// returned.
	RetryAfter time.Duration
}

func (e *StartError) Error() string {
	if e.Log == "" {
		return fmt.Sprintf("revision %s cannot start: %v", e.Revision, e.Err)
	}
	return fmt.Sprintf("revision %s cannot start: %v; its last output: %s", e.Revision, e.Err, e.Log)
}

func (e *StartError) Unwrap() error { return e.Err }

// Passing reports whether nothing is wrong with the revision: the engine does not
// answer, or the host has no room, and either may be otherwise in a moment.
func (e *StartError) Passing() bool {
	return errors.Is(e.Err, ErrUnavailable) || errors.Is(e.Err, ErrNoRoom) && !errors.Is(e.Err, ErrTooLarge)
}
