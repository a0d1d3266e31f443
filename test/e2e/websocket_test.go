package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
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
	t.Setenv("GODEBUG", "http2xconnect=1") // Go offers them over HTTP/2 only then
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
	t.Setenv("GODEBUG", "http2xconnect=1")
	h := newProtocolHost(t)
	config := func(chat, other int) string {
		return h.everywhere(h.service("chat", "timeout 2s", "idle_timeout 100ms", "drain_timeout 1h", fmt.Sprintf("env VERSION %d", chat)) +
			h.service("other", fmt.Sprintf("env VERSION %d", other)))
	}
	h.start(config(1, 1))
	opened := time.Now()
	sockets := make(map[string]*websocket.Conn)
	for _, name := range []string{"h1", "h1tls", "h2", "h3"} {
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
	for n := range 50 {
		h.check(h.reload(config(1, 1+n/10), true))
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

// TestWebSocketGoodbye ends instances that have a WebSocket in every way there is.
// What its client sees is what the app says, else a close frame between two frames.
func TestWebSocketGoodbye(t *testing.T) {
	t.Setenv("GODEBUG", "http2xconnect=1")
	deploy := func(h *protocolHost, config func(string) string) { h.check(h.reload(config("env VERSION 2"), false)) }
	remove := func(h *protocolHost, _ func(string) string) { h.check(h.reload(h.everywhere("respond gone"), false)) }
	exit := func(h *protocolHost, _ func(string) string) { h.stop() }
	for name, test := range map[string]struct {
		client, path string
		options      []string
		opts         []option
		end          func(*protocolHost, func(string) string)
		want         websocket.StatusCode
		slow         bool
	}{
		"deadline":       {client: "h1", path: "/ws", end: deploy, want: websocket.StatusGoingAway},
		"deadline busy":  {client: "h1", path: "/ws?flood=100000", end: deploy, want: websocket.StatusGoingAway},
		"deadline h2":    {client: "h2", path: "/ws", end: deploy, want: websocket.StatusGoingAway},
		"deadline h3":    {client: "h3", path: "/ws?flood=100000", end: deploy, want: websocket.StatusGoingAway},
		"deadline h2c":   {client: "h1tls", path: "/ws?flood=3000", options: []string{"port h2c 8080"}, end: deploy, want: websocket.StatusGoingAway},
		"app's own":      {client: "h1", path: "/ws?polite=1", end: deploy, want: websocket.StatusNormalClosure},
		"removed":        {client: "h1", path: "/ws?flood=10", end: remove, want: websocket.StatusGoingAway},
		"exit stop":      {client: "h1", path: "/ws", end: exit, want: websocket.StatusGoingAway},
		"exit stop busy": {client: "h1", path: "/ws?flood=100000", end: exit, want: websocket.StatusGoingAway},
		"exit stop own":  {client: "h1", path: "/ws?polite=1", end: exit, want: websocket.StatusNormalClosure},
		"exit keep":      {client: "h1", path: "/ws", opts: []option{onExit("keep")}, end: exit, want: websocket.StatusGoingAway},
		"exit keep busy": {client: "h1", path: "/ws?flood=1000000", opts: []option{onExit("keep")}, end: exit, want: websocket.StatusGoingAway},
		// Killed after ten seconds.
		"ignored": {client: "h1", path: "/ws?flood=100000", options: []string{"env LINGER 1"}, end: deploy, want: websocket.StatusGoingAway, slow: true},
		"killed": {client: "h1", path: "/ws", want: -1, end: func(h *protocolHost, _ func(string) string) {
			h.check(syscall.Kill(h.instances()[0].PID, syscall.SIGKILL))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.slow && !full() {
				t.Skip("the long tests are left out")
			}
			h := newProtocolHost(t, test.opts...)
			config := func(option string) string {
				return h.everywhere(h.service("chat", append(test.options, "drain_timeout 500ms", "timeout 1s", "concurrency 1", "instances 0 1", option)...))
			}
			h.start(config("env VERSION 1"))
			conn := h.clients[test.client].dial(t, "chat", test.path)
			ended := make(chan error, 1)
			begun := make(chan struct{})
			go func() {
				for n := 0; ; n++ {
					_, message, err := conn.Read(context.Background())
					if n == 0 {
						close(begun)
					}
					if err != nil {
						ended <- err
						return
					}
					if len(bytes.Trim(message, "\x00")) > 0 {
						ended <- fmt.Errorf("not what was sent: %.40q", message)
						return
					}
				}
			}()
			if strings.Contains(test.path, "flood") {
				<-begun
			}
			h.awaitInFlight("chat", 1)
			test.end(h, config)
			select {
			case err := <-ended:
				if got := websocket.CloseStatus(err); got != test.want {
					t.Errorf("the client saw %v: %v; want %v", got, err, test.want)
				}
			case <-time.After(patience):
				t.Fatal("the WebSocket has not ended")
			}
			if !h.running() || h.serviceNamed("chat").Service == "" {
				return
			}
			h.awaitInFlight("chat", 0)
			if got := h.getFrom(t.Context(), "chat", "/"); got.status != http.StatusOK {
				t.Errorf("afterwards: %s", got)
			}
			h.assertOnly(1)
		})
	}
}
