package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/fairway-run/fairway/instancepool"
)

const (
	// rpcTimeout bounds one call of containerd, which may hang for ever.
	rpcTimeout = 30 * time.Second
	// connectTimeout bounds an attempt to reach containerd; reconnectAfter and
	// reconnectAtMost bound the pause between two.
	connectTimeout  = time.Second
	reconnectAfter  = 50 * time.Millisecond
	reconnectAtMost = 500 * time.Millisecond
	// sweepEvery is how often leftovers are looked for without a reason; with one
	// it is sweepSoon.
	sweepEvery = 5 * time.Minute
	sweepSoon  = 2 * time.Second
)

var errClosed = errors.New("the runtime is closed")

// Runtime is an instancepool.Runtime on containerd. It is safe for concurrent
// use.
type Runtime struct {
	opts    Options
	log     *zap.Logger
	network network
	subnet  netip.Prefix // of a bridge's instances
	names   names
	cgroups cgroups

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	dirty  chan struct{} // something may be left to sweep
	writes chan struct{} // an instance may write to its log that could not, or has gone

	mu       sync.Mutex // guards all below
	client   *client.Client
	locks    locks
	handles  map[string]*handle   // by ID: what runs, until nothing is left of it
	starting map[string]*handle   // by ID: what is being made, or prepared; nil as long as it has no process
	lost     map[string]*handle   // by ID: what could not be ended or removed and goes, even if it runs; nil if never started
	specs    map[string]*specBase // by revision
	at       map[string]*handle   // by address: what exists of starting and handles
}

// New returns a runtime that has done nothing yet: it connects at its first use.
func New(opts Options) (*Runtime, error) {
	opts = opts.WithDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	r := &Runtime{
		opts: opts, log: opts.Logger, cgroups: newCgroups(cgroupRoot), dirty: make(chan struct{}, 1), writes: make(chan struct{}, 1),
		handles: make(map[string]*handle), starting: make(map[string]*handle), lost: make(map[string]*handle),
		specs: make(map[string]*specBase), at: make(map[string]*handle), names: names{gateway: opts.gateway()},
	}
	r.ctx, r.cancel = context.WithCancel(namespaces.WithNamespace(context.Background(), opts.Namespace))
	if opts.Network == Host {
		r.network = newHostNetwork()
	} else {
		r.subnet = netip.MustParsePrefix(opts.Subnet)
		r.network = newBridgeNetwork(opts)
	}
	return r, nil
}

// connect returns the client, and at the first call takes hold of the namespace
// and the state directory and starts what runs in the background.
func (r *Runtime) connect() (*client.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil {
		return r.client, nil
	}
	if r.ctx.Err() != nil {
		return nil, errClosed
	}
	for _, dir := range []string{r.opts.StateDir, r.opts.LogDir, lockDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("making a directory: %w", err)
		}
	}
	taken, err := takeLocks(r.opts)
	if err != nil {
		return nil, fmt.Errorf("taking hold of namespace %s: %w", r.opts.Namespace, err)
	}
	c, err := client.New(r.opts.Address, client.WithExtraDialOpts([]grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: reconnectAfter, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectAtMost},
		MinConnectTimeout: connectTimeout,
	})}))
	if err != nil {
		_ = taken.release()
		return nil, fmt.Errorf("connecting to containerd at %s: %w", r.opts.Address, err)
	}
	r.client, r.locks = c, taken
	r.wg.Go(r.sweepLoop)
	r.logsGrow() // those of an earlier process may have
	r.wg.Go(r.rotateLoop)
	r.wg.Go(func() { r.network.fill(r.ctx, r.log) })
	return c, nil
}

// Close implements instancepool.Runtime. Instances go on running. Those that are
// prepared only are of no use any more: the next process's sweep removes them.
func (r *Runtime) Close() error {
	r.mu.Lock()
	c, taken := r.client, r.locks
	handles := make([]*handle, 0, len(r.handles))
	for _, h := range r.handles {
		handles = append(handles, h)
	}
	for _, more := range []map[string]*handle{r.starting, r.lost} {
		for _, h := range more {
			if h != nil {
				handles = append(handles, h)
			}
		}
	}
	r.cancel()
	r.client, r.locks = nil, nil
	r.mu.Unlock()
	r.wg.Wait()
	for _, h := range handles {
		h.forget()
	}
	var err error
	if c != nil {
		err = errors.Join(r.network.close(), c.Close(), taken.release())
	}
	return err
}

// within bounds a call of containerd and adds the namespace.
func (r *Runtime) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(namespaces.WithNamespace(ctx, r.opts.Namespace), rpcTimeout)
}

// explain marks the errors that mean that containerd does not answer.
func explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", instancepool.ErrUnavailable, err)
	}
	return err
}

// lose gives an instance to the sweep, which removes it whatever state it is in:
// nobody else knows it any more. The caller holds mu.
func (r *Runtime) lose(id string, h *handle) {
	r.lost[id] = h
	r.leftovers()
}

// leftovers asks for a look at what may have been left behind.
func (r *Runtime) leftovers() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

var _ instancepool.Runtime = (*Runtime)(nil)
