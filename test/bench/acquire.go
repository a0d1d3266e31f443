package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

const (
	acquireRounds = 5
	// The goals of one request without others: its time, its allocations, and by how
	// much many instances may slow it down.
	acquireTime   = time.Microsecond
	acquireAllocs = 2
	acquireFlat   = 1.2
)

// acquire measures what a request takes from its pool to its slot and back, with
// few and with many instances, without others and with as many others as there
// are processors. The instances do not exist.
func acquire(ctx context.Context, _ *settings, _ *host) error {
	counts := []int{1, 10, 100, 1000}
	pools := make([]*instancepool.Pool, len(counts))
	for i, n := range counts {
		p := newPool(n)
		defer func() {
			p.Drain(0)
			p.Wait()
		}()
		p.Wake()
		// All but those that the requests use stay so.
		if err := poll(ctx, 10*time.Millisecond, 10*time.Second, func() bool { return frozenIn(p) == n }); err != nil {
			return fmt.Errorf("waiting for %d instances to start and freeze: %w", n, err)
		}
		pools[i] = p
	}
	// The best of the rounds counts: what else runs on the machine only adds to them.
	type figures struct{ alone, crowded []float64 }
	all := make([]figures, len(counts))
	var allocs [2]int64
	for range acquireRounds {
		for i, p := range pools {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			alone, crowded, err := measureAcquire(ctx, p)
			if err != nil {
				return err
			}
			f := &all[i]
			f.alone, f.crowded = append(f.alone, nanoseconds(alone)), append(f.crowded, nanoseconds(crowded))
			allocs[0], allocs[1] = max(allocs[0], alone.AllocsPerOp()), max(allocs[1], crowded.AllocsPerOp())
		}
	}
	fmt.Printf("acquire and release, %d slots an instance, best of %d rounds in turn\n", revisions.DefaultConcurrency, acquireRounds)
	fmt.Printf("%-12s %16s %16s\n", "instances", "one goroutine", fmt.Sprintf("%d goroutines", runtime.GOMAXPROCS(0)))
	slowest := 0.0
	for i, n := range counts {
		slowest = max(slowest, slices.Min(all[i].alone))
		fmt.Printf("%-12d %13.0f ns %13.0f ns\n", n, slices.Min(all[i].alone), slices.Min(all[i].crowded))
	}
	fmt.Printf("%-12s %16d %16d\n", "allocations", allocs[0], allocs[1])
	var g goals
	g.row("time", fmt.Sprintf("%.0f ns", slowest), "< "+acquireTime.String(), slowest < float64(acquireTime))
	g.row("allocations", fmt.Sprint(allocs[0]), fmt.Sprintf("<= %d", acquireAllocs), allocs[0] <= acquireAllocs)
	flat := slices.Min(all[len(all)-1].alone) / slices.Min(all[0].alone)
	g.row("1 instance : 1000", fmt.Sprintf("ratio %.2f", flat), fmt.Sprintf("<= %.1f", acquireFlat), flat <= acquireFlat)
	return g.err()
}

func nanoseconds(r testing.BenchmarkResult) float64 { return float64(r.T) / float64(r.N) }

func measureAcquire(ctx context.Context, p *instancepool.Pool) (alone, crowded testing.BenchmarkResult, err error) {
	var failure atomic.Pointer[error]
	once := func() bool {
		lease, err := p.Acquire(ctx)
		if err != nil {
			failure.Store(&err)
			return false
		}
		lease.Release()
		return true
	}
	alone = testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() && once() {
		}
	})
	crowded = testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() && once() {
			}
		})
	})
	if err := failure.Load(); err != nil {
		return alone, crowded, *err
	}
	return alone, crowded, nil
}

// newPool is a pool that has so many instances once it wakes. They are frozen while
// they have no requests, as by default.
func newPool(instances int) *instancepool.Pool {
	rt := pooltest.NewRuntime()
	rev := revisions.New("hello", "hello-00001", 1, &revisions.Spec{
		Port: revisions.Port{Number: revisions.DefaultPort}, Concurrency: revisions.DefaultConcurrency,
		Timeout: revisions.DefaultTimeout, IdleTimeout: revisions.DefaultIdleTimeout, QueueDepth: revisions.DefaultQueueDepth,
		Throttled: true, MinInstances: instances,
		Health: []revisions.Health{{Startup: &revisions.Probe{Port: revisions.DefaultPort, Attempt: time.Second, Total: revisions.DefaultStartupTimeout}}},
	})
	return instancepool.New(rev, instancepool.Options{
		Start: rt.Start, Probe: rt.Probe,
		Decide: func(s instancepool.Snapshot) instancepool.Decision {
			return instancepool.Decision{Start: s.Min - s.Ready - s.Starting}
		},
	})
}

func frozenIn(p *instancepool.Pool) int {
	n := 0
	for _, i := range p.Status().Instances {
		if i.State == instancepool.Frozen {
			n++
		}
	}
	return n
}
