package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// idleCPU is what all idle services and frozen instances may use of one
	// processor.
	idleCPU = 0.001
	// idleBytes is what one idle service may hold in Caddy's heap.
	idleBytes = 20_000
	// idlePatience is how long the registry may take for the services.
	idlePatience = 5 * time.Minute
)

// idle measures what services cost that nobody asks: the processor time and the
// wake-ups of Caddy, without Fairway, with one service and with many of which some
// have a frozen instance, and the memory of each that has none.
func idle(ctx context.Context, s *settings, h *host) (err error) {
	if s.idle < 1 {
		return errors.New("there must be an idle service")
	}
	bare, err := h.watchBare(ctx, s.window)
	if err != nil {
		return err
	}
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	c.global = []string{"services_dir " + c.services(), "domain bench"}
	if err := c.declare("one", "one"); err != nil {
		return err
	}
	// The port of a host's name does not matter to Fairway.
	if err := c.load(ctx, c.config(site(":"+sitePort, "\tfairway\n"))); err != nil {
		return err
	}
	if err := c.awaitServices(ctx, 1); err != nil {
		return err
	}
	alone, err := c.watch(ctx, s.window)
	if err != nil {
		return err
	}

	names := make([]string, s.idle)
	for i := range names {
		names[i] = fmt.Sprintf("idle-%04d", i)
	}
	if err := errors.Join(c.declare("idle", names...), c.awaitServices(ctx, 1+len(names))); err != nil {
		return err
	}
	small, err := c.memory(ctx)
	if err != nil {
		return err
	}

	names = make([]string, cmp.Or(s.frozen, 50))
	hosts := make([]string, len(names))
	for i := range names {
		names[i] = fmt.Sprintf("frozen-%04d", i)
		hosts[i] = hostOf(names[i])
	}
	if err := errors.Join(c.declare("frozen", names...), c.awaitServices(ctx, 1+s.idle+len(names)), ask(ctx, hosts)); err != nil {
		return err
	}
	if err := c.await(ctx, time.Minute, "all instances are frozen", func(all []instance) bool {
		return len(all) == len(names) && in(all, "", "frozen") == len(names)
	}); err != nil {
		return err
	}
	full, err := c.watch(ctx, s.window)
	if err != nil {
		return err
	}

	fmt.Printf("idle, %s of each\n", s.window)
	fmt.Printf("%-28s %16s %16s %28s\n", "", "without Fairway", "1 service", fmt.Sprintf("%d, and %d frozen instances", 1+s.idle, len(names)))
	row := func(name, format string, value func(cost) float64) {
		cell := func(c cost) string { return fmt.Sprintf(format, value(c)) }
		fmt.Printf("%-28s %16s %16s %28s\n", name, cell(bare), cell(alone), cell(full))
	}
	row("Caddy, of one processor", "%.3f %%", func(c cost) float64 { return 100 * c.cpu })
	row("its wake-ups a second", "%.1f", func(c cost) float64 { return c.wakeUps })
	row("its heap", "%.1f MB", func(c cost) float64 { return megabytes(c.heap) })
	row("its memory", "%.1f MB", func(c cost) float64 { return megabytes(c.resident) })
	each := float64(small.heap-alone.heap) / float64(s.idle)
	resident := float64(small.resident-alone.resident) / float64(s.idle)
	fmt.Printf("%-28s %16s %16s %25.1f kB\n", "resident memory per service", "", "", resident/1e3)
	var g goals
	g.row("Caddy, of one processor", fmt.Sprintf("%.3f %%", 100*full.cpu), fmt.Sprintf("< %.1f %%", 100*idleCPU), full.cpu < idleCPU)
	g.row("heap per idle service", fmt.Sprintf("%.1f kB", each/1e3), fmt.Sprintf("< %d kB", idleBytes/1000), each < idleBytes)
	return g.err()
}

// watchBare watches a Caddy that has Fairway in it but not in its config.
func (h *host) watchBare(ctx context.Context, window time.Duration) (now cost, err error) {
	c, err := h.newCaddy()
	if err != nil {
		return now, err
	}
	defer c.close(&err)
	if err := c.load(ctx, fmt.Sprintf("{\n\tadmin %s\n\tauto_https off\n}\n%s", adminAddr, site(siteAddr, "\trespond ok\n"))); err != nil {
		return now, err
	}
	return c.watch(ctx, window)
}

// declare writes services into a file of the watched directory. None starts an
// instance before its first request.
func (c *caddy) declare(file string, names ...string) error {
	var all strings.Builder
	for _, name := range names {
		fmt.Fprintf(&all, `---
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: %s
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/initial-scale: "0"
        run.fairway/prepared: "0"
    spec:
      containers:
      - image: %s
        resources:
          limits:
            memory: 32Mi
`, name, helloImage)
	}
	// Not written in place: half a file could be read.
	written := filepath.Join(c.dir, file)
	if err := os.WriteFile(written, []byte(all.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(written, filepath.Join(c.services(), file+".yaml"))
}

// awaitServices waits until there are n services.
func (c *caddy) awaitServices(ctx context.Context, n int) error {
	var names []struct {
		Service string `json:"service"`
	}
	var err error
	if timeout := poll(ctx, 200*time.Millisecond, idlePatience, func() bool {
		names = nil
		err = getJSON(ctx, "/fairway/services", &names)
		return err == nil && len(names) == n
	}); timeout != nil {
		return errors.Join(fmt.Errorf("waiting for %d services: %w; there are %d", n, timeout, len(names)), err)
	}
	return nil
}

// cost is what a Caddy costs that does nothing.
type cost struct {
	cpu            float64 // of one processor
	wakeUps        float64 // a second
	heap, resident int64   // in bytes
}

// watch measures over a window in which nobody asks anything.
func (c *caddy) watch(ctx context.Context, window time.Duration) (cost, error) {
	now, err := c.memory(ctx)
	if err != nil {
		return now, err
	}
	if err := pause(ctx, 5*time.Second); err != nil { // what follows the last question
		return now, err
	}
	used, err := cpuTime(c.pid())
	if err != nil {
		return now, err
	}
	woken, err := wakeUps(c.pid())
	if err != nil {
		return now, err
	}
	began := time.Now()
	if err := pause(ctx, window); err != nil {
		return now, err
	}
	took := time.Since(began).Seconds()
	usedLater, err := cpuTime(c.pid())
	if err != nil {
		return now, err
	}
	wokenLater, err := wakeUps(c.pid())
	if err != nil {
		return now, err
	}
	now.cpu, now.wakeUps = (usedLater-used).Seconds()/took, float64(wokenLater-woken)/took
	return now, nil
}

// memory is the part of the cost that can be read at once.
func (c *caddy) memory(ctx context.Context) (now cost, err error) {
	if now.heap, err = c.heap(ctx); err != nil {
		return now, err
	}
	now.resident, err = residentMemory(c.pid())
	return now, err
}
