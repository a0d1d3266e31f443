package containerd

import (
	"strings"
	"testing"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

// TestUsageFiles reads trees that look like those of the two versions.
func TestUsageFiles(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  instancepool.Usage
		fails bool
	}{
		"v1": {map[string]string{
			"memory/fairway/x/memory.usage_in_bytes": "3000\n",
			"memory/fairway/x/memory.stat":           "cache 1\ninactive_file 7\ntotal_cache 1\ntotal_inactive_file 1000\n",
			"cpuacct/fairway/x/cpuacct.usage":        "123456789\n",
		}, instancepool.Usage{Memory: 2000, CPU: 123456789}, false},
		"v2": {map[string]string{
			"cgroup.controllers":       "",
			"fairway/x/memory.current": "3000\n", "fairway/x/memory.stat": "anon 5\ninactive_file 500\n",
			"fairway/x/cpu.stat": "usage_usec 42\nuser_usec 40\nsystem_usec 2\n",
		}, instancepool.Usage{Memory: 2500, CPU: 42 * time.Microsecond}, false},
		"all of it cached": {map[string]string{
			"cgroup.controllers":       "",
			"fairway/x/memory.current": "3000\n", "fairway/x/memory.stat": "inactive_file 4000\n", "fairway/x/cpu.stat": "",
		}, instancepool.Usage{}, false},
		"not there": {map[string]string{"cgroup.controllers": ""}, instancepool.Usage{}, true},
		"no memory controller": {map[string]string{
			"cpuacct/fairway/x/cpuacct.usage": "1\n",
		}, instancepool.Usage{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := newCgroups(fakeTree(t, test.files)).usage("/fairway/x")
			if got != test.want || (err != nil) != test.fails {
				t.Errorf("%+v %v; want %+v", got, err, test.want)
			}
		})
	}
}

// FuzzUsage reads any text as the kernel's.
func FuzzUsage(f *testing.F) {
	f.Add("total_inactive_file 12\nusage_usec 5\n", "3000\n")
	f.Add("inactive_file", "max")
	f.Add("inactive_file -3\nMemTotal: 5 kB", "9223372036854775808")
	f.Fuzz(func(t *testing.T, pairs, number string) {
		root := fakeTree(t, map[string]string{
			"v1/memory/x/memory.usage_in_bytes": number, "v1/memory/x/memory.stat": pairs, "v1/cpuacct/x/cpuacct.usage": number,
			"v1/memory/x/memory.limit_in_bytes": number, "v1/cpu/x/cpu.cfs_quota_us": number, "v1/cpu/x/cpu.cfs_period_us": number,
			"v2/cgroup.controllers": "", "v2/x/memory.current": number, "v2/x/memory.stat": pairs, "v2/x/cpu.stat": pairs,
			"v2/x/memory.max": number, "v2/x/cpu.max": number,
			"proc/meminfo": "MemTotal: 4 kB\n" + pairs, "proc/self/cgroup": pairs + "\n1:cpu,cpuacct:/x\n2:memory:/x\n0::/x\n",
		})
		for _, version := range []string{"/v1", "/v2"} {
			c := newCgroups(root + version)
			if u, err := c.usage("/x"); err != nil || u.Memory < 0 || u.CPU < 0 {
				t.Errorf("usage %+v %v", u, err)
			}
			if size, err := c.capacity(root + "/proc"); err != nil || size.Memory <= 0 || size.Memory > 4096 || size.Available < 0 || !(size.CPU > 0) {
				t.Errorf("capacity %+v %v", size, err)
			}
		}
	})
}

// TestUsage has an instance hold memory and use the CPU.
func TestUsage(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	idle, busy := f.serve(r, f.revision(r)), f.serve(r, f.revisionOf(r, sidecar("other", "PORT=9000", "LOG_RATE=2000000")))
	first := f.usage(idle)
	if first.Memory < 1<<20 || first.Memory > 100<<20 || first.CPU <= 0 || first.CPU > patience {
		t.Errorf("at first: %+v", first)
	}
	before := f.usage(busy)
	eventually(t, "the sidecar's CPU counts", func() bool { return f.usage(busy).CPU > before.CPU+50*time.Millisecond })
	eventually(t, "two containers hold more than one", func() bool { return f.usage(busy).Memory >= first.Memory*3/2 })
	if size, err := r.Capacity(); err != nil || size.Memory < 64<<20 || size.Available <= 0 || size.Available > size.Memory || size.CPU <= 0 || size.CPU > 4096 {
		t.Errorf("capacity: %+v %v", size, err)
	}
	f.stop(idle)
	if _, err := idle.(instancepool.Meter).Usage(); err == nil || !strings.Contains(err.Error(), idle.ID()) {
		t.Errorf("what is gone: %v", err)
	}
	f.stop(busy)
}

func (f *fixture) usage(h instancepool.Handle) instancepool.Usage {
	f.t.Helper()
	u, err := h.(instancepool.Meter).Usage()
	f.check(err)
	return u
}
