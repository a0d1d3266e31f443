package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// merged are the directories that are links into /usr, as on every Debian that is
// installed. Packages may have their files in either.
var merged = []string{"bin", "lib", "lib32", "lib64", "libx32", "sbin"}

// unneeded is what nobody reads in a container.
var unneeded = []string{"usr/share/doc/", "usr/share/info/", "usr/share/lintian/", "usr/share/locale/", "usr/share/man/"}

// debian returns a layer with the files of Debian packages and of all that these
// depend on, from the sources that apt has on this machine. Nothing is installed
// here, and none of the packages' scripts is run. The layer is made once and kept in
// dir; it needs no root.
func debian(ctx context.Context, packages []string, dir string) ([]byte, error) {
	packages = slices.Sorted(slices.Values(packages))
	file := filepath.Join(dir, "debian-"+digest.FromString(strings.Join(packages, " ")).Encoded()[:16]+".tar")
	layer, err := os.ReadFile(file)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return layer, err
	}
	work, err := os.MkdirTemp("", "fairway-debian-")
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(work)
	archives, err := download(ctx, packages, work)
	if err != nil {
		return nil, err
	}
	if layer, err = mergePackages(ctx, archives); err != nil {
		return nil, err
	}
	return layer, keep(file, layer)
}

// download fetches packages and all that they depend on into work, as if no package
// were installed yet.
func download(ctx context.Context, packages []string, work string) (archives []string, err error) {
	for _, made := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(work, made), 0o700); err != nil {
			return nil, fmt.Errorf("making a directory: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(work, "status"), nil, 0o600); err != nil {
		return nil, fmt.Errorf("making a list of no packages: %w", err)
	}
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", "-qq", "-y")
		for _, option := range []string{
			"Dir::State=" + work, "Dir::State::lists=" + filepath.Join(work, "lists"), "Dir::State::status=" + filepath.Join(work, "status"),
			"Dir::Cache=" + work, "Dir::Cache::archives=" + filepath.Join(work, "archives"),
			"Acquire::Languages=none", "Acquire::Retries=3", "APT::Sandbox::User=root", "Debug::NoLocking=true",
		} {
			cmd.Args = append(cmd.Args, "-o", option)
		}
		cmd.Args = append(cmd.Args, args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	// A source of this machine that does not answer need not have the packages.
	stale := apt("update")
	if err := apt(append([]string{"--no-install-recommends", "--download-only", "install"}, packages...)...); err != nil {
		return nil, errors.Join(stale, err)
	}
	if archives, err = filepath.Glob(filepath.Join(work, "archives", "*.deb")); err != nil || len(archives) == 0 {
		return nil, fmt.Errorf("apt-get has fetched no packages: %w", err)
	}
	return archives, nil
}

// mergePackages makes one layer of packages.
func mergePackages(ctx context.Context, archives []string) ([]byte, error) {
	var buf bytes.Buffer
	m := &merger{w: tar.NewWriter(&buf), has: make(map[string]bool)}
	for _, name := range merged {
		m.has[name] = true
		if err := m.w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "usr/" + name, Mode: 0o777}); err != nil {
			return nil, fmt.Errorf("writing the layer: %w", err)
		}
	}
	for _, archive := range archives {
		if err := m.add(ctx, archive); err != nil {
			return nil, fmt.Errorf("package %s: %w", filepath.Base(archive), err)
		}
	}
	if err := m.w.Close(); err != nil {
		return nil, fmt.Errorf("writing the layer: %w", err)
	}
	return buf.Bytes(), nil
}

// merger writes what packages have into one archive, each name once.
type merger struct {
	w   *tar.Writer
	has map[string]bool
}

func (m *merger) add(ctx context.Context, archive string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", archive)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	files, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("reading it: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("reading it: %w", err)
	}
	failed := m.copy(tar.NewReader(files))
	_, _ = io.Copy(io.Discard, files)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("dpkg-deb: %w\n%s", err, problem.Bytes())
	}
	return failed
}

func (m *merger) copy(files *tar.Reader) error {
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading it: %w", err)
		}
		header.Name = place(header.Name)
		if header.Name == "" || m.has[header.Name] || slices.ContainsFunc(unneeded, func(dir string) bool { return strings.HasPrefix(header.Name, dir) }) {
			continue
		}
		m.has[header.Name] = true
		switch header.Typeflag {
		case tar.TypeDir:
			header.Name += "/"
		case tar.TypeLink:
			header.Linkname = place(header.Linkname)
		}
		if err := m.w.WriteHeader(header); err != nil {
			return fmt.Errorf("writing %s: %w", header.Name, err)
		}
		if _, err := io.Copy(m.w, files); err != nil {
			return fmt.Errorf("writing %s: %w", header.Name, err)
		}
	}
}

// place is where a file of a package is in the image; "" for what is there already.
func place(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	first, rest, below := strings.Cut(name, "/")
	if !slices.Contains(merged, first) {
		return name
	}
	if !below {
		return ""
	}
	return "usr/" + first + "/" + rest
}
