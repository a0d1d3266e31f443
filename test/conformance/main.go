// Command conformance runs Knative Serving's own conformance tests, unmodified,
// against Fairway: a Caddy on a private containerd, with the Knative API on its
// admin endpoint. run.sh starts it; suite/ pins the tests' version.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairway-run/fairway/test/containerdtest"
)

// suiteTimeout ends a suite whose tests wait for what will not happen; the
// tests' own patience is ten minutes at a time.
const suiteTimeout = 15 * time.Minute

// options are the command line's.
type options struct {
	run      string
	required bool
	keep     bool
	plain    bool
	parallel int
	logs     string
}

func main() {
	var opts options
	flag.StringVar(&opts.run, "run", "", "run only tests that match the `regexp`; ^$ runs none")
	flag.BoolVar(&opts.required, "required", false, "run only what Knative's API specification requires")
	flag.BoolVar(&opts.keep, "keep", false, "leave all running after the tests, until ctrl-C")
	flag.BoolVar(&opts.plain, "plain", false, "build Caddy without the race detector")
	flag.IntVar(&opts.parallel, "parallel", 8, "tests of each suite that run at the same time")
	flag.StringVar(&opts.logs, "logs", ".cache", "`directory` of the logs")
	flag.Parse()
	// A first signal ends the tests and removes all; a second one ends this
	// process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) (err error) {
	if reason := containerdtest.Missing(); reason != "" {
		return errors.New(reason)
	}
	if flag.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	if _, err := regexp.Compile(opts.run); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	list, err := loadLists()
	if err != nil {
		return err
	}
	built, err := build(ctx, opts.plain)
	if err != nil {
		return err
	}
	h, err := newHost(ctx, built, opts.logs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close(err != nil)) }()
	if err := h.start(ctx); err != nil {
		return err
	}
	results, err := runSuites(ctx, h, built, list, opts)
	ok := report(os.Stdout, results, list, opts, err != nil)
	if err != nil {
		return err
	}
	if complaint := h.complaint(); complaint != "" {
		fmt.Printf("FAIL: Caddy's log has %q\n", complaint)
		ok = false
	}
	if opts.keep {
		h.printAddresses(built.suites, suiteArgs(h, list, opts))
		<-ctx.Done()
	}
	if !ok {
		return errors.New("Fairway does not conform: see the table above, and what the tests said in " + filepath.Join(opts.logs, "conformance-*.log"))
	}
	return nil
}

// runSuites runs all suites at the same time: most of what tests do is wait.
func runSuites(ctx context.Context, h *host, built *artifacts, list *lists, opts options) ([]*result, error) {
	say("running the tests")
	all := make([][]*result, len(built.suites))
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range built.suites {
		group.Go(func() (err error) {
			all[i], err = s.run(ctx, suiteArgs(h, list, opts), opts.run == "", filepath.Join(opts.logs, s.logName()))
			return err
		})
	}
	err := group.Wait()
	var results []*result
	for _, r := range all {
		results = append(results, r...)
	}
	return results, err // what there is, also of a run that was interrupted
}

// suiteArgs are the flags of the suites' test binaries.
func suiteArgs(h *host, list *lists, opts options) []string {
	args := []string{
		"-test.v=test2json",
		fmt.Sprintf("-test.parallel=%d", opts.parallel),
		fmt.Sprintf("-test.timeout=%s", suiteTimeout),
		"-test.run=" + opts.run,
		"-test.skip=" + list.skipPattern(),
		"-kubeconfig=" + h.kubeconfig(),
		"-test-namespace=" + namespace,
		// The port comes from the ingress gateway's Service: see gateway.go.
		"-ingressendpoint=127.0.0.1",
		"-resolvabledomain=false",
		"-imagetemplate=" + imageRepository + "{{.Name}}:1",
		"-disable-logstream",
		"-enable-beta",
	}
	if opts.required {
		args = append(args, "-disable-optional-api")
	}
	return args
}

func say(format string, args ...any) { fmt.Printf("==> "+format+"\n", args...) }
