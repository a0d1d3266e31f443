package containerd

import (
	"bytes"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

// Usage implements instancepool.Meter.
func (h *handle) Usage() (instancepool.Usage, error) {
	var sum instancepool.Usage
	for _, p := range h.processes {
		u, err := h.r.cgroups.usage(cgroupPath(h.r.opts.Namespace, p.id))
		if err != nil {
			return instancepool.Usage{}, fmt.Errorf("measuring %s: %w", h.id, err)
		}
		sum.Memory += u.Memory
		sum.CPU += u.CPU
	}
	return sum, nil
}

// usage reads what is used by all that runs in a cgroup.
func (c cgroups) usage(cgroup string) (instancepool.Usage, error) {
	memory, err := c.workingSet(c.dir("memory", cgroup))
	if err != nil {
		return instancepool.Usage{}, err
	}
	file := "cpuacct.usage"
	if c.v2 {
		file = "cpu.stat"
	}
	var buf [1024]byte
	n, err := readControl(filepath.Join(c.dir("cpuacct", cgroup), file), buf[:])
	if err != nil {
		return instancepool.Usage{}, err
	}
	nanoseconds := count(buf[:n])
	if c.v2 {
		nanoseconds = min(field(buf[:n], "usage_usec"), math.MaxInt64/1000) * 1000
	}
	return instancepool.Usage{Memory: memory, CPU: time.Duration(nanoseconds)}, nil
}

// workingSet is the memory of a cgroup, as Kubernetes counts it: without the part
// of the file cache that the kernel would drop first.
func (c cgroups) workingSet(dir string) (int64, error) {
	file, inactive := "memory.usage_in_bytes", "total_inactive_file"
	if c.v2 {
		file, inactive = "memory.current", "inactive_file"
	}
	var buf [8192]byte // memory.stat has about 2 kB
	n, err := readControl(filepath.Join(dir, file), buf[:])
	if err != nil {
		return 0, err
	}
	all := count(buf[:n])
	if n, err = readControl(filepath.Join(dir, "memory.stat"), buf[:]); err != nil {
		return 0, err
	}
	return max(all-field(buf[:n], inactive), 0), nil
}

// field returns the number that follows a name in a file of one such pair in each
// line; 0 if there is none.
func field(text []byte, name string) int64 {
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte{'\n'})
		if key, value, ok := bytes.Cut(line, []byte{' '}); ok && string(key) == name {
			return count(value)
		}
	}
	return 0
}

// count returns the number that a text consists of; 0 if it does not, or is
// negative.
func count(text []byte) int64 {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return 0
	}
	return max(n, 0)
}

var _ instancepool.Meter = (*handle)(nil)
