package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// killShim ends the shim of a container that has no task: containerd forgets one
// when its client is killed while it makes the task, and has no time to clean up.
func killShim(o Options, id string) error {
	var problems error
	for _, pid := range shims(o)[id] {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		if served, ok := shimOf(o, pid); ok && served == id { // still: the number may have been used again before
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				problems = errors.Join(problems, fmt.Errorf("ending the shim of %s: %w", id, err))
			}
		}
		_ = unix.Close(fd)
	}
	return problems
}

// shims returns the process IDs of the shims of containerd's namespace, by
// container.
func shims(o Options) map[string][]int {
	all := make(map[string][]int)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return all
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if id, ok := shimOf(o, pid); ok {
				all[id] = append(all[id], pid)
			}
		}
	}
	return all
}

// shimOf returns the container that a process is the shim of, if it is one of the
// namespace's.
func shimOf(o Options, pid int) (id string, ok bool) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return "", false
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
		return "", false
	}
	value := func(flag string) string {
		if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
			return args[i+1]
		}
		return ""
	}
	id = value("-id")
	return id, id != "" && value("-namespace") == o.Namespace && value("-address") == o.Address
}

// sweepShims ends what runs without a container, by which it would be found: one
// that somebody else has deleted. containerd shows no such task, but ends it when
// its shim has ended.
func (r *Runtime) sweepShims(ctx context.Context, c *client.Client) error {
	rpc, cancel := r.within(ctx)
	defer cancel()
	var problems error
	for id := range shims(r.opts) {
		if r.busy(instanceOf(id)) {
			continue
		}
		cgroup := cgroupPath(r.opts.Namespace, id)
		if _, err := os.Stat(r.cgroups.dir("memory", cgroup)); err != nil {
			continue // somebody else's
		}
		if _, err := c.ContainerService().Get(rpc, id); !errdefs.IsNotFound(err) {
			continue
		}
		// A frozen process would not end with its shim.
		problems = errors.Join(problems, thawAll([]*freezer{r.cgroups.freezer(cgroup)}), killShim(r.opts, id))
		r.mu.Lock()
		r.lose(instanceOf(id), nil) // its cgroup, if containerd leaves it
		r.mu.Unlock()
	}
	return problems
}
