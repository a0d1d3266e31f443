package containerd

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where every distribution mounts the cgroup file systems.
const cgroupRoot = "/sys/fs/cgroup"

// cgroups are the cgroup file systems of a host. Version 2 has one hierarchy,
// version 1 one for each controller; what has both has its controllers there.
type cgroups struct {
	root string
	v2   bool
}

func newCgroups(root string) cgroups {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return cgroups{root: root, v2: err == nil}
}

// dir is where a controller has a cgroup, whose path comes from the kernel or from
// us: either way it does not lead out of the root.
func (c cgroups) dir(controller, cgroup string) string {
	cgroup = path.Clean("/" + cgroup)
	if c.v2 {
		return filepath.Join(c.root, cgroup)
	}
	return filepath.Join(c.root, controller, cgroup)
}

// removeCgroup removes the cgroup of a container whose task is gone, or all that a
// pattern matches. Usually nothing of it is left; but when containerd or a shim
// was killed, a process of the instance may be there that nobody else would end.
// It then returns an error and is to be called again.
func removeCgroup(path string) error {
	dirs, err := filepath.Glob(cgroupRoot + "/*" + path)
	own, ownErr := filepath.Glob(cgroupRoot + path)
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
	// Version 1 has frozen processes wait with their end, too. The one of its
	// hierarchies that can freeze is one of those that removeCgroup goes through.
	if err := thawAll(freezersIn(dir)); err != nil {
		return fmt.Errorf("thawing %s: %w", dir, err)
	}
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
