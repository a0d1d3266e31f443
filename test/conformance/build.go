package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fairway-run/fairway/test/images"
)

const (
	// The harness runs in the repository's root.
	suiteDir = "test/conformance/suite"
	// Where suite/ finds Knative's tests and the images that they run.
	suitePrefix = "knative.dev/serving/test/conformance/"
	imagePrefix = "knative.dev/serving/test/test_images/"
	// imageRepository has a registry that nobody asks: the images are imported.
	imageRepository = "localhost/conformance/"
)

// artifacts are what the harness builds, in the user's cache, where Go finds it
// up to date when nothing has changed.
type artifacts struct {
	caddy   string
	suites  []*suite
	archive map[string]string // of each image, by its name
	// resources is the manifest of what the tests expect to exist.
	resources string
}

func build(ctx context.Context, plain bool) (*artifacts, error) {
	dir, unlock, err := cacheDir()
	if err != nil {
		return nil, err
	}
	defer unlock()
	b := &artifacts{archive: make(map[string]string)}

	say("building Caddy with Fairway")
	b.caddy = filepath.Join(dir, "caddy")
	args := []string{"build", "-buildvcs=false", "-tags", "nobadger,nomysql,nopgx", "-o", b.caddy}
	env := "CGO_ENABLED=1"
	if plain {
		env = "CGO_ENABLED=0"
	} else {
		args = append(args, "-race")
	}
	if _, err := goRun(ctx, ".", env, append(args, "./test/caddy")...); err != nil {
		return nil, err
	}

	say("building Knative's tests and their images")
	// The error about imports of programs is expected.
	list, err := goRun(ctx, suiteDir, "", "list", "-e", "-tags", "suite", "-f", `{{join .Imports "\n"}}`, ".")
	if err != nil {
		return nil, err
	}
	var tests, programs []string
	for pkg := range strings.FieldsSeq(list) {
		switch {
		case strings.HasPrefix(pkg, suitePrefix):
			tests = append(tests, pkg)
			b.suites = append(b.suites, &suite{
				name: strings.TrimPrefix(pkg, suitePrefix), binary: filepath.Join(dir, path.Base(pkg)+".test"),
			})
		case strings.HasPrefix(pkg, imagePrefix):
			programs = append(programs, pkg)
		}
	}
	if _, err := goRun(ctx, suiteDir, "CGO_ENABLED=0", append([]string{"test", "-c", "-vet=off", "-tags", "e2e", "-o", dir + "/"}, tests...)...); err != nil {
		return nil, err
	}
	if _, err := goRun(ctx, suiteDir, "CGO_ENABLED=0", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, programs...)...); err != nil {
		return nil, err
	}
	for _, pkg := range programs {
		name := path.Base(pkg)
		archive, err := images.Build(ctx, image(name, filepath.Join(dir, name)))
		if err != nil {
			return nil, err
		}
		b.archive[name] = archive
	}
	module, err := goRun(ctx, suiteDir, "", "list", "-m", "-f", "{{.Dir}}", "knative.dev/serving")
	if err != nil {
		return nil, err
	}
	b.resources = filepath.Join(strings.TrimSpace(module), "test/config/test-resources.yaml")
	return b, nil
}

// image is what ko, which Knative builds its test images with, makes of a
// program: below /ko-app, on a base of little more than a user without rights.
func image(name, binary string) images.Options {
	return images.Options{
		Name:   imageRepository + name + ":1",
		Binary: binary,
		Path:   "/ko-app/" + name,
		User:   "65532",
		Files: map[string][]byte{
			"/etc/passwd": []byte("root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"),
			"/etc/group":  []byte("root:x:0:\nnonroot:x:65532:\n"),
		},
	}
}

// cacheDir is where the programs are built, held alone until unlock.
func cacheDir() (dir string, unlock func(), err error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))
	}
	dir = filepath.Join(base, "fairway", "conformance")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("making the cache directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("opening the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return "", nil, fmt.Errorf("locking: %w", err)
	}
	return dir, func() { _ = f.Close() }, nil
}

// goRun runs the go command in dir and returns what it prints.
func goRun(ctx context.Context, dir, env string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env)
	var errors strings.Builder
	cmd.Stderr = &errors
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s in %s: %w\n%s", strings.Join(args, " "), dir, err, errors.String())
	}
	return string(output), nil
}
