package caddymodule

import (
	"io"
	"net/http"
	"sync/atomic"
)

// requestBody is the body of a request on its way to the instance. It may be closed
// while it is read, as HTTP/2 does, which the proxy's own does not stand.
type requestBody struct {
	io.Reader // the proxy's

	client io.Closer // the server's; nil if it is not to be closed
	asked  bool      // the client has asked whether it is wanted (RFC 9110: Expect)
	read   atomic.Bool
}

// bodyOf replaces the body of r where there is something to be minded about it;
// else it returns nil. client is the body as the server has it.
func bodyOf(r *http.Request, client io.Closer, h2c bool) *requestBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &requestBody{Reader: r.Body}
	switch {
	case r.ProtoMajor == 1:
		// A body that was closed early is for net/http one that was read, once Caddy has
		// wrapped it: what is left of it would be taken for the connection's next request.
		// So the server closes it itself, when the request is over.
		b.asked = r.Header.Get("Expect") != ""
	case h2c && r.Header["Upgrade"] == nil: // what comes after that is not the request's body, but may be client all the same
		b.client = client
	default:
		return nil
	}
	r.Body = b
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.read.Store(true) // now the server tells the client to send it
	return b.Reader.Read(p)
}

// Close ends Read, of a body that may be closed. One of which nothing was read is left
// for another instance.
func (b *requestBody) Close() error {
	if b.client == nil || !b.read.Load() {
		return nil
	}
	return b.client.Close()
}

// refused reports whether the client has asked, and is not to send it. net/http
// would wait for it before it answers: it does not recognize such a body once
// Caddy has wrapped it.
func (b *requestBody) refused() bool { return b != nil && b.asked && !b.read.Load() }

// unbound lets a response to HTTP/1 have trailers though its length is known: there
// they only come with a body in chunks.
func unbound(r *http.Request, resp *http.Response) {
	if r.ProtoMajor == 1 && len(resp.Trailer) > 0 && resp.ContentLength > 0 && r.Method != http.MethodHead {
		resp.Header.Del("Content-Length")
		resp.ContentLength = -1
	}
}
