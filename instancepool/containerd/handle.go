package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

const (
	// codeTimeout is how long containerd may take to tell the exit code of a
	// process that has ended.
	codeTimeout = 3 * time.Second
	// killTimeout is how long the kernel may take to end a process after SIGKILL.
	killTimeout = 10 * time.Second
)

// handle is one instance. The process is watched and signalled by a pidfd, which
// works while containerd or the shim is away and never meets a recycled pid.
type handle struct {
	r         *Runtime
	id        string
	rev       *revisions.Revision
	net       attachment
	log       string
	container client.Container
	task      client.Task
	started   time.Time

	pidfd    *os.File
	watching sync.WaitGroup
	exited   chan struct{}
	exit     instancepool.Exit // written before exited is closed

	stopping sync.Mutex // one removal at a time; guards gone
	gone     bool
}

func (h *handle) ID() string                    { return h.id }
func (h *handle) Revision() *revisions.Revision { return h.rev }
func (h *handle) PID() int                      { return int(h.task.Pid()) }
func (h *handle) Started() time.Time            { return h.started }
func (h *handle) Address() string               { return h.net.Address }
func (h *handle) Exited() <-chan struct{}       { return h.exited }
func (h *handle) LogTail(n int) string          { return tail(h.log, n) }

// Exit implements instancepool.Handle.
func (h *handle) Exit() instancepool.Exit {
	select {
	case <-h.exited:
		return h.exit
	default:
		return instancepool.Exit{}
	}
}

// watch begins to watch the process. It may not have been started yet.
func (h *handle) watch() error {
	fd, err := unix.PidfdOpen(h.PID(), unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching process %d: %w", h.PID(), err)
	}
	h.pidfd = os.NewFile(uintptr(fd), "pidfd") // non-blocking: the Go runtime polls it
	conn, err := h.pidfd.SyscallConn()
	if err != nil {
		_ = h.pidfd.Close()
		return fmt.Errorf("watching process %d: %w", h.PID(), err)
	}
	h.watching.Go(func() {
		err := conn.Read(func(fd uintptr) bool { return ended(int(fd)) })
		if err != nil {
			return // closed: nobody wants to know any more
		}
		h.exit = instancepool.Exit{Code: h.exitCode(), OOM: h.oomKilled(), At: time.Now()}
		close(h.exited)
	})
	return nil
}

// ended reports whether the process of a pidfd has ended.
func ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// forget ends the watch.
func (h *handle) forget() {
	_ = h.pidfd.Close()
	h.watching.Wait()
}

// exitCode asks containerd for the exit code of the ended process; it is
// unknown (255) if containerd does not answer.
func (h *handle) exitCode() int {
	const unknown = 255
	ctx, cancel := context.WithTimeout(h.r.ctx, codeTimeout)
	defer cancel()
	for {
		wait, err := h.task.Wait(ctx)
		if err == nil {
			select {
			case status := <-wait:
				if status.Error() == nil {
					return int(status.ExitCode())
				}
			case <-ctx.Done():
			}
		}
		if errdefs.IsNotFound(err) {
			return unknown
		}
		// An error of Wait is not an exit code: the connection may have broken.
		retry := time.NewTimer(100 * time.Millisecond)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return unknown
		}
	}
}

// oomKilled reads from the instance's cgroup whether the kernel has killed
// something in it for want of memory. The cgroup is there until the task is
// deleted.
func (h *handle) oomKilled() bool {
	path := cgroupPath(h.r.opts.Namespace, h.id)
	for _, file := range []string{
		filepath.Join("/sys/fs/cgroup", path, "memory.events"),             // v2
		filepath.Join("/sys/fs/cgroup/memory", path, "memory.oom_control"), // v1
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.Atoi(value); name == "oom_kill" && err == nil && n > 0 {
				return true
			}
		}
	}
	return false
}

// Stop implements instancepool.Handle.
func (h *handle) Stop(ctx context.Context, grace time.Duration) error {
	h.stopping.Lock()
	defer h.stopping.Unlock()
	if h.gone {
		return nil
	}
	if err := h.end(ctx, grace); err != nil {
		return fmt.Errorf("stopping %s: %w", h.id, err)
	}
	h.forget()
	err := h.r.remove(ctx, h.container, h.net.ID)
	h.r.mu.Lock()
	delete(h.r.handles, h.id) // what is left now is for the sweep
	h.r.mu.Unlock()
	h.gone = true
	if err != nil {
		h.r.leftovers()
		return fmt.Errorf("removing %s: %w", h.id, explain(ctx, err))
	}
	return nil
}

// end ends the process: politely first.
func (h *handle) end(ctx context.Context, grace time.Duration) error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, killTimeout}} {
		if err := h.signal(step.signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("sending %s: %w", step.signal, err)
		}
		timer := time.NewTimer(step.wait)
		select {
		case <-h.exited:
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
	return fmt.Errorf("process %d has not ended %s after SIGKILL", h.PID(), killTimeout)
}

func (h *handle) signal(sig syscall.Signal) error {
	conn, err := h.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, sent)
}

var _ instancepool.Handle = (*handle)(nil)
