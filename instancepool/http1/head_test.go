package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// plainHeads are what common servers say to an ordinary request, with their bodies.
var plainHeads = map[string]string{
	"nginx": "HTTP/1.1 200 OK\r\nServer: nginx/1.27.3\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: text/html\r\n" +
		"Content-Length: 5\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: keep-alive\r\nETag: \"6592-267\"\r\nAccept-Ranges: bytes\r\n\r\nhello",
	"nginx, not modified": "HTTP/1.1 304 Not Modified\r\nServer: nginx/1.27.3\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n" +
		"Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: keep-alive\r\nETag: \"6592-267\"\r\n\r\n",
	"Node.js": "HTTP/1.1 200 OK\r\nX-Powered-By: Express\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 13\r\n" +
		"ETag: W/\"d-x\"\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n{\"ok\": false}",
	"gunicorn": "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: keep-alive\r\n" +
		"Content-Type: text/html; charset=utf-8\r\nContent-Length: 5\r\n\r\nhello",
	"uvicorn": "HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 5\r\ncontent-type: text/plain\r\n\r\nhello",
	"Go":      "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 5\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nhello",

	"without fields":  "HTTP/1.1 204 No Content\r\n\r\n",
	"empty":           "HTTP/1.1 404 Nowhere At All\r\nContent-Length: 0\r\n\r\n",
	"without reason":  "HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n",
	"an empty reason": "HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n",
	"spaced reason":   "HTTP/1.1 200  O K \r\nContent-Length: 0\r\n\r\n",
	"a length for nothing": "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n" +
		"HTTP/1.1 200 OK\r\n",
	"many values":     "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nX: 1\r\nset-cookie: c=d\r\nSet-cookie: e=f\r\nContent-Length: 2\r\n\r\nok",
	"blanks":          "HTTP/1.1 200 OK\r\nX-Empty:\r\nX-Blank: \t \r\nX:\t a\tb \t\r\nContent-Length: \t2 \r\n\r\nok",
	"high bytes":      "HTTP/1.1 200 \xc3\xbc\xff\r\nX: \x80\xff\r\nContent-Length: 2\r\n\r\nok",
	"odd names":       "HTTP/1.1 200 OK\r\n!#$%&'*+-.^_`|~09az: 1\r\nx--y-: 2\r\nContent-Length: 2\r\n\r\nok",
	"colons":          "HTTP/1.1 200 OK\r\nX::a:b\r\nContent-Length: 2\r\n\r\nok",
	"leading zeros":   "HTTP/1.1 200 OK\r\nContent-Length: 002\r\n\r\nok",
	"a huge length":   "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\nok",
	"more than said":  "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, evil",
	"less than said":  "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok",
	"many fields":     "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + strings.Repeat("X: 1\r\ny: 2\r\n", 30) + "\r\nok",
	"more than twice": "HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
}

// oddHeads are for http.ReadResponse.
var oddHeads = map[string]string{
	"nothing":               "",
	"half a status":         "HTTP/1.1 200",
	"half a head":           "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
	"half an end":           "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r",
	"an empty line":         "\r\n\r\n",
	"no HTTP":               "hello\r\n\r\n",
	"HTTP/1.0":              "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
	"HTTP/2":                "HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok",
	"lower case":            "http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
	"interim":               "HTTP/1.1 100 Continue\r\n\r\n" + okay,
	"switching":             "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	"status 0":              "HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
	"status 600":            "HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\nok",
	"status 1000":           "HTTP/1.1 1000 OK\r\nContent-Length: 2\r\n\r\nok",
	"status +20":            "HTTP/1.1 +20 OK\r\nContent-Length: 2\r\n\r\nok",
	"spaces first":          "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok",
	"a tab after":           "HTTP/1.1 200\tOK\r\nContent-Length: 2\r\n\r\nok",
	"a return in it":        "HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok",
	"folded":                "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\nContent-Length: 2\r\n\r\nok",
	"folded with a tab":     "HTTP/1.1 200 OK\r\nX: 1\r\n\tContent-Length: 3\r\nContent-Length: 2\r\n\r\nok",
	"folded length":         "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n 3\r\n\r\nok",
	"folded first":          "HTTP/1.1 200 OK\r\n X: 1\r\nContent-Length: 2\r\n\r\nok",
	"bare ends":             "HTTP/1.1 200 OK\nX: bare\nContent-Length: 2\n\nok",
	"one bare end":          "HTTP/1.1 200 OK\r\nX: bare\nContent-Length: 2\r\n\r\nok",
	"a bare status":         "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
	"a bare end of all":     "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok\r\n\r\n",
	"a bare last":           "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\n\r\nok",
	"a return":              "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok",
	"two returns":           "HTTP/1.1 200 OK\r\nX: a\r\r\nContent-Length: 2\r\n\r\nok",
	"NUL":                   "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok",
	"DEL":                   "HTTP/1.1 200 OK\r\nX: a\x7fb\r\nContent-Length: 2\r\n\r\nok",
	"NUL in a name":         "HTTP/1.1 200 OK\r\nX\x00: a\r\nContent-Length: 2\r\n\r\nok",
	"a high name":           "HTTP/1.1 200 OK\r\nX\xff: a\r\nContent-Length: 2\r\n\r\nok",
	"no colon":              "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 2\r\n\r\nok",
	"no name":               "HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 2\r\n\r\nok",
	"a space before colon":  "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
	"a space within":        "HTTP/1.1 200 OK\r\nX Y: 2\r\nContent-Length: 2\r\n\r\nok",
	"no length":             "HTTP/1.1 200 OK\r\n\r\nok",
	"an empty length":       "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
	"length +2":             "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
	"length -2":             "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
	"length 0x2":            "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
	"length 1_0":            "HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
	"length 2.0":            "HTTP/1.1 200 OK\r\nContent-Length: 2.0\r\n\r\nok",
	"length 2, 2":           "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
	"a length too large":    "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\nok",
	"a length of 65 bits":   "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551618\r\n\r\nok",
	"equal lengths":         "HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\nok",
	"two lengths":           "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
	"a bad length, no body": "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n",
	"chunks":                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
	"chunks and a length":   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
	"no chunks":             "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: identity\r\n\r\nok",
	"trailer":               "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTrailer: X\r\n\r\nok",
	"pragma":                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nPragma: no-cache\r\n\r\nok",
	"close":                 "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
	"two connections":       "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nConnection: close\r\n\r\nok",
	"words":                 "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\r\nok",
}

// readBoth reads an answer in both ways, and tells whether it is plain. If it is, they
// must not differ in anything.
func readBoth(t *testing.T, answer []byte, method string, size int) (plain bool) {
	t.Helper()
	buffered := func() *bufio.Reader {
		br := bufio.NewReaderSize(bytes.NewReader(answer), size)
		_, _ = br.Peek(size) // as much as there is room for
		return br
	}
	br, stock := buffered(), buffered()
	come := br.Buffered()
	got := readPlain(br, asked(method))
	if got == nil {
		if left, _ := io.ReadAll(br); !bytes.Equal(left, answer) {
			t.Errorf("%q: of what is not plain %q is left", answer, left)
		}
		return false
	}
	defer got.Body.Close()
	want, err := http.ReadResponse(stock, asked(method))
	if err != nil {
		t.Fatalf("%q is plain; and yet: %v", answer, err)
	}
	defer want.Body.Close()
	if br.Buffered() != stock.Buffered() {
		t.Errorf("%q: the head has %d bytes; want %d", answer, come-br.Buffered(), come-stock.Buffered())
	}
	for _, values := range got.Header {
		_ = append(values, "behind it")
	}
	if (got.Body == http.NoBody) != (want.Body == http.NoBody) {
		t.Errorf("%q: body %v; want %v", answer, got.Body, want.Body)
	}
	gotBody, gotErr := io.ReadAll(got.Body)
	wantBody, wantErr := io.ReadAll(want.Body)
	if !bytes.Equal(gotBody, wantBody) || !errors.Is(gotErr, wantErr) {
		t.Errorf("%q: body %q, %v; want %q, %v", answer, gotBody, gotErr, wantBody, wantErr)
	}
	gotLeft, _ := io.ReadAll(br)
	wantLeft, _ := io.ReadAll(stock)
	if !bytes.Equal(gotLeft, wantLeft) {
		t.Errorf("%q: %q is left; want %q", answer, gotLeft, wantLeft)
	}
	g, w := *got, *want
	g.Body, w.Body = nil, nil
	if !reflect.DeepEqual(g, w) {
		t.Errorf("%q:\n%#v\nwant\n%#v", answer, g, w)
	}
	return true
}

func TestPlainHeads(t *testing.T) {
	for name, answer := range plainHeads {
		for _, method := range []string{"GET", "HEAD", "POST", "CONNECT"} {
			if !readBoth(t, []byte(answer), method, 4096) {
				t.Errorf("%s: not plain for %s", name, method)
			}
		}
	}
	if !readBoth(t, []byte("HTTP/1.1 200 OK\r\n\r\n"), "HEAD", 4096) {
		t.Error("an answer to HEAD without a length is not plain")
	}
}

func TestOddHeads(t *testing.T) {
	for name, answer := range oddHeads {
		if readBoth(t, []byte(answer), "GET", 4096) {
			t.Errorf("%s: taken for plain", name)
		}
	}
	long := "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 4096) + "\r\nContent-Length: 2\r\n\r\nok"
	if readBoth(t, []byte(long), "GET", 4096) {
		t.Error("a head is taken for plain that has not come")
	}
}

func FuzzHead(f *testing.F) {
	for _, heads := range []map[string]string{plainHeads, oddHeads} {
		for _, answer := range heads {
			f.Add([]byte(answer), "GET")
		}
	}
	f.Add([]byte(plainHeads["Go"]), "HEAD")
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"), "HEAD")
	f.Fuzz(func(t *testing.T, answer []byte, method string) {
		readBoth(t, answer, method, 4096)
	})
}

// What is kept of a response is not touched by the next one.
func TestAResponseIsKept(t *testing.T) {
	n := 0
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		for ; c.head() != ""; n++ {
			c.say([]string{plainHeads["nginx"], plainHeads["Node.js"]}[n])
		}
	})
	x, err := tr.Send(t.Context(), get())
	if err != nil {
		t.Fatal(err)
	}
	kept := x.Response
	if rest, ok := x.Rest(); !ok || string(rest) != "hello" {
		t.Fatalf("%q, %v", rest, ok)
	}
	x.End(true)
	mustSend(t, tr, get(), "{\"ok\": false}")
	if kept.Status != "200 OK" || kept.Header.Get("Server") != "nginx/1.27.3" || kept.Header.Get("Etag") != "\"6592-267\"" || len(kept.Header) != 8 {
		t.Errorf("%s %q", kept.Status, kept.Header)
	}
}

func TestRest(t *testing.T) {
	more := make(chan struct{})
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		for {
			switch head := c.head(); {
			case head == "":
				return
			case strings.HasPrefix(head, "GET /late"):
				c.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
				<-more
				c.say(", ")
			case strings.HasPrefix(head, "GET /chunks"):
				c.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
			default:
				c.say(okay)
			}
		}
	})
	open := func(method, target string) *Exchange {
		r := get()
		r.Method, r.Target = method, target
		x, err := tr.Send(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	x := open("GET", "/")
	if n, err := x.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if rest, ok := x.Rest(); !ok || string(rest) != "k" {
		t.Errorf("after a byte of it, the rest is %q, %v", rest, ok)
	}
	if n, err := x.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // as readers return it
		t.Errorf("after all of it: %d, %v", n, err)
	}
	x.End(true)
	for _, target := range []string{"/late", "/chunks"} {
		x = open("GET", target)
		if rest, ok := x.Rest(); ok {
			t.Errorf("%s: %q is all", target, rest)
		}
		if target == "/late" {
			close(more)
		}
		if body, err := io.ReadAll(x); err != nil || !strings.HasPrefix(string(body), "ok") {
			t.Errorf("%s: %q, %v", target, body, err)
		}
		x.End(true)
	}
	x = open("HEAD", "/nobody")
	if rest, ok := x.Rest(); ok {
		t.Errorf("HEAD: %q is all", rest)
	}
	x.End(false)
}

func TestSizedBody(t *testing.T) {
	sized := func(r io.Reader, n int64) *sizedBody { return &sizedBody{br: bufio.NewReader(r), left: n} }
	if err := iotest.TestReader(sized(strings.NewReader("hello, world"), 5), []byte("hello")); err != nil {
		t.Error(err)
	}
	b := sized(strings.NewReader("hello"), 6)
	for range 2 {
		if body, err := io.ReadAll(b); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a body that ends early: %q, %v", body, err)
		}
	}
	if rest, ok := b.rest(); ok {
		t.Errorf("its rest is %q", rest)
	}
	b = sized(strings.NewReader("hello"), 5)
	b.Close()
	if _, err := b.Read(make([]byte, 9)); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("after Close: %v", err)
	}
}

func BenchmarkHead(b *testing.B) {
	for _, name := range []string{"nginx", "uvicorn", "chunks"} {
		answer := plainHeads[name] + oddHeads[name]
		for way, read := range map[string]func(*bufio.Reader) *http.Response{
			"plain": func(br *bufio.Reader) *http.Response {
				if resp := readPlain(br, askedGet); resp != nil {
					return resp
				}
				resp, _ := http.ReadResponse(br, askedGet)
				return resp
			},
			"stock": func(br *bufio.Reader) *http.Response {
				resp, _ := http.ReadResponse(br, askedGet)
				return resp
			},
		} {
			b.Run(name+"/"+way, func(b *testing.B) {
				src := strings.NewReader(answer)
				br := bufio.NewReader(src)
				b.ReportAllocs()
				for b.Loop() {
					src.Reset(answer)
					br.Reset(src)
					_, _ = br.Peek(1)
					if resp := read(br); resp.StatusCode != http.StatusOK {
						b.Fatal(resp.Status)
					}
				}
			})
		}
	}
}
