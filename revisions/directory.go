package revisions

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

const (
	// maxServiceFile bounds a file of services: a mistake such as a core dump
	// under a wrong name should not be parsed.
	maxServiceFile = 1 << 20
)

// When a change is applied: a second after it at the latest.
const (
	// settleTime is how long nothing may happen in a directory before it is read:
	// editors truncate and then write, and copying takes a while.
	settleTime = 150 * time.Millisecond
	// settleMost is how long a directory that is never quiet is put off.
	settleMost = 500 * time.Millisecond
	// lookEvery is how often a directory is looked at that may change without an
	// event: there are no more watchers, or it is in a network file system.
	lookEvery = 750 * time.Millisecond
	// lookSeldom is how often the others are: something may be mounted there.
	lookSeldom = time.Minute
)

// ServiceFile is what one file of a watched directory says, or what is wrong
// with the directory itself.
type ServiceFile struct {
	// Path is the directory, as it was given, and the file's name. It is the
	// directory alone when Err is about that; then the other files are as they
	// were when it could last be read.
	Path string
	// Services are what Prepare has made of the file's documents, in their order.
	// While Err is set they are the last good state, which is nil when the file
	// has not been good since the watch began. No two files have one of the same
	// name. They must not be modified.
	Services []*servingv1.Service
	// Err is why what the file says now is not applied, or not all of it, in one
	// line that begins with the path. A service that some file of the directory
	// had earlier must not be taken for deleted while that file, or the directory,
	// has an Err.
	Err error
}

// WatchDirectory follows the Knative services that the files of a directory
// describe. It calls changed with all of them, in order of path, once before it
// returns, and again whenever they or their errors have changed, from one
// goroutine at a time. A change is seen within a second, but not before the
// directory was quiet for 150 ms, unless it never is. A mount over the directory,
// or over a file in it, and a change through a hard link, are seen within a minute.
//
// What counts are the files *.yaml, *.yml and *.json, see DecodeServices, that
// are not hidden; directories in it do not. Symbolic links are followed, be it
// the directory, a file, or a link on the way to it. When several files have a
// service of one name, the first by path keeps it.
//
// What deletes services is deleting their file or their document. A file that is
// bad, unreadable or empty keeps its last good state, as do all files while the
// directory is missing: it may exist later, and come back at any time.
//
// The watch ends with ctx. Calling stop ends it too, and waits until changed has
// returned for the last time; so changed must not call it.
func WatchDirectory(ctx context.Context, dir string, changed func([]ServiceFile)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	d := &serviceDirectory{dir: dir, changed: changed, files: make(map[string]*serviceFile)}
	var running sync.WaitGroup
	var pokes chan struct{}
	// The system bounds how many watchers there are. Without one, looking at the
	// directory every now and then has to do.
	if events, err := newDirectoryEvents(); err == nil {
		d.events, pokes = events, events.pokes
		running.Go(events.forward)
	}
	d.scan()
	running.Go(func() {
		if d.events != nil {
			defer d.events.watcher.Close()
		}
		follow(ctx, pokes, d.every, d.differs, d.scan)
	})
	return func() {
		cancel()
		running.Wait()
	}
}

// follow calls scan after a poke, and after differs has reported true, as soon
// as there was no other poke for settleTime, but not later than settleMost after
// the first one. every says after each scan how often differs is to be asked. It
// returns when ctx ends.
func follow(ctx context.Context, pokes <-chan struct{}, every func() time.Duration, differs func() bool, scan func()) {
	pause := every()
	look := time.NewTicker(pause)
	defer look.Stop()
	var settled <-chan time.Time // nil: nothing to wait for
	var latest time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-settled:
			settled = nil
			scan()
			if now := every(); now != pause {
				pause = now
				look.Reset(pause)
			}
			continue
		case <-look.C:
			if settled != nil || !differs() {
				continue
			}
		case <-pokes:
		}
		if settled == nil {
			latest = time.Now().Add(settleMost)
		}
		settled = time.After(min(settleTime, time.Until(latest)))
	}
}

// serviceDirectory is a watched directory. One goroutine at a time uses it.
type serviceDirectory struct {
	dir     string
	changed func([]ServiceFile)
	events  *directoryEvents // nil if there are none
	sure    bool             // there is an event for all that changes

	seen  directoryLook           // what the directory looked like when it was last read
	err   error                   // why it could not be read, or nil
	files map[string]*serviceFile // by name
	told  []ServiceFile           // nil before the first time
}

// serviceFile is one file of a directory.
type serviceFile struct {
	content  [sha256.Size]byte // of what was last decoded; zero if it could not be read
	services []*servingv1.Service
	err      error
}

// scan reads the directory, and tells if that has changed anything.
func (d *serviceDirectory) scan() {
	d.sure = d.events != nil && d.events.follow(d.dir)
	d.seen = lookAt(d.dir) // before reading: what changes meanwhile looks different later
	d.err = nil
	if d.seen.err != nil {
		d.err = fmt.Errorf("%s: %w; its services stay as they were", d.dir, withoutPath(d.seen.err))
	} else {
		d.readFiles()
	}
	state := d.state()
	if d.told != nil && slices.EqualFunc(d.told, state, sameServiceFile) {
		return
	}
	d.told = state
	d.changed(slices.Clone(state))
}

// every is how often the directory is looked at for what raises no event.
func (d *serviceDirectory) every() time.Duration {
	if d.sure {
		return lookSeldom
	}
	return lookEvery
}

// differs reports whether the directory looks different from when it was read.
func (d *serviceDirectory) differs() bool { return !d.seen.equal(lookAt(d.dir)) }

// readFiles brings d.files up to date with the files seen.
func (d *serviceDirectory) readFiles() {
	files := make(map[string]*serviceFile, len(d.seen.files))
	for _, seen := range d.seen.files {
		f := d.files[seen.name]
		if f == nil {
			f = new(serviceFile)
		}
		f.read(filepath.Join(d.dir, seen.name))
		files[seen.name] = f
	}
	d.files = files
}

// state is what there is to tell. Which file has a service depends on what the
// files say, not on when they said so: it is the same after a restart.
func (d *serviceDirectory) state() []ServiceFile {
	all := make([]ServiceFile, 0, len(d.files)+1)
	if d.err != nil {
		all = append(all, ServiceFile{Path: d.dir, Err: d.err})
	}
	owners := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		told := ServiceFile{Path: filepath.Join(d.dir, name), Err: f.err}
		for _, svc := range f.services {
			owner, taken := owners[svc.Name]
			switch {
			case !taken:
				owners[svc.Name] = told.Path
				told.Services = append(told.Services, svc)
			case told.Err == nil:
				told.Err = fmt.Errorf("%s: service %s is in %s already", told.Path, svc.Name, owner)
			default:
				told.Err = fmt.Errorf("%w; service %s is in %s already", told.Err, svc.Name, owner)
			}
		}
		all = append(all, told)
	}
	return all
}

func sameServiceFile(a, b ServiceFile) bool {
	return a.Path == b.Path && slices.Equal(a.Services, b.Services) &&
		(a.Err == nil) == (b.Err == nil) && (a.Err == nil || a.Err.Error() == b.Err.Error())
}

// read brings f up to date with the file at path. The content is compared, not
// its time: that may be the same when two writes are close.
func (f *serviceFile) read(path string) {
	b, err := readServiceFile(path)
	if err != nil {
		f.content, f.err = [sha256.Size]byte{}, fmt.Errorf("%s: %w", path, withoutPath(err))
		return
	}
	content := sha256.Sum256(b)
	if content == f.content {
		return
	}
	f.content = content
	services, err := prepareServices(path, b)
	f.err = err
	// A changed comment changes nothing. What differs in representation only may
	// count as a change, which does no harm.
	if err == nil && !reflect.DeepEqual(services, f.services) {
		f.services = services
	}
}

// readServiceFile returns the content of a file that has any.
func readServiceFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxServiceFile+1)) // so that too much can be told
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, errors.New("is empty: remove the file to delete its services") // or about to be written
	}
	return b, nil
}

// withoutPath strips the path that package os puts into its errors.
func withoutPath(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// directoryLook is what a directory looks like from outside its files.
type directoryLook struct {
	dir   fs.FileInfo // nil if err is set
	err   error
	files []fileLook // by name
}

// fileLook is what a file looks like, behind all symbolic links.
type fileLook struct {
	name string
	info fs.FileInfo // nil if it cannot be known
}

// lookAt looks at dir and the files in it that may describe services.
func lookAt(dir string) directoryLook {
	info, err := os.Stat(dir)
	if err != nil {
		return directoryLook{err: err}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return directoryLook{err: err}
	}
	l := directoryLook{dir: info}
	for _, e := range entries {
		if !isServiceFile(e.Name()) {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			info = nil
		} else if info.IsDir() {
			continue
		}
		l.files = append(l.files, fileLook{e.Name(), info})
	}
	return l
}

// isServiceFile reports whether a name is one of a file that is read. Backups
// and drafts of editors are not: they are hidden, or end in something else, such
// as hello.yaml~, .hello.yaml.swp, #hello.yaml# and .#hello.yaml.
func isServiceFile(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return name[0] != '.'
	}
	return false
}

func (l directoryLook) equal(other directoryLook) bool {
	if l.err != nil || other.err != nil {
		return l.err != nil && other.err != nil && l.err.Error() == other.err.Error()
	}
	return os.SameFile(l.dir, other.dir) && slices.EqualFunc(l.files, other.files, fileLook.equal)
}

func (l fileLook) equal(other fileLook) bool {
	if l.name != other.name || l.info == nil || other.info == nil {
		return l.name == other.name && l.info == other.info
	}
	return os.SameFile(l.info, other.info) && l.info.Size() == other.info.Size() &&
		l.info.Mode() == other.info.Mode() && l.info.ModTime().Equal(other.info.ModTime())
}
