// Command sleeper takes as long for an answer as it is asked to, and sleeps
// meanwhile: "/?ms=25". A bench can then have many instances at work on few
// processors, which it could not if they were busy.
//
// "/?ms=25&limit=1" answers 500 when more than one such request is in flight.
package main

import (
	"fmt"
	"log"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fairway-run/fairway/test/images/serve"
)

func main() {
	if err := serve.UntilTerm(http.HandlerFunc(sleep)); err != nil {
		log.Fatal(err)
	}
}

var inFlight atomic.Int64

func sleep(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if limit, err := strconv.ParseInt(query.Get("limit"), 10, 64); err == nil {
		n := inFlight.Add(1)
		defer inFlight.Add(-1)
		if n > limit {
			http.Error(w, fmt.Sprintf("%d requests are in flight, not %d", n, limit), http.StatusInternalServerError)
			return
		}
	}
	if ms, err := strconv.Atoi(query.Get("ms")); err == nil {
		time.Sleep(time.Duration(ms) * time.Millisecond)
	}
	fmt.Fprintln(w, "slept")
}
