package caddymodule

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"

	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

// limitBody bounds a request's body. One that says that it is too large is refused
// before anything is started for it; one that turns out to be ends there. What follows
// a switch of protocols is no body.
func (h *Handler) limitBody(w http.ResponseWriter, r *http.Request) error {
	if h.MaxRequestBody == 0 || r.Body == nil || r.Method == http.MethodConnect || r.Header["Upgrade"] != nil {
		return nil
	}
	if r.ContentLength > h.MaxRequestBody {
		note(r, h.Service, "too_large")
		return caddyhttp.Error(http.StatusRequestEntityTooLarge, fmt.Errorf("the request's body has %d bytes, and may have %d", r.ContentLength, h.MaxRequestBody))
	}
	if r.ContentLength < 0 {
		r.Body = limitedBody{http.MaxBytesReader(w, r.Body, h.MaxRequestBody)}
	}
	return nil
}

// limitedBody says, in Caddy's way, which status its error has.
type limitedBody struct{ io.ReadCloser }

func (b limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		err = caddyhttp.Error(http.StatusRequestEntityTooLarge, err)
	}
	return n, err
}

// parseMaxRequestBody reads the option:
//
//	max_request_body <size>
func (h *Handler) parseMaxRequestBody(helper httpcaddyfile.Helper) error {
	if h.MaxRequestBody != 0 {
		return helper.Err("duplicate option 'max_request_body'")
	}
	if !helper.NextArg() {
		return helper.ArgErr()
	}
	size, err := humanize.ParseBytes(helper.Val())
	if err != nil || size == 0 || size > math.MaxInt64 {
		return helper.Errf("max_request_body: '%s' is not a size such as 10MB", helper.Val())
	}
	h.MaxRequestBody = int64(size)
	if helper.NextArg() {
		return helper.ArgErr()
	}
	return nil
}
