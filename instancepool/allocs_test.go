package instancepool_test

import (
	"testing"
)

// A request pays for its lease and for next to nothing else, whether others are in
// flight or not.
func TestAcquireAllocatesLittle(t *testing.T) {
	const most = 2
	rev := revision(80)
	rev.Spec().Throttled = false // what freezes it beside would be counted too
	p := start(t, rev)
	ctx := t.Context()
	p.need().Release()
	measure := func(what string) {
		t.Helper()
		if n := testing.AllocsPerRun(1000, func() {
			lease, err := p.Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			lease.Release()
		}); n > most {
			t.Errorf("%s: %v allocations; want at most %d", what, n, most)
		}
	}
	measure("the only one")
	held := p.need()
	measure("one of several")
	held.Release()
}
