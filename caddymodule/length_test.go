package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowBody has its content after a while.
type slowBody struct {
	io.Reader
	after time.Duration
}

func (b *slowBody) Read(p []byte) (int, error) {
	time.Sleep(b.after)
	b.after = 0
	return b.Reader.Read(p)
}

func (*slowBody) Close() error { return nil }

// A request whose length is not known is as good as any other if it has no body, and
// loses nothing of it if it has one.
func TestSettleLength(t *testing.T) {
	errBroken := errors.New("broken")
	for name, test := range map[string]struct {
		body    string
		after   time.Duration
		fails   error
		chunked bool
		method  string

		length int64
		takes  time.Duration
	}{
		"none":             {length: 0},
		"none, a bit late": {after: probeWait / 2, length: 0, takes: probeWait / 2},
		"none, too late":   {after: time.Hour, length: -1, takes: probeWait},
		"one":              {body: "ab", length: -1},
		"one, too late":    {body: "ab", after: time.Hour, length: -1, takes: probeWait},
		"one that fails":   {fails: errBroken, length: -1},
		"a part":           {body: "a", fails: errBroken, length: -1},
		// There the client has said that there is one.
		"chunks": {after: time.Hour, chunked: true, length: -1},
		"POST":   {after: time.Hour, method: http.MethodPost, length: -1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var body io.Reader = strings.NewReader(test.body)
				if test.fails != nil {
					body = io.MultiReader(body, &failingReader{test.fails})
				}
				r := &http.Request{Method: http.MethodGet, ContentLength: -1, Body: &slowBody{body, test.after}}
				if test.method != "" {
					r.Method = test.method
				}
				if test.chunked {
					r.TransferEncoding = []string{"chunked"}
				}
				began := time.Now()
				settleLength(r)
				if took := time.Since(began); r.ContentLength != test.length || took != test.takes {
					t.Errorf("length %d after %s; want %d after %s", r.ContentLength, took, test.length, test.takes)
				}
				if got, err := io.ReadAll(r.Body); string(got) != test.body || !errors.Is(err, test.fails) {
					t.Errorf("it reads as %q, %v", got, err)
				}
			})
		})
	}
}

type failingReader struct{ err error }

func (f *failingReader) Read([]byte) (int, error) { return 0, f.err }
