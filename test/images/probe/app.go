package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// about is what the probe says about itself at "/".
type about struct {
	Service       string `json:"service"`
	Revision      string `json:"revision"`
	Configuration string `json:"configuration"`
	Hostname      string `json:"hostname"`
	ID            string `json:"id"`
	PID           int    `json:"pid"`
	Served        int64  `json:"served"`
	InFlight      int64  `json:"inFlight"`
	MaxInFlight   int64  `json:"maxInFlight"`
	Proto         string `json:"proto"`
}

// app counts requests and dispatches them. Health checks are not counted.
type app struct {
	http.ServeMux

	id          string
	health      *healthChecks
	served      atomic.Int64
	inFlight    atomic.Int64
	maxInFlight atomic.Int64
	stopping    atomic.Bool // SIGTERM has come
}

func newApp(healthyFrom time.Time) *app {
	a := &app{id: newID(), health: newHealthChecks(healthyFrom)}
	for pattern, handle := range map[string]http.HandlerFunc{
		"/{$}":       a.info,
		"/sleep":     a.sleep,
		"/exclusive": a.exclusive,
		"/inflight":  a.peak,
		"/stream":    stream,
		"/download":  download,
		"/upload":    upload,
		"/ws":        echo,
		"/crash":     crash,
		"/hang":      hang,
		"/oom":       oom,
		"/panic":     func(http.ResponseWriter, *http.Request) { panic("probe: asked to panic") },
		"/env":       env,
		"/file":      file,
		"/stat":      stat,
		"/write":     write,
		"/log":       writeLines,
		"/fetch":     fetch,
		"/header":    func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get(r.FormValue("name"))) },
		"/fail":      a.health.set(true),
		"/mend":      a.health.set(false),
		"/asked":     a.health.count,
	} {
		a.HandleFunc(pattern, a.counted(handle))
	}
	a.Handle("/healthz", a.health)
	return a
}

// counted counts the requests in flight and those that ended, however they did.
func (a *app) counted(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		now := a.inFlight.Add(1)
		defer func() {
			a.inFlight.Add(-1)
			a.served.Add(1)
		}()
		for seen := a.maxInFlight.Load(); now > seen && !a.maxInFlight.CompareAndSwap(seen, now); {
			seen = a.maxInFlight.Load()
		}
		a.tellStopping(w)
		handle(w, r)
	}
}

// tellStopping sets a header field once SIGTERM has come.
func (a *app) tellStopping(w http.ResponseWriter) {
	if a.stopping.Load() {
		w.Header().Set("Probe-Stopping", "true")
	}
}

// info answers "/".
func (a *app) info(w http.ResponseWriter, r *http.Request) {
	host, err := os.Hostname()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(about{
		Service:       os.Getenv("K_SERVICE"),
		Revision:      os.Getenv("K_REVISION"),
		Configuration: os.Getenv("K_CONFIGURATION"),
		Hostname:      host,
		ID:            a.id,
		PID:           os.Getpid(),
		Served:        a.served.Load(),
		InFlight:      a.inFlight.Load(),
		MaxInFlight:   a.maxInFlight.Load(),
		Proto:         r.Proto,
	})
}

// fetch answers "/fetch?url=" with what it gets from there: the status, a space,
// the body.
func fetch(w http.ResponseWriter, r *http.Request) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.FormValue("url"), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	fmt.Fprint(w, resp.StatusCode, " ")
	_, _ = io.Copy(w, resp.Body)
}

// sleep answers "/sleep?ms=" with the ID after that time.
func (a *app) sleep(w http.ResponseWriter, r *http.Request) {
	if wait(r.Context(), millis(r, "ms")) {
		a.tellStopping(w)
		fmt.Fprintln(w, a.id)
	}
}

// exclusive answers "/exclusive?ms=" like sleep, but with 500 if at any time
// another request was in flight.
func (a *app) exclusive(w http.ResponseWriter, r *http.Request) {
	if !wait(r.Context(), millis(r, "ms")) {
		return
	}
	if peak := a.maxInFlight.Load(); peak > 1 {
		http.Error(w, fmt.Sprintf("%d requests were in flight at once", peak), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, a.id)
}

// peak answers "/inflight" with the most requests that were in flight at once.
func (a *app) peak(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, a.maxInFlight.Load())
}

// stream answers "/stream?ms=&every=" with one event every so often, for so long.
func stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	every := max(millis(r, "every"), time.Millisecond)
	end := time.Now().Add(millis(r, "ms"))
	out := http.NewResponseController(w)
	for n := 0; ; n++ {
		if _, err := fmt.Fprintf(w, "data: %d\n\n", n); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		if !time.Now().Add(every).Before(end) || !wait(r.Context(), every) {
			return
		}
	}
}

// download answers "/download?bytes=&ms=" with so many bytes, spread over that
// time. The last byte leaves with the handler's end: a client that has them all
// may be sure that the request is not in flight any more.
func download(w http.ResponseWriter, r *http.Request) {
	total, took := number(r, "bytes"), millis(r, "ms")
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(total))
	if total == 0 {
		return
	}
	const parts = 20
	out := http.NewResponseController(w)
	chunk := make([]byte, total/parts+1)
	for left := total - 1; left > 0; {
		n, err := w.Write(chunk[:min(left, len(chunk))])
		if err != nil {
			return
		}
		left -= n
		if err := out.Flush(); err != nil || !wait(r.Context(), took/parts) {
			return
		}
	}
	_, _ = w.Write(chunk[:1])
}

// upload answers "/upload" with the SHA-256 and the length of the body.
func upload(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%s %d\n", hex.EncodeToString(hash.Sum(nil)), n)
}

// echo answers "/ws?close_after_ms=" as a WebSocket that sends back every
// message, until the client or the time ends it. The handshake says whose it is.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Probe-Revision", os.Getenv("K_REVISION"))
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	if after := millis(r, "close_after_ms"); after > 0 {
		// Close waits for the loop below to read the client's close frame.
		timer := time.AfterFunc(after, func() { _ = conn.Close(websocket.StatusNormalClosure, "asked to") })
		defer timer.Stop()
	}
	for {
		kind, message, err := conn.Read(context.Background())
		if err != nil {
			return
		}
		if err := conn.Write(context.Background(), kind, message); err != nil {
			return
		}
	}
}

// crash ends the process with code 3, after "?ms=".
func crash(_ http.ResponseWriter, r *http.Request) {
	time.Sleep(millis(r, "ms"))
	fmt.Println("probe: crashing, as asked")
	os.Exit(3)
}

// hang never answers; it ends with the client.
func hang(_ http.ResponseWriter, r *http.Request) {
	<-r.Context().Done()
}

// oom uses up memory until something ends the process.
func oom(http.ResponseWriter, *http.Request) {
	const step = 8 << 20
	var kept [][]byte
	for {
		memory := make([]byte, step)
		for i := 0; i < step; i += os.Getpagesize() {
			memory[i] = 1
		}
		kept = append(kept, memory)
		fmt.Println("probe: holding", len(kept)*step>>20, "MB")
	}
}

// env answers "/env?name=" with the variable, or 404.
func env(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	if name == "" {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
		return
	}
	value, ok := os.LookupEnv(name)
	if !ok {
		http.Error(w, "no such variable", http.StatusNotFound)
		return
	}
	fmt.Fprint(w, value)
}

// file answers "/file?path=" with a file of the container.
func file(w http.ResponseWriter, r *http.Request) {
	data, err := os.ReadFile(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	_, _ = w.Write(data)
}

// stat answers "/stat?path=" with the mode, user, group and size of a file, and
// for a link with what it points to.
func stat(w http.ResponseWriter, r *http.Request) {
	info, err := os.Lstat(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	owner := info.Sys().(*syscall.Stat_t)
	link, _ := os.Readlink(r.FormValue("path"))
	fmt.Fprintln(w, strings.TrimSpace(fmt.Sprintf("%s %d:%d %d %s", info.Mode(), owner.Uid, owner.Gid, info.Size(), link)))
}

// write answers "/write?path=&bytes=" after it has written such a file.
func write(w http.ResponseWriter, r *http.Request) {
	if err := os.WriteFile(r.FormValue("path"), make([]byte, number(r, "bytes")), 0o600); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	fmt.Fprintln(w, "written")
}

// writeLines writes "?lines=" lines of "?bytes=" bytes each to stdout.
func writeLines(w http.ResponseWriter, r *http.Request) {
	size := max(number(r, "bytes"), 1)
	lines := max(number(r, "lines"), 1)
	for n := range lines {
		line := fmt.Sprintf("probe line %d ", n)
		if len(line) > size-1 {
			line = line[:size-1]
		}
		if _, err := fmt.Println(line + strings.Repeat("x", size-1-len(line))); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	fmt.Fprintln(w, lines)
}

// wait waits for d and tells whether the client was there until then.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// number reads a query parameter, 0 when it is absent or not a number.
func number(r *http.Request, name string) int {
	n, err := strconv.Atoi(r.URL.Query().Get(name))
	if err != nil {
		return 0
	}
	return max(n, 0)
}

// millis reads a query parameter as milliseconds.
func millis(r *http.Request, name string) time.Duration {
	return time.Duration(number(r, name)) * time.Millisecond
}
