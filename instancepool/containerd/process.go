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
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

	"github.com/fairway-run/fairway/instancepool"
)

// process is the first process of a container. It is watched and signalled by a
// pidfd, which works while containerd or the shim is away and never meets a
// recycled pid.
type process struct {
	r         *Runtime
	id        string // the container's
	log       string
	container client.Container
	task      client.Task
	stop      syscall.Signal // asks it to end

	pidfd    *os.File        // closed when the process has ended, or by forget
	conn     syscall.RawConn // to pidfd
	watching sync.WaitGroup
	exited   chan struct{}
	exit     instancepool.Exit // written before exited is closed
}

// newProcess returns the process of a container. stop is the signal that its image
// wants it to be asked to end by.
func (r *Runtime) newProcess(container client.Container, task client.Task, log, stop string) *process {
	p := &process{r: r, id: container.ID(), log: log, container: container, task: task, exited: make(chan struct{})}
	var err error
	if p.stop, err = signal.ParseSignal(stop); err != nil {
		p.stop = syscall.SIGTERM // an older Fairway has made it, which did not note it
	}
	return p
}

func (p *process) pid() int { return int(p.task.Pid()) }

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// watch begins to watch the process. It may not have been started yet. ended is
// called once it has ended.
func (p *process) watch(ended func(*process)) error {
	fd, err := unix.PidfdOpen(p.pid(), unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching process %d: %w", p.pid(), err)
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd") // non-blocking: the Go runtime polls it
	if p.conn, err = p.pidfd.SyscallConn(); err != nil {
		_ = p.pidfd.Close()
		return fmt.Errorf("watching process %d: %w", p.pid(), err)
	}
	p.watching.Go(func() {
		err := p.conn.Read(func(fd uintptr) bool { return hasEnded(int(fd)) })
		if err != nil {
			return // closed: nobody wants to know any more
		}
		p.exit = p.howItEnded()
		ended(p) // first: whoever waits for the process finds the instance ended
		close(p.exited)
		_ = p.pidfd.Close()
	})
	return nil
}

// hasEnded reports whether the process has ended, or is not watched any more. It
// knows it before exited is closed.
func (p *process) hasEnded() bool {
	ended := true
	_ = p.conn.Control(func(fd uintptr) { ended = hasEnded(int(fd)) }) // it fails once pidfd is closed
	return ended
}

// hasEnded reports whether the process of a pidfd has ended.
func hasEnded(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// forget ends the watch, if there is one.
func (p *process) forget() {
	if p.pidfd != nil {
		_ = p.pidfd.Close()
	}
	p.watching.Wait()
}

// howItEnded describes the end of the process, which has just ended.
func (p *process) howItEnded() instancepool.Exit {
	e := instancepool.Exit{At: time.Now()}
	oom := p.oomKilled() // first: a shim that has died takes the cgroup with it
	e.Code = p.exitCode()
	e.OOM = oom && e.Code != 0 // else it was another process, which the app could do without
	if e.OOM && e.Code == unknownCode {
		e.Code = 128 + int(syscall.SIGKILL)
	}
	return e
}

// exitCode asks containerd for the exit code of the ended process; it is
// unknown if containerd does not know it or does not answer.
func (p *process) exitCode() int {
	ctx, cancel := context.WithTimeout(p.r.ctx, codeTimeout)
	defer cancel()
	for {
		wait, err := p.task.Wait(ctx)
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

// oomKilled reads from the container's cgroup whether the kernel has killed
// something in it for want of memory. The cgroup is there until the task is
// deleted.
func (p *process) oomKilled() bool {
	path := cgroupPath(p.r.opts.Namespace, p.id)
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

// signal sends a signal, unless the process has ended.
func (p *process) signal(sig syscall.Signal) error {
	var sent error
	err := p.conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	err = errors.Join(err, sent)
	if err == nil || errors.Is(err, unix.ESRCH) || p.hasExited() {
		return nil
	}
	return fmt.Errorf("sending %s: %w", sig, err)
}
