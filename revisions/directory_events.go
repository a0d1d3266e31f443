package revisions

import (
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may lead through, as for the kernel.
const maxLinks = 40

// directoryEvents has the system tell of what changes in a directory of services,
// and of whatever else changes what its files say: the directories above it, and
// those behind symbolic links.
type directoryEvents struct {
	watcher *fsnotify.Watcher
	pokes   chan struct{} // gets one after an event that counts

	watched map[string]bool // the directories of the last follow; only that uses it

	mu    sync.Mutex // guards all below; not held while watcher is called
	names map[string]bool
	whole string // the directory of which all counts; of others only names do
}

// newDirectoryEvents fails when the system has no more watchers.
func newDirectoryEvents() (*directoryEvents, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	return &directoryEvents{watcher: w, pokes: make(chan struct{}, 1), names: make(map[string]bool)}, nil
}

// forward pokes until the watcher is closed. It never stops receiving, since the
// watcher may hold its lock while it sends, the one that adding and removing a
// watch need.
func (e *directoryEvents) forward() {
	for {
		var open, counts bool
		select {
		case event, more := <-e.watcher.Events:
			open, counts = more, e.counts(event.Name)
		case _, open = <-e.watcher.Errors: // events were lost, perhaps
			counts = true
		}
		if !open {
			return
		}
		if !counts {
			continue
		}
		select {
		case e.pokes <- struct{}{}:
		default: // One that nobody has taken yet says the same.
		}
	}
}

func (e *directoryEvents) counts(path string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.names[path] || filepath.Dir(path) == e.whole
}

// follow asks for the events of what dir leads to now, and reports whether they
// tell of all that may change. Every watch is made anew because the old one
// belongs to an inode, and whether that still is what the name leads to cannot be
// told: numbers of inodes are reused.
func (e *directoryEvents) follow(dir string) (complete bool) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	before := e.watched
	e.watched, complete = make(map[string]bool), true
	names := make(map[string]bool)
	// Each directory is watched before it is looked into: what changes meanwhile is
	// told.
	see := func(parent, name string) {
		path := filepath.Join(parent, name)
		names[path] = true
		e.mu.Lock()
		e.names[path] = true
		e.mu.Unlock()
		complete = e.watch(parent) && complete
	}
	end := eachStep(dir, see)
	e.mu.Lock()
	e.whole = end
	e.mu.Unlock()
	if info, err := os.Stat(end); err == nil && info.IsDir() {
		complete = e.watch(end) && complete
	}
	entries, err := os.ReadDir(end)
	if err == nil {
		for _, entry := range entries {
			if isServiceFile(entry.Name()) && entry.Type()&os.ModeSymlink != 0 {
				eachStep(filepath.Join(end, entry.Name()), see)
			}
		}
	}
	for old := range before {
		if !e.watched[old] {
			_ = e.watcher.Remove(old) // it may be gone
		}
	}
	e.mu.Lock()
	e.names = names
	e.mu.Unlock()
	return complete
}

// watch asks for events of a directory, once in each follow. It reports whether
// they tell of all that changes there.
func (e *directoryEvents) watch(dir string) bool {
	if told, known := e.watched[dir]; known {
		return told
	}
	_ = e.watcher.Remove(dir)
	told := e.watcher.Add(dir) == nil && isLocal(dir)
	e.watched[dir] = told
	return told
}

// eachStep calls see with each directory that path leads through, and with the
// name that is looked for there: what path means does not change while none of
// these does. It returns what path is in the end, without symbolic links, as far
// as it exists.
func eachStep(path string, see func(dir, name string)) string {
	at, rest, links := "/", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		see(at, name)
		next := filepath.Join(at, name)
		target, err := os.Readlink(next)
		switch {
		case err == nil && links < maxLinks:
			links++
			rest = append(strings.Split(target, "/"), rest...)
			if filepath.IsAbs(target) {
				at = "/"
			}
			continue
		case len(rest) > 0:
			if info, err := os.Lstat(next); err != nil || !info.IsDir() {
				return next // it leads nowhere
			}
		}
		at = next
	}
	return at
}

// localTypes are the file systems that change by this host only, and tell of it.
var localTypes = map[int64]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true, unix.F2FS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC: true, unix.RAMFS_MAGIC: true, unix.OVERLAYFS_SUPER_MAGIC: true, 0x2fc12fc1: true, // the last one: ZFS
}

func isLocal(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && localTypes[int64(fs.Type)] //nolint:unconvert // it is an int32 on some processors
}
