// Command probe is the app of the end-to-end tests: it does what a test asks of
// it, by environment when it starts and by path and query afterwards, and tells
// what it has seen.
//
// Environment: LISTEN_ADDR (the host to listen on; default all), START_DELAY_MS,
// FAIL_START (exit:<code>, nolisten, or probe503:<ms>), IGNORE_TERM=1,
// TERM_DELAY_MS, LOG_RATE (bytes a second, to stdout), GRPC=1 (the gRPC health
// service on the same port), HEALTH_PORT (a further port that answers /healthz).
//
// With the arguments "check <path>" it asks the probe that runs beside it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal("probe: ", err)
	}
}

func run() error {
	if len(os.Args) == 3 && os.Args[1] == "check" {
		return check(os.Args[2])
	}
	// Registered before anything else: a signal during the start counts too.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)

	healthyFrom := time.Now()
	time.Sleep(envMillis("START_DELAY_MS"))
	switch mode, value, _ := strings.Cut(os.Getenv("FAIL_START"), ":"); mode {
	case "":
	case "exit":
		code, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("reading FAIL_START: %w", err)
		}
		fmt.Println("probe: exiting, as FAIL_START says")
		os.Exit(code)
	case "nolisten":
		fmt.Println("probe: not listening, as FAIL_START says")
		<-term
		return nil
	case "probe503":
		ms, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("reading FAIL_START: %w", err)
		}
		healthyFrom = time.Now().Add(time.Duration(ms) * time.Millisecond)
	default:
		return fmt.Errorf("reading FAIL_START: unknown mode %q", mode)
	}

	go writeLog(os.Getenv("LOG_RATE"))
	a := newApp(healthyFrom)
	serveHealth(a.health)
	return serve(newServer(a), &a.stopping, term)
}

// newServer speaks HTTP/1, HTTP/2 without TLS and, when asked for, gRPC.
func newServer(a *app) *http.Server {
	server := &http.Server{
		Addr:              net.JoinHostPort(os.Getenv("LISTEN_ADDR"), port()),
		Handler:           a,
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: 10 * time.Second,
	}
	if os.Getenv("GRPC") == "1" {
		server.Handler = withGRPC(a)
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server
}

// serve serves until SIGTERM, then lets requests in flight end.
func serve(server *http.Server, stopping *atomic.Bool, term <-chan os.Signal) error {
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	fmt.Println("probe: listening on", server.Addr)
	for {
		select {
		case err := <-failed:
			return fmt.Errorf("serving: %w", err)
		case <-term:
		}
		stopping.Store(true)
		fmt.Println("probe: got SIGTERM")
		if os.Getenv("IGNORE_TERM") != "1" {
			break
		}
	}
	// Requests are still served during the delay, as by an app that saves state.
	time.Sleep(envMillis("TERM_DELAY_MS"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("shutting down: %w", err)
	}
	return nil
}

// withGRPC answers gRPC by a server with the standard health service.
func withGRPC(a *app) http.Handler {
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, a.health.status)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			server.ServeHTTP(w, r)
			return
		}
		a.ServeHTTP(w, r)
	})
}

// writeLog writes lines of 100 bytes to stdout, rate bytes a second.
func writeLog(rate string) {
	n, err := strconv.Atoi(rate)
	if err != nil || n <= 0 {
		return
	}
	line := append(bytes.Repeat([]byte{'x'}, 99), '\n')
	const tick = 50 * time.Millisecond
	written := 0
	start := time.Now()
	for range time.Tick(tick) {
		for due := int(time.Since(start).Seconds() * float64(n)); written < due; written += len(line) {
			if _, err := os.Stdout.Write(line); err != nil {
				return
			}
		}
	}
}

// envMillis reads a duration in milliseconds; 0 when there is none.
func envMillis(name string) time.Duration {
	ms, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// port is the one to listen on.
func port() string { return cmp.Or(os.Getenv("PORT"), "8080") }

// newID tells this process from every other, also where host names are equal.
func newID() string { return rand.Text()[:12] }
