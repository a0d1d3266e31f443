package simulation

import (
	"os"
	"reflect"
	"testing"
	"time"
)

// full is set for traces as long as they would be on a real host.
var full = os.Getenv("FAIRWAY_FULL") != ""

func TestTraces(t *testing.T) {
	again := Traces(full)
	for n, tr := range Traces(full) {
		if !reflect.DeepEqual(tr, again[n]) {
			t.Errorf("%s is not the same each time", tr.Name)
		}
		requests := 0
		var load time.Duration
		for _, s := range tr.Services {
			last := time.Duration(0)
			for _, a := range s.Arrivals {
				if a.At < last || a.Takes <= 0 {
					t.Fatalf("%s: a request at %s takes %s, after one at %s", s.Name, a.At, a.Takes, last)
				}
				last = a.At
				load += a.Takes
			}
			requests += len(s.Arrivals)
			for _, c := range s.Clients {
				requests += len(c.Takes)
				for _, takes := range c.Takes {
					load += takes
				}
			}
		}
		if requests == 0 {
			t.Errorf("%s is empty", tr.Name)
		}
		t.Logf("%s: %d services, %d requests in %s, mean load %.2f", tr.Name, len(tr.Services), requests, tr.Length, load.Seconds()/tr.Length.Seconds())
	}
}
