package revisions

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatchDirectoryIsNotPolled(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	if !isLocal(parent) {
		t.Skip("the directory of temporary files is in a file system that may change without an event")
	}
	elsewhere := &watched{t: t, dir: filepath.Join(parent, "elsewhere")}
	actual := &watched{t: t, dir: filepath.Join(parent, "real")}
	for _, w := range []*watched{elsewhere, actual} {
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere.write("a", document("a", "x"))
	actual.symlink("../elsewhere/a", "a.yaml")
	dir := filepath.Join(parent, "services")
	if err := os.Symlink("real", dir); err != nil {
		t.Fatal(err)
	}
	events, err := newDirectoryEvents()
	if err != nil {
		t.Fatal(err)
	}
	defer events.watcher.Close()
	d := &serviceDirectory{dir: dir, events: events, changed: func([]ServiceFile) {}, files: make(map[string]*serviceFile)}
	d.scan()
	if got := d.every(); got != lookSeldom {
		t.Errorf("all that may change has events, but it is looked at every %s", got)
	}
	for _, path := range []string{parent, elsewhere.dir, actual.dir, "/"} {
		if !events.watched[path] {
			t.Errorf("%s is not watched; %v are", path, events.watched)
		}
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	d.scan()
	if got := d.every(); got != lookSeldom || events.watched[elsewhere.dir] {
		t.Errorf("a missing directory is looked at every %s; watched: %v", got, events.watched)
	}
	// Without events there is no other way.
	d.events = nil
	d.scan()
	if got := d.every(); got != lookEvery {
		t.Errorf("without events it is looked at every %s", got)
	}
}

// TestFollowSleeps counts how often a directory is looked at in an hour in which
// nothing happens.
func TestFollowSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		d := serviceDirectory{sure: true}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		follow(ctx, make(chan struct{}), d.every, func() bool { looks++; return false }, func() { t.Error("nothing has happened") })
		if looks > 60 {
			t.Errorf("it was looked at %d times", looks)
		}
	})
}

// TestFollowLooksMoreOften has a directory turn into one without events.
func TestFollowLooksMoreOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := serviceDirectory{sure: true}
		start := time.Now()
		var scans []time.Duration
		ctx, cancel := context.WithTimeout(t.Context(), 61500*time.Millisecond)
		defer cancel()
		follow(ctx, nil, d.every, func() bool { return true }, func() {
			d.sure = false
			scans = append(scans, time.Since(start))
		})
		first := lookSeldom + settleTime
		if want := []time.Duration{first, first + lookEvery + settleTime}; !slices.Equal(scans, want) {
			t.Errorf("scans at %v, want %v", scans, want)
		}
	})
}

func TestEachStep(t *testing.T) {
	dir := t.TempDir()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{t: t, dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.write("a/b/file", "x")
	w.symlink("a/b", "rel")
	w.symlink(filepath.Join(dir, "rel"), "abs")
	w.symlink("loop", "loop")
	for path, want := range map[string]struct {
		end  string
		seen []string
	}{
		"a/b/file":     {"a/b/file", []string{"a", "a/b", "a/b/file"}},
		"rel/file":     {"a/b/file", []string{"rel", "a", "a/b", "a/b/file"}},
		"abs/../../a":  {"a", []string{"abs", "rel", "a", "a/b", "a"}},
		"a/none/other": {"a/none", []string{"a", "a/none"}},
		"a/b/file/x":   {"a/b/file", []string{"a", "a/b", "a/b/file"}},
		"none":         {"none", []string{"none"}},
	} {
		var seen []string
		end := eachStep(dir+"/"+path, func(parent, name string) {
			if rel, err := filepath.Rel(dir, filepath.Join(parent, name)); err == nil && rel != "." && rel[0] != '.' {
				seen = append(seen, rel)
			}
		})
		if end != filepath.Join(dir, want.end) || !slices.Equal(seen, want.seen) {
			t.Errorf("%s leads to %s by %v, want %s by %v", path, end, seen, want.end, want.seen)
		}
	}
	eachStep(dir+"/loop/x", func(string, string) {}) // ends
}
