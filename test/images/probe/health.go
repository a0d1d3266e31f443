package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// healthChecks answers the checks of an app's health, each by its name, over HTTP
// at "/healthz?name=" and over gRPC as a service.
type healthChecks struct {
	from   time.Time // all fail before
	status *health.Server

	mu     sync.Mutex
	failed map[string]bool
	asked  map[string]int // over HTTP
}

func newHealthChecks(from time.Time) *healthChecks {
	h := &healthChecks{from: from, status: health.NewServer(), failed: make(map[string]bool), asked: make(map[string]int)}
	if wait := time.Until(from); wait > 0 {
		h.status.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		time.AfterFunc(wait, func() {
			h.status.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
		})
	}
	return h
}

// ServeHTTP answers 503 until the time that FAIL_START=probe503 set, and while the
// check fails because of "/fail".
func (h *healthChecks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	h.mu.Lock()
	h.asked[name]++
	failed := h.failed[name]
	h.mu.Unlock()
	if failed || time.Now().Before(h.from) {
		http.Error(w, "not healthy", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// set answers "/fail?name=" and "/mend?name=".
func (h *healthChecks) set(failed bool) http.HandlerFunc {
	status := grpc_health_v1.HealthCheckResponse_SERVING
	if failed {
		status = grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.FormValue("name")
		h.mu.Lock()
		defer h.mu.Unlock()
		h.failed[name] = failed
		h.status.SetServingStatus(name, status)
		fmt.Fprintln(w, "done")
	}
}

// count answers "/asked?name=" with how often the check was asked over HTTP.
func (h *healthChecks) count(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprintln(w, h.asked[r.FormValue("name")])
}

// check asks the app that runs in the same container: it is what a command does
// that is run to check the app's health.
func check(path string) error {
	resp, err := http.Get("http://" + net.JoinHostPort("127.0.0.1", port()) + path)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// serveHealth answers checks at HEALTH_PORT, if there is one.
func serveHealth(h http.Handler) {
	at := os.Getenv("HEALTH_PORT")
	if at == "" {
		return
	}
	server := &http.Server{Addr: net.JoinHostPort(os.Getenv("LISTEN_ADDR"), at), Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { fmt.Println("probe: serving checks:", server.ListenAndServe()) }()
}
