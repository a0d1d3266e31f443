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

	// What would otherwise be made anew for each request.
	abort func()
	peek  func(fd uintptr) bool
	poll  [1]unix.PollFd
	quiet bool // what peek has found
	x     Exchange
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
	c.peek = func(fd uintptr) bool {
		c.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP} //nolint:gosec // descriptors are small
		n, err := unix.Poll(c.poll[:], 0)
		c.quiet = n == 0 && err == nil
		return true
	}
	return c
}

var longAgo = time.Unix(1, 0)

// Read implements io.Reader for br.
func (c *conn) Read(p []byte) (int, error) {
	if c.limit <= 0 {
		return 0, errHead
	}
	if int64(len(p)) > c.limit {
		p = p[:c.limit]
	}
	n, err := c.nc.Read(p)
	c.limit -= int64(n)
	return n, err
}

// alive tells whether an idle connection is open and silent. One that has
// something to say is out of step: its next answer would not be to the next request.
func (c *conn) alive() bool {
	if c.raw == nil {
		return true
	}
	c.quiet = false
	return c.raw.Read(c.peek) == nil && c.quiet
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

// exchange writes a message and reads the head of the response to it.
func (c *conn) exchange(ctx context.Context, message []byte, r *Request) error {
	x := &c.x
	x.Response, x.heard, x.ctx = nil, false, ctx
	// What is short always finds room in the socket's buffer.
	if long := len(message) > 4<<10 || x.upload != nil; long || c.hurried {
		deadline := time.Time{}
		if long {
			deadline = r.Deadline
		}
		_ = c.nc.SetWriteDeadline(deadline)
		c.hurried = !deadline.IsZero()
	}
	c.by(r.Deadline)
	x.stop = context.AfterFunc(ctx, c.abort)
	n, err := c.nc.Write(message)
	x.sent = n > 0
	if err == nil {
		if x.upload != nil {
			go x.upload.run()
		}
		if err = c.readHead(r); err == nil {
			return nil
		}
	} else if x.upload != nil {
		x.upload.body.Close()
	}
	x.stop()
	if ctx.Err() != nil {
		return ctx.Err()
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
		resp, err := http.ReadResponse(c.br, asked(r.Method)) //nolint:bodyclose // the exchange ends it
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
