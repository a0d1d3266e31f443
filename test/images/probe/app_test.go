package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// start starts a probe that is healthy and returns a function that asks it.
func start(t *testing.T) (*httptest.Server, func(method, path, body string) (int, string)) {
	t.Helper()
	server := httptest.NewServer(newApp(time.Now()))
	t.Cleanup(server.Close)
	return server, func(method, path, body string) (int, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer response.Body.Close()
		data, err := io.ReadAll(response.Body)
		if err != nil {
			t.Error(err)
		}
		return response.StatusCode, string(data)
	}
}

// TestExclusive must neither miss requests that overlap nor see overlaps where
// one request follows the other.
func TestExclusive(t *testing.T) {
	_, ask := start(t)
	for range 50 {
		for _, path := range []string{"/download?bytes=100000", "/stream?ms=2&every=1", "/exclusive"} {
			if status, body := ask("GET", path, ""); status != http.StatusOK {
				t.Fatalf("%s, one after the other: %d %s", path, status, body)
			}
		}
	}
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			if status, _ := ask("GET", "/exclusive?ms=300", ""); status != http.StatusInternalServerError {
				t.Errorf("two at once: %d", status)
			}
		})
	}
	wait.Wait()
	if _, body := ask("GET", "/inflight", ""); body != "2\n" {
		t.Errorf("in flight at most: %s", body)
	}
}

func TestAnswers(t *testing.T) {
	t.Setenv("K_SERVICE", "hello")
	_, ask := start(t)
	for _, test := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/healthz", "", 200, "ok\n"},
		{"GET", "/env?name=K_SERVICE", "", 200, "hello"},
		{"GET", "/env?name=NO_SUCH", "", 404, "no such variable\n"},
		{"GET", "/file?path=/no/such", "", 404, "open /no/such: no such file or directory\n"},
		{"POST", "/upload", "abc", 200, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad 3\n"},
		{"GET", "/stream?ms=10&every=100", "", 200, "data: 0\n\n"},
		{"GET", "/download?bytes=3", "", 200, "\x00\x00\x00"},
		{"GET", "/log?lines=2&bytes=5", "", 200, "2\n"},
		{"GET", "/none", "", 404, "404 page not found\n"},
	} {
		if status, body := ask(test.method, test.path, test.body); status != test.status || body != test.want {
			t.Errorf("%s: %d %q; want %d %q", test.path, status, body, test.status, test.want)
		}
	}
	_, body := ask("GET", "/", "")
	var got about
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Service != "hello" || got.MaxInFlight != 1 || got.InFlight != 1 {
		t.Errorf("about: %+v %v", got, err)
	}
}

func TestWebSocket(t *testing.T) {
	server, _ := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, server.URL+"/ws?close_after_ms=200", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	kind, message, err := conn.Read(ctx)
	if err != nil || kind != websocket.MessageText || !bytes.Equal(message, []byte("hello")) {
		t.Errorf("echo: %v %q %v", kind, message, err)
	}
	if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("close: %v", err)
	}
}

// TestGRPC asks for health by gRPC and for the rest by HTTP/2, on one port.
func TestGRPC(t *testing.T) {
	t.Setenv("GRPC", "1")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(newApp(time.Now()))
	go func() { _ = server.Serve(listener) }()
	defer server.Close()

	client, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	answer, err := grpc_health_v1.NewHealthClient(client).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", answer, err)
	}

	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("http://" + listener.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.Proto != "HTTP/2.0" {
		t.Errorf("%s %s", response.Proto, response.Status)
	}
}

// TestNotHealthyYet answers 503 first.
func TestNotHealthyYet(t *testing.T) {
	a := newApp(time.Now().Add(time.Hour))
	recorder := httptest.NewRecorder()
	a.ServeHTTP(recorder, httptest.NewRequest("GET", "/healthz", nil))
	if recorder.Code != http.StatusServiceUnavailable {
		t.Errorf("status %d", recorder.Code)
	}
}

// TestHealthChecks has checks that fail and are mended, each by its name.
func TestHealthChecks(t *testing.T) {
	_, ask := start(t)
	is := func(path string, want int, body string) {
		t.Helper()
		if status, got := ask("GET", path, ""); status != want || !strings.HasPrefix(got, body) {
			t.Errorf("%s: %d %s; want %d %s", path, status, got, want, body)
		}
	}
	is("/healthz?name=live", http.StatusOK, "ok")
	is("/fail?name=live", http.StatusOK, "done")
	is("/healthz?name=live", http.StatusServiceUnavailable, "not healthy")
	is("/healthz", http.StatusOK, "ok")
	is("/mend?name=live", http.StatusOK, "done")
	is("/healthz?name=live", http.StatusOK, "ok")
	is("/asked?name=live", http.StatusOK, "3\n")
}
