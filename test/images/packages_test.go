package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pack makes a Debian package of files and links, by path.
func pack(t *testing.T, name string, files, links map[string]string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), name)
	put := func(file string, write func(at string) error) {
		t.Helper()
		at := filepath.Join(root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), write(at)); err != nil {
			t.Fatal(err)
		}
	}
	put("DEBIAN/control", func(at string) error {
		return os.WriteFile(at, []byte("Package: "+name+"\nVersion: 1\nArchitecture: all\nMaintainer: Test <test@example.com>\nDescription: test\n"), 0o644)
	})
	for file, content := range files {
		put(file, func(at string) error { return os.WriteFile(at, []byte(content), 0o755) })
	}
	for file, target := range links {
		put(file, func(at string) error { return os.Symlink(target, at) })
	}
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--build", root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return root + ".deb"
}

// TestMergePackages has packages that put files into the same directory by its two names.
func TestMergePackages(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb")
	}
	one := pack(t, "one", map[string]string{"lib/x/one.so.1": "one", "usr/share/doc/one/README": "unneeded", "etc/one": "first"}, map[string]string{"lib/x/one.so": "one.so.1"})
	two := pack(t, "two", map[string]string{"usr/lib/x/two.so": "two", "bin/two": "#!", "etc/one": "second"}, map[string]string{"sbin": "usr/sbin"})
	layer, err := mergePackages(t.Context(), []string{one, two})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[header.Name]; twice {
			t.Errorf("%s is there twice", header.Name)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch header.Typeflag {
		case tar.TypeReg:
			got[header.Name] = string(content)
		case tar.TypeSymlink:
			got[header.Name] = "-> " + header.Linkname
		}
	}
	want := map[string]string{
		"usr/lib/x/one.so.1": "one", "usr/lib/x/one.so": "-> one.so.1", "usr/lib/x/two.so": "two", "usr/bin/two": "#!", "etc/one": "first",
		"bin": "-> usr/bin", "lib": "-> usr/lib", "lib32": "-> usr/lib32", "lib64": "-> usr/lib64", "libx32": "-> usr/libx32", "sbin": "-> usr/sbin",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the layer (-want +got):\n%s", diff)
	}
	if _, err := mergePackages(t.Context(), []string{filepath.Join(t.TempDir(), "none.deb")}); err == nil || !strings.Contains(err.Error(), "none.deb") {
		t.Errorf("a package that is not there: %v", err)
	}
}

// TestNPM reads a package, which must be the one that was meant.
func TestNPM(t *testing.T) {
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	w := tar.NewWriter(zipped)
	for name, content := range map[string]string{"package/index.js": "index", "package/lib/a.js": "a"} {
		if err := writeFile(w, name, 0o644, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	files, err := readNPM(archive.Bytes(), "/node_modules/it")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]byte{"/node_modules/it/index.js": []byte("index"), "/node_modules/it/lib/a.js": []byte("a")}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := keep(filepath.Join(dir, "npm-it-1.0.0.tgz"), archive.Bytes()); err != nil {
		t.Fatal(err)
	}
	if _, err := NPM(t.Context(), "it", "1.0.0", "sha512-AAAA"); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("another package than was meant: %v", err)
	}
}
