package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/fairway-run/fairway/test/containerdtest"
)

const (
	connections = 64
	warmRounds  = 5
)

// warm compares the throughput of a ready instance through Fairway with that of
// Caddy's own reverse_proxy to the same instance, in the same process.
func warm(ctx context.Context, daemon *containerdtest.Daemon, caddy string, length time.Duration) (err error) {
	if _, err := exec.LookPath("wrk"); err != nil {
		return errors.New("wrk is missing: apt-get install wrk")
	}
	dir, err := os.MkdirTemp("", "fairway-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const service = "\t\tconcurrency 1000\n\t\tinstances 1 1"
	stop, err := runCaddy(ctx, caddy, config(daemon, dir, service, ""), dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if _, err := firstByte(ctx, "http://"+siteAddr+"/"); err != nil {
		return err
	}
	address := instances()[0].Address
	if address == "" {
		return errors.New("no instance runs")
	}
	proxy := fmt.Sprintf("http://%s {\n\tbind 127.0.0.1\n\treverse_proxy %s\n}\n", proxyAddr, address)
	if err := reload(ctx, config(daemon, dir, service, proxy)); err != nil {
		return err
	}
	var ours, theirs sides
	for range warmRounds {
		if err := ours.measure(ctx, "http://"+siteAddr+"/", length); err != nil {
			return err
		}
		if err := theirs.measure(ctx, "http://"+proxyAddr+"/", length); err != nil {
			return err
		}
	}
	fmt.Printf("warm, %d connections, median of %d rounds of %s in turn, the same instance behind both\n", connections, warmRounds, length)
	fmt.Printf("%-14s %12s %14s %8s\n", "", "fairway", "reverse_proxy", "ratio")
	row := func(name string, a, b float64, unit string) {
		fmt.Printf("%-14s %10.0f%-2s %12.0f%-2s %8.2f\n", name, a, unit, b, unit, a/b)
	}
	row("requests/s", median(ours.rate), median(theirs.rate), "")
	row("p50", median(ours.p50), median(theirs.p50), "µs")
	row("p99", median(ours.p99), median(theirs.p99), "µs")
	return nil
}

// sides are the measurements of one of the two.
type sides struct{ rate, p50, p99 []float64 }

var (
	rateLine    = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	latencyLine = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([0-9.]+)(us|ms|s)$`)
	errorLine   = regexp.MustCompile(`Non-2xx or 3xx responses|Socket errors`)
)

func (s *sides) measure(ctx context.Context, url string, length time.Duration) error {
	out, err := exec.CommandContext(ctx, "wrk", "-t2", fmt.Sprintf("-c%d", connections),
		fmt.Sprintf("-d%ds", int(length/time.Second)), "--latency", url).CombinedOutput()
	if err != nil {
		return fmt.Errorf("wrk: %w\n%s", err, out)
	}
	if errorLine.Match(out) {
		return fmt.Errorf("wrk met errors:\n%s", out)
	}
	rate := rateLine.FindSubmatch(out)
	latencies := latencyLine.FindAllSubmatch(out, -1)
	if rate == nil || len(latencies) != 2 {
		return fmt.Errorf("reading wrk's output:\n%s", out)
	}
	n, err := strconv.ParseFloat(string(rate[1]), 64)
	if err != nil {
		return err
	}
	s.rate = append(s.rate, n)
	for _, l := range latencies {
		n, err := strconv.ParseFloat(string(l[2]), 64)
		if err != nil {
			return err
		}
		n *= map[string]float64{"us": 1, "ms": 1e3, "s": 1e6}[string(l[3])]
		if string(l[1]) == "50" {
			s.p50 = append(s.p50, n)
		} else {
			s.p99 = append(s.p99, n)
		}
	}
	return nil
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}
