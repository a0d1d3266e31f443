package caddymodule

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// targets reads "LATEST 100, a 0 tag": revision, percent, tag.
func targets(text string) []servingv1.TrafficTarget {
	var all []servingv1.TrafficTarget
	for item := range strings.SplitSeq(text, ", ") {
		var key, tag string
		var percent int64
		fmt.Sscan(item, &key, &percent, &tag)
		t := newTarget(key)
		t.Tag = tag
		if percent > 0 {
			t.Percent = &percent
		}
		all = append(all, t)
	}
	return all
}

func targetsText(all []servingv1.TrafficTarget) string {
	parts := make([]string, 0, len(all))
	for _, t := range all {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s %d %s", targetKey(t), targetPercent(t), t.Tag)))
	}
	return strings.Join(parts, ", ")
}

func TestSplit(t *testing.T) {
	for _, test := range []struct{ before, wanted, want string }{
		{"LATEST 100", "LATEST=100", "LATEST 100"},
		{"LATEST 100", "a=100", "a 100"},
		{"LATEST 100", "a=30", "LATEST 70, a 30"},
		{"LATEST 100", "a=0", "LATEST 100"},
		{"a 50, b 50", "c=50", "a 25, b 25, c 50"},
		{"a 50, b 50", "c=1", "a 50, b 49, c 1"},
		{"a 60, b 30, c 10", "d=50", "a 30, b 15, c 5, d 50"},
		{"a 33, b 33, c 34", "d=10", "a 30, b 30, c 30, d 10"}, // 29.7, 29.7, 30.6
		{"a 50, b 50", "a=100", "a 100"},
		{"a 50, b 50", "a=20", "a 20, b 80"},
		{"a 100, b 0 blue", "LATEST=100", "b 0 blue, LATEST 100"},
		{"a 100 x, a 0 y", "LATEST=50", "a 50 x, a 0 y, LATEST 50"},
		{"a 20, a 30, LATEST 50", "LATEST=50", "a 50, LATEST 50"},
		{"LATEST 100", "LATEST=50", "every target with traffic is updated"},
		{"a 50, b 50", "a=50,b=49", "every target with traffic is updated"},
		{"a 50, b 50", "a=60,b=60", "over 100 percent"},
	} {
		_, wanted, err := parseShares(test.wanted)
		if err != nil {
			t.Fatal(err)
		}
		after, err := split(targets(test.before), wanted)
		got := targetsText(after)
		if err != nil {
			got = err.Error()
		}
		if got != test.want && (err == nil || !strings.Contains(got, test.want)) {
			t.Errorf("%s with %s is %s, want %s", test.before, test.wanted, got, test.want)
		}
	}
}

// TestSplitSums sees that shares are always whole and 100 in all.
func TestSplitSums(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		shares := make(map[string]int64)
		left := int64(100)
		for i := range 1 + rng.IntN(9) {
			share := rng.Int64N(left + 1)
			shares[fmt.Sprint("r", i)] = share
			left -= share
		}
		shares["last"] = left
		before := withShares(nil, shares)
		wanted := map[string]int64{"new": rng.Int64N(101)}
		after, err := split(before, wanted)
		if err != nil {
			t.Fatalf("%s with %v: %v", targetsText(before), wanted, err)
		}
		sum := int64(0)
		for key, share := range percents(after) {
			sum += share
			if exact := float64(shares[key]) * float64(100-wanted["new"]) / 100; key != "new" && (float64(share) < exact-1 || float64(share) > exact+1) {
				t.Errorf("%s with %v: %s has %d, not %f", targetsText(before), wanted, key, share, exact)
			}
		}
		if sum != 100 || percents(after)["new"] != wanted["new"] {
			t.Errorf("%s with %v is %s", targetsText(before), wanted, targetsText(after))
		}
	}
}

func TestTags(t *testing.T) {
	for _, test := range []struct {
		before string
		change tagChange
		want   string
	}{
		{"LATEST 100", tagChange{set: []pair{{"x", "a"}}}, "LATEST 100, a 0 x"},
		{"LATEST 100, a 0 x", tagChange{set: []pair{{"x", "b"}}}, "LATEST 100, b 0 x"},
		{"LATEST 100, a 0 x", tagChange{set: []pair{{"y", "LATEST"}}}, "LATEST 100, a 0 x, LATEST 0 y"},
		{"LATEST 100, a 0 x", tagChange{set: []pair{{"y", "b"}}, clear: true}, "LATEST 100, b 0 y"},
		{"LATEST 50, a 50 x", tagChange{remove: []string{"x", "unknown"}}, "LATEST 50, a 50"},
		{"LATEST 100, a 0 x, b 0 y", tagChange{clear: true}, "LATEST 100"},
	} {
		if got := targetsText(test.change.apply(targets(test.before))); got != test.want {
			t.Errorf("%s with %+v is %s, want %s", test.before, test.change, got, test.want)
		}
	}
}

func TestUnLatest(t *testing.T) {
	for before, want := range map[string]string{
		"LATEST 100":             "now 100",
		"LATEST 100 x":           "LATEST 0 x, now 100",
		"now 40, LATEST 60":      "now 100",
		"old 10, LATEST 90":      "old 10, now 90",
		"old 100, LATEST 0 next": "old 100, LATEST 0 next",
	} {
		if got := targetsText(unLatest(targets(before), "now")); got != want {
			t.Errorf("%s is %s, want %s", before, got, want)
		}
	}
	if got := slices.Sorted(maps.Keys(percents(targets("a 1, b 2, a 3")))); len(got) != 2 {
		t.Errorf("%v", got)
	}
}
