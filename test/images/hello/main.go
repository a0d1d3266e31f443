// Command hello is the example app: it greets, and says which service and
// revision it is, as Cloud Run's own hello container does.
package main

import (
	"cmp"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/fairway-run/fairway/test/images/serve"
)

func main() {
	if err := serve.UntilTerm(http.HandlerFunc(greet)); err != nil {
		log.Fatal(err)
	}
}

func greet(w http.ResponseWriter, _ *http.Request) {
	host, err := os.Hostname()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s\nservice  %s\nrevision %s\ninstance %s\n",
		cmp.Or(os.Getenv("GREETING"), "hello"), os.Getenv("K_SERVICE"), os.Getenv("K_REVISION"), host)
}
