package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

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
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	var ticks int64
	for i, field := range bytes.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue // the line's name, idle, waiting for a disk; what guests used counts as used
		}
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading /proc/stat: %w", err)
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ, on all that Go runs on
	return time.Duration(ticks) * time.Second / perSecond, nil
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
