// Package images builds the images that tests and the example run: OCI archives
// made of one static Go program, or of Debian's packages, without a registry, a
// daemon or root. Equal input gives an equal digest, so nothing is built or imported
// twice.
package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	_ "crypto/sha256" // what go-digest computes with
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options say what an image is made of. Only Name and Package, or Binary, or Debian
// and Entrypoint are required.
type Options struct {
	// Name is the full reference that containerd stores the image under, such
	// as "localhost/fairway/hello:1".
	Name string
	// Package is the Go import path, or the directory starting with "." or "/",
	// of the program.
	Package string
	// Binary is the file of a program that is built already, in place of Package.
	Binary string
	// Debian holds names of Debian packages that are in the image, with all that they
	// depend on; see debian. The program may be one of theirs.
	Debian []string
	// Path is where the program is in the image. Default: /app.
	Path string
	// Entrypoint defaults to the program alone.
	Entrypoint []string
	// Cmd holds the arguments that a service may replace.
	Cmd []string
	// Env holds NAME=value pairs.
	Env []string
	// User is "uid" or "uid:gid"; the image has no /etc/passwd. Default: root.
	User string
	// WorkingDir defaults to "/".
	WorkingDir string
	// ExposedPorts holds entries such as "8080/tcp".
	ExposedPorts []string
	// StopSignal is the signal that asks the program to end, such as SIGQUIT.
	StopSignal string
	// Labels are the image's labels.
	Labels map[string]string
	// Files are put into the image besides the program, by absolute path. Those that
	// are programs or libraries may be executed.
	Files map[string][]byte
	// NoTmp leaves out /tmp, as images "FROM scratch" do.
	NoTmp bool
}

// Build builds the image and returns the path of its archive, which containerd
// 1.6 and later imports. The archive is cached by what it is made of and must
// not be modified.
func Build(ctx context.Context, opts Options) (archivePath string, err error) {
	archive, _, err := BuildDigest(ctx, opts)
	return archive, err
}

// BuildDigest is Build; it also returns the digest of the image's manifest,
// which containerd shows for an imported image.
func BuildDigest(ctx context.Context, opts Options) (archivePath string, dgst digest.Digest, err error) {
	given := opts.Package != "" || opts.Binary != ""
	if opts.Name == "" || opts.Package != "" && opts.Binary != "" || !given && (len(opts.Debian) == 0 || len(opts.Entrypoint) == 0) {
		return "", "", errors.New("building image: name and either package or binary, or Debian packages and an entrypoint, are required")
	}
	opts.Path = path.Clean("/" + cmp.Or(opts.Path, "app"))
	dir, err := cacheDir()
	if err != nil {
		return "", "", fmt.Errorf("building image %s: %w", opts.Name, err)
	}
	// Test binaries run at the same time and share the cache.
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", "", fmt.Errorf("building image %s: %w", opts.Name, err)
	}
	defer unlock()
	layers, err := layers(ctx, opts, dir)
	if err != nil {
		return "", "", fmt.Errorf("building image %s: %w", opts.Name, err)
	}
	archivePath, dgst, err = assemble(layers, opts, dir)
	if err != nil {
		return "", "", fmt.Errorf("building image %s: %w", opts.Name, err)
	}
	return archivePath, dgst, nil
}

// cacheDir is the user's cache, or one for this user in the temporary directory
// where there is no home.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))
	}
	dir := filepath.Join(base, "fairway", "images")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the cache directory: %w", err)
	}
	return dir, nil
}

// lock waits for the exclusive lock on file, which the kernel also lets go of
// when the process dies.
func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// compile builds the program, always to the same file, so that the go command
// finds it up to date and neither compiles nor links again.
func compile(ctx context.Context, pkg, dir string) (binary string, err error) {
	abs := pkg
	if strings.HasPrefix(pkg, ".") {
		if abs, err = filepath.Abs(pkg); err != nil {
			return "", fmt.Errorf("finding %s: %w", pkg, err)
		}
	}
	out := filepath.Join(dir, "bin-"+digest.FromString(abs).Encoded()[:16])
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling %s: %w\n%s", pkg, err, output)
	}
	return out, nil
}

// blob is one content-addressed part of an image.
type blob struct {
	desc ocispec.Descriptor
	data []byte
}

func newBlob(mediaType string, data []byte) blob {
	return blob{
		desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		data: data,
	}
}

func newJSONBlob(mediaType string, v any) (blob, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return blob{}, fmt.Errorf("encoding %s: %w", mediaType, err)
	}
	return newBlob(mediaType, data), nil
}

// layers makes what the image's file system consists of, from the bottom up. They
// are not compressed: the archive never travels, and their digests are the diff IDs.
func layers(ctx context.Context, opts Options, dir string) (all []blob, err error) {
	if len(opts.Debian) > 0 {
		packages, err := debian(ctx, opts.Debian, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, newBlob(ocispec.MediaTypeImageLayer, packages))
	}
	binary := opts.Binary
	if opts.Package != "" {
		if binary, err = compile(ctx, opts.Package, dir); err != nil {
			return nil, err
		}
	}
	var program []byte
	if binary != "" {
		if program, err = os.ReadFile(binary); err != nil {
			return nil, fmt.Errorf("reading the program: %w", err)
		}
	}
	own, err := layer(program, opts)
	if err != nil {
		return nil, err
	}
	return append(all, newBlob(ocispec.MediaTypeImageLayer, own)), nil
}

// assemble makes config, manifest and index, and writes the archive unless the cache
// has it.
func assemble(layers []blob, opts Options, dir string) (string, digest.Digest, error) {
	var descriptors []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, layer := range layers {
		descriptors, diffIDs = append(descriptors, layer.desc), append(diffIDs, layer.desc.Digest)
	}
	configBlob, err := newJSONBlob(ocispec.MediaTypeImageConfig, config(opts, diffIDs))
	if err != nil {
		return "", "", err
	}
	manifest, err := newJSONBlob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configBlob.desc,
		Layers:    descriptors,
	})
	if err != nil {
		return "", "", err
	}
	named := manifest.desc
	named.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	named.Annotations = map[string]string{
		"io.containerd.image.name": opts.Name,
		ocispec.AnnotationRefName:  tag(opts.Name),
	}
	index, err := newJSONBlob(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{named},
	})
	if err != nil {
		return "", "", err
	}
	// The index covers everything, the name too.
	archive := filepath.Join(dir, index.desc.Digest.Encoded()[:32]+".oci.tar")
	if _, err := os.Stat(archive); err == nil {
		return archive, manifest.desc.Digest, nil
	}
	if err := writeArchive(archive, index.data, append(layers, configBlob, manifest)); err != nil {
		return "", "", err
	}
	return archive, manifest.desc.Digest, nil
}

// tag is the tag of a reference, which the layout names an image by.
func tag(name string) string {
	_, tag, _ := strings.Cut(path.Base(name), ":")
	return cmp.Or(tag, "latest")
}

// config is the image's configuration. It has no creation time, for equal
// digests.
func config(opts Options, diffIDs []digest.Digest) ocispec.Image {
	entrypoint := opts.Entrypoint
	if len(entrypoint) == 0 {
		entrypoint = []string{opts.Path}
	}
	search := "/"
	if len(opts.Debian) > 0 {
		search = "/usr/sbin:/usr/bin"
	}
	ports := make(map[string]struct{}, len(opts.ExposedPorts))
	for _, port := range opts.ExposedPorts {
		ports[port] = struct{}{}
	}
	return ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: ocispec.ImageConfig{
			Entrypoint:   entrypoint,
			Cmd:          opts.Cmd,
			Env:          append([]string{"PATH=" + search}, opts.Env...),
			User:         opts.User,
			WorkingDir:   opts.WorkingDir,
			ExposedPorts: ports,
			StopSignal:   opts.StopSignal,
			Labels:       opts.Labels,
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}
}

// layer is the root file system, or what it has besides packages: the program, if
// there is one, the files with the directories above them, and a /tmp for programs
// that are not root.
func layer(program []byte, opts Options) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{"/": true}
	var mkdir func(dir string, mode int64) error
	mkdir = func(dir string, mode int64) error {
		if made[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir), 0o755); err != nil {
			return err
		}
		made[dir] = true
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: mode})
	}
	if !opts.NoTmp {
		if err := mkdir("/tmp", 0o1777); err != nil {
			return nil, fmt.Errorf("writing /tmp: %w", err)
		}
	}
	if program != nil {
		if err := mkdir(path.Dir(opts.Path), 0o755); err != nil {
			return nil, fmt.Errorf("writing the directory of %s: %w", opts.Path, err)
		}
		if err := writeFile(w, opts.Path[1:], 0o755, program); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(opts.Files)) {
		clean := path.Clean("/" + name)
		if err := mkdir(path.Dir(clean), 0o755); err != nil {
			return nil, fmt.Errorf("writing the directory of %s: %w", clean, err)
		}
		mode := int64(0o644)
		if bytes.HasPrefix(opts.Files[name], []byte("\x7fELF")) {
			mode = 0o755
		}
		if err := writeFile(w, clean[1:], mode, opts.Files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("writing the layer: %w", err)
	}
	return buf.Bytes(), nil
}

// writeArchive writes an OCI image layout as a tar file.
func writeArchive(archive string, index []byte, blobs []blob) error {
	return write(archive, func(f *os.File) error { return writeLayout(f, index, blobs) })
}

// keep puts data into a file of the cache.
func keep(file string, data []byte) error {
	return write(file, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// write makes a file of the cache, which appears under its name when it is complete.
func write(file string, content func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "archive-*")
	if err != nil {
		return fmt.Errorf("creating the archive: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(content(f), f.Close()); err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	return nil
}

func writeLayout(out io.Writer, index []byte, blobs []blob) error {
	w := tar.NewWriter(out)
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return fmt.Errorf("encoding the layout: %w", err)
	}
	if err := writeFile(w, ocispec.ImageLayoutFile, 0o644, layout); err != nil {
		return err
	}
	if err := writeFile(w, ocispec.ImageIndexFile, 0o644, index); err != nil {
		return err
	}
	for _, b := range blobs {
		name := path.Join(ocispec.ImageBlobsDir, b.desc.Digest.Algorithm().String(), b.desc.Digest.Encoded())
		if err := writeFile(w, name, 0o644, b.data); err != nil {
			return err
		}
	}
	return w.Close()
}

func writeFile(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
