// Package http1 carries requests to one address over HTTP/1.1 connections that it
// keeps.
//
// It is made for a proxy beside its backend: what net/http's Transport does on
// three goroutines is done on the caller's own, a head is sent in one write, and a
// connection that its peer has closed meanwhile is not taken for a request that
// could not be repeated.
package http1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	// MaxBuffered is the size in bytes of the largest body that is read before the
	// request is sent, so that both go out in one write and can be sent again.
	MaxBuffered = 16 << 10
	// maxHead bounds the head of a response, in bytes, as net/http's Transport does.
	maxHead = 10 << 20
	// restedFor is how long a connection may have been idle to be used for a request
	// that must not be repeated. Servers close what was idle for seconds.
	restedFor = time.Second
	// unwatched is how long an answer is awaited before the end of its context ends
	// that. To watch a context costs more than most answers leave to be saved.
	unwatched = 20 * time.Millisecond
	// continueWait is how long a request with "Expect: 100-continue" waits for an
	// answer before its body is sent all the same.
	continueWait = time.Second
	// uploadWait is how long a connection waits for the end of a body whose response
	// is over, before it is closed.
	uploadWait = 50 * time.Millisecond
)

// Transport sends requests to one address. Its fields are set before its first
// use. It is safe for concurrent use.
type Transport struct {
	// Dial makes a connection.
	Dial func(context.Context) (net.Conn, error)
	// MaxIdle is how many connections are kept for later requests.
	MaxIdle int
	// IdleTimeout is how long. 0 means until Close.
	IdleTimeout time.Duration

	mu     sync.Mutex  // guards all below
	idle   []*conn     // the one used last is at the end
	prune  *time.Timer // runs while there is something idle
	closed bool
}

// Request is what Send sends.
type Request struct {
	// Method, Target (path and query) and Host are as in the message's head.
	Method, Target, Host string
	// Header is not changed. Of it, what concerns the client's connection or the
	// body's length is left out, and what Fields replace.
	Header http.Header
	// Fields are sent besides.
	Fields []Field
	// Body has Length bytes, at most MaxBuffered. It is read when there is a connection:
	// as that may turn out to be closed, a request that was not sent may have lost it.
	Body   io.Reader
	Length int64
	// Drop has the names of further fields that are left out.
	Drop []string
	// Deadline, when set, is until when a connection may be made and the response be
	// read, unless ReadBy says otherwise once it has begun.
	Deadline time.Time
	// Interim, when set, is told of responses before the final one.
	Interim Interim

	forward bool // Header is to be sent as it is, and belongs to this request
	chunked bool
	trailer http.Header
	close   bool
	trace   *httptrace.ClientTrace
}

// Interim is told of responses before the final one, with a status below 200. An
// error ends the exchange.
type Interim interface {
	Interim(status int, header http.Header) error
}

// RequestError means that a request cannot be sent as it is, or not to its end: its
// body cannot be read. That is no fault of the server.
type RequestError struct{ Err error }

func (e *RequestError) Error() string { return e.Err.Error() }
func (e *RequestError) Unwrap() error { return e.Err }

// Field is a header field.
type Field struct {
	Name, Value string
	// Add leaves the field's other values in place.
	Add bool
}

// Send sends a request and returns when its response has begun. The exchange must
// be ended. The end of ctx until then ends the connection. An error in which Dial's
// can be found means that nothing was sent.
func (t *Transport) Send(ctx context.Context, r *Request) (*Exchange, error) {
	m := messages.Get().(*message)
	defer m.free()
	var broken error
	for {
		c, err := t.get(ctx, r, broken != nil)
		if err != nil {
			if broken != nil {
				// What was sent once must not pass for a request that was not.
				return nil, fmt.Errorf("%w; connecting again: %v", broken, err) //nolint:errorlint // see above
			}
			return nil, err
		}
		if len(m.buf) == 0 {
			if err := m.write(r); err != nil {
				t.put(c)
				return nil, &RequestError{err}
			}
		}
		err = c.exchange(ctx, m.buf, r)
		if errors.Is(err, errStale) {
			c.close() // it does not count: nothing was sent
			continue
		}
		gotConn(r.trace, c)
		if err == nil {
			return &c.x, nil
		}
		// At its deadline the server may well be at work on it.
		late := errors.Is(err, os.ErrDeadlineExceeded)
		again := c.reused && !late && ctx.Err() == nil && c.mayRepeat(r, len(m.buf))
		c.close()
		if !again {
			return nil, err
		}
		broken = err
	}
}

// RoundTrip implements http.RoundTripper for all that HTTP/1.1 has: bodies of any
// size, 100-continue, trailers, upgrades.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	trace := httptrace.ContextClientTrace(ctx)
	r := &Request{
		Method: req.Method, Target: req.URL.RequestURI(), Host: hostOf(req), Header: req.Header,
		Length: req.ContentLength, forward: true, close: req.Close, trace: trace,
	}
	if r.Method == http.MethodConnect && req.URL.Path == "" {
		r.Target = r.Host
	}
	if trace != nil && trace.Got1xxResponse != nil {
		r.Interim = (*traced)(trace)
	}
	if deadline, ok := ctx.Deadline(); ok {
		r.Deadline = deadline
	}
	body := req.Body
	if body == nil || body == http.NoBody {
		body, r.Length = nil, 0
	} else if r.Length == 0 {
		r.Length = -1 // a body of unknown length, by http.Request's own rules
	}
	expect := httpguts.HeaderValuesContainsToken(req.Header["Expect"], "100-continue")
	if body != nil && (r.Length < 0 || r.Length > MaxBuffered || expect) {
		r.chunked, r.trailer = r.Length < 0, req.Trailer
		return t.upload(ctx, r, body, expect)
	}
	if body != nil {
		defer body.Close()
		r.Body = body
	}
	x, err := t.Send(ctx, r)
	if err != nil {
		return nil, err
	}
	return x.handOver(ctx), nil
}

// upload sends a request whose body is sent while the response is awaited. It has
// a connection of its own making: what has been read of a body cannot be repeated.
func (t *Transport) upload(ctx context.Context, r *Request, body io.ReadCloser, expect bool) (*http.Response, error) {
	c, err := t.dial(ctx, r.Deadline)
	if err != nil {
		body.Close()
		return nil, err
	}
	gotConn(r.trace, c)
	m := messages.Get().(*message)
	defer m.free()
	if err := m.write(r); err != nil {
		body.Close()
		t.put(c)
		return nil, &RequestError{err}
	}
	u := newUpload(c, r, body, expect)
	c.x.upload = u
	if err := c.exchange(ctx, m.buf, r); err != nil {
		c.close()
		u.cancel()
		if failed := u.failure(); failed != nil && ctx.Err() == nil {
			err = &RequestError{failed}
		}
		return nil, err
	}
	return c.x.handOver(ctx), nil
}

// traced tells a trace of interim responses.
type traced httptrace.ClientTrace

// Interim implements Interim.
func (t *traced) Interim(status int, header http.Header) error {
	return t.Got1xxResponse(status, textproto.MIMEHeader(header))
}

// gotConn tells a trace that a request has a connection, and may have been sent.
func gotConn(trace *httptrace.ClientTrace, c *conn) {
	if trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{Conn: c.nc, Reused: c.reused})
	}
}

// Close closes what is kept, and has each connection closed that a request still
// uses when that is over. It waits for none.
func (t *Transport) Close() {
	t.mu.Lock()
	idle := t.idle
	t.idle, t.closed = nil, true
	if t.prune != nil {
		t.prune.Stop() // it would keep all of this until it rings
	}
	t.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
}

// get returns a connection: one that is kept, unless fresh, or a new one.
func (t *Transport) get(ctx context.Context, r *Request, fresh bool) (*conn, error) {
	for !fresh {
		c := t.pop()
		if c == nil {
			break
		}
		if repeatable(r.Method, r.Header) || time.Since(c.idleSince) < restedFor {
			c.reused = true
			return c, nil
		}
		c.close()
	}
	return t.dial(ctx, r.Deadline)
}

// dial makes a connection until the deadline, if there is one.
func (t *Transport) dial(ctx context.Context, deadline time.Time) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dialing := ctx
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		dialing, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	nc, err := t.Dial(dialing)
	switch {
	case err == nil:
		return newConn(t, nc), nil
	case dialing.Err() != nil && ctx.Err() == nil:
		// That there was no time left says nothing of the server.
		return nil, fmt.Errorf("connecting: %w", os.ErrDeadlineExceeded)
	}
	return nil, err
}

func (t *Transport) pop() *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.idle) == 0 {
		return nil
	}
	c := t.idle[len(t.idle)-1]
	t.idle[len(t.idle)-1] = nil
	t.idle = t.idle[:len(t.idle)-1]
	return c
}

// put keeps a connection for a later request.
func (t *Transport) put(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.idle) >= t.MaxIdle {
		c.close()
		return
	}
	c.idleSince = time.Now()
	t.idle = append(t.idle, c)
	if t.IdleTimeout == 0 || len(t.idle) > 1 {
		return
	}
	if t.prune == nil {
		t.prune = time.AfterFunc(t.IdleTimeout, t.closeOld)
	} else {
		t.prune.Reset(t.IdleTimeout)
	}
}

// closeOld closes what has been idle for too long.
func (t *Transport) closeOld() {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := 0
	for old < len(t.idle) && time.Since(t.idle[old].idleSince) >= t.IdleTimeout {
		t.idle[old].close()
		old++
	}
	t.idle = append(t.idle[:0], t.idle[old:]...)
	if len(t.idle) > 0 {
		t.prune.Reset(t.IdleTimeout - time.Since(t.idle[0].idleSince))
	}
}

// repeatable tells whether a request may be sent a second time when the first
// may have reached the server (RFC 9110, 9.2.2; as net/http's Transport has it).
func repeatable(method string, header http.Header) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, "":
		return true
	}
	_, key := header["Idempotency-Key"]
	_, private := header["X-Idempotency-Key"]
	return key || private
}

var (
	errUnasked = errors.New("the server switched protocols unasked")
	errHead    = errors.New("the head of the response is too long")
	errStale   = errors.New("the server has closed the connection, or spoken unasked")
)

var _ http.RoundTripper = (*Transport)(nil)
