package instancepool_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
)

// F26: the queue is as deep as it may be and no deeper: beyond that a request is
// refused at once, and what has waited leaves nothing behind.
func TestTheQueueIsBounded(t *testing.T) {
	const asking, refusing = 100_000, 8
	rev := revision(1)
	rev.Spec().QueueDepth = crowd
	rev.Spec().MaxInstances = 1
	synctest.Test(t, func(t *testing.T) {
		p := start(t, rev)
		p.rt.Plan(pooltest.Plan{Hang: true})
		round := func() {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var waiting sync.WaitGroup
			for range crowd {
				waiting.Go(func() {
					if _, err := p.Acquire(ctx); !errors.Is(err, context.Canceled) {
						t.Errorf("who waits gets %v", err)
					}
				})
			}
			synctest.Wait()
			equal(t, "waiting", p.Status().Waiting, crowd)
			var left atomic.Int64
			left.Store(asking - crowd)
			var refused sync.WaitGroup
			for range refusing {
				refused.Go(func() {
					for left.Add(-1) >= 0 {
						if _, err := p.Acquire(ctx); !errors.Is(err, instancepool.ErrQueueFull) {
							t.Errorf("who may not wait gets %v", err)
							return
						}
					}
				})
			}
			refused.Wait()
			equal(t, "waiting beside those that are refused", p.Status().Waiting, crowd)
			equal(t, "starts", p.rt.Attempts(), 1)
			cancel()
			waiting.Wait()
			equal(t, "waiting in the end", p.Status().Waiting, 0)
			p.check()
		}
		held := func() int64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.GC() // what pools kept goes with the second
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		round() // the runtime keeps what goroutines it has had for the next ones
		before := held()
		round()
		// A waiter is some hundred bytes: this is less than two percent of them.
		if grown := held() - before; grown > asking*4 {
			t.Errorf("%d bytes are held for nobody", grown)
		}
	})
}
