package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// suite is one of Knative's test binaries.
type suite struct {
	name   string // such as "api/v1"
	binary string
}

func (s *suite) logName() string {
	return "conformance-" + strings.ReplaceAll(s.name, "/", "-") + ".log"
}

// outcome is how a test ended. The greater counts where subtests are folded.
type outcome string

const (
	notRun     outcome = ""
	passed     outcome = "passed"
	skipped    outcome = "skipped"
	failed     outcome = "FAILED"
	unfinished outcome = "FAILED (did not end)"
)

// result is how a test ended, its subtests folded into it.
type result struct {
	suite, name string
	outcome     outcome
	elapsed     time.Duration
	// reason says why it was skipped or failed.
	reason string
	// subtests, and those of them that were skipped.
	subtests, skips int
	// output is what the test and its subtests said.
	output strings.Builder
}

// event is a line of test2json.
type event struct {
	Action  string
	Test    string
	Elapsed float64
	Output  string
}

// run runs the suite and returns a result for each test that it ran, or for each
// that it has if all are wanted.
func (s *suite) run(ctx context.Context, args []string, all bool, log string) ([]*result, error) {
	raw, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = raw.Close() }()
	tests := exec.CommandContext(ctx, s.binary, args...)
	// A harness that dies leaves none.
	tests.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	convert := exec.Command("go", "tool", "test2json", "-t") // without -t it tells no durations
	events, in := io.Pipe()
	out, err := tests.StdoutPipe()
	if err != nil {
		return nil, err
	}
	tests.Stderr = raw
	convert.Stdin = io.TeeReader(out, raw)
	convert.Stdout = in
	if err := tests.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.name, err)
	}
	go func() { _ = in.CloseWithError(convert.Run()) }()
	f := &folder{suite: s.name, results: make(map[string]*result), ended: s.show}
	readErr := f.read(events)
	err = tests.Wait()
	var failure *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return f.finish(), ctx.Err()
	case readErr != nil:
		return nil, fmt.Errorf("reading what %s says: %w", s.name, readErr)
	case err != nil && !errors.As(err, &failure):
		return nil, fmt.Errorf("running %s: %w", s.name, err)
	}
	results := f.finish()
	if !all {
		return results, nil
	}
	names, err := exec.CommandContext(ctx, s.binary, "-test.list=.").Output()
	if err != nil {
		return nil, fmt.Errorf("listing the tests of %s: %w", s.name, err)
	}
	for name := range strings.FieldsSeq(string(names)) {
		if f.results[name] == nil {
			results = append(results, &result{suite: s.name, name: name, outcome: notRun})
		}
	}
	return results, nil
}

// show tells at once how a test ended.
func (s *suite) show(r *result) {
	fmt.Printf("    %-8s %-42s %-8s %6.1fs\n", s.name, r.name, r.outcome, r.elapsed.Seconds())
}

// folder folds the events of tests and their subtests into results.
type folder struct {
	suite   string
	results map[string]*result
	// last is the last message of a test or subtest.
	last  map[string]string
	ended func(*result)
}

// message is what a test logs: "    file.go:12: text".
var message = regexp.MustCompile(`^\s+\w+\.go:\d+: (.*)`)

func (f *folder) read(events io.Reader) error {
	f.last = make(map[string]string)
	for decoder := json.NewDecoder(events); ; {
		var e event
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if e.Test != "" {
			f.add(e)
		}
	}
}

func (f *folder) add(e event) {
	top, _, sub := strings.Cut(e.Test, "/")
	r := f.results[top]
	if r == nil {
		r = &result{suite: f.suite, name: top, outcome: unfinished}
		f.results[top] = r
	}
	switch e.Action {
	case "run":
		if sub {
			r.subtests++
		}
	case "output":
		r.output.WriteString(e.Output)
		if m := message.FindStringSubmatch(e.Output); m != nil {
			f.last[e.Test] = m[1]
		}
	case "pass", "skip", "fail":
		f.end(r, e, sub)
	}
}

func (f *folder) end(r *result, e event, sub bool) {
	name := path.Base(e.Test)
	switch {
	case sub && e.Action == "skip":
		r.skips++
		r.reason = "subtest " + name + ": " + f.last[e.Test]
	case sub && e.Action == "fail":
		r.reason = "subtest " + name + ": " + f.last[e.Test]
	case !sub:
		r.outcome = map[string]outcome{"pass": passed, "skip": skipped, "fail": failed}[e.Action]
		r.elapsed = time.Duration(e.Elapsed * float64(time.Second))
		if m := f.last[e.Test]; r.outcome != passed && r.reason == "" {
			r.reason = m
		}
		// Go passes a test of which only subtests were skipped.
		if r.outcome == passed && r.subtests > 0 && r.skips == r.subtests {
			r.outcome = skipped
		}
		f.ended(r)
	}
}

func (f *folder) finish() []*result {
	var all []*result
	for _, r := range f.results {
		if r.outcome == unfinished {
			r.reason = "the suite ended before it"
			// Of the last test before the end, test2json tells only the output.
			for word, o := range map[string]outcome{"PASS": passed, "FAIL": failed, "SKIP": skipped} {
				if strings.Contains(r.output.String(), "--- "+word+": "+r.name+" (") {
					r.outcome, r.reason = o, f.last[r.name]
				}
			}
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *result) int { return strings.Compare(a.name, b.name) })
	return all
}

// excerpt is the end of what a test said, in lines of readable length: tests dump
// whole objects.
func (r *result) excerpt(lines int) string {
	var b bytes.Buffer
	all := strings.Split(strings.TrimRight(r.output.String(), "\n"), "\n")
	for _, line := range all[max(0, len(all)-lines):] {
		fmt.Fprintf(&b, "        %s\n", shorten(strings.TrimSpace(line), 300))
	}
	return b.String()
}

// shorten cuts the end of s off.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
