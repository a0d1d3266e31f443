package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"github.com/fairway-run/fairway/instancepool"
)

// Capacity implements instancepool.Sizer.
func (r *Runtime) Capacity() (instancepool.Capacity, error) {
	capacity, err := r.cgroups.capacity("/proc")
	if err != nil {
		return instancepool.Capacity{}, fmt.Errorf("measuring the host: %w", err)
	}
	return capacity, nil
}

// capacity is the host's, as far as no limit of this process's cgroups is lower:
// a limit of one holds for all below it.
func (c cgroups) capacity(proc string) (instancepool.Capacity, error) {
	none := instancepool.Capacity{}
	info, err := os.ReadFile(filepath.Join(proc, "meminfo"))
	if err != nil {
		return none, err
	}
	all := instancepool.Capacity{
		Memory: memInfo(info, "MemTotal:"), Available: memInfo(info, "MemAvailable:"), CPU: float64(runtime.NumCPU()),
	}
	if all.Memory == 0 {
		return none, errors.New("meminfo does not say how much memory there is")
	}
	own, err := os.ReadFile(filepath.Join(proc, "self", "cgroup"))
	if err != nil && !missing(err) { // without it there are no limits
		return none, err
	}
	host := all.Memory
	for _, dir := range c.above("memory", own) {
		limit := c.memoryLimit(dir)
		if limit == 0 || limit >= host {
			continue
		}
		all.Memory = min(all.Memory, limit)
		if used, err := c.workingSet(dir); err == nil {
			all.Available = min(all.Available, max(limit-used, 1)) // 0 would mean that it is unknown
		}
	}
	for _, dir := range c.above("cpu", own) {
		if limit := c.cpuLimit(dir); limit > 0 {
			all.CPU = min(all.CPU, limit)
		}
	}
	return all, nil
}

// Worked implements instancepool.Gauger.
func (r *Runtime) Worked() (busy, idle time.Duration, err error) {
	busy, idle, err = worked("/proc")
	if err != nil {
		return 0, 0, fmt.Errorf("measuring the host: %w", err)
	}
	return busy, idle, nil
}

func worked(proc string) (busy, idle time.Duration, err error) {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return 0, 0, err
	}
	stat, err := fs.Stat()
	if err != nil {
		return 0, 0, err
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	// What guests have used is in User and Nice already. What is nice gives way.
	c := stat.CPUTotal
	return seconds(c.User + c.System + c.IRQ + c.SoftIRQ + c.Steal), seconds(c.Idle + c.Iowait + c.Nice), nil
}

// memInfo finds a line of /proc/meminfo, in bytes; 0 if it is not there.
func memInfo(info []byte, name string) int64 {
	for line := range bytes.Lines(info) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			kilobytes := count(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB")))
			return min(kilobytes, math.MaxInt64/1024) * 1024
		}
	}
	return 0
}

// above returns the directories of the cgroup that /proc/self/cgroup says, and of
// those that it is in. Not all need to be there: in a container, the uppermost one
// that can be seen may be the container's own.
func (c cgroups) above(controller string, own []byte) []string {
	if c.v2 {
		controller = ""
	}
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || !slices.Contains(strings.Split(parts[1], ","), controller) {
			continue
		}
		var dirs []string
		for cgroup := path.Clean("/" + parts[2]); ; cgroup = path.Dir(cgroup) {
			dirs = append(dirs, c.dir(controller, cgroup))
			if cgroup == "/" {
				return dirs
			}
		}
	}
	return nil
}

// memoryLimit is a cgroup's own, in bytes; 0 if it has none. Version 1 says none
// by a number that no host has.
func (c cgroups) memoryLimit(dir string) int64 {
	file := "memory.limit_in_bytes"
	if c.v2 {
		file = "memory.max"
	}
	return count(readSmall(filepath.Join(dir, file)))
}

// cpuLimit is how many processors a cgroup may use; 0 if it has no limit.
func (c cgroups) cpuLimit(dir string) float64 {
	var quota, period int64
	if c.v2 {
		first, second, _ := bytes.Cut(readSmall(filepath.Join(dir, "cpu.max")), []byte{' '})
		quota, period = count(first), count(second)
	} else {
		quota = count(readSmall(filepath.Join(dir, "cpu.cfs_quota_us")))
		period = count(readSmall(filepath.Join(dir, "cpu.cfs_period_us")))
	}
	if quota == 0 || period == 0 {
		return 0
	}
	return float64(quota) / float64(period)
}

// readSmall reads a small file; what cannot be read is empty.
func readSmall(file string) []byte {
	buf := make([]byte, 256)
	n, err := readControl(file, buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

var (
	_ instancepool.Sizer  = (*Runtime)(nil)
	_ instancepool.Gauger = (*Runtime)(nil)
)
