package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-run/fairway/test/containerdtest"
)

// fakeTree makes files below a directory of the test's.
func fakeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(root, name), text)
	}
	return root
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func holding(t *testing.T, file, want string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if got := strings.TrimSpace(string(b)); err != nil || got != want {
		t.Errorf("%s: %q %v; want %q", filepath.Base(file), got, err, want)
	}
}

// TestFreezerV1 has a tree that looks like one of version 1.
func TestFreezerV1(t *testing.T) {
	root := fakeTree(t, map[string]string{"freezer/fairway/x/freezer.state": "THAWED\n", "unified/cgroup.controllers": ""})
	file := filepath.Join(root, "freezer/fairway/x/freezer.state")
	f := newCgroups(root).freezer("/fairway/x")
	if err := freezeAll(t.Context(), []*freezer{f}, nil); err != nil {
		t.Error(err)
	}
	holding(t, file, "FROZEN")
	if err := f.thaw(); err != nil {
		t.Error(err)
	}
	holding(t, file, "THAWED")
	writeFile(t, file, "FREEZING\n")
	if frozen, err := f.frozen(); frozen || err != nil {
		t.Errorf("what is being frozen is frozen: %t %v", frozen, err)
	}

	// The kernel answers elsewhere here, so that it can do so late: all is asked for
	// again until it has answered.
	f.state = filepath.Join(t.TempDir(), "state")
	writeFile(t, f.state, "FREEZING\n")
	done := make(chan error, 1)
	go func() { done <- freezeAll(t.Context(), []*freezer{f}, nil) }()
	for range 3 {
		writeFile(t, file, "FREEZING\n")
		eventually(t, "it is asked again", func() bool {
			b, err := os.ReadFile(file)
			return err == nil && strings.HasPrefix(string(b), "FROZEN")
		})
	}
	writeFile(t, f.state, "FROZEN\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFreezerV2 has a tree that looks like one of version 2.
func TestFreezerV2(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"cgroup.controllers":         "cpu memory\n",
		"fairway/a/cgroup.freeze":    "0\n",
		"fairway/a/cgroup.events":    "populated 1\nfrozen 0\n",
		"fairway/b/cgroup.freeze":    "0\n",
		"fairway/b/cgroup.events":    "populated 1\nfrozen 1\n",
		"freezer/fairway/a/no.state": "",
	})
	c := newCgroups(root)
	both := []*freezer{c.freezer("/fairway/a"), c.freezer("/fairway/b")}
	a, b := both[0], both[1]

	done := make(chan error, 1)
	go func() { done <- freezeAll(t.Context(), both, nil) }()
	eventually(t, "both are asked", func() bool {
		one, _ := os.ReadFile(a.control)
		other, _ := os.ReadFile(b.control)
		return string(one)+string(other) == "1\n1\n"
	})
	select {
	case err := <-done:
		t.Fatalf("one of two is frozen, and freezeAll has returned: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	writeFile(t, a.state, "populated 1\nfrozen 1\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := thawAll(both); err != nil {
		t.Error(err)
	}
	holding(t, a.control, "0")
	holding(t, b.control, "0")

	writeFile(t, a.state, "populated 1\nfrozen 0\n")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := freezeAll(ctx, both, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("what does not freeze: %v; want the end of the context", err)
	}
	over := make(chan struct{})
	close(over)
	if err := freezeAll(t.Context(), both, over); !errors.Is(err, errOver) {
		t.Errorf("what is over: %v", err)
	}
}

// TestThawWithout thaws where nothing can be frozen.
func TestThawWithout(t *testing.T) {
	for _, files := range []map[string]string{nil, {"cgroup.controllers": ""}} {
		f := newCgroups(fakeTree(t, files)).freezer("/fairway/x")
		if err := freezeAll(t.Context(), []*freezer{f}, nil); !gone(err) {
			t.Errorf("freezing without a cgroup: %v", err)
		}
		if err := thawAll([]*freezer{f}); err != nil {
			t.Error(err)
		}
	}
	// As where the file system is mounted read-only: the file can be read only.
	f := freezerV1(t.TempDir())
	f.control = t.TempDir()
	writeFile(t, f.state, "THAWED\n")
	if err := f.thaw(); err != nil {
		t.Errorf("thawing what is not frozen: %v", err)
	}
	writeFile(t, f.state, "FROZEN\n")
	if err := f.thaw(); err == nil {
		t.Error("what is frozen was thawed without a way to do so")
	}
}

// kernelCgroups are the cgroup file systems of this host that can freeze: on a host
// with both versions, those of both.
func kernelCgroups(t *testing.T) map[string]cgroups {
	t.Helper()
	if reason := containerdtest.Missing(); reason != "" {
		t.Skip(reason)
	}
	all := make(map[string]cgroups)
	for _, root := range []string{cgroupRoot, filepath.Join(cgroupRoot, "unified")} {
		c := newCgroups(root)
		if _, err := os.Stat(filepath.Join(root, "freezer")); err == nil || c.v2 {
			all[fmt.Sprintf("v2=%t", c.v2)] = c
		}
	}
	if len(all) == 0 {
		t.Skip("needs a cgroup file system")
	}
	return all
}

// inCgroup runs a shell script in a cgroup of its own, and returns its freezer and
// a function that ends it.
func inCgroup(t *testing.T, c cgroups, script string) (f *freezer, cmd *exec.Cmd, end func()) {
	t.Helper()
	name := fmt.Sprintf("/fairway-test-%d-%d", os.Getpid(), serial.Add(1))
	dir := c.dir("freezer", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("/bin/sh", "-c", "read go\n"+script)
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = writeControl(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)))
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = stdin.Write([]byte("\n"))
	f = c.freezer(name)
	end = func() {
		eventually(t, "the cgroup is removed", func() bool {
			err := unix.Rmdir(dir)
			if err == nil || missing(err) {
				return true
			}
			if err := killCgroup(dir); err != nil && !gone(err) {
				t.Error(err)
			}
			return false
		})
		_ = cmd.Wait()
	}
	return f, cmd, end
}

// ticks is the processor time that a process has used, in the kernel's units.
func ticks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return user + system
}

// TestFreezerOfKernel freezes a busy loop, and then processes that make others all
// the time.
func TestFreezerOfKernel(t *testing.T) {
	for name, c := range kernelCgroups(t) {
		t.Run(name, func(t *testing.T) {
			f, cmd, end := inCgroup(t, c, "while :; do :; done")
			defer end()
			eventually(t, "it is busy", func() bool { return ticks(t, cmd.Process.Pid) > 2 })
			if err := freezeAll(t.Context(), []*freezer{f}, nil); err != nil {
				t.Fatal(err)
			}
			before := ticks(t, cmd.Process.Pid)
			time.Sleep(200 * time.Millisecond)
			if after := ticks(t, cmd.Process.Pid); after != before {
				t.Errorf("it has used %d ticks while frozen", after-before)
			}
			if err := f.thaw(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is busy again", func() bool { return ticks(t, cmd.Process.Pid) > before })
			if err := freezeAll(t.Context(), []*freezer{f}, nil); err != nil {
				t.Fatal(err) // its end comes while it is frozen
			}
		})
		t.Run(name+" forks", func(t *testing.T) {
			f, _, end := inCgroup(t, c, "while :; do /bin/true & /bin/true; done")
			defer end()
			for range loops(300, 5000) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				err := freezeAll(ctx, []*freezer{f}, nil)
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				if err := f.thaw(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// Thawing is on the way of a request.
func TestThawAllocates(t *testing.T) {
	root := fakeTree(t, map[string]string{"freezer/x/freezer.state": "THAWED\n"})
	all := []*freezer{newCgroups(root).freezer("/x")}
	if n := testing.AllocsPerRun(100, func() { _ = thawAll(all) }); n > 1 { // the file's name, for the kernel
		t.Errorf("%v allocations", n)
	}
}
