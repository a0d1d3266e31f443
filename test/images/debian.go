package images

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// library is a line of ldd's that names a file.
var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// Debian returns a program of a Debian package, which need not be installed, with
// the libraries that it needs, as this machine has them. Debian's sources must be
// known to apt. The package is fetched once.
func Debian(ctx context.Context, pkg, program string) (binary string, libraries map[string][]byte, err error) {
	dir, err := cacheDir()
	if err != nil {
		return "", nil, fmt.Errorf("package %s: %w", pkg, err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", nil, fmt.Errorf("package %s: %w", pkg, err)
	}
	defer unlock()
	root := filepath.Join(dir, "debian", pkg)
	binary = filepath.Join(root, program)
	if _, err := os.Stat(binary); err != nil {
		if err := unpack(ctx, pkg, root); err != nil {
			return "", nil, fmt.Errorf("package %s: %w", pkg, err)
		}
	}
	out, err := exec.CommandContext(ctx, "ldd", binary).Output()
	if err != nil {
		return "", nil, fmt.Errorf("package %s: the libraries of %s: %w", pkg, program, err)
	}
	if bytes.Contains(out, []byte("not found")) {
		return "", nil, fmt.Errorf("package %s: %s needs libraries that are not here:\n%s", pkg, program, out)
	}
	libraries = make(map[string][]byte)
	for _, match := range library.FindAllStringSubmatch(string(out), -1) {
		if libraries[match[1]], err = os.ReadFile(match[1]); err != nil {
			return "", nil, fmt.Errorf("package %s: a library of %s: %w", pkg, program, err)
		}
	}
	return binary, libraries, nil
}

// unpack fetches a package and unpacks it into root.
func unpack(ctx context.Context, pkg, root string) error {
	work, err := os.MkdirTemp("", "fairway-debian-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(work)
	run := func(name string, args ...string) error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = work
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := run("apt-get", "download", pkg); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("apt-get fetched %d files of %s: %w", len(files), pkg, err)
	}
	unpacked := filepath.Join(work, "root")
	if err := run("dpkg-deb", "-x", files[0], unpacked); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o700); err != nil {
		return fmt.Errorf("making the cache directory: %w", err)
	}
	if err := run("cp", "-a", unpacked, root); err != nil {
		return err
	}
	return nil
}
