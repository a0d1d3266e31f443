package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// probeWait is how long it may take to tell whether there is a body.
const probeWait = 200 * time.Millisecond

// settleLength finds out whether a request has a body whose client has not said so.
// HTTP/3 has nothing but the end of the stream for that, even with a GET.
func settleLength(r *http.Request) {
	if r.ContentLength >= 0 || len(r.TransferEncoding) > 0 || len(r.Trailer) > 0 || r.Header["Expect"] != nil || !seldomHasBody(r.Method) {
		return
	}
	if r.Body = probeBody(r.Body); r.Body == http.NoBody {
		r.ContentLength = 0
	}
}

// seldomHasBody tells whether a body of unknown length is probably none: servers
// may take offence at one that is sent with these.
func seldomHasBody(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodOptions, "PROPFIND", "SEARCH":
		return true
	}
	return false
}

// probeBody returns http.NoBody if a body is empty, or one that reads the same. If it
// can't be told soon, it counts as a body.
func probeBody(body io.ReadCloser) io.ReadCloser {
	p := &probedBody{ReadCloser: body, first: make(chan firstRead, 1)}
	go func() {
		var f firstRead
		for f.n == 0 && f.err == nil {
			f.n, f.err = body.Read(f.b[:])
		}
		p.first <- f
	}()
	timer := time.NewTimer(probeWait)
	defer timer.Stop()
	select {
	case f := <-p.first:
		if f.n == 0 && errors.Is(f.err, io.EOF) {
			body.Close()
			return http.NoBody
		}
		p.first <- f
	case <-timer.C:
	}
	return p
}

// firstRead is the beginning of a body.
type firstRead struct {
	b   [1]byte
	n   int
	err error
}

// probedBody is a body whose beginning has been, or is being, read.
type probedBody struct {
	io.ReadCloser
	first chan firstRead // nil once it has been handed on
	err   error
}

func (p *probedBody) Read(b []byte) (int, error) {
	if p.first == nil {
		if p.err != nil {
			return 0, p.err
		}
		return p.ReadCloser.Read(b)
	}
	if len(b) == 0 {
		return 0, nil
	}
	f := <-p.first
	p.first, p.err = nil, f.err
	return copy(b, f.b[:f.n]), f.err
}
