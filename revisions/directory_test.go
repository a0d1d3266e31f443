package revisions

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/api/equality"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// document is a service as a file has it, on six lines.
func document(name, image string) string {
	return fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
  template:
    spec: {containers: [{image: %s}]}
`, name, image)
}

func TestDecodeServices(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string // name=image
	}{
		"nothing":           {"", nil},
		"comments":          {"# one\n\n# two\n", nil},
		"empty documents":   {"---\n---\n# three\n---\n", nil},
		"one":               {document("a", "x"), []string{"a=x"}},
		"byte order mark":   {"\ufeff" + document("a", "x"), []string{"a=x"}},
		"other line ends":   {strings.ReplaceAll(document("a", "x"), "\n", "\r\n"), []string{"a=x"}},
		"several":           {"# top\n---\n" + document("b", "x") + "--- # and\n" + document("a", "z") + "...\n---\n", []string{"b=x", "a=z"}},
		"JSON":              {`{"apiVersion":"serving.knative.dev\/v1","kind":"Service","metadata":{"name":"a"},"spec":{"template":{"spec":{"containers":[{"image":"\u0078"}]}}}}`, []string{"a=x"}},
		"JSON with tabs":    {"{\n\t\"apiVersion\": \"serving.knative.dev/v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {\n\t\t\"name\": \"a\"\n\t},\n\t\"spec\": {\"template\": {\"spec\": {\"containers\": [\n\t\t{\"image\": \"x\"}\n\t]}}}\n}\n", []string{"a=x"}},
		"anchors":           {strings.Replace(document("&n a", "*n"), "*n}", "*n }", 1), []string{"a=a"}},
		"nulls":             {document("a", "x") + "    metadata: ~\nstatus:\n", []string{"a=x"}},
		"exported":          {document("a", "x") + "status: {url: 'http://a.example.com', conditions: [{type: Ready, status: 'True', lastTransitionTime: '2024-01-01T00:00:00Z'}]}\n", []string{"a=x"}},
		"without container": {"{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}", []string{"a="}},
	} {
		t.Run(name, func(t *testing.T) {
			services, err := DecodeServices("f.yaml", []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, svc := range services {
				image := ""
				if c := svc.Spec.Template.Spec.Containers; len(c) > 0 {
					image = c[0].Image
				}
				got = append(got, svc.Name+"="+image)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestDecodeServicesRefuses(t *testing.T) {
	hello := document("hello", "x")
	for name, test := range map[string]struct{ text, want string }{
		"no YAML":           {"a: {", "document 1: yaml: line 1"},
		"no YAML later":     {hello + "---\na: b: c", "document 2: yaml: mapping values are not allowed"},
		"another kind":      {"kind: Deployment\napiVersion: apps/v1", `it is apiVersion "apps/v1", kind "Deployment"`},
		"no kind":           {"apiVersion: serving.knative.dev/v1", `kind "", and must be`},
		"no name":           {"apiVersion: serving.knative.dev/v1\nkind: Service", "missing field(s): metadata.name"},
		"another document":  {hello + "---\n{apiVersion: v1, kind: Service}", `document 2: it is apiVersion "v1"`},
		"unknown field":     {strings.Replace(hello, "image", "imagee", 1), `unknown field "spec.template.spec.containers[0].imagee"`},
		"its case":          {strings.Replace(hello, "image", "Image", 1), `unknown field "spec.template.spec.containers[0].Image"`},
		"a field twice":     {hello + "kind: Service", `key "kind" already set in map`},
		"number for string": {strings.Replace(hello, "image: x", "image: x, env: [{name: A, value: 1.10}]", 1), "env.value of type string"},
		"string for number": {strings.Replace(hello, "{containers", "{containerConcurrency: '8', containers", 1), "containerConcurrency of type int64"},
		"quantity":          {strings.Replace(hello, "image: x", "image: x, resources: {limits: {memory: lots}}", 1), "quantities must match"},
		"one name":          {hello + "---\n---\n" + hello, "service hello is in document"},
		"too large":         {strings.Repeat("#", 1<<20+1), "f.yaml: it is larger than 1 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			services, err := DecodeServices("f.yaml", []byte(test.text))
			if err == nil || services != nil || !strings.HasPrefix(err.Error(), "f.yaml: ") || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, %v\nwant %s", services, err, test.want)
			}
		})
	}
}

func FuzzDecodeServices(f *testing.F) {
	f.Add([]byte("apiVersion: serving.knative.dev/v1\nkind: Service" + full))
	f.Add([]byte("---\n# x\n---\n" + document("a", "b") + "---\n" + document("b", "&x c")))
	f.Add([]byte(document("a", "{{}: [*b, !!binary x, 2024-01-01, .nan, 0x1_0, <<: 3]}")))
	f.Add([]byte(`{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"\ud83d\/"},"spec":{"traffic":[{"url":"http://u:p@h","percent":1e2}]}}`))
	f.Add([]byte(document("a", "b") + "status: &s {<<: [*s], traffic: *s, ? [] : !!float 3}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		services, err := prepareServices("f.yaml", b)
		if err != nil {
			if services != nil || !strings.HasPrefix(err.Error(), "f.yaml: ") || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("%d services and the error %q", len(services), err)
			}
			return
		}
		for _, svc := range services {
			text, err := json.Marshal(svc)
			if err != nil {
				t.Fatalf("%v in %+v", err, svc)
			}
			want := new(servingv1.Service)
			if err := json.Unmarshal(text, want); err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			again, err := prepareServices("again.json", text)
			if err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			if len(again) != 1 || !equality.Semantic.DeepEqual(again[0], want) {
				t.Errorf("%s\nbecame %+v", text, again)
			}
		}
	})
}

func TestIsServiceFile(t *testing.T) {
	for name, want := range map[string]bool{
		"hello.yaml": true, "hello.yml": true, "hello.json": true, "a.b.yaml": true,
		"hello": false, "hello.txt": false, "yaml": false, ".yaml": false, ".hello.yaml": false, "hello.yaml~": false,
		"hello.yaml.swp": false, ".hello.yaml.swp": false, "#hello.yaml#": false, ".#hello.yaml": false, "hello.yaml.bak": false, "..data": false,
	} {
		if got := isServiceFile(name); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// following runs follow in a bubble, and notes when it scans, since the start.
func following(t *testing.T, differs func() bool, poke func(at time.Duration, pokes chan<- struct{})) []time.Duration {
	t.Helper()
	var scans []time.Duration
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		pokes := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			follow(ctx, pokes, func() time.Duration { return lookEvery }, differs, func() { scans = append(scans, time.Since(start)) })
		}()
		time.Sleep(time.Microsecond) // so that no two timers fire at one moment
		for at := time.Duration(0); at < 3*time.Second; at += 10 * time.Millisecond {
			poke(at, pokes)
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		<-ended
	})
	for i := range scans {
		scans[i] = scans[i].Truncate(time.Millisecond)
	}
	return scans
}

func TestFollow(t *testing.T) {
	const ms = time.Millisecond
	same := func() bool { return false }
	for name, test := range map[string]struct {
		differs func() bool
		poke    func(at time.Duration) bool
		want    []time.Duration
	}{
		"nothing happens":       {same, func(time.Duration) bool { return false }, nil},
		"one event":             {same, func(at time.Duration) bool { return at == 100*ms }, []time.Duration{250 * ms}},
		"truncated, written":    {same, func(at time.Duration) bool { return at == 100*ms || at == 220*ms }, []time.Duration{370 * ms}},
		"twice":                 {same, func(at time.Duration) bool { return at == 100*ms || at == 1000*ms }, []time.Duration{250 * ms, 1150 * ms}},
		"a burst":               {same, func(at time.Duration) bool { return at < 300*ms }, []time.Duration{440 * ms}},
		"never quiet":           {same, func(at time.Duration) bool { return at < 1200*ms && at%(30*ms) == 0 }, []time.Duration{500 * ms, 1010 * ms, 1320 * ms}},
		"no event, but differs": {func() bool { return true }, func(time.Duration) bool { return false }, []time.Duration{900 * ms, 1650 * ms, 2400 * ms}},
		"looks while it waits":  {func() bool { return true }, func(at time.Duration) bool { return at == 700*ms }, []time.Duration{850 * ms, 1650 * ms, 2400 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			got := following(t, test.differs, func(at time.Duration, pokes chan<- struct{}) {
				if test.poke(at) {
					pokes <- struct{}{}
				}
			})
			if !slices.Equal(got, test.want) {
				t.Errorf("scans at %v, want %v", got, test.want)
			}
		})
	}
}

// watched is a directory that a test changes while it is watched.
type watched struct {
	t      *testing.T
	dir    string
	states chan []ServiceFile
	last   []ServiceFile
	must   []string // what every state has to show
}

// watch begins to watch a directory and takes its first state.
func watch(t *testing.T, dir string) *watched {
	t.Helper()
	w := &watched{t: t, dir: dir, states: make(chan []ServiceFile, 1000)}
	t.Cleanup(WatchDirectory(t.Context(), dir, func(files []ServiceFile) { w.states <- files }))
	select {
	case w.last = <-w.states:
	default:
		t.Fatal("nothing was told before WatchDirectory returned")
	}
	return w
}

// scanned is a directory that is read when the test wants.
func scanned(t *testing.T) (*watched, *serviceDirectory) {
	t.Helper()
	w := &watched{t: t, dir: t.TempDir(), states: make(chan []ServiceFile, 1000)}
	d := &serviceDirectory{dir: w.dir, changed: func(files []ServiceFile) { w.states <- files }, files: make(map[string]*serviceFile)}
	d.scan()
	w.last = <-w.states
	return w, d
}

// text shows a state: a line for each file, with its services and its error.
func (w *watched) text() string {
	var lines []string
	for _, f := range w.last {
		line := strings.TrimPrefix(strings.TrimPrefix(f.Path, w.dir), "/") + ":"
		for _, svc := range f.Services {
			line += fmt.Sprintf(" %s=%s", svc.Name, svc.Spec.Template.Spec.Containers[0].Image)
		}
		if f.Err != nil {
			if !strings.HasPrefix(f.Err.Error(), f.Path+": ") {
				w.t.Errorf("error of %s: %v", f.Path, f.Err)
			}
			line += " !" + strings.ReplaceAll(strings.TrimPrefix(f.Err.Error(), f.Path+":"), w.dir+"/", "")
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// is checks what was told last.
func (w *watched) is(want ...string) {
	w.t.Helper()
	if got := w.text(); got != strings.Join(want, "\n") {
		w.t.Fatalf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// becomes waits until this is told.
func (w *watched) becomes(want ...string) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for w.text() != strings.Join(want, "\n") {
		select {
		case w.last = <-w.states:
			for _, must := range w.must {
				if got := w.text(); !strings.Contains(got, must) {
					w.t.Fatalf("no %q in\n%s", must, got)
				}
			}
		case <-deadline:
			w.t.Fatalf("still\n%s\nwant\n%s", w.text(), strings.Join(want, "\n"))
		}
	}
}

func (w *watched) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// replace writes a file under another name first, as kubectl and editors do.
func (w *watched) replace(name, content string) {
	w.t.Helper()
	w.write("."+name+".tmp", content)
	w.rename("."+name+".tmp", name)
}

func (w *watched) rename(from, to string) {
	w.t.Helper()
	if err := os.Rename(filepath.Join(w.dir, from), filepath.Join(w.dir, to)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) symlink(to, name string) {
	w.t.Helper()
	if err := os.Symlink(to, filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) remove(name string) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

func TestWatchDirectory(t *testing.T) {
	t.Parallel()
	w := watch(t, t.TempDir())
	w.is("")
	w.write("hello.yaml", document("hello", "one"))
	w.becomes("hello.yaml: hello=one")
	if concurrency := w.last[0].Services[0].Spec.Template.Spec.ContainerConcurrency; concurrency == nil || *concurrency != DefaultConcurrency {
		t.Error("the service has not been prepared")
	}
	w.write("hello.yaml", document("hello", "two"))
	w.becomes("hello.yaml: hello=two")
	w.replace("hello.yaml", document("hello", "three")+"---\n"+document("more", "x"))
	w.becomes("hello.yaml: hello=three more=x")
	w.write("a.json", `{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"a"},"spec":{"template":{"spec":{"containers":[{"image":"z"}]}}}}`)
	w.write("hello.yaml~", document("backup", "x"))
	w.write(".hello.yaml", document("hidden", "x"))
	w.becomes("a.json: a=z", "hello.yaml: hello=three more=x")
	w.replace("hello.yaml", document("hello", "three"))
	w.becomes("a.json: a=z", "hello.yaml: hello=three")
	w.rename("hello.yaml", "z.yml")
	w.becomes("a.json: a=z", "z.yml: hello=three")
	w.write("z.yml", "# nothing\n")
	w.becomes("a.json: a=z", "z.yml:")
	w.remove("z.yml")
	w.becomes("a.json: a=z")
	w.remove("a.json")
	w.becomes("")
}

func TestOnlyChangesAreTold(t *testing.T) {
	w, d := scanned(t)
	w.write("a.yaml", document("a", "x"))
	d.scan()
	w.becomes("a.yaml: a=x")
	before := w.last[0].Services[0]
	w.write("a.yaml", "# the same\n"+document("a", "x"))
	w.write("other.txt", "x")
	d.scan()
	if len(w.states) > 0 {
		t.Errorf("told of a comment: %v", <-w.states)
	}
	w.write("b.yaml", document("b", "x"))
	d.scan()
	w.becomes("a.yaml: a=x", "b.yaml: b=x")
	if w.last[0].Services[0] != before {
		t.Error("a changed comment made another service")
	}
}

func TestWatchDirectoryKeepsTheLastGoodState(t *testing.T) {
	t.Parallel()
	w := watch(t, t.TempDir())
	w.write("bad.yaml", "a")
	w.becomes("bad.yaml: ! document 1: json: cannot unmarshal string into Go value of type v1.TypeMeta")
	w.remove("bad.yaml")
	w.becomes("")
	w.write("a.yaml", document("a", "x"))
	w.becomes("a.yaml: a=x")
	w.write("a.yaml", document("a", "x")+"imagee: 3")
	w.becomes(`a.yaml: a=x ! document 1: unknown field "imagee"`)
	w.write("a.yaml", document("a", "x")+"---\n"+document("b", "'not a reference'"))
	w.becomes("a.yaml: a=x ! document 2: service b: Failed to parse image reference: spec.template.spec.containers[0].image; image: \"not a reference\", error: could not parse reference: not a reference")
	w.write("a.yaml", document("b", "z"))
	w.becomes("a.yaml: b=z")
	w.write("a.yaml", "")
	w.becomes("a.yaml: b=z ! is empty: remove the file to delete its services")
	w.write("a.yaml", strings.Repeat("#", 2<<20))
	w.becomes("a.yaml: b=z ! it is larger than 1 MiB")
	w.write("a.yaml", document("b", "z")) // as before
	w.becomes("a.yaml: b=z")
	w.remove("a.yaml")
	if err := syscall.Mkfifo(filepath.Join(w.dir, "a.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.becomes("a.yaml: b=z ! is not a regular file")
	w.remove("a.yaml")
	w.symlink("nowhere", "a.yaml")
	w.becomes("a.yaml: b=z ! no such file or directory")
	w.remove("a.yaml")
	w.becomes("")
	if err := os.Mkdir(filepath.Join(w.dir, "b.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.write("c.yaml", document("c", "x"))
	w.becomes("c.yaml: c=x")
}

func TestWatchDirectoryHalfWritten(t *testing.T) {
	t.Parallel()
	w := watch(t, t.TempDir())
	w.write("a.yaml", document("a", "x")+"---\n"+document("b", "x"))
	w.becomes("a.yaml: a=x b=x")
	// An editor truncates the file and takes its time to write. What is there in
	// between would be good by itself once.
	start := time.Now()
	f, err := os.Create(filepath.Join(w.dir, "a.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range []string{document("a", "z"), "---\n", document("b", "z")} {
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
	}
	if time.Since(start) < settleTime { // else this process was held up
		w.must = []string{" b="}
	}
	w.becomes("a.yaml: a=z b=z")
	// Another one takes longer.
	w.must = nil
	w.write("a.yaml", "")
	w.becomes("a.yaml: a=z b=z ! is empty: remove the file to delete its services")
	w.write("a.yaml", document("a", "z")+"---\n"+document("b", "z"))
	w.becomes("a.yaml: a=z b=z")
}

func TestWatchDirectoryDuplicates(t *testing.T) {
	t.Parallel()
	w := watch(t, t.TempDir())
	w.write("b.yaml", document("x", "b")+"---\n"+document("z", "b"))
	w.becomes("b.yaml: x=b z=b")
	w.write("c.yaml", document("z", "c"))
	w.becomes("b.yaml: x=b z=b", "c.yaml: ! service z is in b.yaml already")
	w.write("a.yaml", document("x", "a"))
	w.becomes("a.yaml: x=a", "b.yaml: z=b ! service x is in a.yaml already", "c.yaml: ! service z is in b.yaml already")
	w.write("b.yaml", "b")
	w.becomes("a.yaml: x=a", "b.yaml: z=b ! document 1: json: cannot unmarshal string into Go value of type v1.TypeMeta; service x is in a.yaml already", "c.yaml: ! service z is in b.yaml already")
	w.remove("b.yaml")
	w.becomes("a.yaml: x=a", "c.yaml: z=c")
	// Another name for the file is no duplicate.
	w.rename("a.yaml", "d.yaml")
	w.becomes("c.yaml: z=c", "d.yaml: x=a")
	w.write("e.yaml", document("e", "x")+"---\n"+document("e", "z"))
	w.becomes("c.yaml: z=c", "d.yaml: x=a", "e.yaml: ! document 2: service e is in document 1 already")
}

func TestWatchDirectoryConfigMap(t *testing.T) {
	t.Parallel()
	// Kubernetes mounts a ConfigMap as links to links, of which it swaps one.
	w := watch(t, t.TempDir())
	version := func(n int, files ...string) {
		t.Helper()
		sub := fmt.Sprintf("..%d", n)
		if err := os.Mkdir(filepath.Join(w.dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			w.write(filepath.Join(sub, name+".yaml"), document(name, fmt.Sprintf("v%d", n)))
		}
		w.symlink(sub, "..data_tmp")
		w.rename("..data_tmp", "..data")
	}
	version(1, "a", "b")
	w.symlink("..data/a.yaml", "a.yaml")
	w.symlink("..data/b.yaml", "b.yaml")
	w.becomes("a.yaml: a=v1", "b.yaml: b=v1")
	w.must = []string{" a="}
	version(2, "a", "b")
	w.becomes("a.yaml: a=v2", "b.yaml: b=v2")
	version(3, "a")
	w.remove("b.yaml")
	w.becomes("a.yaml: a=v3")
}

func TestWatchDirectoryLinkToElsewhere(t *testing.T) {
	t.Parallel()
	// The directory itself has no event of a change behind a link.
	elsewhere := &watched{t: t, dir: t.TempDir()}
	elsewhere.write("a", document("a", "x"))
	w := watch(t, t.TempDir())
	w.symlink(filepath.Join(elsewhere.dir, "a"), "a.yaml")
	w.becomes("a.yaml: a=x")
	elsewhere.write("a", document("a", "yy"))
	w.becomes("a.yaml: a=yy")
	elsewhere.replace("a", document("a", "zz"))
	w.becomes("a.yaml: a=zz")
	elsewhere.remove("a")
	w.becomes("a.yaml: a=zz ! no such file or directory")
}

const isMissing = ": ! no such file or directory; its services stay as they were"

func TestWatchDirectoryRemovedAndBack(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := filepath.Join(parent, "services")
	w := watch(t, dir)
	w.is(isMissing)
	for i := range 3 {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		w.write("a.yaml", document("a", fmt.Sprintf("v%d", i)))
		w.becomes(fmt.Sprintf("a.yaml: a=v%d", i))
		w.write("b.yaml", document("b", "x")) // noticed by an event, or so
		w.becomes(fmt.Sprintf("a.yaml: a=v%d", i), "b.yaml: b=x")
		if err := os.Rename(dir, filepath.Join(parent, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		w.becomes(isMissing, fmt.Sprintf("a.yaml: a=v%d", i), "b.yaml: b=x")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.becomes("")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	w.becomes(isMissing)
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.becomes(strings.Replace(isMissing, "no such file or", "not a", 1))
}

func TestWatchDirectoryMadeAnewAtOnce(t *testing.T) {
	t.Parallel()
	// The new directory may have the inode number of the old one, and its events
	// have to be noticed: looking at it is made useless by giving all files one
	// size and time.
	dir := filepath.Join(t.TempDir(), "services")
	long := time.Now().Add(-time.Hour)
	w := watch(t, dir)
	for i := range 5 {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{"a", "b"} {
			image := fmt.Sprint(version, i)
			w.write("a.yaml", document("a", image))
			if err := os.Chtimes(filepath.Join(dir, "a.yaml"), long, long); err != nil {
				t.Fatal(err)
			}
			w.becomes("a.yaml: a=" + image)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchDirectoryReplacedByLink(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	versions := make([]string, 3)
	for i := range versions {
		versions[i] = filepath.Join(parent, fmt.Sprint("v", i))
		if err := os.Mkdir(versions[i], 0o755); err != nil {
			t.Fatal(err)
		}
		(&watched{t: t, dir: versions[i]}).write("a.yaml", document("a", fmt.Sprint("v", i)))
	}
	dir := filepath.Join(parent, "services")
	if err := os.Rename(versions[0], dir); err != nil {
		t.Fatal(err)
	}
	w := watch(t, dir)
	w.is("a.yaml: a=v0")
	w.must = []string{" a="}
	if err := os.Rename(dir, versions[0]); err != nil {
		t.Fatal(err)
	}
	for _, to := range []int{1, 2, 0, 1} {
		if err := os.Symlink(versions[to], dir+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir+".new", dir); err != nil {
			t.Fatal(err)
		}
		w.becomes(fmt.Sprintf("a.yaml: a=v%d", to))
		w.write("b.yaml", document("b", "x"))
		w.becomes(fmt.Sprintf("a.yaml: a=v%d", to), "b.yaml: b=x")
		w.remove("b.yaml")
		w.becomes(fmt.Sprintf("a.yaml: a=v%d", to))
	}
}

func TestWatchDirectoryWithoutEvents(t *testing.T) {
	t.Parallel()
	// What a system without a watcher left, or a network file system, gives.
	w, d := scanned(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		follow(ctx, nil, d.every, d.differs, d.scan)
	}()
	w.write("a.yaml", document("a", "x"))
	w.becomes("a.yaml: a=x")
	w.replace("a.yaml", document("a", "z"))
	w.becomes("a.yaml: a=z")
	w.remove("a.yaml")
	w.becomes("")
	cancel()
	<-ended
}

func TestWatchDirectoryManyEvents(t *testing.T) {
	t.Parallel()
	// Events come faster than they are looked at, and changed takes its time.
	dir := t.TempDir()
	slow := make(chan struct{})
	told := make(chan []ServiceFile, 1000)
	stop := WatchDirectory(t.Context(), dir, func(files []ServiceFile) {
		told <- files
		if len(files) > 0 {
			<-slow
		}
	})
	defer stop()
	w := &watched{t: t, dir: dir, states: told, last: <-told}
	w.write("a.yaml", document("a", "x"))
	w.becomes("a.yaml: a=x")
	for range 3000 {
		w.write("other", "x")
	}
	w.write("b.yaml", document("b", "x"))
	close(slow)
	w.becomes("a.yaml: a=x", "b.yaml: b=x")
}

func TestWatchDirectoryStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	var after bool
	stop := WatchDirectory(ctx, dir, func([]ServiceFile) {
		if after {
			t.Error("told after stop has returned")
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(document("a", "x")), 0o644); err != nil {
		t.Fatal(err)
	}
	stop()
	after = true
	stop() // again
	if ctx.Err() != nil {
		t.Error("stop ended the context of the caller")
	}
	cancel()

	stop = WatchDirectory(ctx, dir, func([]ServiceFile) {})
	stop()
}

func TestWatchDirectoryUnreadable(t *testing.T) {
	t.Parallel()
	w := watch(t, t.TempDir())
	w.write("a.yaml", document("a", "x"))
	w.becomes("a.yaml: a=x")
	// A link to itself, which not even root can read.
	w.symlink("a.yaml", "loop")
	w.rename("loop", "a.yaml")
	w.becomes("a.yaml: a=x ! too many levels of symbolic links")
	w.replace("a.yaml", document("a", "z"))
	w.becomes("a.yaml: a=z")
}
