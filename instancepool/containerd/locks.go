package containerd

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockDir holds the locks of containerd's namespaces.
const lockDir = "/run/fairway"

// locks keep other processes from a containerd namespace and a state directory:
// two that managed the same would take each other's instances for leftovers.
// The kernel gives them back when the process ends, however it ends.
type locks []*os.File

func takeLocks(o Options) (locks, error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(o.Address + "\x00" + o.Namespace))
	var taken locks
	for _, path := range []string{
		filepath.Join(lockDir, fmt.Sprintf("%016x.lock", h.Sum64())),
		filepath.Join(o.StateDir, "lock"),
	} {
		f, err := takeLock(path)
		if err != nil {
			return nil, errors.Join(err, taken.release())
		}
		taken = append(taken, f)
	}
	return taken, nil
}

func (l locks) release() error {
	var err error
	for _, f := range l {
		// While it is held; takeLock notices when the file is not the one any more.
		err = errors.Join(err, os.Remove(f.Name()), f.Close())
	}
	return err
}

// takeLock takes one lock, or says which process has it.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid, _ := os.ReadFile(path)
			return nil, fmt.Errorf("another Fairway process (pid %s) manages it", strings.TrimSpace(string(pid)))
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if !isAt(f, path) {
		_ = f.Close() // removed between our two steps, by the process that had it
		return takeLock(path)
	}
	if err := f.Truncate(0); err != nil {
		_ = f.Close()
		return nil, err
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// isAt reports whether a path still leads to an open file.
func isAt(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(open, there)
}
