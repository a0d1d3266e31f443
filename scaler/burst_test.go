package scaler

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/pooltest"
)

// F14: all that a burst needs is started by the burst itself, not by a clock that
// looks at the queue later.
func TestABurstStartsAllThatItNeedsAtOnce(t *testing.T) {
	const requests, most = 100, 20
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := &host{t: t, rt: rt}
		h.Scaler = New(Options{Runtime: rt, Observer: h, StartLimit: most, Probe: rt.Probe})
		t.Cleanup(func() {
			if err := h.Close(context.Background(), Stop); err != nil {
				t.Error(err)
			}
		})
		h.Start()
		rt.Plan(pooltest.Plan{StartTime: time.Second})
		h.declare(1, svc(t, "hello", "concurrency=1", "max-scale=20"))
		began := time.Now()
		leases := make(chan *instancepool.Lease, requests)
		for range requests {
			go func() {
				lease, err := h.Acquire(t.Context(), "hello")
				if err != nil {
					t.Error(err)
				}
				leases <- lease
			}()
		}
		synctest.Wait()
		equal(t, "time since the burst", time.Since(began), 0)
		equal(t, "requests that wait", h.statusOf("hello").Waiting, requests)
		equal(t, "starts", rt.Attempts(), most)
		for range requests {
			if lease := <-leases; lease != nil {
				lease.Release()
			}
		}
		equal(t, "starts in the end", rt.Attempts(), most)
		equal(t, "time to the last answer", time.Since(began), time.Second)
	})
}
