package caddymodule

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/http1"
)

// smallBody is a body that has been read. It can be sent to one instance after the other.
type smallBody struct{ bytes.Reader }

// Close implements io.Closer.
func (*smallBody) Close() error { return nil }

// readSmall reads a small body before anything of the request is sent, or has it read
// once more. The transport would read it anyhow, but may find only then that its
// connection is closed, and the instance gone: another is to get all of it (F28).
func (x *exchange) readSmall(w http.ResponseWriter, r *http.Request) error {
	if x.small != nil {
		_, _ = x.small.Seek(0, io.SeekStart)
		return nil
	}
	if !small(r) || x.lease.Instance().HTTP1() == nil { // HTTP/2 sends it as it comes
		return nil
	}
	b := make([]byte, r.ContentLength)
	if err := x.readInTime(w, r, b); err != nil {
		return &http1.RequestError{Err: err}
	}
	x.small = new(smallBody)
	x.small.Reset(b)
	r.Body = x.small
	return nil
}

// small tells whether a request's body is read before it is sent.
func small(r *http.Request) bool {
	return r.ContentLength > 0 && r.ContentLength <= http1.MaxBuffered && len(r.Trailer) == 0 && r.Header["Expect"] == nil
}

// readInTime reads the body while the response might still begin in time: a client
// that does not send it holds a slot.
func (x *exchange) readInTime(w http.ResponseWriter, r *http.Request, b []byte) error {
	control := http.NewResponseController(w)
	patience := x.lease.Revision().Spec().AnswerWithin()
	by := x.began.Add(patience)
	s := serverFor(r)
	bound := s == nil || s.ReadTimeout == 0 || s.ReadTimeout > patience // else it is, by the server
	if bound {
		_ = control.SetReadDeadline(by)
	}
	_, err := io.ReadFull(r.Body, b)
	if err == nil {
		if bound {
			_ = control.SetReadDeadline(time.Time{}) // as the server does itself at the end of a body
		}
		return nil
	}
	if r.ProtoMajor == 1 {
		// The server is not to wait for the rest of it, and then take that for a request.
		w.Header().Set("Connection", "close")
		_ = control.SetReadDeadline(longAgo)
	}
	if !time.Now().Before(by) { // not all servers say so in their errors
		return instancepool.ErrTimeout
	}
	return fmt.Errorf("reading the request's body: %w", err)
}

// serverFor returns the server that a request of HTTP/1 or HTTP/2 came through.
func serverFor(r *http.Request) *http.Server {
	s, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	return s
}
