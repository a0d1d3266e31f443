package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// removeCgroup removes the cgroup of a container whose task is gone, or all that a
// pattern matches. Usually nothing of it is left; but when containerd or a shim
// was killed, a process of the instance may be there that nobody else would end.
// It then returns an error and is to be called again.
func removeCgroup(path string) error {
	// Version 2 has one hierarchy, version 1 one for each controller.
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + path)
	own, ownErr := filepath.Glob("/sys/fs/cgroup" + path)
	if err = errors.Join(err, ownErr); err != nil {
		return fmt.Errorf("looking for cgroup %s: %w", path, err)
	}
	var problems error
	for _, dir := range append(dirs, own...) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || missing(err):
			continue
		case errors.Is(err, unix.EBUSY):
			err = errors.Join(err, killCgroup(dir))
		}
		problems = errors.Join(problems, fmt.Errorf("removing cgroup %s: %w", dir, err))
	}
	return problems
}

func killCgroup(dir string) error {
	pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for text := range strings.FieldsSeq(string(pids)) {
		pid, err := strconv.Atoi(text)
		if err != nil || pid <= 0 {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing process %d: %w", pid, err)
		}
	}
	return nil
}
