package containerd

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	godigest "github.com/opencontainers/go-digest"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/test/images"
)

// testRegistry is one on the loopback interface that wants a password.
type testRegistry struct {
	*httptest.Server

	host   string
	auth   authn.Basic
	slow   atomic.Bool  // layers come slowly
	layers atomic.Int64 // fetched so far
}

func newTestRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{auth: authn.Basic{Username: "me", Password: "secret"}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, secret, _ := req.BasicAuth(); user != r.auth.Username || secret != r.auth.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.layers.Add(1)
			if r.slow.Load() {
				w = slowWriter{w, req.Context()}
			}
		}
		if strings.HasSuffix(req.Header.Get("Range"), "-") {
			req.Header.Del("Range") // the registry does not know a range without an end
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	r.host = strings.TrimPrefix(r.URL, "http://")
	return r
}

// slowWriter writes about 10 MB in a second.
type slowWriter struct {
	http.ResponseWriter

	ctx context.Context
}

func (w slowWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-w.ctx.Done():
			return n, w.ctx.Err()
		}
		m, err := w.ResponseWriter.Write(b[:min(len(b), 512<<10)])
		if n += m; err != nil {
			return n, err
		}
		b = b[m:]
	}
	return n, nil
}

// logIn writes a Docker configuration.
func (r *testRegistry) logIn(t *testing.T, secret string) {
	t.Helper()
	dir := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(r.auth.Username + ":" + secret))
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host, auth)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

func (r *testRegistry) push(t *testing.T, repository string, what any) (ref string) {
	t.Helper()
	ref = r.host + "/" + repository
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(tag, what, remote.WithAuth(&r.auth))
	case v1.ImageIndex:
		err = remote.WriteIndex(tag, what, remote.WithAuth(&r.auth))
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// probe is the probe image, as a registry keeps it.
func probe(t *testing.T) v1.Image {
	t.Helper()
	archive, err := images.Build(t.Context(), images.Options{Name: probeImage, Package: "github.com/fairway-run/fairway/test/images/probe"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	for files := tar.NewReader(f); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(files)
		path := filepath.Join(dir, header.Name)
		if err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	// What no other namespace of the daemon has: it must be fetched.
	layer, err := random.Layer(8<<20, types.OCILayer)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestPull gets images from a registry.
func TestPull(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	reg := newTestRegistry(t)
	reg.logIn(t, reg.auth.Password)
	img := probe(t)
	digest, err := img.Digest()
	f.check(err)
	single := reg.push(t, "app:1", img)

	t.Run("cancelled", func(t *testing.T) {
		reg.slow.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		at := time.Now()
		if _, err := r.Resolve(ctx, single, nil); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, instancepool.ErrImage) {
			t.Errorf("Resolve: %v; want the end of its context", err)
		}
		if took := time.Since(at); took > 5*time.Second {
			t.Errorf("Resolve took %s", took)
		}
		f.leftWithin(patience, 1)
	})
	t.Run("one image", func(t *testing.T) {
		var returned atomic.Bool
		var told atomic.Pointer[instancepool.Progress]
		got, err := r.Resolve(t.Context(), single, func(p instancepool.Progress) {
			if returned.Load() {
				t.Error("progress after the end")
			}
			told.Store(&p)
		})
		returned.Store(true)
		if err != nil || got != digest.String() {
			t.Fatalf("Resolve: %s %v; want %s", got, err, digest)
		}
		if p := told.Load(); p == nil || p.Done <= 0 || p.Total < p.Done {
			t.Errorf("the last progress: %+v", p)
		}
		f.leftWithin(patience, 1)
		// It is there now: nothing is fetched.
		before := reg.layers.Load()
		if got, err := r.Resolve(t.Context(), single, nil); err != nil || got != digest.String() {
			t.Errorf("Resolve: %s %v", got, err)
		}
		if n := reg.layers.Load() - before; n != 0 {
			t.Errorf("%d layers of an image that is there were fetched", n)
		}
	})
	reg.slow.Store(false)
	t.Run("the tag moves", func(t *testing.T) {
		moved, err := mutate.Config(img, v1.Config{Env: []string{"VERSION=2"}})
		f.check(err)
		want, err := moved.Digest()
		f.check(err)
		if got, err := r.Resolve(t.Context(), reg.push(t, "app:1", moved), nil); err != nil || got != want.String() {
			t.Errorf("Resolve: %s %v; want %s", got, err, want)
		}
		before := reg.layers.Load()
		if got, err := r.Resolve(t.Context(), reg.host+"/app@"+digest.String(), nil); err != nil || got != digest.String() {
			t.Errorf("what it meant before: %s %v", got, err)
		}
		if n := reg.layers.Load() - before; n != 0 {
			t.Errorf("%d layers of what it meant before were fetched again", n)
		}
	})
	t.Run("index", func(t *testing.T) {
		host := platforms.DefaultSpec()
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: host.OS, Architecture: host.Architecture, Variant: host.Variant},
		}})
		want, err := index.Digest()
		f.check(err)
		if got, err := r.Resolve(t.Context(), reg.push(t, "multi:1", index), nil); err != nil || got != want.String() {
			t.Errorf("Resolve: %s %v; want %s", got, err, want)
		}
	})
	t.Run("no variant", func(t *testing.T) {
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: "s390x"},
		}})
		_, err := r.Resolve(t.Context(), reg.push(t, "elsewhere:1", index), nil)
		if !errors.Is(err, instancepool.ErrImage) || !strings.Contains(err.Error(), "has no variant for "+platforms.DefaultString()) {
			t.Errorf("Resolve: %v; want a clear ErrImage", err)
		}
	})
	for name, ref := range map[string]string{"no tag": reg.host + "/app:2", "no reference": "A b", "no registry": "127.0.0.1:1/app:1"} {
		t.Run(name, func(t *testing.T) {
			if _, err := r.Resolve(t.Context(), ref, nil); !errors.Is(err, instancepool.ErrImage) {
				t.Errorf("Resolve: %v; want ErrImage", err)
			}
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		reg.logIn(t, "guess")
		if _, err := r.Resolve(t.Context(), reg.push(t, "app:3", img), nil); !errors.Is(err, instancepool.ErrImage) {
			t.Errorf("Resolve: %v; want ErrImage", err)
		}
	})
	f.leftWithin(patience, 1)
}

// TestPrune removes the images that neither a revision nor an instance has, and
// none that it was given by name.
func TestPrune(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	reg := newTestRegistry(t)
	reg.logIn(t, reg.auth.Password)
	img := probe(t)
	single := reg.push(t, "app:1", img)
	digest, err := r.Resolve(t.Context(), single, nil)
	f.check(err)
	rev := f.revision(r)
	h := f.serve(r, rev)
	client, err := r.connect()
	f.check(err)
	ctx, cancel := r.within(t.Context())
	defer cancel()
	pulled, local := reg.host+"/app@"+digest, strings.TrimSuffix(probeImage, ":1")+"@"+rev.Digest()
	prune := func(want ...string) {
		t.Helper()
		f.check(r.Prune(t.Context(), func(yield func(string, string) bool) {
			if slices.Contains(want, pulled) {
				yield(single, digest)
			}
		}))
		all, err := client.ListImages(ctx)
		f.check(err)
		var names []string
		for _, img := range all {
			names = append(names, img.Name())
		}
		slices.Sort(names)
		want = append(want, probeImage)
		slices.Sort(want)
		if !slices.Equal(names, want) {
			t.Errorf("images %q; want %q", names, want)
		}
	}
	prune(pulled, local)
	layers, err := img.Layers()
	f.check(err)
	layer, err := layers[len(layers)-1].Digest()
	f.check(err)
	kept := func() error {
		_, err := client.ContentStore().Info(ctx, godigest.Digest(layer.String()))
		return err
	}
	f.check(kept())
	prune(local)
	if err := kept(); !errdefs.IsNotFound(err) {
		t.Errorf("its layer: %v", err)
	}
	f.get(h, "/")
	f.stop(h)
	prune()
	f.stop(f.serve(r, f.revision(r)))
}

// TestImport imports an archive through the runtime.
func TestImport(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	archive, err := images.Build(t.Context(), images.Options{Name: "localhost/fairway/imported:1", Package: "github.com/fairway-run/fairway/test/images/probe", User: "7"})
	f.check(err)
	file, err := os.Open(archive)
	f.check(err)
	defer file.Close()
	names, err := r.Import(t.Context(), file)
	if err != nil || len(names) != 1 || names[0] != "localhost/fairway/imported:1" {
		t.Errorf("Import: %v %v", names, err)
	}
	if _, err := r.Resolve(t.Context(), "localhost/fairway/imported:1", nil); err != nil {
		t.Error(err)
	}
	if _, err := r.Import(t.Context(), strings.NewReader("no archive")); err == nil {
		t.Error("what is no archive was imported")
	}
	f.leftWithin(0, 1)
}
