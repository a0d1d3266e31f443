package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// app is what it does by plain HTTP and WebSockets.
type app struct {
	http.ServeMux

	term    context.Context // ends with SIGTERM
	sockets sync.WaitGroup  // those that say goodbye by themselves

	mu   sync.Mutex
	acks map[string]chan struct{} // by name
}

func newApp(term context.Context) *app {
	a := &app{term: term, acks: make(map[string]chan struct{})}
	for pattern, handle := range map[string]http.HandlerFunc{
		"/{$}":      func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) },
		"/ws":       a.socket,
		"/events":   a.events,
		"/ack":      func(_ http.ResponseWriter, r *http.Request) { close(a.ack(r.FormValue("name"))) },
		"/early":    early,
		"/trailers": trailers,
		"/refuse":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusExpectationFailed) },
		"/upload":   upload,
		"/file":     file,
		"/headers":  headers,
		"/duplex":   duplex,
	} {
		a.HandleFunc(pattern, handle)
	}
	return a
}

// socket answers "/ws" as a WebSocket that sends back every message. With
// "?flood=" it sends messages of up to that size as fast as they are taken, with
// "?polite=1" it closes itself on SIGTERM, with "?ms=" it takes so long to open.
func (a *app) socket(w http.ResponseWriter, r *http.Request) {
	if ms, err := strconv.Atoi(r.FormValue("ms")); err == nil {
		time.Sleep(time.Duration(ms) * time.Millisecond)
	}
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	conn.SetReadLimit(-1)
	defer func() { _ = conn.CloseNow() }()
	if r.FormValue("polite") != "" {
		a.sockets.Add(1)
		defer a.sockets.Done()
		defer context.AfterFunc(a.term, func() { _ = conn.Close(websocket.StatusNormalClosure, "done") })()
	}
	if most, _ := strconv.Atoi(r.FormValue("flood")); most > 0 {
		for ctx := conn.CloseRead(context.Background()); ; {
			if conn.Write(ctx, websocket.MessageBinary, make([]byte, rand.IntN(most)+1)) != nil {
				return
			}
		}
	}
	for {
		kind, message, err := conn.Read(context.Background())
		if err != nil || conn.Write(context.Background(), kind, message) != nil {
			return
		}
	}
}

func (a *app) ack(name string) chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.acks[name] == nil {
		a.acks[name] = make(chan struct{})
	}
	return a.acks[name]
}

// events answers "/events?name=" with an event, and with the next when the first
// has been acknowledged by another request.
func (a *app) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "data: 1\n\n")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-a.ack(r.FormValue("name")):
		fmt.Fprint(w, "data: 2\n\n")
	case <-r.Context().Done():
	}
}

// early answers "/early" with two responses before the one that counts.
func early(w http.ResponseWriter, _ *http.Request) {
	for n := range 2 {
		w.Header().Set("Link", fmt.Sprintf("</%d.css>; rel=preload", n))
		w.WriteHeader(http.StatusEarlyHints)
	}
	w.Header().Del("Link")
	fmt.Fprint(w, "late")
}

// trailers answers "/trailers" with the body, and its trailers as trailers: X-Sum
// under that name, and one that was not announced.
func trailers(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "X-Sum")
	_, _ = io.Copy(w, r.Body)
	w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
	w.Header().Set(http.TrailerPrefix+"X-Late", "of "+r.Trailer.Get("X-Sum"))
}

// upload answers "/upload" with the SHA-256 and the length of the body, and with
// what was said of its length.
func upload(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, hex.EncodeToString(hash.Sum(nil)), n, r.ContentLength)
}

// file answers "/file" with a megabyte, its parts, or what is known of it.
func file(w http.ResponseWriter, r *http.Request) {
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(i * i >> 8)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"one"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// headers answers "/headers?bytes=" with so large a header, and with the length of
// the request's X-Large.
func headers(w http.ResponseWriter, r *http.Request) {
	size, _ := strconv.Atoi(r.FormValue("bytes"))
	for left := size; left > 0; left -= 1000 {
		w.Header().Add("X-Large", strings.Repeat("x", min(left, 1000)))
	}
	fmt.Fprint(w, len(strings.Join(r.Header.Values("X-Large"), "")))
}

// duplex answers "/duplex" with what it gets, as it gets it.
func duplex(w http.ResponseWriter, r *http.Request) {
	out := http.NewResponseController(w)
	_ = out.EnableFullDuplex()
	for buf := make([]byte, 4096); ; {
		n, err := r.Body.Read(buf)
		if _, failed := w.Write(buf[:n]); failed != nil || out.Flush() != nil || err != nil {
			return
		}
	}
}
