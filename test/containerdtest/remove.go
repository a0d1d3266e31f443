package containerdtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The directory of a daemon is named after the test process that it belongs to.
const (
	baseDir   = "/tmp"
	dirPrefix = "fwcd-"
)

// sweep removes the daemons of test processes that do not run any more.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(baseDir, dirPrefix+"*"))
	if err != nil {
		return fmt.Errorf("listing %s: %w", baseDir, err)
	}
	var errs []error
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		errs = append(errs, removeDaemon(dir))
	}
	return errors.Join(errs...)
}

// removeDaemon ends all that runs from a daemon's directory and removes it. The
// order matters: nothing may start, or hold a mount, behind its back.
func removeDaemon(dir string) error {
	killAll(func(args []string) bool {
		return filepath.Base(args[0]) == "containerd" && slices.Contains(args, filepath.Join(dir, "config.toml"))
	})
	errs := removeContainers(dir)
	killAll(func(args []string) bool {
		i := slices.Index(args, "-address")
		return strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && i > 0 && i+1 < len(args) && args[i+1] == filepath.Join(dir, "s")
	})
	if err := unmountBelow(dir); err != nil {
		errs = append(errs, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		errs = append(errs, fmt.Errorf("removing %s: %w", dir, err))
	}
	return errors.Join(errs...)
}

// removeContainers has runc kill the containers that the daemon's state knows,
// frozen ones too, and remove their cgroups, and removes the shims' sockets,
// which are outside of the daemon's directories.
func removeContainers(dir string) []error {
	bundles, err := filepath.Glob(filepath.Join(dir, "state", "io.containerd.runtime.v2.task", "*", "*"))
	if err != nil {
		return []error{fmt.Errorf("listing containers: %w", err)}
	}
	var errs []error
	for _, bundle := range bundles {
		namespace, id := filepath.Base(filepath.Dir(bundle)), filepath.Base(bundle)
		root := filepath.Join("/run/containerd/runc", namespace)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		output, err := exec.CommandContext(ctx, "runc", "--root", root, "delete", "--force", id).CombinedOutput()
		cancel()
		if err != nil && !strings.Contains(string(output), "does not exist") {
			errs = append(errs, fmt.Errorf("removing container %s/%s: %w: %s", namespace, id, err, output))
		}
		if address, err := os.ReadFile(filepath.Join(bundle, "address")); err == nil {
			_ = os.Remove(strings.TrimPrefix(string(address), "unix://"))
		}
	}
	return errs
}

// killAll kills the processes whose command line matches and waits for their
// end, so that nothing of theirs is in use when it returns.
func killAll(match func(args []string) bool) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		// Opened before the command line is read: it cannot be another's later.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if matches(file, match) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
			awaitExit(fd)
		}
		_ = unix.Close(fd)
	}
}

func matches(cmdline string, match func(args []string) bool) bool {
	data, err := os.ReadFile(cmdline)
	if err != nil || len(data) == 0 {
		return false
	}
	return match(strings.Split(strings.TrimRight(string(data), "\x00"), "\x00"))
}

// awaitExit waits up to ten seconds until the process has ended.
func awaitExit(pidfd int) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := time.Until(deadline).Milliseconds()
		if left <= 0 {
			return
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left))
		if err != unix.EINTR {
			return
		}
	}
}

// unmountBelow unmounts all below dir, the newest mount first.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("reading the mounts: %w", err)
	}
	var points []string
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}
