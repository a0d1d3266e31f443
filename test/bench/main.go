// Command bench measures Fairway side by side with what it stands on, in one
// run on one machine, and prints ratios: single figures of a shared machine
// mean little.
//
//	sudo go run ./test/bench [-rounds n] [-seconds n] [cold] [warm]
//	go run ./test/bench [-services n] [-revisions n] growth
//
// cold and warm need root, containerd and ./caddy (./xcaddy.sh build), and warm
// needs wrk; growth needs nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fairway-run/fairway/test/containerdtest"
	"github.com/fairway-run/fairway/test/images"
)

const (
	namespace = "fairway-bench"
	image     = "localhost/fairway/hello:bench"
	// adminAddr is where the measured Caddy's admin endpoint is.
	adminAddr = "127.0.0.1:2977"
	siteAddr  = "127.0.0.1:8977"
	proxyAddr = "127.0.0.1:8978"
)

func main() {
	rounds := flag.Int("rounds", 60, "cold starts of each kind")
	seconds := flag.Int("seconds", 5, "length of each of the 5 rounds of load, per side")
	caddy := flag.String("caddy", "./caddy", "the Caddy with Fairway to measure")
	services := flag.Int("services", 10_000, "services of growth")
	revs := flag.Int("revisions", 100_000, "revisions of all services of growth")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	which := flag.Args()
	if len(which) == 0 {
		which = []string{"cold", "warm"}
	}
	err := runGrowth(ctx, &which, *services, *revs)
	if err == nil && len(which) > 0 {
		err = run(ctx, which, *caddy, *rounds, *seconds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// runGrowth runs growth if it is wanted, which needs none of what the others do.
func runGrowth(ctx context.Context, which *[]string, services, revs int) error {
	i := slices.Index(*which, "growth")
	if i < 0 {
		return nil
	}
	*which = slices.Delete(*which, i, i+1)
	if services < 1 || revs < services {
		return fmt.Errorf("growth: %d revisions of %d services cannot be", revs, services)
	}
	if err := growth(ctx, services, revs); err != nil {
		return fmt.Errorf("growth: %w", err)
	}
	return nil
}

func run(ctx context.Context, which []string, caddy string, rounds, seconds int) (err error) {
	if missing := containerdtest.Missing(); missing != "" {
		return errors.New(missing)
	}
	daemon, err := containerdtest.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.Close()) }()
	archive, err := images.Build(ctx, images.Options{Name: image, Package: "github.com/fairway-run/fairway/test/images/hello"})
	if err != nil {
		return err
	}
	if err := daemon.Import(ctx, archive, namespace); err != nil {
		return err
	}
	for _, name := range which {
		switch name {
		case "cold":
			err = cold(ctx, daemon, caddy, rounds)
		case "warm":
			err = warm(ctx, daemon, caddy, time.Duration(seconds)*time.Second)
		default:
			err = fmt.Errorf("unknown benchmark %q: there are cold, warm and growth", name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// runCaddy runs Caddy with a config until the returned function is called.
func runCaddy(ctx context.Context, caddy, config, dir string) (stop func() error, err error) {
	file := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "caddy.log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(caddy, "run", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", caddy, err)
	}
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		_ = log.Close()
		return err
	}
	if err := poll(ctx, 30*time.Second, func() bool {
		conn, err := net.Dial("tcp", siteAddr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}); err != nil {
		text, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("waiting for Caddy: %w\n%s", err, text), stop())
	}
	return stop, nil
}

// poll waits until the condition is true.
func poll(ctx context.Context, patience time.Duration, is func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// config is a Caddyfile with one service that is called hello.
func config(daemon *containerdtest.Daemon, dir, service, more string) string {
	return fmt.Sprintf(`{
	admin %s
	auto_https off
	log {
		level ERROR
	}
	fairway {
		runtime containerd {
			address   %s
			namespace %s
			subnet    10.62.0.0/24
			state_dir %s
		}
		on_exit stop
	}
}
http://%s {
	bind 127.0.0.1
	fairway hello {
		image %s
%s
	}
}
%s
`, adminAddr, daemon.Address(), namespace, filepath.Join(dir, "state"), siteAddr, image, service, more)
}

// firstByte sends a request and returns how long the first byte of the answer
// took. It uses a new connection.
func firstByte(ctx context.Context, url string) (time.Duration, error) {
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Close = true
	resp, err := http.DefaultTransport.RoundTrip(req)
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return took, nil
}

// quantile returns the q-th part of sorted durations, q from 0 to 1.
func quantile(all []time.Duration, q float64) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

// reload gives the running Caddy another config.
func reload(ctx context.Context, config string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+adminAddr+"/load", strings.NewReader(config))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/caddyfile")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("reloading: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("reloading: %s: %s", resp.Status, text)
	}
	return nil
}
