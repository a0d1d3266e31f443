package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// TestLogs has an app write more than is kept, while nobody reads: it is never
// made to wait, and what it wrote last is there.
func TestLogs(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revision(r)
	h := f.serve(r, rev)
	path := filepath.Join(f.opts.LogDir, "hello", h.ID()+".log")
	// Other processes would read it: the runtime that started it is closed.
	f.check(r.Close())
	if got := f.get(h, "/log?lines=12000&bytes=1100"); got != "12000" {
		t.Errorf("the app wrote %s lines", got)
	}
	eventually(t, "all is written", func() bool { return size(path) > 12<<20 })
	r = f.open()
	all, err := r.List(t.Context())
	f.check(err)
	f.check(r.rotate())
	if now, old := size(path), size(path+oldPart); now != 0 || old != logLimit {
		t.Errorf("the log has %d bytes, its old part %d", now, old)
	}
	// What was turned over is still shown.
	if got := all[0].LogTail(10_000); !strings.Contains(got, "probe line 11999 ") {
		t.Errorf("the end of the log has %d bytes: %.200s", len(got), got)
	}
	f.get(all[0], "/log?lines=1")
	eventually(t, "the app writes on at the beginning", func() bool { n := size(path); return n > 0 && n < 1<<20 })
	f.stop(all[0])
}

// TestLogsOfFrozenInstances counts on nobody looking at logs that cannot grow.
func TestLogsOfFrozenInstances(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hello", "i.log")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	grow := func() {
		t.Helper()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, logLimit+1); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		r := &Runtime{opts: Options{LogDir: filepath.Dir(filepath.Dir(path))}, log: zap.NewNop(), writes: make(chan struct{}, 1)}
		h := &handle{r: r, id: "i", freezing: newFreezing(nil)}
		h.asleep.Store(true)
		r.handles = map[string]*handle{h.id: h}
		r.ctx, r.cancel = context.WithCancel(t.Context())
		r.wg.Go(r.rotateLoop)
		grow()
		time.Sleep(time.Hour)
		if size(path) == 0 {
			t.Error("a log was looked at, though all is frozen")
		}
		if err := h.wake(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(2 * logEvery)
			if size(path) != 0 {
				t.Error("a log is not bounded while its instance runs")
			}
			grow()
		}
		h.asleep.Store(true)
		time.Sleep(2 * logEvery)
		if size(path) != 0 {
			t.Error("a log is not bounded once more after its instance was frozen")
		}
		grow()
		time.Sleep(time.Hour)
		if size(path) == 0 {
			t.Error("a log was looked at long after all was frozen")
		}
		h.release(nil)
		time.Sleep(2 * logEvery)
		if size(path) != 0 {
			t.Error("a log is not bounded after its instance has gone")
		}
		r.cancel()
		r.wg.Wait()
	})
}

func TestTailTurnedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for name, text := range map[string]string{path + oldPart: "one\ntwo\n", path: "three\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for n, want := range map[int]string{100: "one\ntwo\nthree", 14: "one\ntwo\nthree", 13: "two\nthree", 7: "three", 6: "three", 3: "ee"} {
		if got := tail(path, n); got != want {
			t.Errorf("the last %d bytes: %q; want %q", n, got, want)
		}
	}
}

func TestDropOldest(t *testing.T) {
	dir := t.TempDir()
	for n := range 6 {
		path := filepath.Join(dir, fmt.Sprintf("service%d", n%2), fmt.Sprintf("i%d.log", n))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-time.Duration(n) * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := dropOldest(dir, map[string]bool{"i5": true}, 350); err != nil {
		t.Fatal(err)
	}
	kept, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range kept {
		kept[i] = filepath.Base(kept[i])
	}
	if got := strings.Join(kept, " "); got != "i0.log i2.log i1.log i5.log" {
		t.Errorf("kept: %s", got)
	}
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return info.Size()
}
