package instancepool

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/fairway-run/fairway/instancepool/http1"
)

// State is where an instance is in its life.
type State int

// The states, in the order they are passed. Failed and Stopped are ends.
const (
	Starting State = iota
	// Warmed instances are prepared: all but the start of their process is done.
	Warmed
	Ready
	// Frozen instances are ready, and have no CPU until their next request.
	Frozen
	// Suspect instances refused a connection and are probed again; they get no
	// new requests.
	Suspect
	// Unready instances have failed their readiness probe: they get no new requests
	// until they pass it again.
	Unready
	Draining
	Stopped
	Failed
)

// String is the word used in logs, metrics and APIs.
func (s State) String() string {
	return [...]string{"starting", "prepared", "ready", "frozen", "suspect", "unready", "draining", "stopped", "failed"}[s]
}

// Instance is one running copy of a revision. Its pool guards what changes.
type Instance struct {
	id   string
	pool *Pool

	// handle and carrier are set before the instance is first ready and never change
	// after.
	handle  Handle
	carrier *carrier
	sockets sockets

	// why says why it was started, ahead is what was prepared for it; neither changes.
	why   string
	ahead *ahead

	// ice has the token of whoever freezes or thaws it, taken before pool.mu: a
	// channel and no mutex, as that may take a moment. It guards iced.
	ice  chan struct{}
	iced bool // it may be frozen

	// The rest is guarded by pool.mu.
	state    State
	since    time.Time // of state
	born     time.Time // when its start was wanted
	waits    bool      // for its turn to start
	inFlight int
	quiet    int       // of inFlight: requests that are no use
	list     *freeList // the list of free instances that it is in, or nil
	prev     *Instance
	next     *Instance
	idleAt   time.Time   // when inFlight last became zero
	idle     *time.Timer // fires when it may have been idle for long enough
	idleSet  bool        // idle is running
	idleEnd  time.Time   // when it ends
	readyAt  time.Time   // when it first became ready
	rest     rest
	noFreeze time.Time // it is not frozen before
	due      time.Time // a request is expected until then; zero once it has had one
	usage    Usage     // as it was measured last
	metered  time.Time // when that was
	stop     chan struct{}
	stopSent bool
	// stopReason is written before stop is closed and read after.
	stopReason string
	adopted    bool
	fault      *StartError // why it is ended at once

	// What its checks say of it, see health.go.
	asking int           // those that are being asked
	doubts int           // those that have failed, and not succeeded since as often as they have to
	lost   int           // of the readiness checks those that have failed
	woken  chan struct{} // closed when it has the CPU again; nil while it has
	news   chan Event    // to the instance's goroutine; nil without checks; never changes
}

// ID is the instance's name, unique on the host.
func (i *Instance) ID() string { return i.id }

// Address is the host and port it listens on.
func (i *Instance) Address() string { return i.handle.Address() }

// RoundTrip carries a request to this instance and to no other, over its own
// connections, which end with it: a recycled address can never reach another
// service. So do those that have switched to another protocol.
func (i *Instance) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := i.carrier.roundTrip(r)
	if err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
		i.sockets.take(resp, i.stop)
	}
	return resp, err
}

// HTTP1 carries ordinary requests to this instance over the same connections, with
// less effort; nil if it is to be spoken to in HTTP/2.
func (i *Instance) HTTP1() *http1.Transport {
	if i.carrier.two != nil {
		return nil
	}
	return &i.carrier.one
}

// Exited is closed when the instance's process has ended.
func (i *Instance) Exited() <-chan struct{} { return i.handle.Exited() }

// keepIdle is how long a connection is kept that no request needs.
const keepIdle = 2 * time.Minute

// carrier has an instance's connections.
type carrier struct {
	one http1.Transport
	two *http.Transport // for a container that speaks HTTP/2, or nil
}

func newCarrier(h Handle) *carrier {
	spec := h.Revision().Spec()
	address := h.Address()
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second}
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, &DialError{Instance: h.ID(), Err: err}
		}
		// The address is free for others only after the exit: a connection made
		// before it is to the instance.
		select {
		case <-h.Exited():
			_ = conn.Close()
			return nil, &DialError{Instance: h.ID(), Err: errExited}
		default:
			return conn, nil
		}
	}
	c := &carrier{one: http1.Transport{Dial: dial, MaxIdle: spec.Concurrency, IdleTimeout: keepIdle}}
	if spec.Port.H2C {
		c.two = &http.Transport{
			// The proxy settings of Caddy's environment are not for its own instances,
			// and bytes pass through as they are.
			Proxy:              nil,
			DisableCompression: true,
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			IdleConnTimeout:    keepIdle,
			Protocols:          new(http.Protocols),
			// How long a body is held back that the client has asked about.
			ExpectContinueTimeout: time.Second,
		}
		c.two.Protocols.SetUnencryptedHTTP2(true)
	}
	return c
}

// roundTrip is RoundTrip. HTTP/2 knows no upgrades: a WebSocket to a container that
// speaks it begins with HTTP/1.1 all the same.
func (c *carrier) roundTrip(r *http.Request) (*http.Response, error) {
	if c.two != nil && r.Header["Upgrade"] == nil {
		return c.two.RoundTrip(r)
	}
	return c.one.RoundTrip(r)
}

// close closes the connections that no request uses now, and the others when theirs
// is over: an app may wait for that before it ends.
func (c *carrier) close() {
	c.one.Close()
	if c.two != nil {
		c.two.CloseIdleConnections()
	}
}

// DialError means that no connection to an instance could be made: not one byte
// of the request was sent.
type DialError struct {
	Instance string
	Err      error
}

func (e *DialError) Error() string {
	return "connecting to instance " + e.Instance + ": " + e.Err.Error()
}
func (e *DialError) Unwrap() error { return e.Err }

var errExited = errors.New("it has exited")

// instanceID makes a name for a new instance of a revision.
func instanceID(revision string) string {
	// containerd takes no two dashes in a row, which a name may have.
	for strings.Contains(revision, "--") {
		revision = strings.ReplaceAll(revision, "--", "-")
	}
	return revision + "-" + strings.ToLower(rand.Text()[:5])
}

// freeList is a list of instances that have a free slot.
type freeList struct{ head, tail *Instance }

func (l *freeList) pushFront(i *Instance) {
	i.list, i.prev, i.next = l, nil, l.head
	if l.head != nil {
		l.head.prev = i
	} else {
		l.tail = i
	}
	l.head = i
}

func (l *freeList) pushBack(i *Instance) {
	i.list, i.prev, i.next = l, l.tail, nil
	if l.tail != nil {
		l.tail.next = i
	} else {
		l.head = i
	}
	l.tail = i
}

func (l *freeList) remove(i *Instance) {
	if i.prev != nil {
		i.prev.next = i.next
	} else {
		l.head = i.next
	}
	if i.next != nil {
		i.next.prev = i.prev
	} else {
		l.tail = i.prev
	}
	i.list, i.prev, i.next = nil, nil, nil
}
