package caddymodule

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-run/fairway/scaler"
)

// What counts a revision is kept for as long as its series, and is never one that
// nobody sees any more.
func TestAdmissionsGoWithTheirSeries(t *testing.T) {
	of := func(revision string) revisionName { return revisionName{t.Name(), revision} }
	tell := func(kind, revision string) {
		countRevision(scaler.RevisionEvent{Kind: kind, Service: t.Name(), Revision: revision})
	}
	t.Cleanup(func() { tell("removed", "") })
	registry := prometheus.NewRegistry()
	registry.MustRegister(requestsTotal, queueSeconds)
	count := func(revision string, requests float64, waits uint64) {
		t.Helper()
		a := admissionOf(of(revision))
		a.total.Inc()
		a.waited.Observe(1)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		sawRequests, sawWaits := 0.0, uint64(0)
		for _, family := range families {
			for _, m := range family.GetMetric() {
				labels := make(map[string]string)
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
				switch {
				case labels["service"] != t.Name():
				case m.GetHistogram() != nil:
					sawWaits += m.GetHistogram().GetSampleCount()
				case labels["revision"] == revision:
					sawRequests += m.GetCounter().GetValue()
				}
			}
		}
		if sawRequests != requests || sawWaits != waits {
			t.Errorf("revision %s: %v requests and %d waits; want %v and %d", revision, sawRequests, sawWaits, requests, waits)
		}
	}
	kept := func(want int) {
		t.Helper()
		admissionsMu.RLock()
		defer admissionsMu.RUnlock()
		n := 0
		for name := range admissions {
			if name.service == t.Name() {
				n++
			}
		}
		if n != want {
			t.Errorf("%d are kept; want %d", n, want)
		}
	}
	count("a", 1, 1)
	count("b", 1, 2)
	count("b", 2, 3)
	tell("draining", "b")
	count("b", 3, 4)
	kept(2)
	tell("retired", "b")
	kept(1)
	count("a", 2, 5)
	count("b", 1, 6) // it is wanted again
	tell("removed", "")
	kept(0)
	count("a", 1, 1)
}
