package revisions

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func newTestValues(t testing.TB) (*Values, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "values")
	return NewValues(dir), dir
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestValues(t *testing.T) {
	v, dir := newTestValues(t)
	if _, err := v.Get(Secrets, "db"); !apierrors.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
	if _, err := v.Put(Secrets, &Object{Name: "db"}, false); !apierrors.IsNotFound(err) {
		t.Errorf("replacing what is not there: %v", err)
	}
	if err := v.Delete(Secrets, "db"); !apierrors.IsNotFound(err) {
		t.Errorf("removing what is not there: %v", err)
	}
	data := map[string][]byte{"password": []byte("s3cret"), ".hidden": {}, "binary": {0, 255, '\n'}}
	made := must[*Object](t)(v.Put(Secrets, &Object{Name: "db", Data: data, Meta: ObjectMeta{Type: "Opaque", Labels: map[string]string{"a": "b"}}}, true))
	if made.Meta.UID == "" || made.Meta.Created.IsZero() || made.Meta.Type != "Opaque" || made.Meta.Labels["a"] != "b" || made.Version == "" {
		t.Errorf("made: %+v", made)
	}
	if diff := cmp.Diff(data, made.Data); diff != "" {
		t.Error(diff)
	}
	if _, err := v.Put(Secrets, &Object{Name: "db"}, true); !apierrors.IsAlreadyExists(err) {
		t.Errorf("making it again: %v", err)
	}
	again := must[*Object](t)(v.Get(Secrets, "db"))
	if diff := cmp.Diff(made, again); diff != "" {
		t.Error(diff)
	}

	next := &Object{Name: "db", Version: made.Version, Data: map[string][]byte{"user": []byte("me")}}
	replaced := must[*Object](t)(v.Put(Secrets, next, false))
	if len(replaced.Data) != 1 || replaced.Meta.UID != made.Meta.UID || !replaced.Meta.Created.Equal(made.Meta.Created) || replaced.Version == made.Version {
		t.Errorf("replaced: %+v; before %+v", replaced, made)
	}
	if _, err := v.Put(Secrets, next, false); !apierrors.IsConflict(err) {
		t.Errorf("replacing an old version: %v", err)
	}
	if _, err := v.Get(ConfigMaps, "db"); !apierrors.IsNotFound(err) {
		t.Errorf("of the other kind: %v", err)
	}
	for _, path := range []string{"secrets", "secrets/db", "secrets/db/user"} {
		info := must[fs.FileInfo](t)(os.Stat(filepath.Join(dir, path)))
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has permissions %s", path, info.Mode())
		}
	}
	if err := v.Delete(Secrets, "db"); err != nil {
		t.Error(err)
	}
	if left := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(dir, "secrets"))); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestValuesImmutable changes only what may change.
func TestValuesImmutable(t *testing.T) {
	v, _ := newTestValues(t)
	o := Object{Name: "fixed", Data: map[string][]byte{"a": []byte("1")}, Meta: ObjectMeta{Immutable: true}}
	must[*Object](t)(v.Put(ConfigMaps, &o, true))
	labelled := o
	labelled.Meta.Labels = map[string]string{"a": "b"}
	must[*Object](t)(v.Put(ConfigMaps, &labelled, false))
	changed, mutable := o, o
	changed.Data = map[string][]byte{"a": []byte("2")}
	mutable.Meta.Immutable = false
	for _, o := range []Object{changed, mutable} {
		if _, err := v.Put(ConfigMaps, &o, false); !apierrors.IsConflict(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestValuesByHand reads what somebody has made with mkdir, cp and ln.
func TestValuesByHand(t *testing.T) {
	v, dir := newTestValues(t)
	db := filepath.Join(dir, "secrets", "db")
	outside := filepath.Join(t.TempDir(), "outside")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(db, "directory"), 0o755),
		os.WriteFile(filepath.Join(db, "password"), []byte("one"), 0o644),
		os.WriteFile(filepath.Join(db, "not a key~"), []byte("x"), 0o644),
		os.WriteFile(outside, []byte("two"), 0o644),
		os.Symlink(outside, filepath.Join(db, "linked")),
		os.Symlink("/no/such/file", filepath.Join(db, "dangling")),
		unix.Mkfifo(filepath.Join(db, "pipe"), 0o600),
		os.MkdirAll(filepath.Join(dir, "secrets", "Not_A_Name"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o := must[*Object](t)(v.Get(Secrets, "db"))
	want := map[string][]byte{"password": []byte("one"), "linked": []byte("two")}
	if diff := cmp.Diff(want, o.Data); diff != "" {
		t.Error(diff)
	}
	if info := must[fs.FileInfo](t)(os.Stat(filepath.Join(dir, "secrets"))); info.Mode().Perm() != 0o700 {
		t.Errorf("the directory's permissions are %s", info.Mode())
	}
	all := must[[]*Object](t)(v.List(Secrets))
	if len(all) != 1 || all[0].Name != "db" {
		t.Errorf("listed: %+v", all)
	}
	time.Sleep(10 * time.Millisecond) // the clock of file systems is a coarse one
	if err := os.WriteFile(filepath.Join(db, "password"), []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	edited := must[*Object](t)(v.Get(Secrets, "db"))
	if edited.Version == o.Version {
		t.Error("an edit in place has not changed the version")
	}
	// The API takes it over.
	o.Version = ""
	if _, err := v.Put(Secrets, o, true); !apierrors.IsAlreadyExists(err) {
		t.Errorf("making what is there: %v", err)
	}
	must[*Object](t)(v.Put(Secrets, o, false))
	data, found, err := v.Lookup(Secrets, "db")
	if err != nil || !found || string(data["password"]) != "one" {
		t.Errorf("looked up: %q %v %v", data, found, err)
	}
	if _, found, err := v.Lookup(Secrets, "none"); err != nil || found {
		t.Errorf("what is not there: %v %v", found, err)
	}
}

func TestValuesRefused(t *testing.T) {
	v, dir := newTestValues(t)
	refused := []Object{{Name: "a", Data: map[string][]byte{"a": make([]byte, MaxValues), "b": {1}}}}
	for _, name := range []string{"", "..", "a/b", "A", "@new-1", strings.Repeat("a", 254)} {
		refused = append(refused, Object{Name: name})
	}
	for _, key := range []string{"", ".", "..", "..x", "a/b", metaFile, strings.Repeat("a", 254)} {
		refused = append(refused, Object{Name: "a", Data: map[string][]byte{key: nil}})
	}
	for _, o := range refused {
		if _, err := v.Put(Secrets, &o, true); !apierrors.IsBadRequest(err) {
			t.Errorf("%q: %v", o.Name, err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
	for _, name := range []string{"..", "../secrets/a", ""} {
		if _, err := v.Get(Secrets, name); !apierrors.IsNotFound(err) {
			t.Errorf("getting %q: %v", name, err)
		}
		if err := v.Delete(Secrets, name); !apierrors.IsNotFound(err) {
			t.Errorf("deleting %q: %v", name, err)
		}
	}
	full := map[string][]byte{"a": make([]byte, MaxValues)}
	must[*Object](t)(v.Put(Secrets, &Object{Name: "full", Data: full}, true))
	if err := os.WriteFile(filepath.Join(dir, "secrets", "full", "b"), []byte{1}, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Get(Secrets, "full"); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("more than is allowed: %v", err)
	}
}

// TestValuesConcurrently replaces, removes and reads an object: every reader
// sees one version, whole.
func TestValuesConcurrently(t *testing.T) {
	v, dir := newTestValues(t)
	other := NewValues(dir) // as of another process
	whole := func(n int) map[string][]byte {
		data := make(map[string][]byte)
		for key := range 5 {
			data[fmt.Sprint(key)] = fmt.Append(nil, n)
		}
		return data
	}
	must[*Object](t)(v.Put(Secrets, &Object{Name: "db", Data: whole(0)}, true))
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				o, err := v.Get(Secrets, "db")
				if err != nil && !apierrors.IsNotFound(err) {
					t.Error(err)
				}
				if err == nil && (len(o.Data) != 5 || !same(o.Data)) {
					t.Errorf("torn: %q", o.Data)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for w, values := range []*Values{v, other} {
		writers.Go(func() {
			for n := range 25 {
				if _, err := values.Put(Secrets, &Object{Name: "db", Data: whole(1000*w + n)}, false); apierrors.IsNotFound(err) {
					_, err = values.Put(Secrets, &Object{Name: "db", Data: whole(1000*w + n)}, true)
					if err != nil && !apierrors.IsAlreadyExists(err) {
						t.Error(err)
					}
				} else if err != nil {
					t.Error(err)
				}
				if n%10 == 9 {
					if err := values.Delete(Secrets, "db"); err != nil && !apierrors.IsNotFound(err) {
						t.Error(err)
					}
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

func same(data map[string][]byte) bool {
	all := slices.Collect(maps.Values(data))
	return !slices.ContainsFunc(all, func(b []byte) bool { return !bytes.Equal(b, all[0]) })
}

// TestValuesOneWins lets two replace the same version.
func TestValuesOneWins(t *testing.T) {
	v, _ := newTestValues(t)
	o := must[*Object](t)(v.Put(ConfigMaps, &Object{Name: "a"}, true))
	for round := range 5 {
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for n := range errs {
			wg.Go(func() {
				_, errs[n] = v.Put(ConfigMaps, &Object{Name: "a", Version: o.Version, Data: map[string][]byte{"n": {byte(n)}}}, false)
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !apierrors.IsConflict(err) {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Fatalf("round %d: %d have won", round, won)
		}
		o = must[*Object](t)(v.Get(ConfigMaps, "a"))
	}
}

// TestValuesTorn finds what a process has left that was killed while it wrote.
func TestValuesTorn(t *testing.T) {
	v, dir := newTestValues(t)
	must[*Object](t)(v.Put(Secrets, &Object{Name: "db", Data: map[string][]byte{"a": []byte("1")}}, true))
	for _, left := range []string{"@new-1", "@old-2/db"} {
		path := filepath.Join(dir, "secrets", left)
		if err := errors.Join(os.MkdirAll(path, 0o700), os.WriteFile(filepath.Join(path, "a"), []byte("half"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if all := must[[]*Object](t)(v.List(Secrets)); len(all) != 1 || string(all[0].Data["a"]) != "1" {
		t.Errorf("listed: %+v", all)
	}
	must[*Object](t)(v.Put(Secrets, &Object{Name: "db", Data: map[string][]byte{"a": []byte("2")}}, false))
	if left := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(dir, "secrets"))); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// FuzzValues puts anything: what is taken reads back as it is, and nothing is
// made outside the directory.
func FuzzValues(f *testing.F) {
	f.Add("db", "password", "user", []byte("secret"))
	f.Add("..", "../x", ".", []byte{0, 255})
	f.Add("a.b-c", "..data", "@meta.json", []byte("{}"))
	f.Fuzz(func(t *testing.T, name, key1, key2 string, value []byte) {
		dir := t.TempDir()
		v := NewValues(filepath.Join(dir, "v"))
		o := &Object{Name: name, Data: map[string][]byte{key1: value, key2: nil}}
		_, err := v.Put(Secrets, o, true)
		if entries := must[[]os.DirEntry](t)(os.ReadDir(dir)); len(entries) > 1 || (len(entries) == 1 && entries[0].Name() != "v") {
			t.Fatalf("made outside: %v", entries)
		}
		if err != nil {
			return
		}
		got := must[*Object](t)(v.Get(Secrets, name))
		for key, b := range o.Data {
			if !bytes.Equal(got.Data[key], b) {
				t.Errorf("%q: %q; want %q", key, got.Data[key], b)
			}
		}
		if len(got.Data) != len(o.Data) {
			t.Errorf("got %q", got.Data)
		}
	})
}
