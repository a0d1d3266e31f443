package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// withTmp makes a /tmp that everybody can write to, in memory, for an image that
// has none: Knative's runtime contract promises one.
func withTmp(ctx context.Context, c oci.Client, container *containers.Container, s *oci.Spec) error {
	mounts, err := c.SnapshotService(container.Snapshotter).Mounts(ctx, container.SnapshotKey)
	if err != nil {
		return fmt.Errorf("looking for /tmp: %w", err)
	}
	there, err := holds(ctx, mounts, "tmp")
	if err != nil {
		return fmt.Errorf("looking for /tmp: %w", err)
	}
	if !there {
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"},
		})
	}
	return nil
}

// holds reports whether a file system holds a name at its root. It mounts the
// file system only if it must: whoever is killed then leaves the mount.
func holds(ctx context.Context, mounts []mount.Mount, name string) (bool, error) {
	if layers := layersOf(mounts); layers != nil {
		return inLayers(layers, name)
	}
	there := false
	err := mount.WithReadonlyTempMount(ctx, mounts, func(root string) (err error) {
		there, err = inLayers([]string{root}, name)
		return err
	})
	return there, err
}

// layersOf returns the directories that a file system is made of, the uppermost
// first, or nil if they cannot be told.
func layersOf(mounts []mount.Mount) []string {
	if len(mounts) != 1 {
		return nil
	}
	switch m := mounts[0]; m.Type {
	case "bind":
		return []string{m.Source}
	case "overlay":
		var upper, lower []string
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = []string{dir}
			}
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lower = strings.Split(dirs, ":")
			}
		}
		if len(lower) > 0 {
			return append(upper, lower...)
		}
	}
	return nil
}

func inLayers(layers []string, name string) (bool, error) {
	for _, dir := range layers {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err == nil {
			return info.Mode()&fs.ModeCharDevice == 0, nil // such a device says that it was deleted
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}
