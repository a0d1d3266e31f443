package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is one connection. It belongs to one exchange at a time, or is idle.
type conn struct {
	t     *Transport
	nc    net.Conn
	raw   syscall.RawConn // nil if nc has none
	br    *bufio.Reader   // of the conn itself, for the sake of limit
	limit int64           // how many bytes may still be read

	reused    bool // since its first exchange
	hurried   bool // it has a deadline for writing
	idleSince time.Time
	aborted   atomic.Bool

	deadline time.Time // of the exchange, for when it is watched
	message  []byte    // what swap is to send; nil once it has
	answer   []byte    // where swap puts the beginning of the answer
	n        int       // how much of it there is
	err      error     // what went wrong in swap

	// What would otherwise be made anew for each request.
	abort    func()
	swapping func(fd uintptr) bool
	x        Exchange
}

func newConn(t *Transport, nc net.Conn) *conn {
	c := &conn{t: t, nc: nc}
	c.br = bufio.NewReader(c)
	c.x.c = c
	if s, ok := nc.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	c.abort = func() {
		c.aborted.Store(true)
		_ = c.nc.SetDeadline(longAgo)
	}
	c.swapping = c.swapOn
	return c
}

var longAgo = time.Unix(1, 0)

// Read implements io.Reader for br. The first time in an exchange it sends the message.
func (c *conn) Read(p []byte) (int, error) {
	if c.limit <= 0 {
		return 0, errHead
	}
	if int64(len(p)) > c.limit {
		p = p[:c.limit]
	}
	n, err := c.receive(p)
	if err != nil && c.x.stop == nil && errors.Is(err, os.ErrDeadlineExceeded) {
		c.watch()
		n, err = c.receive(p)
	}
	c.limit -= int64(n)
	return n, err
}

func (c *conn) receive(p []byte) (int, error) {
	if c.message != nil {
		return c.swap(p)
	}
	return c.nc.Read(p)
}

// swap sends the message, if nothing has come since the last answer, and waits for
// the beginning of the answer to it.
//
// To write from within a read looks odd. But what a read of a connection that is
// expected to be silent finds is what tells whether it is still open and in step; and
// having found nothing, the poller already waits for what comes next. That saves two of
// five system calls.
func (c *conn) swap(p []byte) (int, error) {
	c.answer, c.n, c.err = p, 0, nil
	err := c.raw.Read(c.swapping)
	c.answer = nil
	switch {
	case c.err != nil:
		return 0, c.err
	case err != nil:
		return 0, err
	case c.n == 0:
		return 0, io.EOF
	}
	return c.n, nil
}

// swapOn does what can be done without waiting, and reports whether that is all.
func (c *conn) swapOn(fd uintptr) bool {
	if c.message != nil {
		if c.reused && !c.silent(fd) {
			c.err = errStale
			return true
		}
		n, err := c.nc.Write(c.message)
		c.message, c.x.sent, c.err = nil, n > 0, err
		return err != nil
	}
	n, err := read(fd, c.answer)
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	if err != nil {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.nc.LocalAddr(), Addr: c.nc.RemoteAddr(), Err: os.NewSyscallError("read", err)}
	}
	c.n, c.err = n, err
	return true
}

// silent tells whether an idle connection is open and has nothing to say. One that
// has is out of step: its next answer would not be to the next request.
func (c *conn) silent(fd uintptr) bool {
	_, err := read(fd, c.answer)
	return errors.Is(err, unix.EAGAIN)
}

// read reads what there is without waiting, as no descriptor here blocks.
func read(fd uintptr, p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p) //nolint:gosec // descriptors are small
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// mayRepeat tells whether a request of n bytes that got no answer on this
// connection may be sent on another.
func (c *conn) mayRepeat(r *Request, n int) bool {
	if c.x.heard {
		return false
	}
	if !c.x.sent || repeatable(r.Method, r.Header) {
		return true
	}
	// What its kernel has not acknowledged the server has not seen.
	unseen := 0
	if c.raw == nil || c.raw.Control(func(fd uintptr) { unseen, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) != nil {
		return false
	}
	return unseen >= n
}

func (c *conn) close() { _ = c.nc.Close() }

// by sets when reading must end; abort wins.
func (c *conn) by(deadline time.Time) {
	_ = c.nc.SetReadDeadline(deadline)
	if c.aborted.Load() {
		_ = c.nc.SetDeadline(longAgo)
	}
}

// watch lets the end of the exchange's context end the exchange.
func (c *conn) watch() {
	c.by(c.deadline)
	c.x.stop = context.AfterFunc(c.x.ctx, c.abort)
}

// exchange sends a message and reads the head of the response to it. With errStale
// nothing was sent.
func (c *conn) exchange(ctx context.Context, message []byte, r *Request) error {
	x := &c.x
	x.Response, x.heard, x.sent, x.ctx, x.stop = nil, false, false, ctx, nil
	c.deadline = r.Deadline
	// What is short always finds room in the socket's buffer.
	long := len(message) > 4<<10 || x.upload != nil
	if long || c.hurried {
		deadline := time.Time{}
		if long {
			deadline = r.Deadline
		}
		_ = c.nc.SetWriteDeadline(deadline)
		c.hurried = !deadline.IsZero()
	}
	err := c.send(message, long)
	if err == nil {
		if err = c.readHead(r); err == nil {
			return nil
		}
	}
	c.message = nil
	if x.stop != nil {
		x.stop()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// send sends a message, or leaves that to the first Read.
func (c *conn) send(message []byte, long bool) error {
	x := &c.x
	quick := c.raw != nil && x.upload == nil
	switch {
	case long || !quick:
		c.watch()
	case x.ctx.Err() != nil:
		return x.ctx.Err()
	default:
		c.by(time.Now().Add(unwatched))
	}
	if quick {
		c.message = message
		return nil
	}
	n, err := c.nc.Write(message)
	x.sent = n > 0
	switch {
	case x.upload == nil:
	case err == nil:
		go x.upload.run()
	default:
		x.upload.body.Close()
	}
	return err
}

// readHead reads up to the body of the final response.
func (c *conn) readHead(r *Request) error {
	x := &c.x
	c.limit = maxHead
	if _, err := c.br.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the server closed the connection without an answer: %w", err)
		}
		return err
	}
	x.heard = true
	for {
		var err error
		resp := readPlain(c.br, asked(r.Method)) //nolint:bodyclose // the exchange ends it
		if resp == nil {
			resp, err = http.ReadResponse(c.br, asked(r.Method)) //nolint:bodyclose // as above
		}
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("the server closed the connection in the middle of its answer: %w", err)
			}
			return err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			if resp.StatusCode == http.StatusSwitchingProtocols && (!r.forward || r.Header["Upgrade"] == nil) {
				return errUnasked
			}
			c.limit = math.MaxInt64
			x.Response = resp
			if x.upload != nil {
				x.upload.answered(false) // a final answer to the head alone: the body is not wanted
			}
			return nil
		}
		if resp.StatusCode == http.StatusContinue && x.upload != nil {
			x.upload.answered(true)
		}
		if r.Interim != nil {
			if err := r.Interim.Interim(resp.StatusCode, resp.Header); err != nil {
				return err
			}
			c.limit = maxHead
		}
	}
}

// asked are the requests that http.ReadResponse wants to know the methods of.
func asked(method string) *http.Request {
	switch method {
	case http.MethodHead:
		return askedHead
	case http.MethodConnect:
		return askedConnect
	}
	return askedGet
}

var (
	askedGet     = &http.Request{Method: http.MethodGet}
	askedHead    = &http.Request{Method: http.MethodHead}
	askedConnect = &http.Request{Method: http.MethodConnect}
)
