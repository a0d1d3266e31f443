package revisions

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ValueKind is a kind of named values that instances refer to.
type ValueKind string

// The kinds, by Kubernetes' names for them.
const (
	Secrets    ValueKind = "secrets"
	ConfigMaps ValueKind = "configmaps"
)

// MaxValues bounds what one secret or config map holds (Kubernetes: 1 MiB).
const MaxValues = 1 << 20

// metaFile holds what the API knows of an object; '@' is in no key's name.
const metaFile = "@meta.json"

// Values keeps secrets and config maps as files that only root can read: a
// directory for each, with one file per key. Whoever prefers so makes them by
// hand: mkdir -p <dir>/secrets/db && cp password <dir>/secrets/db/. They are
// nowhere else: not in the registry's records, in logs or in answers of the API.
// A change replaces an object as a whole: a reader sees all keys of one version,
// and after a crash there is the old one or the new one. It is safe for
// concurrent use, by several processes too.
//
// Errors are those of Kubernetes' API (k8s.io/apimachinery/pkg/api/errors).
type Values struct {
	dir string
	mu  sync.Mutex // held by whoever changes something
}

// NewValues returns the values below dir, which need not exist.
func NewValues(dir string) *Values { return &Values{dir: dir} }

// Object is a secret or a config map.
type Object struct {
	Name string
	// Data is what it holds, by key.
	Data map[string][]byte
	// Version changes with every change of it.
	Version string
	Meta    ObjectMeta
}

// ObjectMeta is what the API keeps of an object besides its values; an object
// that was made by hand has none.
type ObjectMeta struct {
	UID         string            `json:"uid,omitempty"`
	Created     time.Time         `json:"created,omitzero"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Type        string            `json:"type,omitempty"`
	Immutable   bool              `json:"immutable,omitempty"`
}

// Get returns an object. Errors: NotFound.
func (v *Values) Get(kind ValueKind, name string) (*Object, error) {
	if err := checkObjectName(name); err != nil {
		return nil, apierrors.NewNotFound(kind.resource(), name)
	}
	for {
		o, err := v.read(kind, name)
		switch {
		case err == nil:
			return o, nil
		case errors.Is(err, errReplaced):
			continue
		case errors.Is(err, fs.ErrNotExist):
			return nil, apierrors.NewNotFound(kind.resource(), name)
		}
		return nil, fmt.Errorf("reading %s %s: %w", kind, name, err)
	}
}

// errReplaced means that an object was replaced while it was read.
var errReplaced = errors.New("replaced")

// read reads an object from its directory, whatever becomes of the path. What
// was read counts only if the directory is still the object in the end: one that
// was replaced is being emptied.
func (v *Values) read(kind ValueKind, name string) (*Object, error) {
	if err := v.private(kind); err != nil {
		return nil, err
	}
	path := filepath.Join(v.dir, string(kind), name)
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	before, err := root.Stat(".")
	if err != nil {
		return nil, err
	}
	o, err := readObject(root, path, before)
	now, statErr := os.Stat(path)
	switch {
	case statErr != nil && !errors.Is(statErr, fs.ErrNotExist):
		return nil, statErr
	case statErr != nil || !os.SameFile(before, now):
		return nil, errReplaced
	case errors.Is(err, fs.ErrNotExist): // a file, which somebody has just removed by hand
		return nil, errReplaced
	case err != nil:
		return nil, err
	}
	o.Name = name
	return o, nil
}

// private keeps all but root from a directory that was made by hand with the
// usual permissions.
func (v *Values) private(kind ValueKind) error {
	path := filepath.Join(v.dir, string(kind))
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	return os.Chmod(path, 0o700) //nolint:gosec // it is a directory
}

// readObject reads what the directory root at path holds.
func readObject(root *os.Root, path string, dir fs.FileInfo) (*Object, error) {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, err
	}
	o := &Object{Data: make(map[string][]byte)}
	version := fnv.New64a()
	stamp(version, dir)
	size := 0
	for _, e := range entries {
		key := len(validation.IsConfigMapKey(e.Name())) == 0
		if !key && e.Name() != metaFile {
			continue // somebody's other file
		}
		b, info, err := readValue(root, path, e.Name())
		if err != nil {
			return nil, err
		}
		if info == nil {
			continue
		}
		stamp(version, info)
		if !key {
			if err := json.Unmarshal(b, &o.Meta); err != nil {
				return nil, fmt.Errorf("%s: %w", metaFile, err)
			}
			continue
		}
		if size += len(b); size > MaxValues {
			return nil, fmt.Errorf("it holds more than %d bytes", MaxValues)
		}
		o.Data[e.Name()] = b
	}
	o.Version = strconv.FormatUint(version.Sum64()>>1, 10) // a number, for clients that compare
	return o, nil
}

// stamp adds to a version what changes with a file. It is not made of what the
// file holds: a version is shown, and short secrets could be guessed by it.
func stamp(version io.Writer, info fs.FileInfo) {
	st := info.Sys().(*syscall.Stat_t)
	fmt.Fprintf(version, "%q %d %d %d %d\n", info.Name(), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}

// readValue reads a file of the directory root, or, where it is a link to
// elsewhere, what it points to: Kubernetes itself mounts secrets so. The info is
// nil if it is no file.
func readValue(root *os.Root, path, name string) ([]byte, fs.FileInfo, error) {
	// Not blocking: it could be a pipe.
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		link, linkErr := root.Lstat(name)
		if linkErr != nil || link.Mode()&fs.ModeSymlink == 0 {
			return nil, nil, err
		}
		f, err = os.OpenFile(filepath.Join(path, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil // it points nowhere
		}
		if err != nil {
			return nil, nil, err
		}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxValues+1))
	return b, info, err
}

// List returns all objects of a kind, by name.
func (v *Values) List(kind ValueKind) ([]*Object, error) {
	entries, err := os.ReadDir(filepath.Join(v.dir, string(kind)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing %s: %w", kind, err)
	}
	var all []*Object
	for _, e := range entries {
		if checkObjectName(e.Name()) != nil {
			continue
		}
		o, err := v.Get(kind, e.Name())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	return all, nil
}

// Put makes an object what o says. With create it must not exist yet, else it
// must; a Version in o must be its present one. It returns what is there now.
// Errors: BadRequest, AlreadyExists, NotFound, Conflict.
func (v *Values) Put(kind ValueKind, o *Object, create bool) (*Object, error) {
	if err := checkObject(kind, o); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	end, err := v.change(kind)
	if err != nil {
		return nil, fmt.Errorf("writing %s %s: %w", kind, o.Name, err)
	}
	defer end()
	before, err := v.Get(kind, o.Name)
	meta := o.Meta
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return nil, err
	case create && err == nil:
		return nil, apierrors.NewAlreadyExists(kind.resource(), o.Name)
	case create:
		meta.UID, meta.Created = string(uuid.NewUUID()), time.Now().UTC().Truncate(time.Second)
	case err != nil:
		return nil, err
	case o.Version != "" && o.Version != before.Version:
		return nil, apierrors.NewConflict(kind.resource(), o.Name,
			errors.New("the object has been modified; please apply your changes to the latest version and try again"))
	case before.Meta.Immutable && (!maps.EqualFunc(o.Data, before.Data, slices.Equal) || !meta.Immutable):
		return nil, apierrors.NewConflict(kind.resource(), o.Name, errors.New("it is immutable: delete it, and create it again"))
	default:
		meta.UID, meta.Created = before.Meta.UID, before.Meta.Created
	}
	if err := v.write(kind, o.Name, o.Data, meta, before != nil); err != nil {
		return nil, fmt.Errorf("writing %s %s: %w", kind, o.Name, err)
	}
	return v.Get(kind, o.Name)
}

// write makes a new directory and puts it in the old one's place.
func (v *Values) write(kind ValueKind, name string, data map[string][]byte, meta ObjectMeta, exists bool) (err error) {
	parent := filepath.Join(v.dir, string(kind))
	next, err := os.MkdirTemp(parent, "@new-") // '@' is in no object's name
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(next)) }()
	m, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	for key, b := range data {
		if err := writeSynced(filepath.Join(next, key), b); err != nil {
			return err
		}
	}
	if err := errors.Join(writeSynced(filepath.Join(next, metaFile), m), syncDir(next)); err != nil {
		return err
	}
	path := filepath.Join(parent, name)
	if exists {
		err = unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	} else {
		err = os.Rename(next, path)
	}
	return errors.Join(err, syncDir(parent))
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// change begins a change of objects of a kind, and returns what ends it: only
// one is made at a time, by this process or another. It removes what a process
// has left that was killed in the middle of one.
func (v *Values) change(kind ValueKind) (end func(), err error) {
	parent := filepath.Join(v.dir, string(kind))
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	v.mu.Lock()
	dir, err := os.Open(parent)
	end = func() {
		_ = dir.Close() // and the lock goes
		v.mu.Unlock()
	}
	if err == nil {
		err = flock(dir)
	}
	if err == nil {
		err = removeUnfinished(parent)
	}
	if err != nil {
		end()
		return nil, err
	}
	return end, nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func removeUnfinished(parent string) error {
	left, err := filepath.Glob(filepath.Join(parent, "@*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// Delete removes an object. Errors: NotFound.
func (v *Values) Delete(kind ValueKind, name string) error {
	if _, err := v.Get(kind, name); err != nil {
		return err
	}
	if err := v.remove(kind, name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return apierrors.NewNotFound(kind.resource(), name)
		}
		return fmt.Errorf("removing %s %s: %w", kind, name, err)
	}
	return nil
}

// remove takes an object away as a whole, and then apart.
func (v *Values) remove(kind ValueKind, name string) error {
	end, err := v.change(kind)
	if err != nil {
		return err
	}
	defer end()
	parent := filepath.Join(v.dir, string(kind))
	gone, err := os.MkdirTemp(parent, "@old-")
	if err != nil {
		return err
	}
	err = os.Rename(filepath.Join(parent, name), filepath.Join(gone, name))
	return errors.Join(err, os.RemoveAll(gone), syncDir(parent))
}

func (k ValueKind) resource() schema.GroupResource { return schema.GroupResource{Resource: string(k)} }

func checkObjectName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return fmt.Errorf("metadata.name: %q: %s", name, problems[0])
	}
	return nil
}

func checkObject(kind ValueKind, o *Object) error {
	if err := checkObjectName(o.Name); err != nil {
		return err
	}
	size := 0
	for key, b := range o.Data {
		if problems := validation.IsConfigMapKey(key); len(problems) > 0 {
			return fmt.Errorf("%s %s: data: the key %q: %s", kind, o.Name, key, problems[0])
		}
		size += len(b)
	}
	if size > MaxValues {
		return fmt.Errorf("%s %s: data: it holds %d bytes, and may hold %d", kind, o.Name, size, MaxValues)
	}
	return nil
}

// Lookup returns the values of an object, and false if there is none.
func (v *Values) Lookup(kind ValueKind, name string) (map[string][]byte, bool, error) {
	o, err := v.Get(kind, name)
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return o.Data, true, nil
}
