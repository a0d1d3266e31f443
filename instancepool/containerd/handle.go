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
	"github.com/containerd/errdefs/pkg/errgrpc"
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
	// unknownCode stands for an exit code that containerd could not tell.
	unknownCode = 255
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

	pidfd    *os.File // closed when the process has ended, or by forget
	watching sync.WaitGroup
	exited   chan struct{}
	exit     instancepool.Exit // written before exited is closed

	stopping chan struct{} // holds one token: of the one Stop at work; guards gone
	gone     bool
}

func (h *handle) ID() string                    { return h.id }
func (h *handle) Revision() *revisions.Revision { return h.rev }
func (h *handle) PID() int                      { return int(h.task.Pid()) }
func (h *handle) Started() time.Time            { return h.started }
func (h *handle) Address() string               { return h.net.Address }
func (h *handle) Exited() <-chan struct{}       { return h.exited }

// LogTail implements instancepool.Handle. The shim copies what the process wrote:
// the last lines, which matter most, may come after its end.
func (h *handle) LogTail(n int) string {
	select {
	case <-h.exited:
		awaitQuiet(h.r.ctx, h.log)
	default:
	}
	return tail(h.log, n)
}

// Exit implements instancepool.Handle.
func (h *handle) Exit() instancepool.Exit {
	if !h.hasExited() {
		return instancepool.Exit{}
	}
	return h.exit
}

func (h *handle) hasExited() bool {
	select {
	case <-h.exited:
		return true
	default:
		return false
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
		h.exit = h.howItEnded()
		close(h.exited)
		_ = h.pidfd.Close()
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

// howItEnded describes the end of the process, which has just ended.
func (h *handle) howItEnded() instancepool.Exit {
	e := instancepool.Exit{At: time.Now()}
	oom := h.oomKilled() // first: a shim that has died takes the cgroup with it
	e.Code = h.exitCode()
	e.OOM = oom && e.Code != 0 // else it was another process, which the app could do without
	if e.OOM && e.Code == unknownCode {
		e.Code = 128 + int(syscall.SIGKILL)
	}
	return e
}

// exitCode asks containerd for the exit code of the ended process; it is
// unknown if containerd does not know it or does not answer.
func (h *handle) exitCode() int {
	ctx, cancel := context.WithTimeout(h.r.ctx, codeTimeout)
	defer cancel()
	for {
		wait, err := h.task.Wait(ctx)
		if err == nil {
			select {
			case status := <-wait:
				if err = errgrpc.ToNative(status.Error()); err == nil {
					return int(status.ExitCode())
				}
			case <-ctx.Done():
			}
		}
		// That it has ended cannot wait until containerd is back.
		if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
			return unknownCode
		}
		// An error of Wait is not an exit code.
		retry := time.NewTimer(100 * time.Millisecond)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return unknownCode
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
	select { // even without time it is noted as lost, unless another call is at it
	case h.stopping <- struct{}{}:
	default:
		select {
		case h.stopping <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("stopping %s: %w", h.id, context.Cause(ctx))
		}
	}
	defer func() { <-h.stopping }()
	if h.gone {
		return nil
	}
	if err := h.end(ctx, grace); err != nil {
		h.release(err)
		return fmt.Errorf("stopping %s: %w", h.id, err)
	}
	err := h.r.remove(ctx, h.container, h.net.ID)
	h.release(err)
	h.gone = err == nil
	if err != nil {
		return fmt.Errorf("removing %s: %w", h.id, explain(ctx, err))
	}
	return nil
}

// release makes the handle unknown. If err says that something of the instance
// is left, that is for the sweep: the network too, as the container that names
// it may be gone.
func (h *handle) release(err error) {
	if err != nil {
		h.r.network.unuse(h.net.ID)
	}
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	delete(h.r.handles, h.id)
	if err != nil {
		h.r.lose(h.id, h)
	}
}

// end ends the process: politely first.
func (h *handle) end(ctx context.Context, grace time.Duration) error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, killTimeout}} {
		if err := h.signal(step.signal); err != nil && !errors.Is(err, unix.ESRCH) && !h.hasExited() {
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
