package caddymodule

import (
	"bytes"
	"cmp"
	_ "embed" // of the built-in page
	"errors"
	"fmt"
	"html/template"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

const (
	// waitingAfter is how long a browser waits without a page: most starts are
	// faster, and a page that flashes up is worse than none.
	waitingAfter = 500 * time.Millisecond
	// waitingReload is how many seconds the page stands before it loads itself again;
	// that request waits in the queue like the first.
	waitingReload = 1
	// maxWaitingPage bounds the file, and what is made of it.
	maxWaitingPage = 1 << 20
)

//go:embed waiting.html
var waitingHTML string

// WaitingPage is what a browser is shown while an instance starts. It has status
// 503, is not cached, and loads itself again until the service answers.
type WaitingPage struct {
	// A template of Go's html/template, of at most 1 MiB, read when the config is
	// loaded. It may use `{{.Service}}`, the service's name; `{{.Seconds}}`, after how
	// many seconds the page loads itself again, which is a header's work, not the
	// page's; and `{{.Reason}}`, what is waited for. Default: a plain page of
	// Fairway's own.
	File string `json:"file,omitempty"`
	// How long a browser's request waits for an instance to start before it gets the
	// page. Default: `500ms`.
	After caddy.Duration `json:"after,omitempty"`

	template *template.Template
}

// waitingData is what the template can use.
type waitingData struct {
	Service string
	Seconds int
	Reason  string
}

// provision reads and tries the template.
func (p *WaitingPage) provision() error {
	if p.After < 0 {
		return fmt.Errorf("waiting_page: after %s is below zero", time.Duration(p.After))
	}
	text, name := waitingHTML, "waiting.html"
	if p.File != "" {
		name = caddy.NewReplacer().ReplaceKnown(p.File, "")
		var err error
		if text, err = readBounded(name); err != nil {
			return fmt.Errorf("waiting_page: %w", err)
		}
	}
	var err error
	if p.template, err = template.New(name).Parse(text); err != nil {
		return fmt.Errorf("waiting_page: parsing %s: %w", name, err)
	}
	if _, err := p.render(waitingData{Service: "hello", Seconds: waitingReload, Reason: "an instance is starting"}); err != nil {
		return fmt.Errorf("waiting_page: trying %s: %w", name, err)
	}
	return nil
}

// readBounded reads a file of at most maxWaitingPage bytes.
func readBounded(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxWaitingPage+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxWaitingPage {
		return "", fmt.Errorf("%s has more than %d bytes", name, maxWaitingPage)
	}
	return string(b), nil
}

func (p *WaitingPage) render(data waitingData) ([]byte, error) {
	var b boundedBuffer
	if err := p.template.Execute(&b, data); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// boundedBuffer is a buffer of at most maxWaitingPage bytes.
type boundedBuffer struct{ bytes.Buffer }

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxWaitingPage {
		return 0, fmt.Errorf("the page has more than %d bytes", maxWaitingPage)
	}
	return b.Buffer.Write(p)
}

// brief is how long a request waits for a start before it gets the page; 0 when it
// gets none.
func (h *Handler) brief(r *http.Request) time.Duration {
	if h.WaitingPage == nil || !navigates(r) {
		return 0
	}
	return cmp.Or(time.Duration(h.WaitingPage.After), waitingAfter)
}

// navigates tells whether a request is a browser's for what is in its address bar.
// Browsers say so themselves to hosts that they trust, which are those with TLS.
// A page in a frame is none: in a sandbox it could not load itself again.
func navigates(r *http.Request) bool {
	h := r.Header
	switch {
	case r.Method != http.MethodGet, r.ContentLength != 0, !acceptsHTML(h):
		return false
	case h["Upgrade"] != nil, h["Range"] != nil, h["X-Requested-With"] != nil:
		return false
	case h["Purpose"] != nil, h["Sec-Purpose"] != nil: // ahead of need: nobody looks at it
		return false
	}
	only := func(name, want string) bool {
		got := h[name]
		return len(got) == 0 || len(got) == 1 && got[0] == want
	}
	return only("Sec-Fetch-Mode", "navigate") && only("Sec-Fetch-Dest", "document")
}

// acceptsHTML tells whether HTML is asked for by name.
func acceptsHTML(h http.Header) bool {
	for _, value := range h["Accept"] {
		for kind := range strings.SplitSeq(value, ",") {
			media, params, err := mime.ParseMediaType(kind)
			if err != nil || media != "text/html" {
				continue
			}
			q, err := strconv.ParseFloat(cmp.Or(params["q"], "1"), 64)
			return err == nil && q > 0
		}
	}
	return false
}

// showWaiting answers with the page. No handle_errors sees it.
func (h *Handler) showWaiting(w http.ResponseWriter, r *http.Request, service string, reason error) error {
	page, err := h.WaitingPage.render(waitingData{Service: service, Seconds: waitingReload, Reason: reason.Error()})
	if err != nil {
		return fmt.Errorf("waiting_page: %w", err)
	}
	note(r, service, "waiting_page")
	header := w.Header()
	seconds := strconv.Itoa(waitingReload)
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(len(page)))
	// Without an address it is that of the page, with its query. As a header it needs
	// neither a script nor anything in the page.
	header.Set("Refresh", seconds)
	header.Set("Retry-After", seconds)
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write(page) // the client may have left
	return nil
}

// parseWaitingPage reads the option:
//
//	waiting_page [<file>] {
//		after <duration>
//	}
func (h *Handler) parseWaitingPage(helper httpcaddyfile.Helper) error {
	if h.WaitingPage != nil {
		return helper.Err("duplicate option 'waiting_page'")
	}
	p := new(WaitingPage)
	h.WaitingPage = p
	if helper.NextArg() {
		p.File = helper.Val()
	}
	if helper.NextArg() {
		return helper.ArgErr()
	}
	for nesting := helper.Nesting(); helper.NextBlock(nesting); {
		if helper.Val() != "after" {
			return helper.Errf("waiting_page: unrecognized option '%s'", helper.Val())
		}
		if p.After != 0 {
			return helper.Err("waiting_page: duplicate option 'after'")
		}
		var text string
		if !helper.AllArgs(&text) {
			return helper.ArgErr()
		}
		d, err := caddy.ParseDuration(text)
		if err == nil && d <= 0 {
			err = errors.New("not above zero")
		}
		if err != nil {
			return helper.Errf("waiting_page: after: '%s' is not a duration above zero", text)
		}
		p.After = caddy.Duration(d)
	}
	return nil
}
