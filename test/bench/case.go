package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/fairway-run/fairway/test/chart"
)

const (
	// caseTail is how long it is watched what becomes of the instances after the
	// last request.
	caseTail = 5 * time.Second
	// caseLate is how late a request may be sent by the fault of the generator for it
	// to have kept up, and caseKept the part of the requests that must be answered.
	caseLate = 50 * time.Millisecond
	caseKept = 0.99
)

// caseStudy is the one of Google's page about concurrency: the same clients ask a
// service that takes one request at a time, and one that takes 80.
//
// The app sleeps for 25 ms by default. 1 200 requests a second then keep 30
// instances busy, and the scaling target of 60 percent asks for 50: many more
// than with concurrency 80, where one will do; but they fit on 2 processors. A
// request costs about a millisecond of one of these, which is more than half of both
// for all, and a start 100 to 200 ms: so the ramp is long enough for the starts to
// find the rest. A longer service time costs no more a request, but needs more
// instances: 2 000 for one of a second.
func caseStudy(ctx context.Context, s *settings, h *host) error {
	if s.clients < 1 || s.rate <= 0 || s.service < 0 {
		return fmt.Errorf("%d clients with %g requests a second of %s cannot be", s.clients, s.rate, s.service)
	}
	concurrencies := []int{1, 80}
	runs := make([]*caseRun, len(concurrencies))
	for i, n := range concurrencies {
		var err error
		if runs[i], err = runCase(ctx, s, h, n); err != nil {
			return fmt.Errorf("concurrency %d: %w", n, err)
		}
	}
	fmt.Printf("case study: %d clients, %g requests a second each, %s a request; %s of ramp, then %s\n",
		s.clients, s.rate, s.service, s.ramp, s.hold)
	table := func(name string, cell func(*caseRun) string) {
		fmt.Printf("%-36s", name)
		for _, r := range runs {
			fmt.Printf(" %16s", cell(r))
		}
		fmt.Println()
	}
	table("", func(r *caseRun) string { return fmt.Sprintf("concurrency %d", r.concurrency) })
	table("requests", func(r *caseRun) string { return fmt.Sprint(len(r.requests)) })
	table("failed", func(r *caseRun) string { return fmt.Sprint(len(r.failed)) })
	table("p50", func(r *caseRun) string { return brief(quantile(r.took, 0.5)) })
	table("p99", func(r *caseRun) string { return brief(quantile(r.took, 0.99)) })
	table("p99 of the second half", func(r *caseRun) string { return brief(quantile(r.tookLater, 0.99)) })
	table("instances, max", func(r *caseRun) string { return fmt.Sprint(most(r.samples, started)) })
	table("starting at once, max", func(r *caseRun) string { return fmt.Sprint(most(r.samples, starting)) })
	table("instances, average", func(r *caseRun) string { return fmt.Sprintf("%.1f", r.seconds(started)/r.end.Seconds()) })
	table("instance-seconds", func(r *caseRun) string { return fmt.Sprintf("%.0f", r.seconds(started)) })
	table("instance-seconds, not frozen", func(r *caseRun) string { return fmt.Sprintf("%.0f", r.seconds(awake)) })
	table("answered of offered", func(r *caseRun) string { return fmt.Sprintf("%.2f %%", 100*r.kept()) })
	table("sent late by the generator, p99", func(r *caseRun) string { return brief(r.late) })
	table("generator, of one processor", func(r *caseRun) string { return fmt.Sprintf("%.0f %%", 100*r.generator) })
	table("all that ran here, of all processors", func(r *caseRun) string { return fmt.Sprintf("%.0f %%", 100*r.machine) })
	fmt.Printf("concurrency 1 needs %.1f times the instance-seconds of concurrency 80, %.1f times without the frozen ones\n",
		runs[0].seconds(started)/runs[1].seconds(started), runs[0].seconds(awake)/runs[1].seconds(awake))
	var errs []error
	for _, r := range runs {
		if r.late > caseLate {
			fmt.Printf("concurrency %d: THE GENERATOR DID NOT KEEP UP: these are its figures, not Fairway's\n", r.concurrency)
		} else if r.kept() < caseKept {
			fmt.Printf("concurrency %d: requests were not answered in time for the next: the clients sent less than they should\n", r.concurrency)
		}
		if len(r.failed) > 0 {
			errs = append(errs, fmt.Errorf("concurrency %d: %d requests failed, such as %w", r.concurrency, len(r.failed), r.failed[0]))
		}
	}
	if s.svg != "" {
		errs = append(errs, draw(s.svg, runs))
	}
	return errors.Join(errs...)
}

// caseRun is what came of one concurrency.
type caseRun struct {
	outcome

	concurrency     int
	end             time.Duration // of the load
	samples         []sample
	took, tookLater []time.Duration // of all, and of those of the second half
	failed          []error
	late            time.Duration // see request; the 99th percentile
	generator       float64       // the processors that this process used
	machine         float64       // the part of all processors that was used by anyone
}

func runCase(ctx context.Context, s *settings, h *host, concurrency int) (r *caseRun, err error) {
	c, err := h.newCaddy()
	if err != nil {
		return nil, err
	}
	defer c.close(&err)
	if err := c.load(ctx, c.config(site(siteAddr, service("case", sleeperImage, smallMemory,
		fmt.Sprintf("concurrency %d", concurrency),
		// One for each client is more than they can keep busy.
		fmt.Sprintf("instances 0 %d", s.clients),
	)))); err != nil {
		return nil, err
	}
	l := &load{
		clients: s.clients, rate: s.rate, ramp: s.ramp, hold: s.hold,
		path: fmt.Sprintf("/?ms=%d&limit=%d", s.service.Milliseconds(), concurrency),
	}
	r = &caseRun{concurrency: concurrency, end: l.ramp + l.hold}
	busy, err := machineBusy()
	if err != nil {
		return nil, err
	}
	begin, used := time.Now(), ownCPU()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	sampled := make(chan error, 1)
	go func() {
		var err error
		r.samples, err = c.sample(watching, begin, &l.answered)
		sampled <- err
	}()
	r.outcome, err = l.run(ctx, begin)
	took := time.Since(begin).Seconds()
	r.generator = (ownCPU() - used).Seconds() / took
	if busyLater, busyErr := machineBusy(); busyErr == nil {
		r.machine = (busyLater - busy).Seconds() / took / float64(runtime.NumCPU())
	}
	if err == nil {
		err = pause(ctx, caseTail)
	}
	stop()
	if err := errors.Join(err, <-sampled); err != nil {
		return nil, err
	}
	var late []time.Duration
	for _, q := range r.requests {
		late = append(late, q.late)
		if q.err != nil {
			r.failed = append(r.failed, q.err)
			continue
		}
		r.took = append(r.took, q.took)
		if q.at >= l.ramp+l.hold/2 {
			r.tookLater = append(r.tookLater, q.took)
		}
	}
	if len(r.tookLater) == 0 {
		return nil, errors.Join(errors.New("no request of the second half was answered"), cmp.Or(r.failed...))
	}
	r.late = quantile(late, 0.99)
	return r, nil
}

// kept is the part of the offered requests that were answered.
func (r *caseRun) kept() float64 { return float64(len(r.took)) / float64(r.offered) }

// seconds is the sum of what f counts while the load lasted.
func (r *caseRun) seconds(f func(sample) int) float64 { return seconds(r.samples, 0, r.end, f) }

// draw draws a chart of each run, all to the same scale.
func draw(dir string, runs []*caseRun) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	highest, fastest := 0, 0.0
	for _, r := range runs {
		highest = max(highest, most(r.samples, wanted))
		for _, s := range r.samples {
			fastest = max(fastest, s.rate)
		}
	}
	for _, r := range runs {
		file := filepath.Join(dir, fmt.Sprintf("case-concurrency-%d.svg", r.concurrency))
		title := fmt.Sprintf("Concurrency %d", r.concurrency)
		if err := os.WriteFile(file, caseChart(title, r.samples, fastest, float64(highest)), 0o644); err != nil {
			return err
		}
		fmt.Println("drawn:", file)
	}
	return nil
}

// caseChart draws samples as Google's page about concurrency does: the requests over
// time as a green line on top, the instances as a blue line below. The scales end
// at the given numbers.
func caseChart(title string, samples []sample, fastest, highest float64) []byte {
	line := func(color string, width int, value func(sample) float64) chart.Line {
		l := chart.Line{Color: color, Width: width}
		for _, s := range samples {
			l.Points = append(l.Points, chart.Point{At: s.at, Value: value(s)})
		}
		return l
	}
	instances := func(color string, width int, f func(sample) int) chart.Line {
		return line(color, width, func(s sample) float64 { return float64(f(s)) })
	}
	unfrozen := instances("#1a73e8", 1, awake)
	unfrozen.Dashed = true
	return chart.SVG(title, samples[len(samples)-1].at,
		chart.Plot{Name: "requests per second", Highest: fastest, Lines: []chart.Line{line("#1e8e3e", 2, func(s sample) float64 { return s.rate })}},
		chart.Plot{
			Name:    "instances (dashed: those that are not frozen; pale: and those that are being started)",
			Highest: highest, Lines: []chart.Line{instances("#aecbfa", 1, wanted), instances("#1a73e8", 2, started), unfrozen},
		})
}
