package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// say sends a message and waits for its echo.
func say(t testing.TB, conn *websocket.Conn, message string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
		t.Fatalf("writing %.40q: %v", message, err)
	}
	if _, got, err := conn.Read(ctx); err != nil || string(got) != message {
		t.Fatalf("the echo of %.40q: %.40q, %v", message, got, err)
	}
}

// TestWebSocket opens WebSockets by every protocol to services that listen for
// HTTP/1.1, and to some that listen for HTTP/2: the first starts the instance, each
// holds one slot.
func TestWebSocket(t *testing.T) {
	h := newProtocolHost(t)
	var site strings.Builder
	ports := map[string]string{"http1": "port 8080", "h2c": "port h2c 8080"}
	for name := range h.clients {
		for port, option := range ports {
			site.WriteString(h.service(name+"-"+port, option, "concurrency 1", "instances 0 1"))
		}
	}
	h.start(h.everywhere(site.String()))
	for name, c := range h.clients {
		for port := range ports {
			service := name + "-" + port
			h.run(service, func(t *testing.T) {
				conn := c.dial(t, service, "/ws")
				say(t, conn, "hello")
				say(t, conn, strings.Repeat("much ", 200_000))
				h.awaitInFlight(service, 1)
				waiting := make(chan response, 1)
				go func() { waiting <- h.getFrom(t.Context(), service, "/") }()
				h.awaitQueue(service, 1)
				say(t, conn, "still there")
				if err := conn.Close(websocket.StatusNormalClosure, "done"); err != nil {
					t.Errorf("closing: %v", err)
				}
				want := "HTTP/1.1"
				if port == "h2c" {
					want = "HTTP/2.0"
				}
				if got := <-waiting; got.status != http.StatusOK || got.body != want {
					t.Errorf("who waited for the slot: %s; want %s", got, want)
				}
				h.awaitInFlight(service, 0)
				if made := h.creationsOf(service); len(made) != 1 {
					t.Errorf("containers made: %v; want one", made)
				}
			})
		}
	}
}

// TestWebSocketStays has WebSockets open while configs are reloaded, other services and their
// own are deployed, and for longer than a response and an idle instance may take.
func TestWebSocketStays(t *testing.T) {
	h := newProtocolHost(t)
	config := func(chat, other int) string {
		return h.everywhere(h.service("chat", "timeout 2s", "idle_timeout 100ms", "drain_timeout 1h", fmt.Sprintf("env VERSION %d", chat)) +
			h.service("other", fmt.Sprintf("env VERSION %d", other)))
	}
	h.start(config(1, 1))
	opened := time.Now()
	sockets := make(map[string]*websocket.Conn)
	for _, name := range []string{"h1", "h2", "h3"} {
		sockets[name] = h.clients[name].dial(t, "chat", "/ws")
	}
	all := func(what string) {
		t.Helper()
		for name, conn := range sockets {
			say(t, conn, what+" "+name)
		}
	}
	all("hello")
	if got := h.getFrom(t.Context(), "other", "/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	before := h.instancesOf("chat")
	for n := range loops(15, 50) {
		h.check(h.reload(config(1, 1+min(n/3, 4)), true))
		all(fmt.Sprint("reload ", n))
	}
	h.awaitServing("other", "other-00005")
	h.check(h.reload(config(2, 5), false))
	h.awaitServing("chat", "chat-00002")
	all("replaced")
	time.Sleep(time.Until(opened.Add(3 * time.Second)))
	all("after the timeout")
	var old []instance
	for _, i := range h.instancesOf("chat") {
		if i.Revision == "chat-00001" {
			old = append(old, i)
		}
	}
	if len(before) != 1 || len(old) != 1 || old[0].PID != before[0].PID || old[0].InFlight != len(sockets) || old[0].State == "frozen" {
		t.Errorf("before %+v, now %+v; want the same instance, awake, with %d in flight", before, old, len(sockets))
	}
	for name, conn := range sockets {
		if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Errorf("closing %s: %v", name, err)
		}
	}
	eventually(t, "the old revision is gone", func() bool { return len(h.serviceNamed("chat").Revisions) == 1 })
}

// goodbye is a WebSocket that somebody else than its client will end.
type goodbye struct {
	client, path string
	options      []string
	want         websocket.StatusCode
	ended        chan error
}

// listen opens g, to a service, and notes how it ends.
func (g *goodbye) listen(t *testing.T, h *protocolHost, service string) {
	t.Helper()
	conn := h.clients[g.client].dial(t, service, g.path)
	if !strings.Contains(g.path, "flood") {
		say(t, conn, "hello")
	}
	g.ended = make(chan error, 1)
	begun := make(chan struct{}, 1)
	go func() {
		for {
			_, message, err := conn.Read(context.Background())
			if err == nil && len(bytes.Trim(message, "\x00")) > 0 {
				err = fmt.Errorf("not what was sent: %.40q", message)
			}
			if err != nil {
				g.ended <- err
				return
			}
			select {
			case begun <- struct{}{}:
			default:
			}
		}
	}()
	if strings.Contains(g.path, "flood") {
		<-begun
	}
	h.awaitInFlight(service, 1)
}

// check waits for the end.
func (g *goodbye) check(t *testing.T, service string) {
	t.Helper()
	select {
	case err := <-g.ended:
		if got := websocket.CloseStatus(err); got != g.want {
			t.Errorf("%s: the client saw %v: %v; want %v", service, got, err, g.want)
		}
	case <-time.After(patience):
		t.Errorf("%s: the WebSocket has not ended", service)
	}
}

// TestWebSocketGoodbye ends instances that have a WebSocket in every way there is
// while Caddy runs. What the client sees is what the app says, else a close frame
// between two frames.
func TestWebSocketGoodbye(t *testing.T) {
	h := newProtocolHost(t)
	replaced := map[string]*goodbye{
		"idle":     {client: "h1", path: "/ws", want: websocket.StatusGoingAway},
		"idle-h2":  {client: "h2", path: "/ws", want: websocket.StatusGoingAway},
		"busy":     {client: "h1", path: "/ws?flood=100000", want: websocket.StatusGoingAway},
		"busy-h3":  {client: "h3", path: "/ws?flood=100000", want: websocket.StatusGoingAway},
		"busy-h2c": {client: "h1", path: "/ws?flood=3000", options: []string{"port h2c 8080"}, want: websocket.StatusGoingAway},
		"polite":   {client: "h1", path: "/ws?polite=1", want: websocket.StatusNormalClosure},
	}
	if full() { // killed after ten seconds
		replaced["deaf"] = &goodbye{client: "h1", path: "/ws?flood=100000", options: []string{"env LINGER 1"}, want: websocket.StatusGoingAway}
	}
	removed := &goodbye{client: "h1", path: "/ws?flood=10", want: websocket.StatusGoingAway}
	killed := &goodbye{client: "h1", path: "/ws", want: -1}
	service := func(name, option string) string {
		options := []string{"drain_timeout 300ms", "concurrency 1", "instances 0 1", option}
		if g := replaced[name]; g != nil {
			options = append(options, g.options...)
		}
		return h.service(name, options...)
	}
	config := func(version string) string {
		var site strings.Builder
		for name := range replaced {
			site.WriteString(service(name, "env VERSION "+version))
		}
		site.WriteString(service("killed", "env VERSION 1"))
		if version == "1" {
			site.WriteString(service("removed", "env VERSION 1"))
		}
		return h.everywhere(site.String())
	}
	h.start(config("1"))
	killed.listen(t, h, "killed")
	h.check(syscall.Kill(h.instancesOf("killed")[0].PID, syscall.SIGKILL))
	killed.check(t, "killed")
	removed.listen(t, h, "removed")
	for name, g := range replaced {
		g.listen(t, h, name)
	}
	h.check(h.reload(config("2"), false))
	for name, g := range replaced {
		g.check(t, name)
	}
	removed.check(t, "removed")
	eventually(t, "removed is gone", func() bool { return h.serviceNamed("removed").Service == "" && len(h.instancesOf("removed")) == 0 })
	for _, name := range append(slices.Collect(maps.Keys(replaced)), "killed") {
		h.awaitInFlight(name, 0)
		// The one slot is there again, and is one.
		conn := h.clients["h1"].dial(t, name, "/ws")
		waiting := make(chan response, 1)
		go func() { waiting <- h.getFrom(t.Context(), name, "/") }()
		h.awaitQueue(name, 1)
		h.check(conn.Close(websocket.StatusNormalClosure, ""))
		if got := <-waiting; got.status != http.StatusOK {
			t.Errorf("%s: afterwards: %s", name, got)
		}
	}
}

// TestWebSocketExit ends Caddy: the clients are told so, whether the instances go with
// it or stay.
func TestWebSocketExit(t *testing.T) {
	for exit, sockets := range map[string]map[string]*goodbye{
		"stop": {
			"idle":   {client: "h1", path: "/ws", want: websocket.StatusGoingAway},
			"busy":   {client: "h1", path: "/ws?flood=100000", want: websocket.StatusGoingAway},
			"polite": {client: "h1", path: "/ws?polite=1", want: websocket.StatusNormalClosure},
			"deaf":   {client: "h1", path: "/ws?flood=100000", options: []string{"env LINGER 1"}, want: websocket.StatusGoingAway},
		},
		"keep": {
			"idle": {client: "h1", path: "/ws", want: websocket.StatusGoingAway},
			"busy": {client: "h1", path: "/ws?flood=1000000", want: websocket.StatusGoingAway},
		},
	} {
		t.Run(exit, func(t *testing.T) {
			h := newProtocolHost(t, onExit(exit))
			var site strings.Builder
			for name, g := range sockets {
				site.WriteString(h.service(name, append(g.options, "concurrency 1")...))
			}
			h.start(h.everywhere(site.String()))
			for name, g := range sockets {
				g.listen(t, h, name)
			}
			h.stop()
			for name, g := range sockets {
				g.check(t, name)
			}
		})
	}
}

// TestWebSocketAwake has one WebSocket that nobody says anything on: its instance
// is not frozen, as it may have something to say.
func TestWebSocketAwake(t *testing.T) {
	h := newProtocolHost(t)
	h.start(h.everywhere(h.service("chat", "idle_timeout 1h")))
	conn := h.clients["h1"].dial(t, "chat", "/ws")
	for began := time.Now(); time.Since(began) < time.Second; {
		if all := h.instancesOf("chat"); len(all) != 1 || all[0].State != "ready" {
			t.Fatalf("while the WebSocket is open: %+v", all)
		}
	}
	say(t, conn, "hello")
	h.check(conn.Close(websocket.StatusNormalClosure, ""))
	eventually(t, "it is frozen", func() bool { return h.instancesOf("chat")[0].State == "frozen" })
}
