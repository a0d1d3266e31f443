package containerd

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

// F46: the names of the tests below begin alike, and what is done to one must leave
// the others alone. "a" has the sidecar "a.1".
var alike = []string{"a", "a.1", "a-1", "a-1.1", "aa", "a-10"}

// others are those of alike that do not belong to an instance.
func others(instance string) []string {
	return slices.DeleteFunc(slices.Clone(alike), func(id string) bool { return id == instance || id == instance+".1" })
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// listed are the names in a directory.
func listed(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(all))
	for i, e := range all {
		names[i] = e.Name()
	}
	return names
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got))); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestContainersOfNamesThatBeginAlike(t *testing.T) {
	for id, want := range map[string]string{"a": "a", "a.1": "a", "a-1": "a-1", "a-1.1": "a-1", "a-1.10": "a-1"} {
		if got := instanceOf(id); got != want {
			t.Errorf("%s is of %s; want %s", id, got, want)
		}
	}
}

func TestLogsOfNamesThatBeginAlike(t *testing.T) {
	for _, live := range []string{"a", "a-1"} {
		logs := func(ids []string) []string {
			var all []string
			for _, id := range ids {
				all = append(all, id+".log")
			}
			return all
		}
		kept := slices.DeleteFunc(slices.Clone(alike), func(id string) bool { return slices.Contains(others(live), id) })
		dir := t.TempDir()
		for _, id := range alike {
			write(t, filepath.Join(dir, "hello", id+".log"), "text")
		}
		if err := dropOldest(dir, map[string]bool{live: true}, 0); err != nil {
			t.Fatal(err)
		}
		same(t, "logs that are left of "+live, listed(t, filepath.Join(dir, "hello")), logs(kept))

		// More have ended than are kept, all later than the live one.
		dir = t.TempDir()
		for n := range logsKept {
			write(t, filepath.Join(dir, fmt.Sprintf("%s-later-%d.log", live, n)), "text")
		}
		for _, id := range alike {
			path := filepath.Join(dir, id+".log")
			write(t, path, "text")
			if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
		if err := rotateService(dir, map[string]bool{live: true}); err != nil {
			t.Fatal(err)
		}
		left := slices.DeleteFunc(listed(t, dir), func(name string) bool { return !slices.Contains(logs(alike), name) })
		same(t, "logs that are kept of "+live, left, logs(kept))
	}
}

func TestFilesOfNamesThatBeginAlike(t *testing.T) {
	for _, live := range []string{"a", "a-1"} {
		r, err := New(Options{StateDir: t.TempDir(), LogDir: t.TempDir(), Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		r.handles[live] = new(handle)
		for _, id := range []string{"a", "a-1", "a-10", "aa"} {
			write(t, filepath.Join(r.filesDir(id), hostsFile), "")
		}
		if err := r.sweepFiles(); err != nil {
			t.Fatal(err)
		}
		same(t, "directories that are left of "+live, listed(t, filepath.Dir(r.filesDir(live))), []string{live})
	}
}

func TestNetworksOfNamesThatBeginAlike(t *testing.T) {
	for _, live := range []string{"a", "a-1"} {
		n := newBridgeNetwork(Options{StateDir: t.TempDir()}.WithDefaults())
		n.used[live] = true
		ids := []string{"a", "a-1", "a-10", "aa", "319", "3199"}
		write(t, filepath.Join(n.leases, "lock"), "")
		for i, id := range ids {
			write(t, filepath.Join(n.leases, fmt.Sprintf("10.63.0.%d", i+2)), id+"\neth0")
			if i%2 == 0 {
				write(t, filepath.Join(n.netns, id), "")
			}
		}
		got, err := n.unused()
		if err != nil {
			t.Fatal(err)
		}
		same(t, "networks without "+live, got, slices.DeleteFunc(ids, func(id string) bool { return id == live }))
	}
}

// A cgroup goes with those of the instance's sidecars, as the sweep removes them.
func TestCgroupsOfNamesThatBeginAlike(t *testing.T) {
	namespace := fmt.Sprintf("fwt-alike-%d", os.Getpid())
	cgroups := newCgroups(cgroupRoot)
	dir := func(id string) string { return cgroups.dir("memory", cgroupPath(namespace, id)) }
	t.Cleanup(func() {
		for _, id := range alike {
			_ = os.Remove(dir(id))
		}
		if err := os.Remove(dir("")); err != nil {
			t.Error(err)
		}
	})
	for _, gone := range []string{"a", "a-1"} {
		for _, id := range alike {
			if err := os.MkdirAll(dir(id), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		path := cgroupPath(namespace, gone)
		for _, pattern := range []string{path, sidecarID(path, "*")} {
			if err := removeCgroup(pattern); err != nil {
				t.Fatal(err)
			}
		}
		left := slices.DeleteFunc(slices.Clone(alike), func(id string) bool { _, err := os.Stat(dir(id)); return err != nil })
		same(t, "cgroups without "+gone, left, others(gone))
	}
}

// A shim is told by its whole arguments: the container's, the namespace's and the
// daemon's.
func TestShimsOfNamesThatBeginAlike(t *testing.T) {
	o := Options{Namespace: fmt.Sprintf("fwt-alike-%d", os.Getpid()), Address: "/run/alike.sock"}
	shim := func(namespace, address, id string) *exec.Cmd {
		t.Helper()
		// A shell that waits for the end of its input, and has a shim's arguments.
		cmd := &exec.Cmd{Path: "/bin/sh", Args: []string{"/usr/bin/containerd-shim-test", "-c", "read x", "-namespace", namespace, "-address", address, "-id", id}}
		input, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			input.Close()
			_ = cmd.Wait()
		})
		return cmd
	}
	pids := make(map[string][]int)
	for _, id := range alike {
		pids[id] = []int{shim(o.Namespace, o.Address, id).Process.Pid}
	}
	shim(o.Namespace+"-1", o.Address, "a")
	shim(o.Namespace, o.Address+"2", "a")
	// The arguments are there when the process has become the shell.
	eventually(t, "all are there", func() bool { return len(shims(o)) == len(alike) })
	if diff := cmp.Diff(pids, shims(o)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := killShim(o, "a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is gone", func() bool { return len(shims(o)) < len(alike) })
	same(t, "shims that are left", slices.Collect(maps.Keys(shims(o))), slices.DeleteFunc(slices.Clone(alike), func(id string) bool { return id == "a" }))
}
