package http1

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// Exchange is a response that is being read. It belongs to one goroutine, and must
// not be used after its end.
type Exchange struct {
	// Response has what the server said. Its body is to be read through Read.
	Response *http.Response

	c      *conn
	ctx    context.Context //nolint:containedctx // of this one exchange
	stop   func() bool     // of watching ctx; nil while nobody does
	sent   bool            // something of the request was written
	heard  bool            // something of a response has come
	upload *upload
}

// Read reads the response's body.
func (x *Exchange) Read(p []byte) (int, error) {
	n, err := x.Response.Body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && x.ctx.Err() != nil {
		err = x.ctx.Err()
	}
	return n, err
}

// Rest returns what is left of the response's body, if that is known to have come: then
// it counts as read. It is valid until End, and not to be changed.
func (x *Exchange) Rest() ([]byte, bool) {
	if b, ok := x.Response.Body.(*sizedBody); ok {
		return b.rest()
	}
	return nil, false
}

// Buffered tells whether more of the response has come than was read.
func (x *Exchange) Buffered() bool { return x.c.br.Buffered() > 0 }

// ReadBy sets when reading must end.
func (x *Exchange) ReadBy(deadline time.Time) {
	x.c.deadline = deadline
	if x.stop != nil {
		x.c.by(deadline)
	}
}

// Late tells whether an error of Read means that the deadline has passed.
func (x *Exchange) Late(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && x.ctx.Err() == nil
}

// End ends the exchange. If whole, the body has been read to its end.
func (x *Exchange) End(whole bool) {
	c := x.c
	whole = (x.stop == nil || x.stop()) && whole && !x.Response.Close && c.br.Buffered() == 0
	if u := x.upload; u != nil {
		x.upload = nil
		whole = whole && u.ended()
		defer u.cancel()
	}
	x.Response, x.ctx, x.stop = nil, nil, nil
	if whole {
		c.t.put(c)
	} else {
		c.close()
	}
}

// handOver makes a response of the exchange that ends it by itself.
func (x *Exchange) handOver(ctx context.Context) *http.Response {
	resp := x.Response
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		x.switchOver()
	case resp.Body == http.NoBody:
		x.End(true)
	default:
		resp.Body = &responseBody{x: x, src: resp.Body, ctx: ctx}
	}
	return resp
}

// switchOver makes the connection itself the response's body: from now on it is
// its reader's.
func (x *Exchange) switchOver() {
	c := x.c
	if x.stop != nil {
		x.stop()
	}
	_ = c.nc.SetDeadline(time.Time{})
	x.Response.Body = &switched{conn: c}
}

// responseBody is a body that gives its connection back at its end.
type responseBody struct {
	x     *Exchange // nil after its end
	src   io.ReadCloser
	ctx   context.Context //nolint:containedctx // of the request whose answer this is
	final error
}

func (b *responseBody) Read(p []byte) (int, error) {
	if b.x == nil {
		return 0, b.final
	}
	n, err := b.src.Read(p)
	if err == nil {
		return n, nil
	}
	if !errors.Is(err, io.EOF) && b.ctx.Err() != nil {
		err = b.ctx.Err()
	}
	b.end(err)
	return n, err
}

func (b *responseBody) end(err error) {
	x := b.x
	b.x, b.final = nil, err
	x.End(err == io.EOF) //nolint:errorlint // io.ErrUnexpectedEOF is not the end
}

// Close implements io.Closer.
func (b *responseBody) Close() error {
	if b.x != nil {
		b.end(errClosed)
	}
	return nil
}

var errClosed = errors.New("read after the body was closed")

// switched is a connection whose protocol is no longer HTTP.
type switched struct{ *conn }

// Read begins with what came together with the response's head.
func (s *switched) Read(p []byte) (int, error) {
	if s.br != nil {
		if s.br.Buffered() > 0 {
			return s.br.Read(p)
		}
		s.br = nil
	}
	return s.nc.Read(p)
}

// Write implements io.Writer.
func (s *switched) Write(p []byte) (int, error) { return s.nc.Write(p) }

// Close implements io.Closer.
func (s *switched) Close() error { return s.nc.Close() }

// CloseWrite tells the server that no more will be sent.
func (s *switched) CloseWrite() error {
	if half, ok := s.nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
