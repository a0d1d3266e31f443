package main

import (
	"io"
	"strings"
	"testing"
)

// TestLists reads the lists as they are.
func TestLists(t *testing.T) {
	l, err := loadLists()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(l.mustPass); n < 31 {
		t.Errorf("%d tests must pass; want at least the floor, 31", n)
	}
	if got := l.skipPattern(); !strings.Contains(got, "|TestRouteCreation|") && !strings.Contains(got, "|TestRouteCreation)") {
		t.Errorf("the pattern of skipped tests is %s", got)
	}
	for _, bad := range [][2]string{{"A\nA", ""}, {"A because", ""}, {"A", "A because"}, {"", "A"}, {"", "A because\nA because"}} {
		if _, err := parseLists(bad[0], bad[1]); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

// TestFold folds what test2json says of tests and their subtests.
func TestFold(t *testing.T) {
	f := folder{suite: "s", results: make(map[string]*result), ended: func(*result) {}}
	err := f.read(strings.NewReader(`
		{"Action":"start"}
		{"Action":"run","Test":"TestGood"} {"Action":"run","Test":"TestGood/a"} {"Action":"run","Test":"TestGood/b"}
		{"Action":"output","Test":"TestGood/b","Output":"    x.go:1: not required\n"} {"Action":"skip","Test":"TestGood/b"}
		{"Action":"pass","Test":"TestGood/a"} {"Action":"pass","Test":"TestGood","Elapsed":1.5}
		{"Action":"run","Test":"TestEmpty"} {"Action":"run","Test":"TestEmpty/a"} {"Action":"skip","Test":"TestEmpty/a"} {"Action":"pass","Test":"TestEmpty"}
		{"Action":"run","Test":"TestBad"} {"Action":"run","Test":"TestBad/a"}
		{"Action":"output","Test":"TestBad/a","Output":"    x.go:2: it broke\n"} {"Action":"fail","Test":"TestBad/a"} {"Action":"fail","Test":"TestBad"}
		{"Action":"run","Test":"TestStuck"}
		{"Action":"run","Test":"TestLast"} {"Action":"output","Test":"TestLast","Output":"--- FAIL: TestLast (0.01s)\n"}
		{"Action":"fail"}`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range f.finish() {
		got = append(got, strings.Join([]string{r.name, string(r.outcome), r.reason}, ", "))
	}
	want := []string{
		"TestBad, FAILED, subtest a: it broke", "TestEmpty, skipped, subtest a: ",
		"TestGood, passed, subtest b: not required", "TestLast, FAILED, ", "TestStuck, FAILED (did not end), the suite ended before it",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestReport tells a run that conforms from others.
func TestReport(t *testing.T) {
	list, err := parseLists("TestMust", "TestNot because")
	if err != nil {
		t.Fatal(err)
	}
	good := []*result{{name: "TestMust", outcome: passed}, {name: "TestNot"}, {name: "TestOther", outcome: skipped}}
	for name, test := range map[string]struct {
		results []*result
		opts    options
		want    bool
	}{
		"good":                    {results: good, want: true},
		"must pass, failed":       {results: []*result{{name: "TestMust", outcome: failed}, good[1]}},
		"must pass, skipped":      {results: []*result{{name: "TestMust", outcome: skipped}, good[1]}},
		"must pass, not required": {results: []*result{{name: "TestMust", outcome: skipped}, good[1]}, opts: options{required: true}, want: true},
		"must pass, not run":      {results: []*result{{name: "TestMust"}, good[1]}},
		"must pass, gone":         {results: good[1:]},
		"must pass, not asked":    {results: good[2:], opts: options{run: "Other"}, want: true},
		"other, failed":           {results: append(good[:2:2], &result{name: "TestOther", outcome: failed})},
		"other, unfinished":       {results: append(good[:2:2], &result{name: "TestOther", outcome: unfinished})},
		"other, not run":          {results: append(good[:2:2], &result{name: "TestOther"})},
	} {
		if got := report(io.Discard, test.results, list, test.opts, false); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
