package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/fairway-run/fairway/test/images"
)

// A program is a server that others have written, with the least of an app in it.
// Each refuses, with 500 or the like, more requests at once than $LIMIT.
type program struct {
	image   images.Options // its name is that of the program
	options []string       // of its service
	client  func(h *protocolHost, service string) asker
	own     map[string]func(*testing.T, *client, string) // what not all of them can do
	// goodbye is what it says to WebSockets when it ends; 0 if it has none.
	goodbye websocket.StatusCode
	last    string // it writes when it has ended as it was asked to
}

// asker asks a service, for its revision or for something that takes so many
// milliseconds, and returns the revision that it says it is, too.
type asker func(ctx context.Context, ms int) (got response, says string)

func askHTTP(h *protocolHost, service string) asker {
	return func(ctx context.Context, ms int) (got response, says string) {
		if ms > 0 {
			got = h.getFrom(ctx, service, fmt.Sprint("/sleep?ms=", ms))
			return got, got.header.Get("X-Revision")
		}
		got = h.getFrom(ctx, service, "/env?name=K_REVISION")
		return got, got.body
	}
}

func askGRPC(h *protocolHost, service string) asker {
	c := grpc_testing.NewTestServiceClient(h.dialGRPC(service))
	call := func(ctx context.Context, ms int) (header metadata.MD, err error) {
		if ms == 0 {
			_, err = c.UnaryCall(ctx, new(grpc_testing.SimpleRequest), grpc.Header(&header), grpc.WaitForReady(true))
			return header, err
		}
		stream, err := c.StreamingOutputCall(ctx, &grpc_testing.StreamingOutputCallRequest{
			ResponseParameters: []*grpc_testing.ResponseParameters{{Size: 1}, {Size: 1, IntervalUs: int32(1000 * ms)}},
		}, grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		for n := 0; ; n++ {
			if _, err = stream.Recv(); err == nil {
				continue
			}
			if errors.Is(err, io.EOF) && n == 2 {
				return stream.Header()
			}
			return nil, fmt.Errorf("after %d messages: %w", n, err)
		}
	}
	return func(ctx context.Context, ms int) (response, string) {
		header, err := call(ctx, ms)
		if err != nil {
			return response{err: err}, ""
		}
		got := response{status: http.StatusOK, header: make(http.Header)}
		for _, revision := range header.Get("X-Revision") {
			got.header.Set("X-Revision", revision)
		}
		return got, got.header.Get("X-Revision")
	}
}

const (
	// slots is how many requests an instance of a program gets at once.
	slots = 4
	// wsVersion and wsSum name a package as package-lock.json does.
	wsVersion = "8.18.3"
	wsSum     = "sha512-PEIGCY5tSlUt50cqyMXfCzX+oOPqN0vuGqWzbcJ2xvnkzkq46oOpz7dQaTDBdfICb4N14+GARUDw2XV2N4tvzg=="
	// bigFile is larger than what lies between it and the client can hold.
	bigFile = 16 << 20
)

// bigContent is what nginx has in /big.
func bigContent() []byte {
	content := make([]byte, bigFile)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(content)
	return content
}

func programs(t *testing.T) map[string]program {
	t.Helper()
	read := func(name string) []byte {
		content, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	ws, err := images.NPM(t.Context(), "ws", wsVersion, wsSum)
	if err != nil {
		t.Fatal(err)
	}
	ws["/server.js"] = read("server.js")
	app := map[string]func(*testing.T, *client, string){"events": checkEvents, "upload": checkUpload, "websocket": checkSocket}
	workers := maps.Clone(app)
	workers["workers"] = checkWorkers
	return map[string]program{
		// As nginx's own image starts it.
		"nginx": {
			image: images.Options{
				Debian: []string{"nginx", "dash", "gettext-base"}, StopSignal: "SIGQUIT",
				Entrypoint: []string{"dash", "-c", `envsubst '$PORT $LIMIT $K_REVISION' </etc/nginx/template >/tmp/nginx.conf && exec nginx -c /tmp/nginx.conf`},
				Files: map[string][]byte{
					"/etc/nginx/template": read("nginx.conf"), "/srv/big": bigContent(), "/srv/file": bigContent()[:1<<20], "/srv/slow": make([]byte, 1500),
					"/etc/passwd": []byte("root:x:0:0::/:\nwww-data:x:33:33::/:\n"), "/etc/group": []byte("root:x:0:\nwww-data:x:33:\n"),
				},
			},
			client: askHTTP, own: map[string]func(*testing.T, *client, string){"files": checkFiles, "big": checkBig}, last: "gracefully shutting down",
		},
		"node": {
			image:  images.Options{Debian: []string{"nodejs"}, Entrypoint: []string{"node", "/server.js"}, User: "65532", Files: ws},
			client: askHTTP, own: app, goodbye: websocket.StatusNormalClosure, last: "ended",
		},
		// With the timeout that Cloud Run's documentation has: a worker that was frozen for
		// longer than another would be killed in the middle of its next request.
		"python": {
			image: images.Options{
				Debian: []string{"gunicorn", "python3-uvicorn"}, User: "65532", WorkingDir: "/srv",
				Entrypoint: []string{"gunicorn", "--preload", "--workers", "3", "--timeout", "0", "--worker-class", "uvicorn.workers.UvicornWorker", "app:app"},
				Files:      map[string][]byte{"/srv/app.py": read("app.py")},
			},
			client: askHTTP, own: workers, goodbye: websocket.StatusServiceRestart, last: "Shutting down: Master",
		},
		"grpc": {options: []string{"image " + protocolsName, "port h2c 8080", "env GRPC 1"}, client: askGRPC, last: "protocols: ended"},
	}
}

// TestPrograms runs what people run, and does to each what happens to apps.
func TestPrograms(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("needs apt-get, for Debian's packages")
	}
	for name, p := range programs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newProtocolHost(t)
			if p.image.Name = "localhost/fairway/" + name + ":1"; p.image.Debian != nil {
				h.build(p.image)
				p.options = append(p.options, "image "+p.image.Name)
			}
			config := func(version int) string {
				return h.everywhere(h.vhost(name, append(p.options, fmt.Sprint("concurrency ", slots), fmt.Sprint("env LIMIT ", slots),
					"instances 0 2", "drain_timeout 300ms", fmt.Sprint("env VERSION ", version), tellRevision)...))
			}
			h.start(config(1))
			ask := p.client(h, name)
			h.run("from zero", func(t *testing.T) { p.fromZero(t, name, ask) })
			for what, check := range p.own {
				for by, c := range h.clients {
					h.run(what+" "+by, func(t *testing.T) { check(t, c, name) })
				}
			}
			h.run("frozen", func(t *testing.T) { h.checkFrozen(t, name, ask) })
			h.run("concurrency", func(*testing.T) { h.checkBusy(name, ask) })
			h.run("replaced", func(t *testing.T) { h.checkReplaced(t, name, ask, config) })
			h.run("ended", func(t *testing.T) { p.checkEnded(t, h, name, ask, config) })
		})
	}
}

// fromZero has the first requests come while nothing runs.
func (p program) fromZero(t *testing.T, service string, ask asker) {
	wg := crowd(t)
	for range 2 * slots {
		wg.Go(func() {
			if got, says := ask(t.Context(), 0); got.status != http.StatusOK || says != service+"-00001" {
				t.Errorf("%q: %s", says, got)
			}
		})
	}
	wg.Wait()
}

// checkFrozen has requests come when all instances are frozen: they are answered by
// these.
func (h *protocolHost) checkFrozen(t *testing.T, service string, ask asker) {
	frozen := func() (pids []int) {
		eventually(t, "all are frozen", func() bool {
			pids = nil
			for _, i := range h.instancesOf(service) {
				if i.State != "frozen" {
					return false
				}
				pids = append(pids, i.PID)
			}
			return len(pids) > 0
		})
		return pids
	}
	before := frozen()
	for range 3 {
		if got, _ := ask(t.Context(), 0); got.status != http.StatusOK {
			t.Errorf("%s", got)
		}
		if now := frozen(); !slices.Equal(now, before) {
			t.Errorf("instances %d; before %d", now, before)
		}
	}
}

// checkBusy asks for more than two instances may have at once, until both have it.
func (h *protocolHost) checkBusy(service string, ask asker) {
	var done atomic.Bool
	wg := crowd(h.t)
	defer wg.Wait()
	defer done.Store(true)
	for range 3 * slots {
		wg.Go(func() {
			for !done.Load() {
				if got, _ := ask(h.life, 1000); got.status != http.StatusOK {
					h.t.Errorf("%s", got)
				}
			}
		})
	}
	eventually(h.t, "all slots are taken, and others wait", func() bool {
		s := h.serviceNamed(service)
		return s.InFlight == 2*slots && s.Queue > 0
	})
}

// checkReplaced reloads the config, and then deploys, while the service is in use.
func (h *protocolHost) checkReplaced(t *testing.T, service string, ask asker, config func(int) string) {
	l := h.steadilyBy(4, func(client, n int) (got response, says string) {
		if n%4 == client%4 {
			return ask(context.Background(), 60)
		}
		return ask(context.Background(), 0)
	})
	busy := func() {
		was := l.count.Load()
		eventually(t, "there is load", func() bool { return l.count.Load() > was+40 })
	}
	busy()
	h.check(h.reload(config(1), true))
	busy()
	h.check(h.reload(config(2), false))
	h.awaitServing(service, service+"-00002")
	busy()
	answered := l.end(t)
	for _, revision := range []string{service + "-00001", service + "-00002"} {
		if answered[revision] == 0 {
			t.Errorf("%s has answered nothing: %v", revision, answered)
		}
	}
}

// checkEnded has an instance asked to end while it has a request, and then another
// one while it has a WebSocket, if it knows them: it finishes the one and says goodbye
// to the other. Not both at once: Caddy's reverse_proxy copies itself for a response,
// and with it what it notes of the WebSockets of a config that is replaced.
func (p program) checkEnded(t *testing.T, h *protocolHost, service string, ask asker, config func(int) string) {
	replace := func(version int, inFlight func()) {
		t.Helper()
		eventually(t, "only one revision is left", func() bool { return len(h.serviceNamed(service).Revisions) == 1 })
		already := bytes.Count(h.output(), []byte(p.last))
		inFlight()
		h.awaitInFlight(service, 1)
		h.check(h.reload(config(version), false))
		eventually(t, "it has ended by itself", func() bool { return bytes.Count(h.output(), []byte(p.last)) > already })
	}
	wg := crowd(t)
	replace(3, func() {
		wg.Go(func() {
			got, says := ask(t.Context(), 2000)
			if got.status != http.StatusOK || !strings.HasSuffix(says, "-00002") {
				t.Errorf("what was in flight: %q, %s", says, got)
			}
		})
	})
	wg.Wait()
	if p.goodbye == 0 {
		return
	}
	g := &goodbye{client: "h1", path: "/ws", want: p.goodbye}
	replace(4, func() { g.listen(t, h, service) })
	g.check(t, service)
}

// checkBig gets a large file, slowly at first.
func checkBig(t *testing.T, c *client, service string) {
	resp, got := c.exchange(t, http.MethodGet, service, "/big", nil, asIs)
	if resp.StatusCode != http.StatusOK || !bytes.Equal([]byte(got), bigContent()) {
		t.Errorf("%d, %d bytes; want these %d", resp.StatusCode, len(got), bigFile)
	}
}

func checkSocket(t *testing.T, c *client, service string) {
	conn := c.dial(t, service, "/ws")
	say(t, conn, "hello")
	say(t, conn, strings.Repeat("much ", 20_000))
	if err := conn.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Errorf("closing: %v", err)
	}
}

// checkWorkers asks until several of an instance's processes have answered.
func checkWorkers(t *testing.T, c *client, service string) {
	seen := make(map[string]bool)
	eventually(t, "two workers have answered", func() bool {
		answers := make(chan string, slots)
		wg := crowd(t)
		for range slots {
			wg.Go(func() {
				_, pid := c.exchange(t, http.MethodGet, service, "/worker", nil, asIs)
				answers <- pid
			})
		}
		for range slots {
			seen[<-answers] = true
		}
		return len(seen) > 1
	})
}
