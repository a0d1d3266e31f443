package revisions

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// memory is a Store that fails when it is asked to. What it keeps outlives the
// registry, as a disk does.
type memory struct {
	mu     sync.Mutex
	values map[string]string
	writes int
	fail   func(op, key string, nth int) error
}

func newMemory() *memory { return &memory{values: make(map[string]string)} }

// failing makes f decide from now on which accesses that write fail; nil: none.
func (m *memory) failing(f func(op, key string, nth int) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

// failNth makes the n-th write from now fail, and no other.
func (m *memory) failNth(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	nth := m.writes + n
	m.fail = func(_, _ string, at int) error {
		if at == nth {
			return errDisk
		}
		return nil
	}
}

func broken(string, string, int) error { return errDisk }

// value is what is kept under a key.
func (m *memory) value(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[key]
}

func (m *memory) write(op, key string) error {
	m.writes++
	if m.fail != nil {
		return m.fail(op, key, m.writes)
	}
	return nil
}

func (m *memory) Store(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write("store", key); err != nil {
		return err
	}
	m.values[key] = string(value)
	return nil
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(v), nil
}

// Delete is like that of Caddy's file storage: all below key goes too.
func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write("delete", key); err != nil {
		return err
	}
	maps.DeleteFunc(m.values, func(k, _ string) bool { return k == key || strings.HasPrefix(k, key+"/") })
	return nil
}

func (m *memory) List(_ context.Context, prefix string, _ bool) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	for k := range m.values {
		if strings.HasPrefix(k, prefix+"/") {
			keys = append(keys, k)
		}
	}
	if keys == nil {
		return nil, fs.ErrNotExist
	}
	slices.Sort(keys)
	return keys, nil
}

// keys are those that exist, without the quarantine.
func (m *memory) keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(m.values)), func(k string) bool { return strings.HasPrefix(k, keyQuarantine) })
}

// checkAgainst checks that there is one record of each object, and no other.
func (m *memory) checkAgainst(t testing.TB, g *Registry) {
	t.Helper()
	var want []string
	for _, name := range g.Names() {
		want = append(want, serviceKey(name))
	}
	for _, name := range g.RevisionNames() {
		want = append(want, revisionKey(g.Revision(name)))
	}
	slices.Sort(want)
	match(t, "records", strings.Join(m.keys(), "\n"), strings.Join(want, "\n"))
}

var errDisk = errors.New("the disk is full")

// opened returns a registry on store that is closed when the test ends.
func opened(t testing.TB, store Store, opts Options) *desk {
	t.Helper()
	d := newDesk(t, opts)
	if err := d.Open(context.Background(), store); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close(context.Background()) })
	return d
}

func (d *desk) close() {
	d.t.Helper()
	if err := d.Close(context.Background()); err != nil {
		d.t.Fatal(err)
	}
}

// After a restart all is as it was, and goes on from there.
func TestRestart(t *testing.T) {
	store := newMemory()
	d := opened(t, store, Options{})
	svc := parse(t, document("hello", "app:1"))
	svc.Annotations = map[string]string{HostsAnnotation: "www.example.com"}
	if _, err := d.Create(svc, OwnerAPI); err != nil {
		t.Fatal(err)
	}
	d.pin(d.Revision("hello-00001"), "sha256:1")
	d.ready("hello-00001")
	d.deploy("app:2")
	d.failed("hello-00002")
	d.mustChange("hello", image("app:3", "hello-own"))
	d.ready("hello-own")
	d.traffic("hello-00001=25#old latest=75")
	obj := d.State("hello").RevisionObject(d.Revision("hello-00001"))
	obj.Labels["note"] = "x"
	if _, _, err := d.UpdateRevision(obj); err != nil {
		t.Fatal(err)
	}
	d.create("other", "app:1")
	if _, err := d.Delete("other", OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	apply2, _, err := d.Apply(prepared(t, document("declared", "app:1")), OwnerConfig)
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(d.Registry)
	stale := d.State("hello").Service.ResourceVersion
	d.close()
	store.checkAgainst(t, d.Registry)

	again := opened(t, store, Options{})
	match(t, "after the restart", snapshot(again.Registry), before)
	match(t, "problems", len(again.Problems()), 0)
	st := again.State("hello")
	match(t, "routes", routes(st), "hello-00001=25#old hello-own=75*")
	match(t, "digest", again.Revision("hello-00001").Digest(), "sha256:1")
	match(t, "label", st.RevisionObject(again.Revision("hello-00001")).Labels["note"], "x")
	match(t, "hash", again.Revision("hello-00001").Hash, d.Revision("hello-00001").Hash)
	match(t, "host", again.ServiceOfHost("www.example.com"), "hello")
	match(t, "owner", again.State("declared").Owner, OwnerConfig)
	if v := again.Revision("hello-00001").Object().ResourceVersion; v == "" || st.Service.ResourceVersion <= stale {
		t.Errorf("versions %s and, after %s, %s", v, stale, st.Service.ResourceVersion)
	}
	rev, created, err := again.Apply(prepared(t, document("declared", "app:1")), OwnerConfig)
	if err != nil || created || rev.Name != apply2.Name {
		t.Errorf("declared again: %v, %t, %v", rev, created, err)
	}
	match(t, "the next", again.deploy("app:4").Name, "hello-00004")
	if st := again.mustChange("hello", image("app:3", "hello-own")); st.Latest() != again.Revision("hello-own") || len(st.Revisions) != 4 {
		t.Errorf("rollback by name: latest is %v", st.latest)
	}
	// What was deleted is another one when it comes back; its generations may
	// begin anew, as no instance of it can be left.
	match(t, "the deleted", again.create("other", "app:1").Latest().Name, "other-00001")
}

// shape is what of a registry does not depend on the process or the time.
func shape(g *Registry) string {
	var all []string
	for _, name := range g.Names() {
		st := g.State(name)
		all = append(all, fmt.Sprint(name, " owner ", string(st.Owner), " generation ", st.Service.Generation, " latest ", st.latest,
			" ready ", st.Configuration.LatestReadyRevisionName, " routes [", routes(st), "] labels ", st.Service.Labels))
	}
	for _, name := range g.RevisionNames() {
		rev := g.Revision(name)
		all = append(all, fmt.Sprint(name, " generation ", rev.Generation, " ", rev.Spec().Image, " ", rev.Digest(), " ", rev.Readiness(), " ", rev.meta.Load().labels))
	}
	return strings.Join(all, "\n")
}

// step is one change of a history. One that is durable must be there after a
// crash once it has been answered.
type step struct {
	name    string
	durable bool
	do      func(*desk) error
}

func history(t testing.TB) []step {
	update := func(change func(*servingv1.Service)) func(*desk) error {
		return func(d *desk) error {
			_, err := d.change("hello", change)
			return err
		}
	}
	// By their order: a change that fails leaves a generation out.
	name := func(d *desk, n int) string { return d.State("hello").Revisions[n].Name }
	pin := func(d *desk) error {
		rev := d.State("hello").Latest()
		d.pin(rev, "sha256:"+rev.Name)
		return nil
	}
	ready := func(d *desk) error {
		d.MarkReady(d.State("hello").Latest())
		return nil
	}
	route := func(to func(*desk) string) func(*desk) error {
		return func(d *desk) error {
			return update(func(svc *servingv1.Service) { svc.Spec.Traffic = targets(to(d)) })(d)
		}
	}
	apply := func(name, image string, owner Owner) func(*desk) error {
		return func(d *desk) error {
			_, _, err := d.Apply(prepared(t, document(name, image)), owner)
			return err
		}
	}
	remove := func(name string) func(*desk) error {
		return func(d *desk) error {
			_, err := d.Delete(name, OwnerAPI, nil)
			return err
		}
	}
	return []step{
		{"create", true, func(d *desk) error {
			_, err := d.Create(parse(t, document("hello", "app:1")), OwnerAPI)
			return err
		}},
		{"first pinned", false, pin},
		{"first ready", false, ready},
		{"deploy", true, update(image("app:2", ""))},
		{"second pinned", false, pin},
		{"second ready", false, ready},
		{"a name of its own", true, update(image("app:3", "hello-own"))},
		{"own pinned", false, pin},
		{"own ready", false, ready},
		{"split", true, route(func(d *desk) string {
			return name(d, 0) + "=50 " + name(d, 1) + "=50 latest=0#next"
		})},
		{"label", true, update(func(svc *servingv1.Service) { svc.Labels = map[string]string{"a": "b"} })},
		{"label of a revision", true, func(d *desk) error {
			obj := d.State("hello").RevisionObject(d.Revision(name(d, 0)))
			obj.Labels["c"] = "d"
			_, _, err := d.UpdateRevision(obj)
			return err
		}},
		{"one revision", true, route(func(d *desk) string { return name(d, 1) + "=100" })},
		{"delete a revision", true, func(d *desk) error {
			_, err := d.DeleteRevision(name(d, 0))
			return err
		}},
		{"a file", true, apply("filed", "app:1", OwnerDirectory("x"))},
		{"back by name", true, update(image("app:2", ""))},
		{"delete", true, remove("hello")},
		{"create again", true, func(d *desk) error {
			_, err := d.Create(parse(t, document("hello", "app:9")), OwnerAPI)
			return err
		}},
		{"delete again", true, remove("hello")},
	}
}

// F36, F39: the process may end between any two writes. What the next one finds
// is the state before or after the change that was being made, and no more.
func TestCrashes(t *testing.T) {
	steps := history(t)
	shapes := []string{""}
	d := opened(t, newMemory(), Options{})
	for _, s := range steps {
		if err := s.do(d); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		shapes = append(shapes, shape(d.Registry))
	}
	for crash := 1; ; crash++ {
		store := newMemory()
		store.fail = func(_, _ string, nth int) error {
			if nth >= crash {
				return errDisk
			}
			return nil
		}
		d := opened(t, store, Options{})
		kept, made := 0, 0 // of steps
		for i, s := range steps {
			made = i + 1
			err := s.do(d)
			if err != nil {
				refused(t, s.name, err, apierrors.IsInternalError, errDisk.Error())
				break
			}
			if s.durable {
				kept = made
			}
		}
		_ = d.Close(context.Background())
		store.failing(nil)
		again := opened(t, store, Options{})
		got := shape(again.Registry)
		if !slices.Contains(shapes[kept:made+1], got) {
			t.Fatalf("a crash at write %d, in %q: got\n%s\nwant\n%s\nor\n%s", crash, steps[made-1].name, got, shapes[kept], strings.Join(shapes[kept+1:made+1], "\nor\n"))
		}
		match(t, "problems", len(again.Problems()), 0)
		again.close()
		store.checkAgainst(t, again.Registry)
		if t.Failed() {
			t.Fatalf("a crash at write %d, in %q", crash, steps[made-1].name)
		}
		if kept == len(steps) {
			t.Logf("%d writes", crash-1)
			return
		}
	}
}

// A change that could not be written has not been made, and can be made again.
func TestFailedWrites(t *testing.T) {
	steps := history(t)
	for nth := 1; nth <= 4; nth++ {
		store := newMemory()
		d := opened(t, store, Options{})
		failures := 0
		for _, s := range steps {
			if s.durable {
				before, names := snapshot(d.Registry), len(d.names)
				store.failNth(nth)
				err := s.do(d)
				store.failing(nil)
				if err == nil {
					continue
				}
				failures++
				refused(t, s.name, err, apierrors.IsInternalError, errDisk.Error())
				match(t, s.name+": what has changed all the same", snapshot(d.Registry), before)
				match(t, s.name+": names that are taken", len(d.names), names)
			}
			if err := s.do(d); err != nil {
				t.Fatalf("%s, again: %v", s.name, err)
			}
		}
		if failures == 0 {
			t.Errorf("no write %d has failed", nth)
		}
		d.close()
		store.checkAgainst(t, d.Registry)
		again := opened(t, store, Options{})
		match(t, "after the restart", snapshot(again.Registry), snapshot(d.Registry))
	}
}

// What may be written later is written until it works, and at the end.
func TestBackgroundWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		var reports []string
		d := newDesk(t, Options{Report: func(err error) { reports = append(reports, err.Error()) }})
		if err := d.Open(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		rev := apply(t, d.Registry, "app:1")
		synctest.Wait()
		store.checkAgainst(t, d.Registry)
		store.failing(broken)
		d.MarkReady(rev)
		apply(t, d.Registry, "app:2")
		time.Sleep(5 * saveRetry)
		synctest.Wait()
		if len(reports) < 3 || !strings.Contains(reports[0], "writing revision hello-0000") || !strings.Contains(reports[0], errDisk.Error()) {
			t.Errorf("reported: %q", reports)
		}
		store.failing(nil)
		time.Sleep(saveRetry)
		synctest.Wait()
		store.checkAgainst(t, d.Registry)

		store.failing(broken)
		d.Forget("hello")
		apply(t, d.Registry, "app:3")
		synctest.Wait()
		store.failing(nil)
		d.close() // does not wait for the next attempt
		store.checkAgainst(t, d.Registry)
		d.close()
		again := newDesk(t, Options{})
		if err := again.Open(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		match(t, "after the restart", snapshot(again.Registry), snapshot(d.Registry))
		again.close()
	})
}

func TestCloseTellsWhatWasNotWritten(t *testing.T) {
	store := newMemory()
	d := opened(t, store, Options{})
	store.failing(broken)
	apply(t, d.Registry, "app:1")
	if err := d.Close(context.Background()); !errors.Is(err, errDisk) {
		t.Errorf("got %v", err)
	}
}

// The registry goes on while it is closed: neither waits for the other.
func TestCloseWhileItChanges(t *testing.T) {
	d := opened(t, newMemory(), Options{})
	rev := apply(t, d.Registry, "app:0")
	var changing sync.WaitGroup
	for n := range 4 {
		changing.Go(func() {
			for i := range 50 {
				d.pin(rev, "sha256:1")
				d.Mark(rev, func(st *servingv1.RevisionStatus) { st.MarkActiveUnknown(fmt.Sprint(n, i), "") })
			}
		})
	}
	d.close()
	changing.Wait()
}

// F39: what cannot be read is set aside, shown, and loses nothing else.
func TestQuarantine(t *testing.T) {
	const service, first, latest = "fairway/services/hello.json", "fairway/revisions/hello/hello-00001.json", "fairway/revisions/hello/hello-00002.json"
	fill := func(t *testing.T) *memory {
		store := newMemory()
		d := opened(t, store, Options{})
		d.create("hello", "app:1")
		d.ready("hello-00001")
		d.deploy("app:2")
		d.ready("hello-00002")
		d.create("other", "app:1")
		d.ready("other-00001")
		d.close()
		return store
	}
	cut := func(text string) string { return text[:len(text)/2] }
	damages := []struct {
		name, words string
		damage      func(string) string
	}{
		{"torn", "it is damaged", cut},
		{"empty", "it is damaged", func(string) string { return "" }},
		{"zeros", "it is damaged", func(text string) string { return strings.Repeat("\x00", len(text)) }},
		{"other JSON", "it has no version", func(string) string { return `{"hello": "world"}` }},
		{"null", "it has no version", func(string) string { return `null` }},
		{"nothing but a version", "it is damaged", func(string) string { return `{"version": 2}` }},
		{"nothing but the first version", "it is damaged", func(string) string { return `{"version": 1}` }},
		{"newer", "it has version 3, which only a newer Fairway understands", func(text string) string { return strings.Replace(text, `"version":2`, `"version":3`, 1) }},
		{"newer, in another form", "it has version 99, which only a newer Fairway understands", func(string) string { return `{"version": 99, "service": [1], "revision": [1]}` }},
		{"another's", "it is not about the", func(text string) string { return strings.ReplaceAll(text, `"hello`, `"other`) }},
	}
	for _, test := range []struct{ key, want string }{
		// Its revisions wait for it.
		{service, "other owner  generation 1 latest other-00001 ready other-00001 routes [other-00001=100*] labels map[]\n" +
			"hello-00001 generation 1 app:1  1 map[]\nhello-00002 generation 2 app:2  1 map[]\nother-00001 generation 1 app:1  1 map[]"},
		{first, "hello owner  generation 2 latest hello-00002 ready hello-00002 routes [hello-00002=100*] labels map[]\n" +
			"other owner  generation 1 latest other-00001 ready other-00001 routes [other-00001=100*] labels map[]\n" +
			"hello-00002 generation 2 app:2  1 map[]\nother-00001 generation 1 app:1  1 map[]"},
		// It is made again of its service's template.
		{latest, "hello owner  generation 2 latest hello-00002 ready hello-00002 routes [hello-00002=100*] labels map[]\n" +
			"other owner  generation 1 latest other-00001 ready other-00001 routes [other-00001=100*] labels map[]\n" +
			"hello-00001 generation 1 app:1  1 map[]\nhello-00002 generation 2 app:2  0 map[]\nother-00001 generation 1 app:1  1 map[]"},
	} {
		for _, damage := range damages {
			t.Run(test.key[len("fairway/"):]+" "+damage.name, func(t *testing.T) {
				store := fill(t)
				bad := damage.damage(store.values[test.key])
				store.values[test.key] = bad
				var reports []error
				d := opened(t, store, Options{Report: func(err error) { reports = append(reports, err) }})
				match(t, "what is left", shape(d.Registry), test.want)
				problems := d.Problems()
				if len(problems) != 1 || problems[0].Key != test.key || !strings.Contains(problems[0].Error(), damage.words) || len(reports) != 1 {
					t.Fatalf("problems %v, reported %v", problems, reports)
				}
				match(t, "what was set aside", store.value(problems[0].Moved), bad)
				d.close()
				store.checkAgainst(t, d.Registry)

				again := opened(t, store, Options{})
				match(t, "after another restart", shape(again.Registry), test.want)
				match(t, "problems after another restart", len(again.Problems()), 0)
			})
		}
	}
}

// A record that ends anywhere before its end is damaged, and one that somebody
// has mended by hand is not.
func TestCutRecords(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	rev := d.Revision("hello-00001")
	b, err := encodeRevision(rev)
	if err != nil {
		t.Fatal(err)
	}
	key := revisionKey(rev)
	for n := range len(b) - 1 { // the last newline says nothing
		if _, err := decodeRevision(key, b[:n]); err == nil || !strings.Contains(err.Error(), "it is damaged") {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	for _, whole := range [][]byte{b, b[:len(b)-1]} {
		read, err := decodeRevision(key, whole)
		if err != nil {
			t.Fatal(err)
		}
		match(t, "read", saidBy(read), saidBy(rev))
	}
	for _, test := range []struct{ old, new, image, want string }{
		{`"image":"app:1"`, `"image": "app:2"`, "app:2", ""},
		{`"containerConcurrency":80`, `"containerConcurrency":-1`, "", "containerConcurrency -1 is not a number from 1 to 1000"},
		{`"image":"app:1"`, `"image":1`, "", "cannot unmarshal number"},
	} {
		read, err := decodeRevision(key, bytes.Replace(b, []byte(test.old), []byte(test.new), 1))
		switch {
		case test.want != "":
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: got %v, want it to say %q", test.new, err, test.want)
			}
		case err != nil:
			t.Errorf("%s: %v", test.new, err)
		default:
			match(t, "image", read.Spec().Image, test.image)
		}
	}
}

// What an older Fairway kept is understood, and kept as now when it changes.
func TestRecordsOfVersion1(t *testing.T) {
	store := newMemory()
	dir := os.DirFS("testdata/version1")
	err := fs.WalkDir(dir, ".", func(key string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := fs.ReadFile(dir, key)
		store.values[key] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const first = "fairway/revisions/hello/hello-00001.json"
	before, old := store.keys(), store.values[first]
	want := "hello owner  generation 2 latest hello-00002 ready hello-00001 routes [hello-00001=100*] labels map[]\n" +
		"hello-00001 generation 1 app:1 sha256:1 1 map[note:x]\nhello-00002 generation 2 app:2  2 map[]"
	d := opened(t, store, Options{})
	match(t, "problems", d.Problems(), nil)
	match(t, "read", shape(d.Registry), want)
	match(t, "not changed", store.value(first), old)
	hash := d.Revision("hello-00001").Hash
	d.traffic("hello-00001=100 hello-00001=0#old")
	d.traffic("latest=100")
	d.Mark(d.Revision("hello-00001"), func(st *servingv1.RevisionStatus) { st.MarkActiveTrue() })
	d.close()
	match(t, "records", store.keys(), before)
	if now := store.value(first); !strings.HasPrefix(now, `{"version":2,`) {
		t.Errorf("changed: %s", now)
	}

	d = opened(t, store, Options{})
	match(t, "problems", d.Problems(), nil)
	match(t, "read again", shape(d.Registry), strings.Replace(want, "generation 2 latest", "generation 4 latest", 1))
	match(t, "hash", d.Revision("hello-00001").Hash, hash)
}

// A service whose record is lost is not wanted, but what it had is not touched:
// not by Caddy's config either, which does not declare it.
func TestALostService(t *testing.T) {
	store := newMemory()
	d := opened(t, store, Options{})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	d.close()
	good := store.values[serviceKey("hello")]
	store.values[serviceKey("hello")] = good[:100]

	d = opened(t, store, Options{})
	if st := d.State("hello"); d.Known("hello") || st == nil || len(st.Revisions) != 1 {
		t.Fatalf("got %v", st)
	}
	d.Forget("hello")
	match(t, "revisions", d.RevisionNames(), []string{"hello-00001"})
	d.close()
	// Mended by hand.
	store.values[serviceKey("hello")] = good
	d = opened(t, store, Options{})
	match(t, "mended", shape(d.Registry), "hello owner  generation 1 latest hello-00001 ready hello-00001 routes [hello-00001=100*] labels map[]\nhello-00001 generation 1 app:1  1 map[]")
	d.close()

	// Caddy's config may take it over, and then it forgets it like any other.
	store.values[serviceKey("hello")] = good[:100]
	d = opened(t, store, Options{})
	match(t, "declared", apply(t, d.Registry, "app:2").Name, "hello-00002")
	d.Forget("hello")
	match(t, "revisions", len(d.RevisionNames()), 0)
	d.close()
	match(t, "records", len(store.keys()), 0)
	store = newMemory()
	d = opened(t, store, Options{})
	d.create("hello", "app:1")
	d.close()

	store.values[serviceKey("hello")] = good[:100]
	d = opened(t, store, Options{})
	match(t, "made again", d.create("hello", "app:2").Latest().Name, "hello-00002")
	match(t, "its revisions", len(d.State("hello").Revisions), 2)
	if _, err := d.Delete("hello", OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	store.checkAgainst(t, d.Registry)
}

// What is none of the registry's is left alone; what only looks like it is set
// aside.
func TestForeignKeys(t *testing.T) {
	store := newMemory()
	store.values["fairway/services/README.txt"] = "mine"
	store.values["fairway/services/hello.json.tmp123"] = "{"
	store.values["fairway/revisions/deep/down/x.json"] = "{}"
	store.values["fairway/services/hello.json"] = `{"version": 1, "service": {"metadata": {"name": "goodbye"}}}`
	store.values["acme/x.json"] = "{"
	d := opened(t, store, Options{})
	var keys []string
	for _, p := range d.Problems() {
		keys = append(keys, p.Key)
	}
	slices.Sort(keys)
	match(t, "set aside", keys, []string{"fairway/revisions/deep/down/x.json", "fairway/services/hello.json"})
	match(t, "left", store.keys(), []string{"acme/x.json", "fairway/services/README.txt", "fairway/services/hello.json.tmp123"})
	d.create("hello", "app:1")
}

// A store that cannot be read at all, or written when a record has to be set
// aside, is an error: going on would lose what it has.
func TestOpenFails(t *testing.T) {
	store := newMemory()
	d := opened(t, store, Options{})
	d.create("hello", "app:1")
	d.close()
	store.values[serviceKey("hello")] = "{"
	store.failing(broken)
	if err := NewRegistry(Options{}).Open(t.Context(), store); !errors.Is(err, errDisk) {
		t.Errorf("setting aside: got %v", err)
	}
	if err := NewRegistry(Options{}).Open(t.Context(), unreadable{store}); !errors.Is(err, errDisk) {
		t.Errorf("reading: got %v", err)
	}
}

type unreadable struct{ *memory }

func (unreadable) Load(context.Context, string) ([]byte, error) { return nil, errDisk }

// Of a change that failed half way nothing is left in the store either, though
// it is not tried again.
func TestFailedWritesAreTakenBack(t *testing.T) {
	steps := history(t)
	for last := range steps {
		for nth := 1; nth <= 4; nth++ {
			store := newMemory()
			d := opened(t, store, Options{})
			for _, s := range steps[:last] {
				if err := s.do(d); err != nil {
					t.Fatalf("%s: %v", s.name, err)
				}
			}
			if !steps[last].durable {
				break
			}
			store.failNth(nth)
			err := steps[last].do(d)
			store.failing(nil)
			d.close()
			store.checkAgainst(t, d.Registry)
			again := opened(t, store, Options{})
			match(t, "after the restart", snapshot(again.Registry), snapshot(d.Registry))
			if t.Failed() {
				t.Fatalf("%s, write %d: %v", steps[last].name, nth, err)
			}
		}
	}
}
