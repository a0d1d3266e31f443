package simulation

import (
	"cmp"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The policies that are compared.
const (
	ours           = "Fairway, kept as by KPA"
	oursByDefault  = "Fairway"
	theirs         = "KPA"
	theirsProxied  = "KPA, activator in the path"
	eachItsOwn     = "one for each that waits"
	theBound       = "clairvoyant"
	perRequestKeep = 90 * time.Second
)

// TestAgainstKPA holds Fairway to what it claims: with instances kept as long as Knative
// keeps them, it has fewer of them, runs far fewer, and lets nobody wait for longer.
// With FAIRWAY_REPORT set to a directory it leaves there what it found.
func TestAgainstKPA(t *testing.T) {
	report := new(Report)
	for _, tr := range Traces(full) {
		t.Run(tr.Name, func(t *testing.T) {
			report.Add(tr.Name, ours, fairway(t, tr, likeKnative))
			report.Add(tr.Name, oursByDefault, fairway(t, tr, nil))
			report.Add(tr.Name, theirs, run(tr, knative(kpaGrace)))
			// The grace counts from when the activator came into the path, which it may have
			// been in all the time: then the last pod ends after the stable window.
			report.Add(tr.Name, theirsProxied, run(tr, knative(0)))
			report.Add(tr.Name, eachItsOwn, run(tr, perRequest(perRequestKeep)))
			report.Add(tr.Name, theBound, run(tr, clairvoyant))
			if !tr.Steady {
				return
			}
			if of := ratio(report.Of(tr.Name, ours).Unfrozen, report.Of(tr.Name, theBound).Unfrozen); of > 1.3 {
				t.Errorf("unfrozen instance time is %.3f of the clairvoyant bound, want 1.3 at most", of)
			}
		})
	}
	logTable(t, report)
	var ratios strings.Builder
	if err := cmp.Or(report.WriteRatios(&ratios, ours, theirs, theBound), leave(report)); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", ratios.String())

	we, they := report.Total(ours), report.Total(theirs)
	if of := ratio(we.Existing, they.Existing); of > 0.8 {
		t.Errorf("instance time is %.3f of KPA's, want 0.8 at most", of)
	}
	if of := ratio(we.Unfrozen, they.Unfrozen); of > 0.5 {
		t.Errorf("unfrozen instance time is %.3f of KPA's, want 0.5 at most", of)
	}
	if our, their := we.Wait(0.99), they.Wait(0.99); our > their {
		t.Errorf("99 %% of the requests wait for %s at most, KPA's for %s", our, their)
	}
	if we.Rejected > they.Rejected { // else the waits say nothing
		t.Errorf("%d requests were rejected, of KPA's %d", we.Rejected, they.Rejected)
	}
}

// leave writes the report to the directory that is asked for, if one is.
func leave(r *Report) error {
	dir := os.Getenv("FAIRWAY_REPORT")
	if dir == "" {
		return nil
	}
	write := func(name string, f func(io.Writer) error) error {
		var b strings.Builder
		return cmp.Or(f(&b), os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o644))
	}
	err := cmp.Or(os.MkdirAll(dir, 0o755), write("table.txt", r.WriteTable),
		write("ratios.txt", func(w io.Writer) error { return r.WriteRatios(w, ours, theirs, theBound) }))
	for _, trace := range r.traces() {
		err = cmp.Or(err, write(trace+".svg", func(w io.Writer) error { return r.WriteSVG(w, trace) }))
	}
	return err
}

// TestFairwayDeterminism says how much two runs of the real code differ, whose
// goroutines the Go runtime schedules as it likes.
func TestFairwayDeterminism(t *testing.T) {
	tr := spiky(10 * time.Minute)
	a, b := fairway(t, tr, likeKnative), fairway(t, tr, likeKnative)
	t.Log(differ(a, b))
	if of := ratio(a.Existing, b.Existing); of < 0.99 || of > 1.01 {
		t.Errorf("instance times differ by more than a hundredth: %s and %s", a.Existing, b.Existing)
	}
	if of := ratio(a.Unfrozen, b.Unfrozen); of < 0.99 || of > 1.01 {
		t.Errorf("unfrozen instance times differ by more than a hundredth: %s and %s", a.Unfrozen, b.Unfrozen)
	}
}
