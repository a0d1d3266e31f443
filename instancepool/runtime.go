package instancepool

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// Runtime makes instances: containerd is the one that exists, another engine
// may stand in its place. It knows nothing of requests. Every method returns by
// its context's end at the latest, and a method that fails leaves nothing behind.
type Runtime interface {
	// Resolve makes image present and returns the digest it means now, such as
	// "sha256:…": that of the local image of that name, such as one that was built
	// here, or else what its registry says.
	// progress may be nil; it is called from any goroutine, never after return.
	// Errors: ErrImage when the image cannot be had or read, ErrUnavailable
	// when the engine does not answer.
	Resolve(ctx context.Context, image string, progress func(Progress)) (digest string, err error)

	// Prune removes the images that Resolve has made present, or kept, and that
	// neither used, of image names and digests, nor an instance needs any more.
	// Nothing may be resolved at the same time.
	Prune(ctx context.Context, used iter.Seq2[string, string]) error

	// Start makes one instance and returns once its process runs; it does not
	// wait until the instance listens. The revision's digest is pinned before.
	Start(ctx context.Context, spec StartSpec) (Handle, error)

	// List returns the instances that run, this process's own and those that an
	// earlier one left, and removes what is left of those that do not run any
	// more. It touches nothing that Fairway did not make.
	List(ctx context.Context) ([]Handle, error)

	// Close lets go of the engine. Instances go on running.
	Close() error
}

// StartSpec says what to start.
type StartSpec struct {
	// ID is the instance's name, unique on the host: "hello-00002-7kq2m".
	ID string
	// Revision says what it runs. Its Digest is set.
	Revision *revisions.Revision
	// Observe, when not nil, is told how long each phase of the start took.
	Observe func(phase string, took time.Duration)
}

// PhaseTurn is the phase of a start in which it waits for others to end.
const PhaseTurn = "turn"

// Handle is one running instance, as its runtime knows it. It is safe for
// concurrent use.
type Handle interface {
	ID() string
	Revision() *revisions.Revision
	// PID is the host's process ID of the instance's first process.
	PID() int
	// Started is when the process was started.
	Started() time.Time
	// Address is the host and port that the instance is dialled at.
	Address() string
	// Exited is closed within milliseconds after the process has ended, whoever
	// ended it, and never before.
	Exited() <-chan struct{}
	// Exit tells how it ended; it is the zero value until Exited is closed.
	Exit() Exit
	// Stop asks the process to end (SIGTERM, or the signal that its image names),
	// ends it (SIGKILL) after grace, and removes all that the instance had. It is
	// idempotent; a later call waits for, or repeats, what an earlier one could not
	// finish.
	Stop(ctx context.Context, grace time.Duration) error
	// LogTail returns at most n bytes of what the instance wrote last, in whole
	// lines.
	LogTail(n int) string
}

// Execer is a Handle that can run a command inside a container of its instance,
// which a probe may want.
type Execer interface {
	// Exec runs a command and returns nil when it exits with code 0.
	Exec(ctx context.Context, container string, command []string) error
}

// Stager is a Handle whose containers are not all started by Start: not those
// that depend on others, see revisions.Health.
type Stager interface {
	// StartContainer starts the process of a container that depends on others, which
	// have started, unless it runs. It returns when that was started.
	StartContainer(ctx context.Context, container string) (time.Time, error)
}

// Freezer is a Handle whose instance can be halted where it is: it keeps its
// memory and gets no CPU. Stop works on a frozen instance too.
type Freezer interface {
	// Freeze returns once nothing of the instance runs any more. If it fails, the
	// instance may be frozen or not; Thaw puts that right.
	Freeze(ctx context.Context) error
	// Thaw returns once the instance runs again, at once if it does.
	Thaw(ctx context.Context) error
}

// Meter is a Handle that knows what its instance uses.
type Meter interface {
	// Usage is read from the host at each call, which takes well below a millisecond.
	Usage() (Usage, error)
}

// Usage is what an instance uses, all of its containers together.
type Usage struct {
	// Memory is the number of bytes that it holds, without what the kernel would give
	// back at once, such as cached files that nobody has used lately.
	Memory int64
	// CPU is the processor time that it has used since it was started.
	CPU time.Duration
}

// Preparer is a Runtime that can do most of a start ahead.
type Preparer interface {
	// Prepare does what Start does, but for starting the process.
	Prepare(ctx context.Context, spec StartSpec) (Prepared, error)
}

// Prepared is an instance that has all but its process's start behind it. One
// call of Start or Discard uses it up, whatever comes of that.
type Prepared interface {
	ID() string
	// Start is Runtime.Start from where Prepare has ended.
	Start(ctx context.Context, observe func(phase string, took time.Duration)) (Handle, error)
	// Discard removes all that the instance had.
	Discard(ctx context.Context) error
}

// Namer is a Runtime whose instances can be told which host names lead to this
// host, where Caddy serves them.
type Namer interface {
	// Gateway is the address at which instances reach the host.
	Gateway() netip.Addr
	// SetNames makes all, in order, the names that lead to Gateway: in instances that
	// will be made, and in those that exist. These keep what they knew besides.
	SetNames(all []string) error
}

// Locator is a Runtime that knows which instance uses an address of its network.
type Locator interface {
	// InstanceAt returns the instance that has an address, ready or not, or nil. inside
	// tells whether only an instance can have it.
	InstanceAt(a netip.Addr) (h Handle, inside bool)
}

// Sizer is a Runtime that knows the size of its host.
type Sizer interface {
	Capacity() (Capacity, error)
}

// Capacity is what a host has for Fairway and its instances together.
type Capacity struct {
	// Memory is in bytes: the host's, or what a limit on this process leaves of it.
	Memory int64
	// Available is how much of Memory nobody uses now, in bytes; 0 when that is not
	// known.
	Available int64
	// CPU is the number of processors.
	CPU float64
}

// Gauger is a Runtime that knows how busy its host is.
type Gauger interface {
	// Worked returns the time that all processors together have worked, and have had
	// nothing to do, since the host was started. What the hypervisor gave to others
	// counts as work, and what was only done because nobody else wanted them does not.
	Worked() (busy, idle time.Duration, err error)
}

// Exit tells how an instance's process ended.
type Exit struct {
	// Code is the exit status; 128 + the signal when a signal ended it.
	Code int
	// OOM is set when the kernel killed it for exceeding its memory limit.
	OOM bool
	// At is when the end was noticed.
	At time.Time
}

// String says how the process ended, in words for a user.
func (e Exit) String() string {
	switch {
	case e.OOM:
		return fmt.Sprintf("exceeded its memory limit and was killed (exit code %d)", e.Code)
	case e.Code > 128 && e.Code < 160:
		return fmt.Sprintf("was ended by signal %d (exit code %d)", e.Code-128, e.Code)
	}
	return fmt.Sprintf("exited with code %d", e.Code)
}

// Progress is how far a pull has come.
type Progress struct {
	// Done and Total count bytes; Total is 0 while unknown.
	Done, Total int64
}

// The errors of a Runtime that callers decide by.
var (
	// ErrUnavailable means that the engine does not answer; trying again later
	// may succeed, and nothing is wrong with the revision.
	ErrUnavailable = errors.New("the container engine does not answer")
	// ErrImage means that the image cannot be had or read.
	ErrImage = errors.New("the image cannot be used")
)
