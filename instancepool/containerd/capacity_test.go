package containerd

import (
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

// TestCapacity has hosts and limits of all kinds.
func TestCapacity(t *testing.T) {
	const info = "MemTotal:        8000000 kB\nMemFree:          10 kB\nMemAvailable:    6000000 kB\n"
	const total, available = 8000000 << 10, 6000000 << 10
	all := float64(runtime.NumCPU())
	for name, test := range map[string]struct {
		files map[string]string
		want  instancepool.Capacity
	}{
		"no cgroups": {map[string]string{}, instancepool.Capacity{Memory: total, Available: available, CPU: all}},
		"v1 without limits": {map[string]string{
			"proc/self/cgroup":                    "4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/\n",
			"cg/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
			"cg/cpu/a/cpu.cfs_quota_us":           "-1\n", "cg/cpu/a/cpu.cfs_period_us": "100000\n",
		}, instancepool.Capacity{Memory: total, Available: available, CPU: all}},
		"v1": {map[string]string{
			"proc/self/cgroup":                    "4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/\n",
			"cg/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
			"cg/memory/a/memory.limit_in_bytes":   "1000000\n",
			"cg/memory/a/memory.usage_in_bytes":   "700000\n",
			"cg/memory/a/memory.stat":             "total_inactive_file 100000\n",
			"cg/cpu/a/cpu.cfs_quota_us":           "50000\n", "cg/cpu/a/cpu.cfs_period_us": "100000\n",
		}, instancepool.Capacity{Memory: 1000000, Available: 400000, CPU: 0.5}},
		"v1, in a container that sees only its own": {map[string]string{
			"proc/self/cgroup":                "4:memory:/docker/0123\n1:cpu:/docker/0123\n",
			"cg/memory/memory.limit_in_bytes": "1000000\n",
			"cg/cpu/cpu.cfs_quota_us":         "25000\n", "cg/cpu/cpu.cfs_period_us": "100000\n",
		}, instancepool.Capacity{Memory: 1000000, Available: available, CPU: 0.25}},
		"v2": {map[string]string{
			"proc/self/cgroup":                             "0::/system.slice/caddy.service\n",
			"cg/cgroup.controllers":                        "cpu memory\n",
			"cg/system.slice/cpu.max":                      "20000 100000\n",
			"cg/system.slice/caddy.service/cpu.max":        "max 100000\n",
			"cg/system.slice/memory.max":                   "3000000\n",
			"cg/system.slice/memory.current":               "2999999\n",
			"cg/system.slice/memory.stat":                  "inactive_file 9\n",
			"cg/system.slice/caddy.service/memory.max":     "2000000\n",
			"cg/system.slice/caddy.service/memory.current": "1000\n",
			"cg/system.slice/caddy.service/memory.stat":    "inactive_file 9\n",
		}, instancepool.Capacity{Memory: 2000000, Available: 10, CPU: 0.2}},
		"v2 that is full": {map[string]string{
			"proc/self/cgroup": "0::/a\n", "cg/cgroup.controllers": "", "cg/a/memory.max": "4096\n", "cg/a/memory.current": "5000\n", "cg/a/memory.stat": "",
		}, instancepool.Capacity{Memory: 4096, Available: 1, CPU: all}},
		"outside of what it sees": {map[string]string{
			"proc/self/cgroup": "0::/../../a\n", "cg/cgroup.controllers": "", "a/memory.max": "4096\n", "cg/a/cpu.max": "10000 100000\n",
		}, instancepool.Capacity{Memory: total, Available: available, CPU: 0.1}},
		"nonsense": {map[string]string{
			"proc/self/cgroup": "nonsense\n:\n::\n0::/a", "cg/cgroup.controllers": "", "cg/a/memory.max": "much", "cg/a/cpu.max": "10000",
		}, instancepool.Capacity{Memory: total, Available: available, CPU: all}},
	} {
		t.Run(name, func(t *testing.T) {
			root := fakeTree(t, test.files)
			writeFile(t, filepath.Join(root, "proc/meminfo"), info)
			got, err := newCgroups(filepath.Join(root, "cg")).capacity(filepath.Join(root, "proc"))
			if got != test.want || err != nil {
				t.Errorf("%+v %v; want %+v", got, err, test.want)
			}
		})
	}
	for _, text := range []string{"", "MemTotal: kB\n", "MemTotal: 0 kB\n"} {
		root := fakeTree(t, map[string]string{"meminfo": text})
		if got, err := newCgroups(root).capacity(root); err == nil {
			t.Errorf("of %q: %+v", text, got)
		}
	}
	if got, err := newCgroups(t.TempDir()).capacity(t.TempDir()); err == nil {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestWorked(t *testing.T) {
	root := fakeTree(t, map[string]string{"stat": "cpu  100 200 300 4000 500 60 70 80 90 10\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5 0 1\nctxt 9\n"})
	busy, idle, err := worked(root)
	if want := 6100 * time.Millisecond; busy != want || err != nil {
		t.Errorf("busy for %s, %v, want %s", busy, err, want)
	}
	if want := 47 * time.Second; idle != want {
		t.Errorf("idle for %s, want %s", idle, want)
	}
	for name, files := range map[string]map[string]string{"nothing": {}, "nonsense": {"stat": "cpu  a b c\n"}} {
		if busy, idle, err := worked(fakeTree(t, files)); err == nil {
			t.Errorf("of %s: %s %s", name, busy, idle)
		}
	}
}

// Of this host: the time of its processors goes by with the time of day.
func TestWorkedOfThisHost(t *testing.T) {
	r := new(Runtime)
	busy, idle, err := r.Worked()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		b, i, err := r.Worked()
		if err != nil || b < busy {
			t.Fatalf("busy for %s after %s, %v", b, busy, err)
		}
		if b > busy && b+i >= busy+idle+100*time.Millisecond {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("busy for %s after %s, idle for %s after %s", b, busy, i, idle)
		}
	}
}
