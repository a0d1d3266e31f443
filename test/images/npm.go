package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// registry is npm's.
const registry = "https://registry.npmjs.org/"

// NPM returns the files of a package of the npm registry that depends on no other,
// by where they are in an image whose Node.js programs are in /. integrity is what
// package-lock.json has under that name: "sha512-" and a sum in base64. The package
// is fetched once.
func NPM(ctx context.Context, name, version, integrity string) (files map[string][]byte, err error) {
	dir, err := cacheDir()
	if err != nil {
		return nil, fmt.Errorf("npm package %s: %w", name, err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("npm package %s: %w", name, err)
	}
	defer unlock()
	file := filepath.Join(dir, fmt.Sprintf("npm-%s-%s.tgz", name, version))
	archive, err := os.ReadFile(file)
	missing := errors.Is(err, os.ErrNotExist)
	if missing {
		archive, err = fetch(ctx, fmt.Sprintf("%s%s/-/%s-%s.tgz", registry, name, name, version))
	}
	if err != nil {
		return nil, fmt.Errorf("npm package %s: %w", name, err)
	}
	sum := sha512.Sum512(archive)
	if got := "sha512-" + base64.StdEncoding.EncodeToString(sum[:]); got != integrity {
		return nil, fmt.Errorf("npm package %s: its checksum is %s; want %s", name, got, integrity)
	}
	if missing {
		if err := keep(file, archive); err != nil {
			return nil, fmt.Errorf("npm package %s: %w", name, err)
		}
	}
	if files, err = readNPM(archive, "/node_modules/"+name); err != nil {
		return nil, fmt.Errorf("npm package %s: %w", name, err)
	}
	return files, nil
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching it: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching %s: %s", url, resp.Status)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("fetching it: %w", err)
	}
	return body, nil
}

// readNPM returns the files of a package, which are below one directory in it, below
// another.
func readNPM(archive []byte, below string) (map[string][]byte, error) {
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	files := make(map[string][]byte)
	for r := tar.NewReader(unzipped); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading it: %w", err)
		}
		_, name, ok := strings.Cut(header.Name, "/")
		if !ok || header.Typeflag != tar.TypeReg {
			continue
		}
		if files[path.Join(below, name)], err = io.ReadAll(r); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
	}
}
