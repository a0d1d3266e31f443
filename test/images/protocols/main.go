// Command protocols is the app of the end-to-end tests of protocols: HTTP/1.1,
// HTTP/2 without TLS, gRPC and WebSockets on one port, each doing what a test can
// check to the last byte.
//
// Environment: LINGER=1 (go on after SIGTERM, until killed), GRPC=1 (gRPC alone, by
// grpc-go's own server), LIMIT (with it, how many calls may be in flight at once).
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
)

func main() {
	if err := run(); err != nil {
		log.Fatal("protocols: ", err)
	}
}

func run() error {
	term, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if os.Getenv("GRPC") == "1" {
		return serveGRPC(term)
	}
	rpc := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(rpc, testService{})
	app := newApp(term)
	server := &http.Server{
		Addr: ":" + cmp.Or(os.Getenv("PORT"), "8080"),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				rpc.ServeHTTP(w, r)
				return
			}
			app.ServeHTTP(w, r)
		}),
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    4 << 20,
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	fmt.Println("protocols: listening on", server.Addr)
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-term.Done():
	}
	fmt.Println("protocols: got SIGTERM")
	if os.Getenv("LINGER") == "1" {
		select {}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	app.sockets.Wait() // those that end by themselves
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("shutting down: %w", err)
	}
	return nil
}
