package http1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"weak"
)

// backend is a server of which each connection is served by a function.
type backend struct {
	t       *testing.T
	l       net.Listener
	conns   atomic.Int64
	wg      sync.WaitGroup
	dialled func(net.Conn) net.Conn // what Dial makes of a connection
}

func newBackend(t *testing.T, serve func(n int64, c *serverConn)) (*backend, *Transport) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{t: t, l: l}
	b.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			n := b.conns.Add(1)
			b.wg.Go(func() {
				defer nc.Close()
				serve(n, &serverConn{Conn: nc, br: bufio.NewReader(nc), t: t})
			})
		}
	})
	tr := &Transport{MaxIdle: 10, Dial: func(ctx context.Context) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil && b.dialled != nil {
			nc = b.dialled(nc)
		}
		return nc, err
	}}
	t.Cleanup(func() {
		tr.Close()
		l.Close()
		b.wg.Wait()
	})
	return b, tr
}

// serverConn is a connection on the server's side.
type serverConn struct {
	net.Conn
	br *bufio.Reader
	t  *testing.T
}

// head reads a request's head, or returns "" at the end.
func (c *serverConn) head() string {
	var b strings.Builder
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			return ""
		}
		if b.WriteString(line); line == "\r\n" {
			return b.String()
		}
	}
}

func (c *serverConn) read(n int) string {
	b := make([]byte, n)
	if _, err := io.ReadFull(c.br, b); err != nil {
		c.t.Errorf("reading %d bytes: %v", n, err)
	}
	return string(b)
}

func (c *serverConn) say(text string) { _, _ = io.WriteString(c.Conn, text) }

const okay = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// always answers every request in the same way.
func always(answer string) func(int64, *serverConn) {
	return func(_ int64, c *serverConn) {
		for c.head() != "" {
			c.say(answer)
		}
	}
}

func get() *Request {
	return &Request{Method: "GET", Target: "/", Host: "app", Header: http.Header{}}
}

func post(body string) *Request {
	return &Request{Method: "POST", Target: "/", Host: "app", Header: http.Header{}, Body: strings.NewReader(body), Length: int64(len(body))}
}

// send sends a request and reads its answer.
func send(t *testing.T, tr *Transport, r *Request) (string, error) {
	t.Helper()
	x, err := tr.Send(t.Context(), r)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, x)
	x.End(err == nil)
	return b.String(), err
}

func mustSend(t *testing.T, tr *Transport, r *Request, want string) {
	t.Helper()
	if got, err := send(t, tr, r); err != nil || got != want {
		t.Fatalf("the answer to %s is %q, %v; want %q", r.Method, got, err, want)
	}
}

func roundTrip(t *testing.T, tr *Transport, method string, body io.Reader, change ...func(*http.Request)) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://app/", body)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	return tr.RoundTrip(req)
}

func TestHead(t *testing.T) {
	heads := make(chan string, 1)
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		for {
			head := c.head()
			if head == "" {
				return
			}
			if strings.Contains(head, "Content-Length: 5") {
				head += c.read(5)
			}
			heads <- head
			c.say(okay)
		}
	})
	many := http.Header{
		"Accept": {"a", " b\t"}, "Connection": {"keep-alive"}, "Content-Length": {"99"}, "Host": {"evil"}, "Keep-Alive": {"9"}, "Proxy-Authorization": {"p"},
		"Te": {"trailers"}, "Trailer": {"X"}, "Transfer-Encoding": {"chunked"}, "Upgrade": {"h2c"}, "User-Agent": {"one", "two"}, "Via": {"1.1 before"},
		"X-Forwarded-For": {"evil"}, "X-Gone": {"evil"},
	}
	for name, test := range map[string]struct {
		r    *Request
		want string
	}{
		"nothing":  {get(), "GET / HTTP/1.1\r\nHost: app\r\n\r\n"},
		"a body":   {post("hello"), "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"},
		"no body":  {post(""), "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n"},
		"no agent": {&Request{Method: "GET", Target: "/", Host: "app", Header: http.Header{"User-Agent": {""}}}, "GET / HTTP/1.1\r\nHost: app\r\n\r\n"},
		"many": {
			&Request{
				Method: "GET", Target: "/a%20b?c=d", Host: "app:80", Header: many,
				Fields: []Field{{Name: "X-Forwarded-For", Value: "192.0.2.1"}, {Name: "Via", Value: "1.1 Caddy", Add: true}}, Drop: []string{"X-Gone"},
			},
			"GET /a%20b?c=d HTTP/1.1\r\nHost: app:80\r\nAccept: a\r\nAccept: b\r\nUser-Agent: one\r\nVia: 1.1 before\r\nX-Forwarded-For: 192.0.2.1\r\nVia: 1.1 Caddy\r\n\r\n",
		},
	} {
		mustSend(t, tr, test.r, "ok")
		if got := <-heads; got != test.want {
			t.Errorf("%s: sent\n%q\nwant\n%q", name, got, test.want)
		}
	}
}

// What a client can get into a request must not end a line.
func TestNothingIsInjected(t *testing.T) {
	b, tr := newBackend(t, always(okay))
	for name, change := range map[string]func(*Request){
		"target":       func(r *Request) { r.Target = "/ HTTP/1.1\r\nX: y" },
		"blank":        func(r *Request) { r.Target = "/a b" },
		"no target":    func(r *Request) { r.Target = "" },
		"method":       func(r *Request) { r.Method = "GET /" },
		"host":         func(r *Request) { r.Host = "a\r\nX: y" },
		"field":        func(r *Request) { r.Header["X"] = []string{"a\r\nX: y"} },
		"bare newline": func(r *Request) { r.Header["X"] = []string{"a\ny"} },
		"name":         func(r *Request) { r.Header["X: y\r\nZ"] = []string{"a"} },
		"own field":    func(r *Request) { r.Fields = []Field{{Name: "X", Value: "a\x00"}} },
		"body":         func(r *Request) { r.Body, r.Length = strings.NewReader("short"), 10 },
	} {
		r := get()
		change(r)
		got, err := send(t, tr, r)
		if _, own := errors.AsType[*RequestError](err); !own {
			t.Errorf("%s: %q, %v; want an error of the request", name, got, err)
		}
	}
	mustSend(t, tr, get(), "ok")
	if n := b.conns.Load(); n != 1 {
		t.Errorf("%d connections: one that nothing was sent over is as good as new", n)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	b, tr := newBackend(t, always(okay))
	for range 10 {
		mustSend(t, tr, get(), "ok")
		mustSend(t, tr, post("x"), "ok")
	}
	if n := b.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	x, err := tr.Send(t.Context(), get())
	if err != nil {
		t.Fatal(err)
	}
	x.End(false) // it was not read
	mustSend(t, tr, get(), "ok")
	if n := b.conns.Load(); n != 2 {
		t.Errorf("%d connections; want 2: what is left of a response must not meet the next request", n)
	}
}

// What has been closed is not kept in memory by a timer: instances come and go.
func TestCloseLetsGo(t *testing.T) {
	b, tr := newBackend(t, always(okay))
	use := func() weak.Pointer[[1 << 10]byte] {
		instance := new([1 << 10]byte)
		other := &Transport{MaxIdle: 1, IdleTimeout: time.Hour, Dial: func(ctx context.Context) (net.Conn, error) {
			instance[0]++
			return tr.Dial(ctx)
		}}
		mustSend(t, other, get(), "ok")
		other.Close()
		return weak.Make(instance)
	}
	kept := use()
	if b.conns.Load() != 1 {
		t.Fatal("it was not used")
	}
	for range 100 {
		if runtime.GC(); kept.Value() == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("it is kept")
}

func TestMaxIdle(t *testing.T) {
	b, tr := newBackend(t, always(okay))
	tr.MaxIdle = 1
	for want := range int64(2) {
		x, err := tr.Send(t.Context(), get())
		if err != nil {
			t.Fatal(err)
		}
		mustSend(t, tr, get(), "ok")
		_, _ = io.Copy(io.Discard, x)
		x.End(true)
		if n := b.conns.Load(); n != 2+want {
			t.Errorf("%d connections; want %d", n, 2+want)
		}
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	ended := make(chan struct{})
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		always(okay)(0, c)
		close(ended)
	})
	tr.IdleTimeout = 20 * time.Millisecond
	mustSend(t, tr, get(), "ok")
	<-ended
}

// An app that ends waits for its connections.
func TestClose(t *testing.T) {
	ended := make(chan struct{}, 2)
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		always(okay)(0, c)
		ended <- struct{}{}
	})
	x, err := tr.Send(t.Context(), get())
	if err != nil {
		t.Fatal(err)
	}
	mustSend(t, tr, get(), "ok")
	tr.Close()
	<-ended
	_, _ = io.Copy(io.Discard, x)
	x.End(true)
	<-ended
}

// F30: a server that closes what it has kept is no failure of the next request,
// whatever that is.
func TestAClosedConnectionIsNotUsed(t *testing.T) {
	closed := make(chan struct{})
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		c.head()
		c.say(okay)
		c.Close()
		closed <- struct{}{}
	})
	for i := range 20 {
		r := get()
		if i%2 == 0 {
			r = post("")
		}
		mustSend(t, tr, r, "ok")
		<-closed
	}
}

// The same when it closes in the very moment that the request is sent.
func TestAConnectionThatIsClosedMeanwhile(t *testing.T) {
	body := func() *Request { return post("body") }
	for name, test := range map[string]struct {
		r     func() *Request
		reset bool
	}{"GET": {get, false}, "POST": {body, false}, "GET, reset": {get, true}, "POST, reset": {body, true}} {
		t.Run(name, func(t *testing.T) {
			first := make(chan *serverConn, 1)
			b, tr := newBackend(t, func(n int64, c *serverConn) {
				c.head()
				c.say(okay)
				if n == 1 {
					first <- c
					_, _ = io.Copy(io.Discard, c.br)
					return
				}
				always(okay)(0, c)
			})
			writes := 0
			b.dialled = func(nc net.Conn) net.Conn {
				return &hookedConn{TCPConn: nc.(*net.TCPConn), before: func() {
					if writes++; writes == 2 {
						c := <-first
						if test.reset {
							_ = c.Conn.(*net.TCPConn).SetLinger(0)
						}
						c.Close()
					}
				}}
			}
			mustSend(t, tr, post(""), "ok")
			mustSend(t, tr, test.r(), "ok")
			if n := b.conns.Load(); n != 2 {
				t.Errorf("%d connections; want 2", n)
			}
		})
	}
}

// hookedConn calls a function before each write.
type hookedConn struct {
	*net.TCPConn
	before func()
}

func (c *hookedConn) Write(p []byte) (int, error) {
	c.before()
	return c.TCPConn.Write(p)
}

// What a server has seen is not sent again unless that does no harm.
func TestOnlyWhatMayBeIsRepeated(t *testing.T) {
	for method, want := range map[string]int64{"GET": 2, "POST": 1, "DELETE": 1} {
		t.Run(method, func(t *testing.T) {
			var requests atomic.Int64
			_, tr := newBackend(t, func(n int64, c *serverConn) {
				c.head()
				c.say(okay)
				if c.head() == "" {
					return
				}
				if requests.Add(1); n > 1 {
					c.say(okay)
				}
			})
			mustSend(t, tr, post(""), "ok")
			r := get()
			r.Method = method
			_, err := send(t, tr, r)
			// The second connection answers its first request; only the first one breaks.
			if got := requests.Load(); got != 1 || (err == nil) != (want == 2) {
				t.Errorf("the broken connection saw %d requests, and the error is %v", got, err)
			}
		})
	}
}

// A server that does not answer in time has the request all the same.
func TestWhatIsLateIsNotRepeated(t *testing.T) {
	b, tr := newBackend(t, func(_ int64, c *serverConn) {
		for head := c.head(); head != ""; head = c.head() {
			if !strings.Contains(head, "/slow") {
				c.say(okay)
			}
		}
	})
	writes := 0
	b.dialled = func(nc net.Conn) net.Conn {
		return &hookedConn{TCPConn: nc.(*net.TCPConn), before: func() { writes++ }}
	}
	mustSend(t, tr, get(), "ok") // over a connection that is kept, and could be blamed
	r := get()
	r.Target, r.Deadline = "/slow", time.Now().Add(50*time.Millisecond)
	if _, err := send(t, tr, r); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if writes != 2 {
		t.Errorf("it was sent %d times", writes-1)
	}
}

// A server that speaks first is out of step: what it says must not become the
// answer to somebody else's request.
func TestAnUnaskedAnswerIsDropped(t *testing.T) {
	heard, spoken := make(chan struct{}), make(chan struct{})
	_, tr := newBackend(t, func(n int64, c *serverConn) {
		c.head()
		c.say(okay)
		if n == 1 {
			<-heard
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			close(spoken)
		}
		always(okay)(0, c)
	})
	mustSend(t, tr, get(), "ok")
	close(heard)
	<-spoken
	mustSend(t, tr, get(), "ok")
}

func TestErrorsOfDial(t *testing.T) {
	refused := errors.New("refused")
	tr := &Transport{Dial: func(context.Context) (net.Conn, error) { return nil, refused }}
	body := strings.NewReader("abc")
	if _, err := tr.Send(t.Context(), &Request{Method: "POST", Target: "/", Host: "a", Body: body, Length: 3}); !errors.Is(err, refused) {
		t.Errorf("Send: %v", err)
	}
	if body.Len() != 3 {
		t.Error("the body was read without a connection")
	}
	// A request that was sent must not look like one that was not.
	_, tr = newBackend(t, func(_ int64, c *serverConn) {
		c.head()
		c.say(okay)
		c.head()
	})
	mustSend(t, tr, get(), "ok")
	tr.Dial = func(context.Context) (net.Conn, error) { return nil, refused }
	if _, err := send(t, tr, get()); err == nil || errors.Is(err, refused) {
		t.Errorf("sent, broken and not connected again: %v", err)
	}
}

// What takes too long to be connected to ends with the request's time, and is not
// said to have refused.
func TestDeadlineOfDial(t *testing.T) {
	refused := errors.New("refused")
	tr := &Transport{Dial: func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, refused
	}}
	r := get()
	r.Deadline = time.Now().Add(20 * time.Millisecond)
	if _, err := tr.Send(t.Context(), r); !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, refused) {
		t.Errorf("at the deadline: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	r.Deadline = time.Now().Add(time.Hour)
	if _, err := tr.Send(ctx, r); !errors.Is(err, refused) {
		t.Errorf("at the end of the context: %v", err)
	}
}

func TestCancel(t *testing.T) {
	heard := make(chan struct{}, 1)
	ended := make(chan struct{}, 10)
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		if strings.Contains(c.head(), "/half") {
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
		}
		heard <- struct{}{}
		_, _ = c.br.ReadByte()
		ended <- struct{}{}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-heard; cancel() }()
	if _, err := tr.Send(ctx, get()); !errors.Is(err, context.Canceled) {
		t.Errorf("before the response: %v", err)
	}
	<-ended
	ctx, cancel = context.WithCancel(t.Context())
	r := get()
	r.Target = "/half"
	x, err := tr.Send(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	<-heard
	cancel()
	if _, err := io.ReadAll(x); !errors.Is(err, context.Canceled) || x.Late(err) {
		t.Errorf("in the middle of it: %v", err)
	}
	x.End(false)
	<-ended
	if _, err := tr.Send(ctx, get()); !errors.Is(err, context.Canceled) {
		t.Errorf("before all: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		for {
			head := c.head()
			switch {
			case strings.Contains(head, "/half"):
				c.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
			case strings.Contains(head, "/okay"):
				c.say(okay)
			case head == "":
				return
			}
		}
	})
	soon := func(target string) *Request {
		r := get()
		r.Target, r.Deadline = target, time.Now().Add(20*time.Millisecond)
		return r
	}
	if _, err := tr.Send(t.Context(), soon("/")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	x, err := tr.Send(t.Context(), soon("/half"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(x); !x.Late(err) {
		t.Errorf("half an answer: %v", err)
	}
	x.End(false)
	x, err = tr.Send(t.Context(), soon("/half"))
	if err != nil {
		t.Fatal(err)
	}
	x.ReadBy(time.Now().Add(time.Hour))
	b := make([]byte, 4)
	if _, err := io.ReadFull(x, b); err != nil {
		t.Error(err)
	}
	x.ReadBy(time.Now().Add(10 * time.Millisecond))
	if _, err := x.Read(b); !x.Late(err) {
		t.Errorf("a pause: %v", err)
	}
	x.End(false)
	// A deadline is for its own request alone, on a connection that is kept.
	if got, err := send(t, tr, soon("/okay")); err != nil || got != "ok" {
		t.Fatal(got, err)
	}
	time.Sleep(30 * time.Millisecond)
	r := get()
	r.Target = "/okay"
	mustSend(t, tr, r, "ok")
}

func TestBadAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":         "",
		"no HTTP":         "hello\r\n\r\n",
		"half a head":     "HTTP/1.1 200 OK\r\nContent-Le",
		"lengths":         "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
		"switched":        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
		"a short body":    "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok",
		"a broken chunk":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"half the chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
		"a long head":     "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n",
	} {
		_, tr := newBackend(t, func(_ int64, c *serverConn) {
			c.head()
			c.say(answer)
		})
		if got, err := send(t, tr, get()); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestGoodAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		method, answer, body string
		conns                int64 // for two requests
	}{
		"chunks":           {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "ok", 1},
		"until the end":    {"GET", "HTTP/1.1 200 OK\r\n\r\nok", "ok", 2},
		"the last":         {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "ok", 2},
		"old":              {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", 2},
		"a head":           {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "", 1},
		"no content":       {"GET", "HTTP/1.1 204 No Content\r\n\r\n", "", 1},
		"not modified":     {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "", 1},
		"more than wanted": {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, evil", "ok", 2},
	} {
		b, tr := newBackend(t, func(_ int64, c *serverConn) {
			for c.head() != "" {
				c.say(test.answer)
				if test.conns > 1 {
					return
				}
			}
		})
		for range 2 {
			r := get()
			r.Method = test.method
			if got, err := send(t, tr, r); err != nil || got != test.body {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		if n := b.conns.Load(); n != test.conns {
			t.Errorf("%s: %d connections; want %d", name, n, test.conns)
		}
	}
}

func TestInterim(t *testing.T) {
	_, tr := newBackend(t, always("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"+okay))
	var got []string
	r := get()
	r.Interim = interimFunc(func(status int, h http.Header) error {
		got = append(got, fmt.Sprint(status, h.Get("Link")))
		return nil
	})
	mustSend(t, tr, r, "ok")
	if want := []string{"103</a>", "100"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	mustSend(t, tr, get(), "ok")
	r.Interim = interimFunc(func(int, http.Header) error { return errors.New("no more") })
	if _, err := send(t, tr, r); err == nil {
		t.Error("the error of Interim is lost")
	}
	// RoundTrip tells its trace.
	var status int
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { status = code; return nil }}
	resp, err := roundTrip(t, tr, "GET", nil, func(r *http.Request) { *r = *r.WithContext(httptrace.WithClientTrace(r.Context(), trace)) })
	if err != nil || status != 100 {
		t.Fatal(status, err)
	}
	resp.Body.Close()
}

type interimFunc func(int, http.Header) error

func (f interimFunc) Interim(status int, h http.Header) error { return f(status, h) }

// stream is a body of unknown length.
func stream(r io.Reader) io.Reader { return io.MultiReader(r) }

func TestUpload(t *testing.T) {
	type seen struct {
		chunked bool
		length  int64
		body    []byte
		trailer http.Header
	}
	got := make(chan seen, 1)
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		for {
			req, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				t.Error(err)
			}
			got <- seen{len(req.TransferEncoding) > 0, req.ContentLength, body, req.Trailer}
			c.say(okay)
		}
	})
	big := make([]byte, 1<<20)
	_, _ = rand.Read(big)
	for name, test := range map[string]struct {
		body   io.Reader
		want   []byte
		change func(*http.Request)
		length int64
	}{
		"small":            {strings.NewReader("small"), []byte("small"), nil, 5},
		"big":              {bytes.NewReader(big), big, nil, 1 << 20},
		"chunks":           {stream(bytes.NewReader(big)), big, nil, -1},
		"nothing":          {http.NoBody, nil, nil, 0},
		"chunk of nothing": {stream(strings.NewReader("")), nil, nil, -1},
		"trailers":         {stream(strings.NewReader("x")), []byte("x"), func(r *http.Request) { r.Trailer = http.Header{"Sum": {"1"}} }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := roundTrip(t, tr, "POST", test.body, func(r *http.Request) {
				if test.change != nil {
					test.change(r)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) != "ok" || err != nil {
				t.Errorf("%q, %v", b, err)
			}
			s := <-got
			if !bytes.Equal(s.body, test.want) || s.length != test.length || s.chunked != (test.length < 0) {
				t.Errorf("the server saw %d bytes, length %d, chunked %v", len(s.body), s.length, s.chunked)
			}
			if name == "trailers" && s.trailer.Get("Sum") != "1" {
				t.Errorf("trailers: %v", s.trailer)
			}
		})
	}
}

// An answer that comes before the end of the request's body gets through, and the
// body's reader is let go.
func TestAnEarlyAnswer(t *testing.T) {
	b, tr := newBackend(t, func(_ int64, c *serverConn) {
		c.head()
		c.say("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
		_, _ = io.Copy(io.Discard, c.br)
	})
	pr, pw := io.Pipe()
	closed := make(chan struct{})
	body := &notedBody{Reader: pr, closed: closed}
	resp, err := roundTrip(t, tr, "POST", body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); string(got) != "no" || err != nil || resp.StatusCode != 413 {
		t.Errorf("%d %q, %v", resp.StatusCode, got, err)
	}
	resp.Body.Close()
	pw.Close() // as a server does when the handler has returned
	<-closed
	mustSend(t, tr, get(), "no")
	if n := b.conns.Load(); n != 2 {
		t.Errorf("%d connections: half a request must not meet the next", n)
	}
}

type notedBody struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func (b *notedBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

func TestABodyThatFails(t *testing.T) {
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		c.head()
		_, _ = io.Copy(io.Discard, c.br)
	})
	broken := errors.New("broken")
	for name, body := range map[string]io.Reader{
		"chunks": io.MultiReader(strings.NewReader("abc"), &failingReader{broken}),
		"known":  io.MultiReader(strings.NewReader("abc"), &failingReader{broken}),
		"small":  io.MultiReader(strings.NewReader("abc"), &failingReader{broken}),
	} {
		_, err := roundTrip(t, tr, "POST", body, func(r *http.Request) {
			switch name {
			case "known":
				r.ContentLength = MaxBuffered + 1
			case "small":
				r.ContentLength = 10
			}
		})
		if _, own := errors.AsType[*RequestError](err); !own || !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := roundTrip(t, tr, "POST", strings.NewReader("abc"), func(r *http.Request) { r.ContentLength = MaxBuffered + 1 }); err == nil {
		t.Error("a body that is too short passes")
	}
}

// Whoever waits for the answer is told of the body, however long its end takes.
func TestABodyThatFailsAndLingers(t *testing.T) {
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		c.head()
		_, _ = io.Copy(io.Discard, c.br)
	})
	broken := errors.New("broken")
	body := &lingeringBody{failingReader{broken}, make(chan struct{})}
	defer close(body.released)
	_, err := roundTrip(t, tr, "POST", body, func(r *http.Request) { r.ContentLength = MaxBuffered + 1 })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}

// lingeringBody fails, and closes when it is released.
type lingeringBody struct {
	failingReader
	released chan struct{}
}

func (b *lingeringBody) Close() error {
	<-b.released
	return nil
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

func TestExpectContinue(t *testing.T) {
	for name, test := range map[string]struct {
		before string
		want   bool
	}{
		"wanted":    {"HTTP/1.1 100 Continue\r\n\r\n", true},
		"refused":   {"", false},
		"forgotten": {"", true}, // the server just reads
	} {
		t.Run(name, func(t *testing.T) {
			_, tr := newBackend(t, func(_ int64, c *serverConn) {
				if !strings.Contains(c.head(), "Expect: 100-continue") {
					t.Error("the server was not asked")
				}
				if !test.want {
					c.say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
					if b, _ := io.ReadAll(c.br); len(b) > 0 {
						t.Errorf("the body was sent: %q", b)
					}
					return
				}
				c.say(test.before)
				if got := c.read(4); got != "body" {
					t.Errorf("body: %q", got)
				}
				c.say(okay)
			})
			var read atomic.Bool
			body := io.MultiReader(&noted{&read}, strings.NewReader("body"))
			resp, err := roundTrip(t, tr, "POST", body, func(r *http.Request) {
				r.ContentLength = 4
				r.Header.Set("Expect", "100-continue")
			})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if read.Load() != test.want {
				t.Errorf("the body was read: %v", read.Load())
			}
		})
	}
}

type noted struct{ read *atomic.Bool }

func (n *noted) Read([]byte) (int, error) {
	n.read.Store(true)
	return 0, io.EOF
}

func TestUpgrade(t *testing.T) {
	_, tr := newBackend(t, func(_ int64, c *serverConn) {
		if head := c.head(); !strings.Contains(head, "Connection: Upgrade\r\n") || !strings.Contains(head, "Upgrade: echo\r\n") {
			t.Errorf("%q", head)
		}
		c.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello ")
		_, _ = io.Copy(c.Conn, c.br)
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	resp, err := roundTrip(t, tr, "GET", nil, func(r *http.Request) {
		*r = *r.WithContext(ctx)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "echo")
	})
	if err != nil {
		t.Fatal(err)
	}
	rwc := resp.Body.(io.ReadWriteCloser)
	defer rwc.Close()
	_, _ = io.WriteString(rwc, "you")
	if err := rwc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(rwc); string(b) != "hello you" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// The server goes away under many requests at a time: each gets an answer or an
// error, and nothing is mixed up.
func TestStress(t *testing.T) {
	_, tr := newBackend(t, func(n int64, c *serverConn) {
		for i := int64(0); ; i++ {
			head := c.head()
			if head == "" {
				return
			}
			id, _, _ := strings.Cut(strings.TrimPrefix(head, "GET /"), " ")
			fmt.Fprintf(c.Conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(id), id)
			if i == n%7 {
				return
			}
		}
	})
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 100 {
				r := get()
				id := fmt.Sprint(worker*1000 + i)
				r.Target = "/" + id
				got, err := send(t, tr, r)
				if err == nil && got != id {
					t.Errorf("%q is the answer to %q", got, id)
				}
				// A new connection may break too, and then a GET is not repeated again.
				if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
