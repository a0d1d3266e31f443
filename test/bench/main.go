// Command bench measures Fairway side by side with what it stands on, in one
// run on one machine, and prints ratios: single figures of a shared machine
// mean little. Where there is a goal it says whether that is met, and its exit
// code is 1 if one is missed.
//
//	sudo go run ./test/bench [flags] [bench...]
//
// These need root, containerd and ./caddy (./xcaddy.sh build); without a name
// cold and warm run:
//
//	cold      from nothing, against the same containerd calls by hand
//	prepared  from a prepared instance, against from nothing
//	frozen    from a frozen instance, against a warm one; many of them at once
//	burst     100 clients at once from nothing, against the best parallel start
//	warm      throughput of a ready nginx, against reverse_proxy's; needs wrk
//	streams   messages of WebSockets and gRPC, idle WebSockets, against reverse_proxy's
//	requests  what 5 000 000 requests leave in the heap; needs wrk
//	idle      what 1 000 idle services and some frozen instances cost
//	case      Google's case study: 400 clients, concurrency 1 against 80
//
// And these need nothing:
//
//	acquire   a request's way to its instance, against the number of instances
//	growth    10 000 services and 100 000 revisions, against one service
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is one of the things that can be measured.
type bench struct {
	name string
	// containers is set when it needs a host, which needs root; else it gets nil.
	containers bool
	run        func(context.Context, *settings, *host) error
	what       string
}

var benches = []bench{
	{"cold", true, cold, "from nothing, against the same containerd calls by hand"},
	{"prepared", true, prepared, "from a prepared instance, against from nothing"},
	{"frozen", true, frozen, "from a frozen instance, against a warm one; many of them at once"},
	{"burst", true, burst, "100 clients at once from nothing, against the best parallel start"},
	{"warm", true, warm, "throughput of a ready nginx, against reverse_proxy's; needs wrk"},
	{"streams", true, streams, "messages of WebSockets and gRPC, idle WebSockets, against reverse_proxy's"},
	{"requests", true, manyRequests, "what many requests leave in the heap; needs wrk"},
	{"idle", true, idle, "what idle services and frozen instances cost"},
	{"case", true, caseStudy, "Google's case study: 400 clients, concurrency 1 against 80"},
	{"acquire", false, acquire, "a request's way to its instance, against the number of instances"},
	{"growth", false, growth, "many services and revisions, against one service"},
}

// settings are the flags.
type settings struct {
	caddy   string
	rounds  int
	seconds int

	services, revisions int

	clients    int
	rate       float64
	ramp, hold time.Duration
	service    time.Duration
	svg        string

	idle, frozen int
	window       time.Duration

	requests int

	kamal string

	sockets int
}

func (s *settings) register(f *flag.FlagSet) {
	f.StringVar(&s.caddy, "caddy", "./caddy", "the `program` to measure: Caddy with Fairway")
	f.IntVar(&s.rounds, "rounds", 0, "rounds of each side (default: cold 60, prepared 30, frozen 100, burst 5)")
	f.IntVar(&s.seconds, "seconds", 5, "warm: length of each of the 5 rounds of load, per side")
	f.IntVar(&s.services, "services", 10_000, "growth: services")
	f.IntVar(&s.revisions, "revisions", 100_000, "growth: revisions of all services")
	f.IntVar(&s.clients, "clients", 400, "case: clients")
	f.Float64Var(&s.rate, "rate", 3, "case: requests a second of each client")
	f.DurationVar(&s.ramp, "ramp", 15*time.Second, "case: how long it takes until all clients are there")
	f.DurationVar(&s.hold, "hold", time.Minute, "case: how long all clients are there")
	f.DurationVar(&s.service, "service", 25*time.Millisecond, "case: what the app takes for a request")
	f.StringVar(&s.svg, "svg", "", "case: the `directory` to draw charts in (default: none are drawn)")
	f.IntVar(&s.idle, "idle", 1000, "idle: services without an instance")
	f.IntVar(&s.frozen, "frozen", 0, "frozen instances (default: idle 50, frozen 100)")
	f.DurationVar(&s.window, "window", time.Minute, "idle: how long each side is watched")
	f.IntVar(&s.sockets, "sockets", 10_000, "streams: idle WebSockets")
	f.StringVar(&s.kamal, "kamal-proxy", "", "warm: kamal-proxy's `program`, to be compared too (default: it is not)")
	f.IntVar(&s.requests, "requests", 5_000_000, "requests: how many")
}

// roundsOr is how many rounds a bench makes that has a default of its own.
func (s *settings) roundsOr(otherwise int) int { return cmp.Or(s.rounds, otherwise) }

func main() {
	var s settings
	s.register(flag.CommandLine)
	flag.Usage = usage
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Args(), &s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func usage() {
	out := flag.CommandLine.Output()
	fmt.Fprintln(out, "usage: sudo go run ./test/bench [flags] [bench...]")
	fmt.Fprintln(out, "\nThe benches, of which all need root, containerd and a Caddy with Fairway but those marked *:")
	for _, b := range benches {
		mark := ""
		if !b.containers {
			mark = " *"
		}
		fmt.Fprintf(out, "  %-10s %s%s\n", b.name, b.what, mark)
	}
	fmt.Fprintln(out, "\nThe flags:")
	flag.PrintDefaults()
}

// run runs the named benches in their order, also after one has failed or
// missed its goal.
func run(ctx context.Context, names []string, s *settings) (err error) {
	if len(names) == 0 {
		names = []string{"cold", "warm"}
	}
	var chosen []bench
	for _, name := range names {
		i := slices.IndexFunc(benches, func(b bench) bool { return b.name == name })
		if i < 0 {
			return fmt.Errorf("unknown benchmark %q: there are %s", name, known())
		}
		chosen = append(chosen, benches[i])
	}
	var h *host
	if slices.ContainsFunc(chosen, func(b bench) bool { return b.containers }) {
		if h, err = newHost(ctx, s.caddy); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.close()) }()
	}
	var errs []error
	for _, b := range chosen {
		if err := b.run(ctx, s, h); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.name, err))
		}
		fmt.Println()
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func known() string {
	var names []string
	for _, b := range benches {
		names = append(names, b.name)
	}
	return strings.Join(names, ", ")
}
