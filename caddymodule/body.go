package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-run/fairway/instancepool/http1"
)

// requestBody is the body of a request on its way to the instance. It may be closed
// while it is read, as HTTP/2 does, which the proxy's own does not stand.
type requestBody struct {
	io.Reader // the proxy's

	client io.Closer // the server's; nil if it is not to be closed
	read   atomic.Bool
	left   int64 // of what the client has said it sends; below 0 when it has not; Read's
	whole  atomic.Bool

	over    atomic.Bool
	reading sync.Mutex // held by Read
}

var errOver = errors.New("the request is over")

// bodyOf replaces the body of r where there is something to be minded about it;
// else it returns nil. client is the body as the server has it.
func bodyOf(r *http.Request, client io.Closer) *requestBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &requestBody{Reader: r.Body, left: r.ContentLength}
	switch {
	case r.ProtoMajor == 1:
		// A body that was closed early is for net/http one that was read, once Caddy has
		// wrapped it: what is left of it would be taken for the connection's next request.
		// So the server closes it itself, when the request is over.
	case r.Header["Upgrade"] == nil: // what comes after that is not the request's body, but may be client all the same
		b.client = client
	default:
		return nil
	}
	r.Body = b
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.read.Store(true) // now the server tells the client to send it
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.over.Load() {
		return 0, errOver
	}
	n, err := b.Reader.Read(p)
	b.left -= int64(n)
	if b.left == 0 || errors.Is(err, io.EOF) {
		b.whole.Store(true)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = &http1.RequestError{Err: err} // the client's doing, whatever carries the request
	}
	return n, err
}

// end returns when nobody reads the body any more, as a handler must before it
// returns itself: an instance may have answered, or gone, before it has read all.
func (b *requestBody) end(w http.ResponseWriter) {
	if b == nil {
		return
	}
	b.over.Store(true)
	if b.client != nil {
		_ = b.Close()
		b.reading.Lock()
	}
	for b.client == nil && !b.reading.TryLock() {
		b.part(w)
		if http.NewResponseController(w).SetReadDeadline(longAgo) != nil {
			return
		}
		time.Sleep(time.Millisecond) // a read that was about to begin sets a deadline of its own
	}
	b.reading.Unlock()
}

// part lets the connection of a client of HTTP/1 end with the response, unless all of
// the body was read: the next request on it would begin in the midst of this one's
// body. It is to be called before the response begins.
func (b *requestBody) part(w http.ResponseWriter) {
	if b != nil && b.client == nil && !b.whole.Load() {
		w.Header().Set("Connection", "close")
	}
}

var longAgo = time.Unix(1, 0)

// Close ends Read, of a body that may be closed. One of which nothing was read is left
// for another instance.
func (b *requestBody) Close() error {
	if b.client == nil || !b.read.Load() {
		return nil
	}
	return b.client.Close()
}

// unbound lets a response to HTTP/1 have trailers though its length is known: there
// they only come with a body in chunks.
func unbound(r *http.Request, resp *http.Response) {
	if r.ProtoMajor == 1 && len(resp.Trailer) > 0 && resp.ContentLength > 0 && r.Method != http.MethodHead {
		resp.Header.Del("Content-Length")
		resp.ContentLength = -1
	}
}
