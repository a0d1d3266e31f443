package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// cpuTime is the processor time that a process has used, in all of its threads,
// those that have ended too. Its clock counts in nanoseconds; /proc/<pid>/stat has
// the same in hundredths of a second, too coarse for what hardly runs.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED of the kernel
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
		return 0, fmt.Errorf("reading the processor time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// ownCPU is that of this process.
func ownCPU() time.Duration {
	used, err := cpuTime(os.Getpid())
	if err != nil {
		return 0
	}
	return used
}

// machineBusy is the time that all processors of the machine have worked.
func machineBusy() (time.Duration, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	stat, err := fs.Stat()
	if err != nil {
		return 0, err
	}
	c := stat.CPUTotal // what guests used is in User and Nice
	return time.Duration((c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ + c.Steal) * float64(time.Second)), nil
}

// wakeUps is how often the threads of a process that it has now have gone to
// sleep, which is as often as they were woken.
func wakeUps(pid int) (int64, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, file := range files {
		n, err := statusField(file, "voluntary_ctxt_switches")
		if os.IsNotExist(err) {
			continue // the thread has ended
		}
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// residentMemory is the memory of a process, in bytes.
func residentMemory(pid int) (int64, error) {
	kB, err := statusField(fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
	return kB << 10, err
}

// statusField reads a number of a status file of /proc.
func statusField(file, name string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if string(key) == name {
			return strconv.ParseInt(string(bytes.Fields(value)[0]), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
