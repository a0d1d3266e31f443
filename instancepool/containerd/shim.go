package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// killShim ends the shim of a container that has no task: containerd forgets one
// when its client is killed while it makes the task, and has no time to clean up.
func killShim(o Options, id string) error {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return fmt.Errorf("looking for the shim of %s: %w", id, err)
	}
	var problems error
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || !isShim(file, o, id) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		if isShim(file, o, id) { // still: the number may have been used again before
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				problems = errors.Join(problems, fmt.Errorf("ending the shim of %s: %w", id, err))
			}
		}
		_ = unix.Close(fd)
	}
	return problems
}

// isShim reports whether a process is the shim of a container.
func isShim(cmdline string, o Options, id string) bool {
	b, err := os.ReadFile(cmdline)
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
		return false
	}
	for flag, value := range map[string]string{"-namespace": o.Namespace, "-id": id, "-address": o.Address} {
		if i := slices.Index(args, flag); i < 0 || i+1 >= len(args) || args[i+1] != value {
			return false
		}
	}
	return true
}
