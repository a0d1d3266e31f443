package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestBuild follows the digests from the index to the files of the layer.
func TestBuild(t *testing.T) {
	opts := Options{
		Name:         "localhost:5000/fairway/hello:1",
		Package:      "./hello",
		Cmd:          []string{"serve"},
		Env:          []string{"GREETING=hi"},
		User:         "65532:65532",
		ExposedPorts: []string{"8080/tcp"},
		StopSignal:   "SIGQUIT",
		Labels:       map[string]string{"a": "b"},
		Files:        map[string][]byte{"/etc/deep/er/file": []byte("content")},
	}
	archive, dgst, err := BuildDigest(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	layout := untar(t, data)

	var index ocispec.Index
	unmarshal(t, layout[ocispec.ImageIndexFile], &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Digest != dgst {
		t.Fatalf("index has manifests %v; want only %s", index.Manifests, dgst)
	}
	want := map[string]string{"io.containerd.image.name": opts.Name, ocispec.AnnotationRefName: "1"}
	if diff := cmp.Diff(want, index.Manifests[0].Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	var manifest ocispec.Manifest
	unmarshal(t, get(t, layout, index.Manifests[0]), &manifest)
	var image ocispec.Image
	unmarshal(t, get(t, layout, manifest.Config), &image)
	wantConfig := ocispec.ImageConfig{
		Entrypoint: []string{"/app"}, Cmd: opts.Cmd, Env: []string{"PATH=/", "GREETING=hi"}, User: opts.User,
		ExposedPorts: map[string]struct{}{"8080/tcp": {}}, StopSignal: "SIGQUIT", Labels: opts.Labels,
	}
	if diff := cmp.Diff(wantConfig, image.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	rootfs := untar(t, get(t, layout, manifest.Layers[0]))
	if got := rootfs["etc/deep/er/file"]; string(got) != "content" {
		t.Errorf("the file has %q", got)
	}
	if !bytes.HasPrefix(rootfs["app"], []byte("\x7fELF")) {
		t.Error("/app is no program")
	}

	again, same, err := BuildDigest(t.Context(), opts)
	if err != nil || again != archive || same != dgst {
		t.Errorf("again: %s %s %v; want %s %s", again, same, err, archive, dgst)
	}
	opts.User = ""
	if _, other, err := BuildDigest(t.Context(), opts); err != nil || other == dgst {
		t.Errorf("with another user: %s %v; want another digest", other, err)
	}
}

// TestBuildFails says what is wrong with the program.
func TestBuildFails(t *testing.T) {
	for _, opts := range []Options{
		{Name: "a:1"},
		{Package: "./hello"},
		{Name: "a:1", Package: "./none"},
		{Name: "a:1", Binary: "./none"},
		{Name: "a:1", Package: "./hello", Binary: "/bin/true"},
		{Name: "a:1", Debian: []string{"nginx"}},
	} {
		if _, err := Build(t.Context(), opts); err == nil {
			t.Errorf("%+v: no error", opts)
		}
	}
}

func get(t *testing.T, layout map[string][]byte, desc ocispec.Descriptor) []byte {
	t.Helper()
	data := layout["blobs/sha256/"+desc.Digest.Encoded()]
	if digest.FromBytes(data) != desc.Digest || int64(len(data)) != desc.Size {
		t.Fatalf("blob %s of type %s is missing or broken", desc.Digest, desc.MediaType)
	}
	return data
}

func unmarshal(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBuildBinary packs a program that is built already, where it is wanted.
func TestBuildBinary(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := Build(t.Context(), Options{Name: "a:1", Binary: self, Path: "/deep/er/app"})
	if err != nil {
		t.Fatal(err)
	}
	// A test's own program is new each time: nothing to keep.
	defer func() { _ = os.Remove(archive) }()
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	layout := untar(t, data)
	var index ocispec.Index
	unmarshal(t, layout[ocispec.ImageIndexFile], &index)
	var manifest ocispec.Manifest
	unmarshal(t, get(t, layout, index.Manifests[0]), &manifest)
	var image ocispec.Image
	unmarshal(t, get(t, layout, manifest.Config), &image)
	if diff := cmp.Diff([]string{"/deep/er/app"}, image.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	if rootfs := untar(t, get(t, layout, manifest.Layers[0])); !bytes.HasPrefix(rootfs["deep/er/app"], []byte("\x7fELF")) {
		t.Error("the program is not there")
	}
}
