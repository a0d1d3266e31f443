// Command sleeper takes as long for an answer as it is asked to, and sleeps
// meanwhile: "/?ms=25". A bench can then have many instances at work on few
// processors, which it could not if they were busy.
//
// "/?ms=25&limit=1" answers 500 when more than one such request is in flight.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

// run serves until SIGTERM, then lets requests in flight end.
func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	server := &http.Server{
		Addr:              net.JoinHostPort("", cmp.Or(os.Getenv("PORT"), "8080")),
		Handler:           http.HandlerFunc(sleep),
		ReadHeaderTimeout: 10 * time.Second,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("shutting down: %w", err)
	}
	return nil
}

var inFlight atomic.Int64

func sleep(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if limit, err := strconv.ParseInt(query.Get("limit"), 10, 64); err == nil {
		n := inFlight.Add(1)
		defer inFlight.Add(-1)
		if n > limit {
			http.Error(w, fmt.Sprintf("%d requests are in flight, not %d", n, limit), http.StatusInternalServerError)
			return
		}
	}
	if ms, err := strconv.Atoi(query.Get("ms")); err == nil {
		time.Sleep(time.Duration(ms) * time.Millisecond)
	}
	fmt.Fprintln(w, "slept")
}
