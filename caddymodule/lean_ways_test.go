package caddymodule

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(new(noter))
	httpcaddyfile.RegisterHandlerDirective("noter", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		n := new(noter)
		if h.Next(); !h.AllArgs(&n.Side) {
			return nil, h.ArgErr()
		}
		return n, nil
	})
}

// noter notes whether reverse_proxy has had a request.
type noter struct {
	Side string `json:"side,omitempty"`
}

var noted = struct {
	sync.Mutex
	proxied map[string][]bool // by side, in the order of their ends
}{proxied: make(map[string][]bool)}

func (*noter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.noter", New: func() caddy.Module { return new(noter) }}
}

func (n *noter) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	defer func() {
		repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		_, proxied := repl.Get("http.reverse_proxy.upstream.fails") // nobody else sets that
		if r.URL.Path != "/end" {
			noted.Lock()
			noted.proxied[n.Side] = append(noted.proxied[n.Side], proxied)
			noted.Unlock()
		}
	}()
	return next.ServeHTTP(w, r)
}

// noting is the directive for a side, where it costs nobody anything.
func (*rig) noting(t testing.TB, s side) string {
	if _, measured := t.(*testing.B); measured {
		return ""
	}
	return "noter \"" + s.name + "\"\n"
}

// tookProxy returns which of the requests to a side reverse_proxy has had since the
// last call.
func (s side) tookProxy() []bool {
	noted.Lock()
	defer noted.Unlock()
	took := noted.proxied[s.name]
	delete(noted.proxied, s.name)
	return took
}

// What has the fast path would be as right without it, but not as fast.
func TestWhichPathIsTaken(t *testing.T) {
	for _, s := range []side{{name: "fairway"}, {name: "fairway with reverse_proxy"}} {
		s.tookProxy()
	}
	r := newRig(t, "")
	for request, proxied := range map[string]bool{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n":                                                false,
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nCookie: a=b\r\n\r\n":       false,
		"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n":                      false,
		"HEAD / HTTP/1.1\r\nHost: a\r\nTe: trailers\r\n\r\n":                               false,
		"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n":                        false,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello":                     false,
		"POST / HTTP/1.1\r\nHost: a\r\n\r\n":                                               false,
		"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n":                  false,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n" + long:               true,
		"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":         true,
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n":               true,
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n":       true,
		"GET / HTTP/1.1\r\nHost: a\r\nIncremental: ?1\r\n\r\n":                             true,
		"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx": true,
	} {
		for i, s := range r.sides[:2] {
			if _, err := r.ask(s, request, plain, 10*time.Second); err != nil {
				t.Fatal(err)
			}
			if got, want := s.tookProxy(), proxied || i == 1; !slices.Equal(got, []bool{want}) {
				t.Errorf("%s, %.80q: by reverse_proxy: %v; want %v", s.name, request, got, want)
			}
		}
	}
}

var long = strings.Repeat("x", 20000)

// What a proxy says that Caddy trusts counts, on both paths alike.
func TestPathsAreAlikeBehindAProxy(t *testing.T) {
	said := func(fields string) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n\r\n" }
	all := append(slices.Clone(requests),
		said("X-Forwarded-For: 192.0.2.1"),
		said("X-Forwarded-For: 192.0.2.1, 2001:db8::1\r\nX-Forwarded-For: 192.0.2.2"),
		said("X-Forwarded-For:\r\n"+"X-Forwarded-For: 192.0.2.2"),
		said("X-Forwarded-For:"),
		said("X-Forwarded-For: ,"),
		said("X-Forwarded-For: unknown, _hidden"),
		said("X-Forwarded-Proto: https"),
		said("X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http"),
		said("X-Forwarded-Proto: https\r\nX-Forwarded-Proto:"),
		said("X-Forwarded-Host: b.example"),
		said("X-Forwarded-Host: b.example\r\nX-Forwarded-Host: c.example:8443"),
		said("X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b.example\r\nForwarded: for=evil"),
	)
	sockets := func(t *testing.T) (all []net.Addr) {
		dir, err := os.MkdirTemp("", "rig") // a socket's path is to be short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		for i := range 3 {
			all = append(all, &net.UnixAddr{Name: filepath.Join(dir, fmt.Sprint(i)), Net: "unix"})
		}
		return all
	}
	for name, start := range map[string]func(t *testing.T) *rig{
		"trusted": func(t *testing.T) *rig { return newRig(t, "servers {\n trusted_proxies static 127.0.0.1/32\n}") },
		"others":  func(t *testing.T) *rig { return newRig(t, "servers {\n trusted_proxies static 192.0.2.0/24\n}") },
		"a socket, trusted": func(t *testing.T) *rig {
			return newRigAt(t, "servers {\n trusted_proxies_unix\n}", sockets(t))
		},
		"a socket": func(t *testing.T) *rig { return newRigAt(t, "", sockets(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			for _, request := range all {
				t.Run("", func(t *testing.T) { r.compare(t, request, plain, 10*time.Second) })
			}
		})
	}
}

// Clients of HTTP/2 must not notice either.
func TestPathsAreAlikeOverHTTP2(t *testing.T) {
	r := newRig(t, "servers {\n protocols h1 h2 h2c\n}")
	for name, request := range map[string]func() (method string, header http.Header, body io.Reader){
		"GET":      func() (string, http.Header, io.Reader) { return "GET", http.Header{"Cookie": {"a=b", "c=d"}}, nil },
		"trailers": func() (string, http.Header, io.Reader) { return "GET", http.Header{"Te": {"trailers"}}, nil },
		"HEAD":     func() (string, http.Header, io.Reader) { return "HEAD", nil, nil },
		"POST":     func() (string, http.Header, io.Reader) { return "POST", nil, strings.NewReader("hello") },
		"stream": func() (string, http.Header, io.Reader) {
			return "POST", nil, io.MultiReader(strings.NewReader("hello"))
		},
	} {
		for i, reply := range replies {
			if name != "GET" && name != "trailers" && i > 3 {
				break
			}
			t.Run(fmt.Sprint(name, " ", i), func(t *testing.T) {
				all := make([]result, len(r.sides))
				for i, s := range r.sides {
					s.tookProxy()
					r.container.say(reply)
					r.container.take()
					all[i].got = s.askOverHTTP2(t, request, reply)
					all[i].saw, all[i].said = r.container.take()
					if took := s.tookProxy(); i == 0 && name != "stream" && slices.Contains(took, true) {
						t.Error("it did not take the fast path")
					}
				}
				if !slices.Equal(all[0].said, all[1].said) {
					t.Errorf("Forwarded is %q and %q", all[0].said, all[1].said)
				}
				r.judge(t, reply, all)
			})
		}
	}
}

// askOverHTTP2 returns what a client saw.
func (s side) askOverHTTP2(t *testing.T, request func() (string, http.Header, io.Reader), reply string) string {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	var b strings.Builder
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		fmt.Fprintln(&b, code, h)
		return nil
	}})
	method, header, body := request()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.address+"/path", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "a"
	maps.Copy(req.Header, header)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return b.String() + "no answer"
	}
	defer resp.Body.Close()
	var content bytes.Buffer
	_, err = content.ReadFrom(resp.Body)
	if resp.Header.Get("Date") != "" {
		resp.Header.Set("Date", "then")
	}
	// What the container has not said the server finds out, or not, as it happens to flush.
	if !strings.Contains(reply, "Content-Type") {
		resp.Header.Del("Content-Type")
	}
	if !strings.Contains(reply, "Content-Length") || strings.Contains(reply, "chunked") {
		resp.Header.Del("Content-Length")
		resp.ContentLength = -1
	}
	fmt.Fprintf(&b, "%s %d %d %q %v %v\n%v\n", resp.Proto, resp.StatusCode, resp.ContentLength, content.String(), resp.Trailer, err != nil && !errors.Is(err, io.EOF), resp.Header)
	return b.String()
}
