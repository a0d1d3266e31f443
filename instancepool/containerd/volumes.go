package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-run/fairway/revisions"
)

// volumes makes the volumes of one instance: Kubernetes' of the kinds secret,
// configMap, projected and emptyDir. The files of the first three are made anew
// for each instance and do not change afterwards.
//
// An emptyDir is in memory, as Cloud Run's is, whatever its medium: what is in it
// counts against the memory limit of who wrote it, and sizeLimit bounds it.
type volumes struct {
	dir      string // has one directory per volume; only root can enter it
	instance string
	rev      *revisions.Revision
	lookups  *lookups
}

const (
	// volumesDir is the part of an instance's files that holds its volumes.
	volumesDir = "volumes"
	// valueMode is the mode of a value's file (Kubernetes: defaultMode).
	valueMode = 0o644
	// emptyDirMode lets every user of a container write to an emptyDir.
	emptyDirMode = "mode=0777"
)

// make makes what the containers' mounts are of. What it leaves after an error
// goes with the instance's files.
func (v *volumes) make() error {
	spec := &v.rev.Spec().Template.Spec.PodSpec
	for i := range spec.Volumes {
		vol := &spec.Volumes[i]
		if err := v.makeOne(vol); err != nil {
			return &ConfigError{Field: "volume " + vol.Name, Err: err}
		}
	}
	return nil
}

func (v *volumes) makeOne(vol *corev1.Volume) error {
	if vol.EmptyDir != nil && v.private(vol.Name) {
		return nil // the container's own mount is all there is of it
	}
	dir := filepath.Join(v.dir, vol.Name)
	if vol.EmptyDir == nil {
		files, err := v.files(vol)
		if err != nil {
			return err
		}
		return v.write(dir, files)
	}
	if err := v.mkdir(dir); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, strings.Join(v.emptyDirOptions(vol.EmptyDir), ",")); err != nil {
		return fmt.Errorf("mounting it: %w", err)
	}
	return nil
}

// private reports whether an emptyDir is mounted once only, and as a whole: then
// it can be in that container's own mounts, which end with it.
func (v *volumes) private(name string) bool {
	mounts := 0
	for i := range v.rev.Spec().Template.Spec.Containers {
		for _, m := range v.rev.Spec().Template.Spec.Containers[i].VolumeMounts {
			if m.Name != name {
				continue
			}
			if mounts++; mounts > 1 || m.SubPath != "" {
				return false
			}
		}
	}
	return true
}

// emptyDirOptions are the mount options of an emptyDir.
func (v *volumes) emptyDirOptions(e *corev1.EmptyDirVolumeSource) []string {
	options := []string{emptyDirMode}
	if group := v.fsGroup(); group != nil {
		options = []string{"mode=02777", fmt.Sprintf("gid=%d", *group)}
	}
	if e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
		options = append(options, fmt.Sprintf("size=%d", e.SizeLimit.Value()))
	}
	return options
}

// fsGroup is the group that all volumes belong to, or nil.
func (v *volumes) fsGroup() *int64 {
	if sc := v.rev.Spec().Template.Spec.SecurityContext; sc != nil {
		return sc.FSGroup
	}
	return nil
}

// mkdir makes a volume's directory in one that only root can enter.
func (v *volumes) mkdir(dir string) error {
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755) //nolint:gosec // any user of the container enters it
}

// file is a file of a volume.
type file struct {
	data []byte
	mode fs.FileMode
}

// files are those of a volume, by path. Of two with the same path the later one
// counts.
func (v *volumes) files(vol *corev1.Volume) (map[string]file, error) {
	all := make(map[string]file)
	switch {
	case vol.Secret != nil:
		s := vol.Secret
		return all, v.add(all, lookup{revisions.Secrets, s.SecretName}, s.Items, s.Optional, s.DefaultMode)
	case vol.ConfigMap != nil:
		c := vol.ConfigMap
		return all, v.add(all, lookup{revisions.ConfigMaps, c.Name}, c.Items, c.Optional, c.DefaultMode)
	case vol.Projected != nil:
		for i := range vol.Projected.Sources {
			if err := v.project(all, &vol.Projected.Sources[i], vol.Projected.DefaultMode); err != nil {
				return nil, fmt.Errorf("source %d: %w", i, err)
			}
		}
		return all, nil
	}
	return nil, errors.New("it is of a kind that is not supported: secret, configMap, projected and emptyDir are")
}

func (v *volumes) project(all map[string]file, p *corev1.VolumeProjection, mode *int32) error {
	switch {
	case p.Secret != nil:
		return v.add(all, lookup{revisions.Secrets, p.Secret.Name}, p.Secret.Items, p.Secret.Optional, mode)
	case p.ConfigMap != nil:
		return v.add(all, lookup{revisions.ConfigMaps, p.ConfigMap.Name}, p.ConfigMap.Items, p.ConfigMap.Optional, mode)
	case p.DownwardAPI != nil:
		return v.describe(all, p.DownwardAPI.Items, mode)
	case p.ServiceAccountToken != nil:
		return errors.New("serviceAccountToken is not supported: there are no service accounts")
	}
	return errors.New("it is of a kind that is not supported: secret, configMap and downwardAPI are")
}

// add adds the values of an object: all of them, or those that items name.
func (v *volumes) add(all map[string]file, ref lookup, items []corev1.KeyToPath, optional *bool, mode *int32) error {
	data, err := v.lookups.get(ref, optional)
	if err != nil {
		return err
	}
	if len(items) == 0 {
		for key, value := range data {
			all[key] = file{value, modeOf(nil, mode)}
		}
		return nil
	}
	for _, item := range items {
		value, found, err := v.lookups.key(ref, item.Key, optional)
		if err != nil {
			return err
		}
		if found {
			if err := put(all, item.Path, file{value, modeOf(item.Mode, mode)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// put adds a file whose path somebody has chosen.
func put(all map[string]file, name string, f file) error {
	if !filepath.IsLocal(name) || path.Clean(name) == "." || strings.ContainsRune(name, 0) {
		return fmt.Errorf("path %q is not a path inside the volume", name)
	}
	all[path.Clean(name)] = f
	return nil
}

// modeOf is the first of modes that is set.
func modeOf(modes ...*int32) fs.FileMode {
	for _, m := range modes {
		if m != nil {
			return fs.FileMode(*m) & fs.ModePerm
		}
	}
	return valueMode
}

// write makes a volume's directory with its files.
func (v *volumes) write(dir string, files map[string]file) error {
	if err := v.mkdir(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := v.grant(root, ".", 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := v.writeFile(root, name, files[name]); err != nil {
			return fmt.Errorf("making a file of it: %w", err)
		}
	}
	return nil
}

func (v *volumes) writeFile(root *os.Root, name string, f file) error {
	made := ""
	for part := range strings.SplitSeq(path.Dir(name), "/") {
		if made = path.Join(made, part); made == "." {
			break
		}
		err := root.Mkdir(made, 0o755)
		if err == nil {
			err = v.grant(root, made, 0o755)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := root.WriteFile(name, f.data, 0o600); err != nil {
		return err
	}
	return v.grant(root, name, f.mode)
}

// grant sets who may read a file, whatever the umask, and the fsGroup in any
// case.
func (v *volumes) grant(root *os.Root, name string, mode fs.FileMode) error {
	if group := v.fsGroup(); group != nil {
		if err := root.Chown(name, 0, int(*group)); err != nil {
			return err
		}
		mode |= 0o440
	}
	return root.Chmod(name, mode)
}

// mounts are those of a container's volumes.
func (v *volumes) mounts(c *corev1.Container) ([]specs.Mount, error) {
	all := make([]specs.Mount, 0, len(c.VolumeMounts))
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		mount, err := v.mount(m)
		if err != nil {
			return nil, &ConfigError{c.Name, fmt.Sprintf("mount of volume %s at %s", m.Name, m.MountPath), err}
		}
		all = append(all, mount)
	}
	return all, nil
}

func (v *volumes) mount(m *corev1.VolumeMount) (specs.Mount, error) {
	spec := &v.rev.Spec().Template.Spec.PodSpec
	n := slices.IndexFunc(spec.Volumes, func(vol corev1.Volume) bool { return vol.Name == m.Name })
	if n < 0 {
		return specs.Mount{}, errors.New("there is no volume of that name")
	}
	vol := &spec.Volumes[n]
	mount := specs.Mount{Destination: path.Clean(m.MountPath), Options: []string{"nosuid", "nodev"}}
	if m.ReadOnly || vol.EmptyDir == nil {
		mount.Options = append(mount.Options, "ro")
	}
	if vol.EmptyDir != nil && v.private(vol.Name) {
		mount.Type, mount.Source = "tmpfs", "tmpfs"
		mount.Options = append(mount.Options, v.emptyDirOptions(vol.EmptyDir)...)
		return mount, nil
	}
	source, err := v.source(vol, m.SubPath)
	mount.Type, mount.Source = "bind", source
	mount.Options = append(mount.Options, "rbind", "rprivate")
	return mount, err
}

// source is what is mounted of a volume. A subPath that is not there is made in
// an emptyDir, as a directory, and in volumes that may be empty because all of
// them is optional.
func (v *volumes) source(vol *corev1.Volume, sub string) (string, error) {
	dir := filepath.Join(v.dir, vol.Name)
	if sub == "" {
		return dir, nil
	}
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("subPath %q is not a path inside the volume", sub)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	_, err = root.Stat(sub)
	if errors.Is(err, fs.ErrNotExist) && (vol.EmptyDir != nil || optionalVolume(vol)) {
		err = root.MkdirAll(sub, 0o755)
		if err == nil && vol.EmptyDir != nil {
			err = root.Chmod(sub, 0o777)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("subPath %q is not in the volume", sub)
	}
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	return filepath.Join(dir, sub), nil
}

// optionalVolume reports whether a volume is there even without any value.
func optionalVolume(vol *corev1.Volume) bool {
	switch {
	case vol.Secret != nil:
		return isTrue(vol.Secret.Optional)
	case vol.ConfigMap != nil:
		return isTrue(vol.ConfigMap.Optional)
	case vol.Projected != nil:
		return !slices.ContainsFunc(vol.Projected.Sources, func(p corev1.VolumeProjection) bool {
			return (p.Secret == nil || !isTrue(p.Secret.Optional)) && (p.ConfigMap == nil || !isTrue(p.ConfigMap.Optional))
		})
	}
	return false
}

// unmountVolumes takes away the emptyDirs that are mounts of the host.
func unmountVolumes(dir string) error {
	all, err := os.ReadDir(dir)
	if missing(err) {
		return nil
	}
	for _, e := range all {
		// It is not one, or is one no more.
		unmountErr := unix.Unmount(filepath.Join(dir, e.Name()), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if !errors.Is(unmountErr, unix.EINVAL) && !missing(unmountErr) {
			err = errors.Join(err, unmountErr)
		}
	}
	return err
}
