package caddymodule

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// latestKey names the latest ready revision, whichever that is.
const latestKey = "LATEST"

// targetKey says what a target is of: a revision, or the latest.
func targetKey(t servingv1.TrafficTarget) string { return cmp.Or(t.RevisionName, latestKey) }

func newTarget(key string) servingv1.TrafficTarget {
	latest := key == latestKey
	t := servingv1.TrafficTarget{LatestRevision: &latest}
	if !latest {
		t.RevisionName = key
	}
	return t
}

func targetPercent(t servingv1.TrafficTarget) int64 {
	if t.Percent == nil {
		return 0
	}
	return *t.Percent
}

// percents is the share of each revision.
func percents(targets []servingv1.TrafficTarget) map[string]int64 {
	shares := make(map[string]int64, len(targets))
	for _, t := range targets {
		shares[targetKey(t)] += targetPercent(t)
	}
	return shares
}

// split gives revisions the shares that are wanted. What they leave of 100
// percent is divided between those that have a share and are not named, in the
// proportions that they have. Tags stay.
// Source: gcloud run services update-traffic.
func split(targets []servingv1.TrafficTarget, wanted map[string]int64) ([]servingv1.TrafficTarget, error) {
	var given int64
	for key, percent := range wanted {
		if percent < 0 || percent > 100 {
			return nil, fmt.Errorf("the share of %s is %d, not a number from 0 to 100", key, percent)
		}
		given += percent
	}
	if given > 100 {
		return nil, fmt.Errorf("over 100 percent of the traffic is specified: %d", given)
	}
	rest := percents(targets)
	maps.DeleteFunc(rest, func(key string, percent int64) bool {
		_, named := wanted[key]
		return named || percent == 0
	})
	if len(rest) == 0 && given < 100 {
		return nil, errors.New("every target with traffic is updated, but 100 percent of the traffic is not specified")
	}
	shares := rescale(rest, 100-given)
	maps.Copy(shares, wanted)
	return withShares(targets, shares), nil
}

// rescale divides whole in the proportions of shares. What rounding leaves goes
// to those that it took most from; the smaller of equals come first.
func rescale(shares map[string]int64, whole int64) map[string]int64 {
	var sum int64
	for _, share := range shares {
		sum += share
	}
	scaled := make(map[string]int64, len(shares))
	left := whole
	for key, share := range shares {
		scaled[key] = share * whole / sum
		left -= scaled[key]
	}
	keys := slices.SortedFunc(maps.Keys(shares), func(a, b string) int {
		return cmp.Or(
			cmp.Compare(shares[b]*whole%sum, shares[a]*whole%sum),
			cmp.Compare(shares[a], shares[b]),
			strings.Compare(a, b),
		)
	})
	for _, key := range keys[:left] {
		scaled[key]++
	}
	return scaled
}

// withShares sets the shares of the targets, adds those that are new, and drops
// what has neither a share nor a tag.
func withShares(targets []servingv1.TrafficTarget, shares map[string]int64) []servingv1.TrafficTarget {
	shares = maps.Clone(shares)
	var next []servingv1.TrafficTarget
	place := func(t servingv1.TrafficTarget) {
		key := targetKey(t)
		t.Percent, t.URL = nil, nil
		if share := shares[key]; share > 0 {
			t.Percent = &share
		}
		delete(shares, key) // the first target of a revision has all of it
		if t.Percent != nil || t.Tag != "" {
			next = append(next, t)
		}
	}
	for _, t := range targets {
		place(t)
	}
	for _, key := range slices.Sorted(maps.Keys(shares)) {
		place(newTarget(key))
	}
	return next
}

// tagChange is what becomes of tags.
type tagChange struct {
	clear  bool
	remove []string
	set    []pair // tag → revision or LATEST
}

func (c tagChange) empty() bool { return !c.clear && len(c.remove) == 0 && len(c.set) == 0 }

// apply changes the tags and leaves the shares as they are.
func (c tagChange) apply(targets []servingv1.TrafficTarget) []servingv1.TrafficTarget {
	next := slices.Clone(targets)
	for i := range next {
		moved := slices.ContainsFunc(c.set, func(p pair) bool { return p.key == next[i].Tag })
		if c.clear || moved || slices.Contains(c.remove, next[i].Tag) {
			next[i].Tag = ""
		}
	}
	for _, p := range c.set {
		t := newTarget(p.value)
		t.Tag = p.key
		next = append(next, t)
	}
	return withShares(next, percents(next))
}

// unLatest gives the share of the latest revision to the one that it is now:
// what is deployed next gets none. A tag goes on following the latest.
func unLatest(targets []servingv1.TrafficTarget, now string) []servingv1.TrafficTarget {
	shares := percents(targets)
	if share := shares[latestKey]; share > 0 {
		shares[now] += share
		delete(shares, latestKey)
	}
	return withShares(targets, shares)
}

// tagged is what a tag is of.
func tagged(targets []servingv1.TrafficTarget, tag string) (key string, ok bool) {
	for _, t := range targets {
		if t.Tag == tag {
			return targetKey(t), true
		}
	}
	return "", false
}

// parseShares reads NAME=PERCENT,…
func parseShares(text string) ([]pair, map[string]int64, error) {
	pairs, err := splitPairs(text)
	if err != nil {
		return nil, nil, err
	}
	if len(pairs) == 0 {
		return nil, nil, errors.New("it is empty")
	}
	shares := make(map[string]int64, len(pairs))
	for _, p := range pairs {
		n, err := strconv.ParseInt(strings.TrimSuffix(p.value, "%"), 10, 32)
		if err != nil || n < 0 || n > 100 {
			return nil, nil, fmt.Errorf("%q is not a percentage from 0 to 100", p.value)
		}
		shares[p.key] = n
	}
	return pairs, shares, nil
}
