package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// What Knative's own end-to-end tests look at beyond its conformance tests, where no
// other test here does.

// telling serves every service, and has each response say which revision answered.
const telling = "fairway {\n\t" + tellRevision + "\n}"

// patch changes a service by the API.
func (h *host) patch(name, patch string) {
	h.t.Helper()
	h.apply(http.MethodPatch, knative+"services/"+name, "application/merge-patch+json", patch)
}

// socket opens a WebSocket to a host below the domain, and returns which revision it
// is to.
func (h *host) socket(hostname string) (conn *websocket.Conn, revision string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.life, patience)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "ws://"+h.site+"/ws", &websocket.DialOptions{Host: hostname, HTTPClient: h.client})
	h.check(err)
	h.t.Cleanup(func() { _ = conn.CloseNow() })
	return conn, resp.Header.Get("Probe-Revision")
}

// TestWebSocketBlueGreen deploys while WebSockets are open, and then splits the traffic
// between the two revisions: those that are open stay where they are, new ones go where
// the traffic does (Knative: TestWebSocketBlueGreenRoute).
func TestWebSocketBlueGreen(t *testing.T) {
	const (
		old = 5
		all = 120
		// least is so low that chance alone does not get there.
		least = 25
	)
	h := newHost(t, fairwayOption("domain http://run.test"))
	h.start(h.caddyfile(telling))
	h.apply(http.MethodPost, knative+"services", "application/json", h.ksvc("chat", 1, `"env": [{"name": "COLOUR", "value": "blue"}]`))
	h.awaitReady("chat", "chat-00001")
	var sockets []*websocket.Conn
	open := func(hostname string) string {
		t.Helper()
		conn, revision := h.socket(hostname)
		say(t, conn, "hello")
		sockets = append(sockets, conn)
		return revision
	}
	held := func(want map[string]int) {
		t.Helper()
		eventually(t, fmt.Sprintf("the revisions hold %v", want), func() bool {
			// One that was replaced, and is wanted again, is there twice.
			got := make(map[string]int)
			for _, r := range h.serviceNamed("chat").Revisions {
				got[r.Revision] += r.InFlight
			}
			return maps.Equal(got, want)
		})
	}
	for range old {
		if to := open("chat.run.test"); to != "chat-00001" {
			t.Errorf("before the deploy: to %s", to)
		}
	}
	h.patch("chat", fmt.Sprintf(`{"spec": {"template": {"spec": {"containers": [{"image": %q, "env": [{"name": "COLOUR", "value": "green"}]}]}}}}`, h.image(1)))
	h.awaitReady("chat", "chat-00002")
	h.awaitServing("chat", "chat-00002")
	for range old {
		if to := open("chat.run.test"); to != "chat-00002" {
			t.Errorf("after the deploy: to %s", to)
		}
	}
	held(map[string]int{"chat-00001": old, "chat-00002": old})

	h.patch("chat", `{"spec": {"traffic": [{"tag": "blue", "revisionName": "chat-00001", "percent": 50}, {"tag": "green", "revisionName": "chat-00002", "percent": 50}]}}`)
	for tag, want := range map[string]string{"blue": "chat-00001", "green": "chat-00002"} {
		eventually(t, tag+" is served", func() bool { return h.asked(tag+"---chat.run.test", "/").status == http.StatusOK })
		if to := open(tag + "---chat.run.test"); to != want {
			t.Errorf("the tag %s: to %s", tag, to)
		}
	}
	to := make(map[string]int)
	for range all {
		to[open("chat.run.test")]++
	}
	if to["chat-00001"] < least || to["chat-00002"] < least || to["chat-00001"]+to["chat-00002"] != all {
		t.Errorf("of %d: %v; want half of them each", all, to)
	}
	t.Logf("of %d: %v", all, to)
	held(map[string]int{"chat-00001": old + 1 + to["chat-00001"], "chat-00002": old + 1 + to["chat-00002"]})
	for n, conn := range sockets {
		say(t, conn, fmt.Sprint("still there ", n))
		if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Errorf("closing %d: %v", n, err)
		}
	}
	held(map[string]int{"chat-00001": 0, "chat-00002": 0})
}

// TestWebSocketTimeouts opens WebSockets to services whose responses must be fast. A
// WebSocket may open no later, and stay for as long as it likes, silent too.
func TestWebSocketTimeouts(t *testing.T) {
	const limit = time.Second
	h := newProtocolHost(t)
	options := map[string][]string{
		"whole": {"timeout 1s"},
		"start": {"timeout 10s", "response_start_timeout 1s"},
		"idle":  {"timeout 10s", "response_idle_timeout 1s"},
	}
	var site strings.Builder
	for name, o := range options {
		site.WriteString(h.service(name, append(o, "env NAME "+name)...))
	}
	h.start(h.everywhere(site.String()))
	wg := crowd(t)
	for name := range options {
		eventually(t, "it runs", func() bool { return h.getFrom(t.Context(), name, "/").status == http.StatusOK })
		conn := h.clients["h1"].dial(t, name, "/ws")
		wg.Go(func() {
			for range 2 {
				time.Sleep(limit + limit/4)
				say(t, conn, "hello")
			}
		})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c := h.clients["h1"]
			_, resp, err := websocket.Dial(ctx, c.url(name, "/ws?ms=3000"), &websocket.DialOptions{HTTPClient: &c.Client})
			if err == nil || resp == nil || resp.StatusCode != http.StatusGatewayTimeout {
				t.Errorf("%s: one that opens late: %v", name, err)
			}
		})
	}
	wg.Wait()
}

// TestRollbackByName goes back to a revision by the name that it was given: it serves
// again, and no other is made (Knative: TestRollbackBYOName).
func TestRollbackByName(t *testing.T) {
	h := newHost(t, fairwayOption("domain http://run.test"))
	h.start(h.caddyfile(telling))
	body := func(revision string) string {
		return fmt.Sprintf(`{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"}, "spec": {
			"template": {"metadata": {"name": %[1]q}, "spec": {"containers": [{"image": %[2]q, "env": [{"name": "OF", "value": %[1]q}]}]}},
			"traffic": [{"revisionName": %[1]q, "percent": 100}]}}`, revision, h.image(1))
	}
	await := func(revision string) {
		t.Helper()
		within(t, time.Minute, revision+" is the only one with traffic", func() bool {
			s := h.state("hello")
			return s.IsReady() && s.Generation == s.Status.ObservedGeneration && s.Status.LatestCreatedRevisionName == revision && s.Status.LatestReadyRevisionName == revision &&
				len(s.Status.Traffic) == 1 && s.Status.Traffic[0].RevisionName == revision && *s.Status.Traffic[0].Percent == 100
		})
		// It takes the requests when it has the instances that their number needs.
		eventually(t, revision+" answers", func() bool {
			got := h.asked("hello.run.test", "/env?name=OF")
			return got.status == http.StatusOK && strings.TrimSpace(got.body) == revision && got.header.Get("X-Revision") == revision
		})
	}
	h.apply(http.MethodPost, knative+"services", "application/json", body("hello-byo-foo"))
	await("hello-byo-foo")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	prober := crowd(t)
	prober.Go(func() {
		for ctx.Err() == nil {
			if got := h.asked("hello.run.test", "/"); got.status != http.StatusOK {
				t.Errorf("meanwhile: %s", got)
			}
		}
	})
	for _, name := range []string{"hello-byo-foo-new", "hello-byo-foo", "hello-byo-foo-new"} {
		h.patch("hello", body(name))
		await(name)
	}
	cancel()
	prober.Wait()
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	status, answer, err := h.send(http.MethodGet, knative+"revisions", "", "")
	h.check(err)
	h.check(json.Unmarshal([]byte(answer), &list))
	if status != http.StatusOK || len(list.Items) != 2 {
		t.Errorf("revisions: %+v; want the two", list.Items)
	}
}

// TestDeletedInFlight deletes a service that has requests of every kind: they finish,
// while there is no such service for others (Knative: TestDestroyPodInflight,
// TestDestroyPodWithRequests, TestWebSocketGracefulShutdown).
func TestDeletedInFlight(t *testing.T) {
	const each = 5
	h := newHost(t, fairwayOption("domain http://run.test"))
	h.start(h.caddyfile(telling))
	h.apply(http.MethodPost, knative+"services", "application/json", h.ksvc("hello", 1, ""))
	h.awaitReady("hello", "hello-00001")
	conn, _ := h.socket("hello.run.test")
	say(t, conn, "hello")
	wg := crowd(t)
	for range each {
		wg.Go(func() {
			if got := h.asked("hello.run.test", "/sleep?ms=2500"); got.status != http.StatusOK {
				t.Errorf("what had not begun: %s", got)
			}
		})
		wg.Go(func() {
			if got := h.asked("hello.run.test", "/download?bytes=200000&ms=2500"); got.status != http.StatusOK || len(got.body) != 200_000 {
				t.Errorf("what had begun: %d, %d bytes, %v", got.status, len(got.body), got.err)
			}
		})
	}
	h.awaitInFlight("hello", 2*each+1)
	h.apply(http.MethodDelete, knative+"services/hello", "", "")
	if got := h.asked("hello.run.test", "/"); got.status != http.StatusNotFound {
		t.Errorf("who comes afterwards: %s", got)
	}
	say(t, conn, "still there")
	wg.Wait()
	say(t, conn, "still there")
	h.check(conn.Close(websocket.StatusNormalClosure, ""))
	h.assertOnly(0)
}

// TestBodyLimit has Caddy limit the bodies of requests before they get to a service:
// what is too long gets 413, and what has had a part of it goes on.
func TestBodyLimit(t *testing.T) {
	const limit = 100_000
	h := newProtocolHost(t)
	ports := map[string]string{"h2c": "port h2c 8080"}
	sizes := map[string]int{"small": 100, "large": limit, "h2c": limit}
	var site strings.Builder
	for service, size := range sizes {
		fmt.Fprintf(&site, "%srequest_body @%s {\n\tmax_size %d\n}\n", h.service(service, "instances 0 1", "concurrency 1", ports[service]), service, size)
	}
	h.start(h.everywhere(site.String()))
	for service, size := range sizes {
		for name, c := range h.clients {
			h.run(service+" "+name, func(t *testing.T) {
				send := func(size int, said bool) int {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					body := strings.NewReader(strings.Repeat("x", size))
					req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url(service, "/upload"), body)
					h.check(err)
					if !said {
						req.ContentLength = -1
					}
					resp, err := c.Do(req)
					h.check(err)
					_ = resp.Body.Close()
					return resp.StatusCode
				}
				for _, said := range []bool{true, false} {
					for _, test := range []struct{ size, want int }{
						{size, http.StatusOK}, {size + 1, http.StatusRequestEntityTooLarge}, {20 * size, http.StatusRequestEntityTooLarge}, {size, http.StatusOK},
					} {
						if got := send(test.size, said); got != test.want {
							t.Errorf("%d bytes, its length said: %t: %d; want %d", test.size, said, got, test.want)
						}
					}
				}
				h.awaitInFlight(service, 0)
			})
		}
		if made := h.creationsOf(service); len(made) != 1 {
			t.Errorf("%s: containers %q; want the one", service, made)
		}
	}
}
