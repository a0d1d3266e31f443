package caddymodule

import (
	"io"
	"net/http"
	"sync/atomic"
)

// expectation is the body of a request whose client asks first whether it is
// wanted (RFC 9110: Expect: 100-continue).
type expectation struct {
	io.ReadCloser

	wanted atomic.Bool
}

func (e *expectation) Read(p []byte) (int, error) {
	e.wanted.Store(true) // now the server tells the client to send it
	return e.ReadCloser.Read(p)
}

// expect notes whether the instance wants the body of r. Nil: nobody has asked.
func expect(r *http.Request) *expectation {
	if r.ProtoMajor != 1 || r.Body == nil || r.Header.Get("Expect") == "" {
		return nil
	}
	e := &expectation{ReadCloser: r.Body}
	r.Body = e
	return e
}

// refused reports whether the client is not to send its body. net/http would wait
// for it before it answers: it does not recognize such a body once Caddy has wrapped it.
func (e *expectation) refused() bool { return e != nil && !e.wanted.Load() }

// unbound lets a response to HTTP/1 have trailers though its length is known: there
// they only come with a body in chunks.
func unbound(r *http.Request, resp *http.Response) {
	if r.ProtoMajor == 1 && len(resp.Trailer) > 0 && resp.ContentLength > 0 && r.Method != http.MethodHead {
		resp.Header.Del("Content-Length")
		resp.ContentLength = -1
	}
}
