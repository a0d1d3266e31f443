package caddymodule

import (
	"net/http"
	"time"
)

const (
	// serverBuffers is how much of a body a server takes without waiting for the client.
	serverBuffers = 2 << 10
	// writingGrace is for a response that ends at its timeout: what there is goes out.
	writingGrace = time.Second
)

// boundWriting has the response end at the request's timeout even though the client
// does not read it, or not fast enough, and so holds its slot.
func (x *exchange) boundWriting(w http.ResponseWriter, r *http.Request) {
	if x.writing {
		return
	}
	patience := x.lease.Revision().Spec().Timeout + writingGrace
	if s := serverFor(r); s != nil && s.WriteTimeout > 0 {
		if s.WriteTimeout <= patience {
			return
		}
		x.written = x.began.Add(s.WriteTimeout)
	}
	x.writing = http.NewResponseController(w).SetWriteDeadline(x.began.Add(patience)) == nil
}

// unboundWriting lets the client's connection be used for other requests.
func (x *exchange) unboundWriting(w http.ResponseWriter) {
	if x.writing {
		x.writing = false
		_ = http.NewResponseController(w).SetWriteDeadline(x.written)
	}
}
