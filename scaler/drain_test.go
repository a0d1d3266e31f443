package scaler

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool/pooltest"
)

// F33: while a revision drains for long, and its instance takes long to end, requests
// of its service and of others meet no lock, and the next deploy is as fast as ever.
func TestADrainHoldsUpNobody(t *testing.T) {
	const drain = 30 * time.Second
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		h := boot(t, rt)
		rt.Plan(pooltest.Plan{StopTime: 5 * time.Second})
		h.declare(0, svc(t, "other"))
		h.declare(1, svc(t, "hello"))
		old := h.need("hello")
		h.served("other")
		h.declare(2, svc(t, "hello", "app:2"))
		h.withdraw(1)
		began := time.Now()
		var slowest time.Duration
		for n := range int(drain/time.Second) + 5 {
			at := time.Now()
			equal(t, "other is served by", h.served("other"), "other-00001")
			want := "hello-00002"
			if n >= 10 {
				want = "hello-00003"
			}
			equal(t, "hello is served by", h.served("hello"), want)
			slowest = max(slowest, time.Since(at))
			switch n {
			case 9:
				h.declare(3, svc(t, "hello", "app:3"))
				h.withdraw(2)
			case int(drain / time.Second):
				old.Release()
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		equal(t, "the slowest request beside a drain", slowest, 0)
		equal(t, "time that all this took", time.Since(began), drain+5*time.Second)
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "running in the end", h.running(), map[string]int{"hello-00003": 1, "other-00001": 1})
	})
}
