package containerd

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// errOver means that an instance does not run any more, or soon will not.
var errOver = errors.New("it has ended, or is being stopped")

const (
	// freezeFirst and freezeAtMost bound the pauses between two looks at whether all
	// is frozen. Most often it is at the first or second.
	freezeFirst  = 20 * time.Microsecond
	freezeAtMost = 5 * time.Millisecond
	// freezeTimer is from which length on a pause is left to the Go runtime, which
	// has no use for the thread meanwhile, but wakes up a millisecond late.
	freezeTimer = time.Millisecond
)

// freezer halts what runs in a cgroup, and lets it go on, by the kernel's own
// files: the engine would start a program for either, which takes ten times as
// long.
type freezer struct {
	control   string // the file that says what is wanted: one of the next two
	halt, run []byte
	state     string // the file that says what is
	halted    []byte // what it then holds
}

func (c cgroups) freezer(cgroup string) *freezer {
	dir := c.dir("freezer", cgroup)
	if c.v2 {
		return freezerV2(dir)
	}
	return freezerV1(dir)
}

func freezerV1(dir string) *freezer {
	file := filepath.Join(dir, "freezer.state")
	return &freezer{control: file, halt: []byte("FROZEN"), run: []byte("THAWED"), state: file, halted: []byte("FROZEN")}
}

func freezerV2(dir string) *freezer {
	return &freezer{
		control: filepath.Join(dir, "cgroup.freeze"), halt: []byte("1"), run: []byte("0"),
		state: filepath.Join(dir, "cgroup.events"), halted: []byte("frozen 1"),
	}
}

// freezersIn are the freezers that a directory of either version may have.
func freezersIn(dir string) []*freezer { return []*freezer{freezerV1(dir), freezerV2(dir)} }

// freeze asks for all to be halted, again if need be: version 1 may miss a process
// that is made at the same moment, and looks for it when it is asked once more.
func (f *freezer) freeze() error { return writeControl(f.control, f.halt) }

// thaw lets all go on. Nothing is halted any more when it returns.
func (f *freezer) thaw() error {
	err := writeControl(f.control, f.run)
	if err == nil || gone(err) {
		return err
	}
	// Where the files may not be written, nobody has frozen anything either.
	if frozen, unknown := f.frozen(); unknown == nil && !frozen {
		return nil
	}
	return err
}

// frozen reports whether all is halted.
func (f *freezer) frozen() (bool, error) {
	var buf [256]byte
	n, err := readControl(f.state, buf[:])
	return bytes.Contains(buf[:n], f.halted), err
}

// freezeAll returns when all of the freezers have halted what they have, or with an
// error at the end of ctx or when over is closed.
func freezeAll(ctx context.Context, freezers []*freezer, over <-chan struct{}) error {
	for pause := freezeFirst; ; pause = min(2*pause, freezeAtMost) {
		done := true
		for _, f := range freezers { // all are asked before any is waited for
			if err := f.freeze(); err != nil {
				return err
			}
		}
		for _, f := range freezers {
			frozen, err := f.frozen()
			if err != nil {
				return err
			}
			done = done && frozen
		}
		if done {
			return nil
		}
		if err := rest(ctx, pause, over); err != nil {
			return err
		}
	}
}

// thawAll lets all go on, whatever of it is halted. In a cgroup that is not there,
// or not any more, nothing is.
func thawAll(freezers []*freezer) error {
	var problems error
	for _, f := range freezers {
		if err := f.thaw(); err != nil && !gone(err) {
			problems = errors.Join(problems, err)
		}
	}
	return problems
}

// gone reports whether err says that a cgroup is not there, or not any more.
func gone(err error) bool { return missing(err) || errors.Is(err, unix.ENODEV) }

// rest lets a while pass, unless it is over before.
func rest(ctx context.Context, d time.Duration, over <-chan struct{}) error {
	if d < freezeTimer {
		left := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&left, nil) // a signal may end it early
		d = 0
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-over:
		return errOver
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// writeControl writes to a file of the kernel's. It does without os.File, which
// would ask the kernel each time whether the file can be waited for.
func writeControl(file string, text []byte) error {
	fd, err := openControl(file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, text)
	if closed := unix.Close(fd); err == nil {
		err = closed
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: file, Err: err}
	}
	return nil
}

// readControl reads the beginning of a file of the kernel's.
func readControl(file string, buf []byte) (int, error) {
	fd, err := openControl(file, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	n, err := unix.Read(fd, buf)
	_ = unix.Close(fd)
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: file, Err: err}
	}
	return n, nil
}

func openControl(file string, mode int) (int, error) {
	for {
		fd, err := unix.Open(file, mode|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, &fs.PathError{Op: "open", Path: file, Err: err}
		}
	}
}
