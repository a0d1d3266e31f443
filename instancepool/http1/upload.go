package http1

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// upload is a body that is sent while its response is awaited, by a goroutine of
// its own. That ends with the body, which a server ends when the request is over.
type upload struct {
	c    *conn
	r    *Request
	body io.ReadCloser

	begin  chan bool     // whether the body is to be sent; nil when it is without asking
	over   chan struct{} // closed when nobody wants it to go on
	done   chan struct{} // closed at its end
	cancel func()        // closes over

	err    error // why it ended early; written before done is closed
	failed error // what part of err is the body's own fault; the same
}

func newUpload(c *conn, r *Request, body io.ReadCloser, expect bool) *upload {
	u := &upload{c: c, r: r, body: body, over: make(chan struct{}), done: make(chan struct{})}
	u.cancel = sync.OnceFunc(func() { close(u.over) })
	if expect {
		u.begin = make(chan bool, 1)
	}
	return u
}

// answered says that the server has answered, and whether it wants the body. Only
// the first call counts.
func (u *upload) answered(send bool) {
	if u.begin == nil {
		return
	}
	select {
	case u.begin <- send:
	default:
	}
}

// ended tells whether all of the body was sent; it waits for that a little.
func (u *upload) ended() bool {
	timer := time.NewTimer(uploadWait)
	defer timer.Stop()
	select {
	case <-u.done:
		return u.err == nil
	case <-timer.C:
		return false
	}
}

// failure returns what was wrong with the body, if that has ended the exchange.
func (u *upload) failure() error {
	select {
	case <-u.done:
		return u.failed
	default:
		return nil
	}
}

func (u *upload) run() {
	defer u.body.Close()
	if u.wanted() {
		u.err = u.send()
	} else {
		u.err = errUnsent
	}
	close(u.done) // before the abort: who is woken by that asks why
	if u.failed != nil {
		u.c.abort() // no answer can come to half a request
	}
}

var errUnsent = errors.New("the server did not want the request's body")

// wanted waits until it is known whether the server wants the body.
func (u *upload) wanted() bool {
	if u.begin == nil {
		return true
	}
	timer := time.NewTimer(continueWait)
	defer timer.Stop()
	select {
	case send := <-u.begin:
		return send
	case <-timer.C:
		return true
	case <-u.over:
		return false
	}
}

// A chunk has room for its size before it and the end of its line after it.
const (
	uploadBuffer = 32 << 10
	chunkHead    = len("ffffffff\r\n")
	chunkTail    = len("\r\n")
)

var uploadBuffers = sync.Pool{New: func() any {
	b := make([]byte, uploadBuffer)
	return &b
}}

func (u *upload) send() error {
	buffer := uploadBuffers.Get().(*[]byte)
	defer uploadBuffers.Put(buffer)
	buf := *buffer
	left := u.r.Length
	for left != 0 {
		p := buf[chunkHead : len(buf)-chunkTail]
		if left > 0 && int64(len(p)) > left {
			p = p[:left]
		}
		n, err := u.body.Read(p)
		if n > 0 {
			if werr := u.write(buf, n); werr != nil {
				return werr
			}
			if left > 0 {
				left -= int64(n)
			}
		}
		switch {
		case err == nil:
		case err == io.EOF && left <= 0: //nolint:errorlint // readers return it as it is
			left = 0
		case err == io.EOF: //nolint:errorlint // as above
			u.failed = fmt.Errorf("the request's body ended %d bytes early", left)
			return u.failed
		default:
			u.failed = fmt.Errorf("reading the request's body: %w", err)
			return u.failed
		}
	}
	if !u.r.chunked {
		return nil
	}
	end := buf[:0]
	end = append(end, "0\r\n"...)
	for _, name := range slices.Sorted(maps.Keys(u.r.trailer)) {
		if !httpguts.ValidTrailerHeader(name) {
			continue
		}
		for _, value := range u.r.trailer[name] {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
				u.failed = fmt.Errorf("the trailer %q is not valid", name)
				return u.failed
			}
			end = fmt.Appendf(end, "%s: %s\r\n", name, value)
		}
	}
	_, err := u.c.nc.Write(append(end, "\r\n"...))
	return err
}

// write writes n bytes that begin at chunkHead of buf.
func (u *upload) write(buf []byte, n int) error {
	if !u.r.chunked {
		_, err := u.c.nc.Write(buf[chunkHead : chunkHead+n])
		return err
	}
	var size [chunkHead]byte
	head := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
	from := chunkHead - len(head)
	copy(buf[from:], head)
	copy(buf[chunkHead+n:], "\r\n")
	_, err := u.c.nc.Write(buf[from : chunkHead+n+chunkTail])
	return err
}
