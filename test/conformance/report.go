package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strings"
)

var (
	//go:embed must-pass.txt
	mustPassFile string
	//go:embed not-applicable.txt
	notApplicableFile string
)

// lists are what is said about tests beforehand.
type lists struct {
	mustPass map[string]bool
	// notApplicable has the reasons.
	notApplicable map[string]string
}

func loadLists() (*lists, error) { return parseLists(mustPassFile, notApplicableFile) }

// parseLists reads the two files. Each line names a test, in the second one with
// a reason after it; lines may be empty or comments.
func parseLists(mustPass, notApplicable string) (*lists, error) {
	l := &lists{mustPass: make(map[string]bool), notApplicable: make(map[string]string)}
	for name, rest := range entries(mustPass) {
		if rest != "" || l.mustPass[name] {
			return nil, fmt.Errorf("must-pass.txt: %s twice, or more than a name", name)
		}
		l.mustPass[name] = true
	}
	for name, reason := range entries(notApplicable) {
		if reason == "" || l.mustPass[name] || l.notApplicable[name] != "" {
			return nil, fmt.Errorf("not-applicable.txt: %s without a reason, twice, or in must-pass.txt", name)
		}
		l.notApplicable[name] = reason
	}
	return l, nil
}

func entries(file string) func(yield func(name, rest string) bool) {
	return func(yield func(name, rest string) bool) {
		for line := range strings.Lines(file) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			name, rest, _ := strings.Cut(line, " ")
			if !yield(name, strings.TrimSpace(rest)) {
				return
			}
		}
	}
}

// skipPattern is for -test.skip: the tests that are not applicable.
func (l *lists) skipPattern() string {
	var names []string
	for name := range l.notApplicable {
		names = append(names, name)
	}
	slices.Sort(names)
	return "^(" + strings.Join(names, "|") + ")$"
}

// report prints the table and tells whether Fairway conforms: no test failed, all
// that must have passed, and the lists name tests that exist.
func report(w io.Writer, results []*result, list *lists, opts options, interrupted bool) bool {
	slices.SortStableFunc(results, func(a, b *result) int {
		return cmp.Or(cmp.Compare(a.suite, b.suite), cmp.Compare(a.name, b.name))
	})
	var problems []string
	counts := make(map[string]int)
	must := 0
	seen := make(map[string]bool)
	for _, r := range results {
		seen[r.name] = true
		if r.outcome == failed || r.outcome == unfinished {
			fmt.Fprintf(w, "\n--- %s %s, the end of what it said:\n%s", r.suite, r.name, r.excerpt(25))
		}
	}
	fmt.Fprintln(w)
	for _, r := range results {
		outcome, reason := string(r.outcome), r.reason
		notApplicable := list.notApplicable[r.name]
		switch r.outcome {
		case notRun:
			outcome, reason = "not run", "it is in no list, and the suite ended before it"
			if notApplicable != "" {
				outcome, reason = "not applicable", notApplicable
			}
		case passed:
			reason = ""
			if r.skips > 0 {
				reason = fmt.Sprintf("%d of %d subtests skipped; %s", r.skips, r.subtests, r.reason)
			}
			if !list.mustPass[r.name] {
				reason = strings.TrimSpace("not yet in must-pass.txt " + reason)
			}
		default:
		}
		counts[outcome]++
		elapsed := ""
		if r.elapsed > 0 {
			elapsed = fmt.Sprintf("%.1fs", r.elapsed.Seconds())
		}
		fmt.Fprintf(w, "%-8s %-42s %-14s %7s  %s\n", r.suite, r.name, outcome, elapsed, shorten(reason, 150))
		switch {
		case outcome == "not applicable":
		case list.mustPass[r.name] && r.outcome == passed:
			must++
		case list.mustPass[r.name] && r.outcome == skipped && opts.required:
			// The required API leaves it out.
		case list.mustPass[r.name]:
			problems = append(problems, r.name+" must pass: "+outcome)
		case r.outcome != passed && r.outcome != skipped:
			problems = append(problems, r.name+": "+outcome)
		}
	}
	// Of a run that was interrupted, nothing is missing.
	if opts.run == "" && !interrupted {
		for _, name := range slices.Sorted(listed(list)) {
			if !seen[name] {
				problems = append(problems, name+" is in a list, but in no suite")
			}
		}
	}
	fmt.Fprintf(w, "\n%d tests: %d passed, %d failed, %d skipped, %d not applicable; %d of the %d that must pass did\n",
		len(results), counts["passed"], counts[string(failed)]+counts[string(unfinished)]+counts["not run"], counts["skipped"],
		counts["not applicable"], must, len(list.mustPass))
	for _, p := range problems {
		fmt.Fprintln(w, "FAIL:", p)
	}
	return len(problems) == 0
}

// listed are the tests that the lists name.
func listed(l *lists) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for name := range l.mustPass {
			if !yield(name) {
				return
			}
		}
		for name := range l.notApplicable {
			if !yield(name) {
				return
			}
		}
	}
}
