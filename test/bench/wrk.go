package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// connections is how many wrk keeps busy.
const connections = 64

// wrkLoad is what wrk says about its load.
type wrkLoad struct {
	requests int
	rate     float64 // a second
	p50, p99 float64 // in microseconds
}

var (
	requestsLine = regexp.MustCompile(`(?m)^\s+([0-9]+) requests in `)
	rateLine     = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	latencyLine  = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([0-9.]+)(us|ms|s)$`)
	errorLine    = regexp.MustCompile(`Non-2xx or 3xx responses|Socket errors`)
)

func needWrk() error {
	if _, err := exec.LookPath("wrk"); err != nil {
		return errors.New("wrk is missing: apt-get install wrk")
	}
	return nil
}

// wrk loads a URL for whole seconds.
func wrk(ctx context.Context, url string, length time.Duration) (wrkLoad, error) {
	var l wrkLoad
	out, err := exec.CommandContext(ctx, "wrk", "-t2", fmt.Sprintf("-c%d", connections),
		fmt.Sprintf("-d%ds", int(length/time.Second)), "--latency", url).CombinedOutput()
	if err != nil {
		return l, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	if errorLine.Match(out) {
		return l, fmt.Errorf("wrk met errors:\n%s", out)
	}
	requests, rate := requestsLine.FindSubmatch(out), rateLine.FindSubmatch(out)
	latencies := latencyLine.FindAllSubmatch(out, -1)
	if requests == nil || rate == nil || len(latencies) != 2 {
		return l, fmt.Errorf("reading wrk's output:\n%s", out)
	}
	if l.requests, err = strconv.Atoi(string(requests[1])); err != nil {
		return l, err
	}
	if l.rate, err = strconv.ParseFloat(string(rate[1]), 64); err != nil {
		return l, err
	}
	for _, line := range latencies {
		n, err := strconv.ParseFloat(string(line[2]), 64)
		if err != nil {
			return l, err
		}
		n *= map[string]float64{"us": 1, "ms": 1e3, "s": 1e6}[string(line[3])]
		if string(line[1]) == "50" {
			l.p50 = n
		} else {
			l.p99 = n
		}
	}
	return l, nil
}
