package simulation

import (
	"math"
	"testing"
	"time"
)

func TestLoad(t *testing.T) {
	var l load
	close := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: %g, want %g", what, got, want)
		}
	}
	close("unknown", l.mean(60), 0)
	l.note(10500*time.Millisecond, 0) // known from now on
	l.note(12*time.Second, 2)         // 1 in the first second, 2 in the second
	close("as much as is known", l.mean(60), 1.5)
	close("the last second", l.mean(1), 2)
	l.note(12500*time.Millisecond, 100)
	close("without the second that goes on", l.mean(60), 1.5)
	l.note(13*time.Second, 0)
	close("with it", l.mean(60), 53./3)
	l.note(70*time.Second, 0)
	close("all of it", l.mean(60), 53./60)
	l.note(72*time.Second, 0)
	close("but for the first two seconds", l.mean(60), 50./60)
	l.note(20*time.Minute, 3)
	close("long ago", l.mean(60), 3)
	sum, known := l.last(6)
	close("a sum", sum, 18)
	close("of", float64(known), 6)
}
