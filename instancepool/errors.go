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
	// ErrTimeout means that the request's time was over before its turn came, or
	// before its response began.
	ErrTimeout = errors.New("the request has timed out")
	// ErrDraining means that the pool takes no new requests: another revision has
	// taken its place, or its service is gone. Nothing was sent.
	ErrDraining = errors.New("the revision takes no new requests")
)

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
