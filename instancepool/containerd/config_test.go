package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/test/images"
)

// put makes or replaces a secret or config map.
func (f *fixture) put(kind revisions.ValueKind, name string, pairs ...string) {
	f.t.Helper()
	o := &revisions.Object{Name: name, Data: make(map[string][]byte)}
	for i := 0; i < len(pairs); i += 2 {
		o.Data[pairs[i]] = []byte(pairs[i+1])
	}
	_, err := f.values.Put(kind, o, false)
	if err != nil {
		_, err = f.values.Put(kind, o, true)
	}
	f.check(err)
}

// expect asks an instance and compares its answer.
func (f *fixture) expect(h instancepool.Handle, path, want string) {
	f.t.Helper()
	if got := f.get(h, path); got != want {
		f.t.Errorf("%s: %q; want %q", path, got, want)
	}
}

// refused asks an instance for what it cannot have, and returns its answer.
func (f *fixture) refused(h instancepool.Handle, path string) string {
	f.t.Helper()
	f.get(h, "/")
	resp, err := f.http.Get("http://" + h.Address() + path)
	f.check(err)
	defer resp.Body.Close()
	b := make([]byte, 1000)
	n, _ := resp.Body.Read(b)
	if resp.StatusCode < 400 {
		f.t.Errorf("%s: %s %s", path, resp.Status, b[:n])
	}
	return strings.TrimSpace(string(b[:n]))
}

// status is what the kernel says about an instance's process.
func (f *fixture) status(h instancepool.Handle) map[string]string {
	f.t.Helper()
	all := make(map[string]string)
	for line := range strings.Lines(f.get(h, "/file?path=/proc/self/status")) {
		name, value, _ := strings.Cut(line, ":")
		all[name] = strings.Join(strings.Fields(value), " ")
	}
	return all
}

// fails starts an instance that cannot be, and returns why. Nothing is left.
func (f *fixture) fails(r *Runtime, rev *revisions.Revision) error {
	f.t.Helper()
	h, err := r.Start(context.Background(), instancepool.StartSpec{ID: f.newID(), Revision: rev})
	if err == nil {
		f.stop(h)
		f.t.Fatal("it has started")
	}
	f.leftWithin(patience, 1)
	return err
}

func volume(name string, source corev1.VolumeSource) func(*servingv1.RevisionTemplateSpec) {
	return func(t *servingv1.RevisionTemplateSpec) {
		t.Spec.Volumes = append(t.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	}
}

func mounted(name, path, sub string, readOnly bool) func(*servingv1.RevisionTemplateSpec) {
	return func(t *servingv1.RevisionTemplateSpec) {
		c := &t.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path, SubPath: sub, ReadOnly: readOnly})
	}
}

func templates(all ...func(*servingv1.RevisionTemplateSpec)) func(*servingv1.RevisionTemplateSpec) {
	return func(t *servingv1.RevisionTemplateSpec) {
		for _, change := range all {
			change(t)
		}
	}
}

// TestSecrets gives secrets and config maps to instances of a user that is not
// root, as variables and as files: each has the version of its start.
func TestSecrets(t *testing.T) {
	f := newFixture(t)
	f.image(probeImage, images.Options{User: "65532:65532"})
	f.put(revisions.Secrets, "db", "password", "s3cret-one", "user", "me")
	f.put(revisions.ConfigMaps, "conf", "MODE", "fast", "PORT", "1")
	r := f.open()
	rev := f.revisionOf(r, templates(
		func(t *servingv1.RevisionTemplateSpec) {
			c := &t.Spec.Containers[0]
			c.EnvFrom = []corev1.EnvFromSource{configFrom("conf", ""), configFrom("conf", "C_")}
			c.Env = []corev1.EnvVar{
				{Name: "PASSWORD", ValueFrom: secretKey("db", "password", nil)},
				{Name: "NONE", ValueFrom: secretKey("db", "none", new(true))},
				{Name: "DSN", Value: "$(PASSWORD)@$(MODE):$(PORT) $(K_REVISION) $(NONE) $$(MODE)"},
			}
			c.Args = []string{"-mode=$(MODE)", "$(UNKNOWN)", "$(PASSWORD)"}
		},
		volume("keys", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "db"}}),
		volume("conf", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: local("conf"), DefaultMode: new(int32(0o400)), Items: []corev1.KeyToPath{{Key: "MODE", Path: "sub/mode", Mode: new(int32(0o444))}, {Key: "PORT", Path: "port"}},
		}}),
		volume("all", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{Secret: &corev1.SecretProjection{LocalObjectReference: local("db")}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("conf")}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}},
		}}}),
		mounted("keys", "/secrets/db", "", true),
		mounted("keys", "/etc/password", "password", true),
		mounted("conf", "/conf", "", true),
		mounted("conf", "/mode", "sub", true),
		mounted("all", "/all", "", true),
	))
	h := f.serve(r, rev)
	for name, want := range map[string]string{
		"PASSWORD": "s3cret-one", "MODE": "fast", "C_MODE": "fast", "C_PORT": "1", "PORT": "8080",
		"DSN": "s3cret-one@fast:8080 hello-00001 $(NONE) $(MODE)",
	} {
		f.expect(h, "/env?name="+name, want)
	}
	f.expect(h, "/file?path=/proc/self/cmdline", "/app\x00-mode=fast\x00$(UNKNOWN)\x00s3cret-one\x00")
	for path, want := range map[string]string{
		"/secrets/db/password": "s3cret-one", "/secrets/db/user": "me", "/etc/password": "s3cret-one",
		"/conf/sub/mode": "fast", "/mode/mode": "fast", "/all/password": "s3cret-one", "/all/MODE": "fast", "/all/name": h.ID(),
	} {
		f.expect(h, "/file?path="+path, want)
	}
	f.expect(h, "/stat?path=/secrets/db/password", "-rw-r--r-- 0:0 10")
	f.expect(h, "/stat?path=/conf/port", "-r-------- 0:0 1")
	f.refused(h, "/file?path=/conf/port")
	f.refused(h, "/write?path=/secrets/db/password")
	f.refused(h, "/write?path=/secrets/db/new")

	f.put(revisions.Secrets, "db", "password", "s3cret-two")
	next := f.serve(r, rev)
	f.expect(next, "/env?name=PASSWORD", "s3cret-two")
	f.expect(next, "/file?path=/secrets/db/password", "s3cret-two")
	f.refused(next, "/stat?path=/secrets/db/user")
	f.expect(h, "/file?path=/secrets/db/password", "s3cret-one")

	f.noSecrets(h)
	f.stop(h)
	if left := entries(filepath.Join(f.opts.StateDir, "files")); len(left) != 1 {
		t.Errorf("files of %q; want those of one instance", left)
	}
	f.stop(next)
}

// noSecrets fails the test if the record of an instance, but for its spec, holds
// a secret, or if others than root can read its files on the host.
func (f *fixture) noSecrets(h instancepool.Handle) {
	f.t.Helper()
	record, err := f.client.ContainerService().Get(withNamespace(context.Background(), f.opts.Namespace), h.ID())
	f.check(err)
	for key, value := range record.Labels {
		if strings.Contains(value, "s3cret") {
			f.t.Errorf("label %s is %q", key, value)
		}
	}
	for key, value := range record.Extensions {
		if strings.Contains(string(value.GetValue()), "s3cret") {
			f.t.Errorf("extension %s is %q", key, value.GetValue())
		}
	}
	dir := filepath.Join(f.opts.StateDir, "files", h.ID(), volumesDir)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		f.t.Errorf("the volumes: %v %v", info, err)
	}
}

// TestMissingValues refuses what refers to a secret that is not there.
func TestMissingValues(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for want, change := range map[string]func(*servingv1.RevisionTemplateSpec){
		`container user-container: env X: secret "none" not found`: func(t *servingv1.RevisionTemplateSpec) {
			t.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("none", "a", nil)}}
		},
		`volume v: config map "none" not found`: templates(
			volume("v", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("none")}}), mounted("v", "/v", "", true),
		),
		`volume v: source 0: serviceAccountToken is not supported`: templates(
			volume("v", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}},
			}}}), mounted("v", "/v", "", true),
		),
		`container user-container: mount of volume v at /v: subPath "none" is not in the volume`: templates(
			func(*servingv1.RevisionTemplateSpec) { f.put(revisions.Secrets, "some", "a", "b") },
			volume("v", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "some"}}), mounted("v", "/v", "none", true),
		),
		`container user-container: command: $(PROGRAM) cannot be run`: func(t *servingv1.RevisionTemplateSpec) {
			f.put(revisions.Secrets, "program", "a", "/s3cret")
			t.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PROGRAM", ValueFrom: secretKey("program", "a", nil)}}
			t.Spec.Containers[0].Command = []string{"$(PROGRAM)"}
		},
	} {
		err := f.fails(r, f.revisionOf(r, change))
		var config *ConfigError
		if !strings.Contains(err.Error(), want) || !errors.As(err, &config) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v; want %s", err, want)
		}
	}
	// What is missing can be made while the revision is there.
	rev := f.revision(r, func(c *corev1.Container) {
		c.Env = []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("late", "a", nil)}}
	})
	_ = f.fails(r, rev)
	f.put(revisions.Secrets, "late", "a", "b")
	h := f.serve(r, rev)
	f.expect(h, "/env?name=X", "b")
	f.stop(h)
}

// TestEmptyDir has volumes that are empty at first, for one mount and for two.
func TestEmptyDir(t *testing.T) {
	f := newFixture(t)
	f.image(probeImage, images.Options{User: "65532:65532"})
	r := f.open()
	limit := resource.MustParse("1Mi")
	sized := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}
	rev := f.revisionOf(r, templates(
		volume("own", sized), volume("shared", sized), volume("memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}),
		mounted("own", "/own", "", false), mounted("memory", "/dev/shm", "", false),
		mounted("shared", "/shared/all", "", false), mounted("shared", "/shared/sub", "sub/dir", false), mounted("shared", "/shared/read", "", true),
	))
	h := f.serve(r, rev)
	for _, path := range []string{"/own/a", "/dev/shm/a", "/shared/all/a", "/shared/sub/b"} {
		f.expect(h, "/write?bytes=10&path="+path, "written")
	}
	f.expect(h, "/stat?path=/shared/read/sub/dir/b", "-rw------- 65532:65532 10")
	f.refused(h, "/write?path=/shared/read/c")
	for _, path := range []string{"/own/big", "/shared/all/big"} {
		if got := f.refused(h, "/write?bytes=2000000&path="+path); !strings.Contains(got, "no space left") {
			t.Errorf("%s: %s", path, got)
		}
	}
	f.expect(h, "/write?bytes=2000000&path=/dev/shm/big", "written")
	f.expect(h, "/stat?path=/own", "drwxrwxrwx 0:0 80")
	other := f.serve(r, rev)
	f.refused(other, "/stat?path=/own/a")
	f.refused(other, "/stat?path=/shared/all/a")
	f.stop(other)
	f.stop(h)
	f.leftWithin(patience, 1)

	// What a process has left that was killed, the next one removes.
	h = f.serve(r, rev)
	f.check(r.Close())
	f.check(syscall.Kill(h.PID(), syscall.SIGKILL))
	eventually(t, "it has ended", func() bool { return syscall.Kill(h.PID(), 0) != nil })
	if all, err := f.open().List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("List: %v %v", all, err)
	}
	f.leftWithin(patience, 1)
}

// TestSecurityContext gives a container the user and the rights that it asks for.
func TestSecurityContext(t *testing.T) {
	f := newFixture(t)
	f.image(probeImage, images.Options{Files: map[string][]byte{
		"/etc/passwd": []byte("root:x:0:0::/:/x\nweb:x:2020:2021::/:/x\n"),
		"/etc/group":  []byte("root:x:0:\nweb:x:2021:\nmedia:x:44:web\ndisk:x:6:root\n"),
	}})
	f.put(revisions.Secrets, "key", "pem", "s3cret")
	r := f.open()
	secure := func(pod *corev1.PodSecurityContext, own *corev1.SecurityContext) func(*servingv1.RevisionTemplateSpec) {
		return func(t *servingv1.RevisionTemplateSpec) {
			t.Spec.SecurityContext, t.Spec.Containers[0].SecurityContext = pod, own
		}
	}
	id := func(n int64) *int64 { return &n }
	for name, test := range map[string]struct {
		change func(*servingv1.RevisionTemplateSpec)
		want   map[string]string
	}{
		"root":          {secure(nil, nil), map[string]string{"Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "0 6", "CapEff": "00000000000005fb", "NoNewPrivs": "1"}},
		"user of image": {secure(nil, &corev1.SecurityContext{RunAsUser: id(2020)}), map[string]string{"Uid": "2020 2020 2020 2020", "Gid": "2021 2021 2021 2021", "Groups": "44 2021", "CapEff": "0000000000000000"}},
		"other user": {secure(nil, &corev1.SecurityContext{RunAsUser: id(7), RunAsNonRoot: new(true)}), map[string]string{
			"Uid": "7 7 7 7", "Gid": "0 0 0 0", "Groups": "0",
		}},
		"group":      {secure(nil, &corev1.SecurityContext{RunAsUser: id(2020), RunAsGroup: id(9)}), map[string]string{"Uid": "2020 2020 2020 2020", "Gid": "9 9 9 9", "Groups": "9 44"}},
		"group only": {secure(nil, &corev1.SecurityContext{RunAsGroup: id(9)}), map[string]string{"Uid": "0 0 0 0", "Gid": "9 9 9 9", "Groups": "6 9"}},
		"pod": {
			secure(&corev1.PodSecurityContext{RunAsUser: id(5), RunAsGroup: id(6), SupplementalGroups: []int64{8}, FSGroup: id(7), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}, nil),
			map[string]string{"Uid": "5 5 5 5", "Gid": "6 6 6 6", "Groups": "6 7 8", "Seccomp": "2"},
		},
		"pod and own": {secure(&corev1.PodSecurityContext{RunAsUser: id(0), RunAsNonRoot: new(true)}, &corev1.SecurityContext{RunAsUser: id(5)}), map[string]string{"Uid": "5 5 5 5"}},
		"capabilities": {
			secure(nil, &corev1.SecurityContext{AllowPrivilegeEscalation: new(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_BIND_SERVICE"}}}),
			map[string]string{"CapEff": "0000000000000400", "CapBnd": "0000000000000400", "NoNewPrivs": "0"},
		},
	} {
		h := f.serve(r, f.revisionOf(r, test.change))
		status := f.status(h)
		for field, want := range test.want {
			if status[field] != want {
				t.Errorf("%s: %s is %q; want %q", name, field, status[field], want)
			}
		}
		f.stop(h)
	}
	for want, change := range map[string]func(*servingv1.RevisionTemplateSpec){
		"container user-container: securityContext: runAsNonRoot: the container would run as root": secure(nil, &corev1.SecurityContext{RunAsNonRoot: new(true)}),
		"container user-container: securityContext: capabilities: SYS_ADMIN cannot be added":       secure(nil, &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}}}),
		"container user-container: securityContext: seccompProfile: Unconfined is not supported":   secure(nil, &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}}),
	} {
		var config *ConfigError
		if err := f.fails(r, f.revisionOf(r, change)); !strings.Contains(err.Error(), want) || !errors.As(err, &config) {
			t.Errorf("%v; want %s", err, want)
		}
	}

	h := f.serve(r, f.revisionOf(r, templates(
		secure(&corev1.PodSecurityContext{FSGroup: id(70)}, &corev1.SecurityContext{RunAsUser: id(5), ReadOnlyRootFilesystem: new(true)}),
		volume("keys", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "key", DefaultMode: new(int32(0o400))}}), mounted("keys", "/keys", "", true),
		volume("data", corev1.VolumeSource{EmptyDir: new(corev1.EmptyDirVolumeSource)}), mounted("data", "/data", "", false),
		func(t *servingv1.RevisionTemplateSpec) { t.Spec.Containers[0].WorkingDir = "/data/work" },
	)))
	f.expect(h, "/file?path=/keys/pem", "s3cret")
	f.expect(h, "/stat?path=/keys/pem", "-r--r----- 0:70 6")
	f.expect(h, "/stat?path=/data", "dgrwxrwxrwx 0:70 60")
	f.expect(h, "/write?path=/data/a", "written")
	f.expect(h, "/stat?path=/proc/self/cwd", "Lrwxrwxrwx 5:0 0 /data/work")
	if got := f.refused(h, "/write?path=/tmp/a"); !strings.Contains(got, "read-only file system") {
		t.Errorf("writing to the root file system: %s", got)
	}
	f.stop(h)
}

// TestRuntimeContract looks at what Knative's runtime contract says of files,
// mounts and limits.
func TestRuntimeContract(t *testing.T) {
	f := newFixture(t)
	f.image("localhost/fairway/bare:1", images.Options{NoTmp: true, User: "65532:65532", Files: map[string][]byte{"/run/app/conf": []byte("kept")}})
	r := f.open()
	h := f.serve(r, f.revision(r, func(c *corev1.Container) {
		c.Image = "localhost/fairway/bare:1"
		c.Resources = corev1.ResourceRequirements{
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("128Mi")},
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("125m")},
		}
	}))
	for path, want := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
		"/dev/full": "", "/dev/null": "", "/dev/ptmx": "", "/dev/random": "", "/dev/tty": "", "/dev/urandom": "", "/dev/zero": "", "/proc/self/fd": "",
	} {
		if got := f.get(h, "/stat?path="+path); !strings.HasSuffix(got, want) {
			t.Errorf("%s: %q; want %q", path, got, want)
		}
	}
	f.refused(h, "/stat?path=/dev/console")
	f.expect(h, "/file?path=/dev/stdin", "") // it ends at once
	if got := f.get(h, "/stat?path=/tmp"); !strings.HasPrefix(got, "dtrwxrwxrwx 0:0") {
		t.Errorf("/tmp: %s", got)
	}
	f.expect(h, "/write?path=/tmp/a", "written")
	f.expect(h, "/file?path=/run/app/conf", "kept")
	for _, name := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"} {
		if got := f.get(h, "/stat?path="+name); !strings.HasPrefix(got, "-rw-r--r-- 0:0") {
			t.Errorf("%s: %s", name, got)
		}
	}
	f.limits(h)
	for _, path := range []string{"/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness"} {
		f.refused(h, "/write?path="+path)
	}
	mounts := f.get(h, "/file?path=/proc/mounts")
	if !strings.Contains(mounts, "\nproc /proc/sys proc ro,") {
		t.Errorf("/proc/sys: %s", mounts)
	}
	f.stop(h)
}

// limits reads an instance's limits from the inside, and cannot write them.
func (f *fixture) limits(h instancepool.Handle) {
	f.t.Helper()
	files := map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(128 << 20), "cpu/cpu.shares": "128", "cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		files = map[string]string{"memory.max": fmt.Sprint(128 << 20), "cpu.max": "100000 100000"}
	}
	for name, want := range files {
		path := "path=" + url.QueryEscape("/sys/fs/cgroup/"+name)
		f.expect(h, "/file?"+path, want)
		if got := f.refused(h, "/write?bytes=1&"+path); !strings.Contains(got, "read-only file system") && !strings.Contains(got, "permission denied") {
			f.t.Errorf("writing %s: %s", name, got)
		}
	}
	if !strings.Contains(f.get(h, "/file?path=/proc/mounts"), " /sys/fs/cgroup ") {
		f.t.Error("there is no mount at /sys/fs/cgroup")
	}
}

// sidecar adds a container that is not the one that gets the requests.
func sidecar(name string, pairs ...string) func(*servingv1.RevisionTemplateSpec) {
	return func(t *servingv1.RevisionTemplateSpec) {
		first := &t.Spec.Containers[0]
		first.Name, first.Ports = "app", []corev1.ContainerPort{{ContainerPort: 8080}}
		c := corev1.Container{Name: name, Image: probeImage}
		env(pairs...)(&c)
		t.Spec.Containers = append(t.Spec.Containers, c)
	}
}

// TestSidecars runs several containers as one instance: they share the network
// and a volume, and start, end, are adopted and removed together.
func TestSidecars(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.put(revisions.Secrets, "key", "pem", "s3cret")
	share := func(n int, path string) func(*servingv1.RevisionTemplateSpec) {
		return func(t *servingv1.RevisionTemplateSpec) {
			c := &t.Spec.Containers[n]
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: path})
		}
	}
	rev := f.revisionOf(r, templates(
		sidecar("proxy", "PORT=9000", "WHO=$(K_REVISION)"), sidecar("cache", "PORT=9001"),
		volume("data", corev1.VolumeSource{EmptyDir: new(corev1.EmptyDirVolumeSource)}), share(0, "/data"), share(1, "/shared"),
		func(t *servingv1.RevisionTemplateSpec) {
			t.Annotations = map[string]string{revisions.DependenciesAnnotation: `{"app":["proxy","cache"],"proxy":["cache"]}`}
			t.Spec.Containers[1].Env = append(t.Spec.Containers[1].Env, corev1.EnvVar{Name: "KEY", ValueFrom: secretKey("key", "pem", nil)})
			t.Spec.Containers[1].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
		},
	))
	h := f.serve(r, rev)
	ip, _, _ := strings.Cut(h.Address(), ":")
	f.expect(h, "/env?name=PORT", "8080")
	f.expect(h, "/write?path=/data/a&bytes=3", "written")
	at := func(h instancepool.Handle, port string) instancepool.Handle {
		ip, _, _ := strings.Cut(h.Address(), ":")
		return elsewhere{h, ip + ":" + port}
	}
	proxy, cache := at(h, "9000"), at(h, "9001")
	f.expect(proxy, "/env?name=WHO", rev.Name)
	f.expect(proxy, "/env?name=KEY", "s3cret")
	f.expect(proxy, "/env?name=HOSTNAME", h.ID())
	f.expect(proxy, "/stat?path=/shared/a", "-rw------- 0:0 3")
	f.refused(cache, "/stat?path=/shared/a")
	if got := f.refused(h, "/env?name=KEY"); strings.Contains(got, "s3cret") {
		t.Errorf("the app has the proxy's secret: %s", got)
	}
	if len(f.shims()) != 3 || len(entries(filepath.Join(f.opts.LogDir, "hello"))) != 3 {
		t.Errorf("shims %q, logs %q", f.shims(), entries(filepath.Join(f.opts.LogDir, "hello")))
	}
	f.noSecrets(h)

	// A later process adopts them as one.
	f.check(r.Close())
	r = f.open()
	all, err := r.List(t.Context())
	if err != nil || len(all) != 1 || all[0].ID() != h.ID() || all[0].PID() != h.PID() || !strings.HasPrefix(all[0].Address(), ip) {
		t.Fatalf("List: %v %v", all, err)
	}
	h = all[0]
	f.get(h, "/")
	f.stop(h)
	if exit := h.Exit(); exit.Code != 0 {
		t.Errorf("exit: %+v", exit)
	}
	for _, name := range entries(filepath.Join(f.opts.LogDir, "hello")) {
		if b, err := os.ReadFile(filepath.Join(f.opts.LogDir, "hello", name)); err != nil || !strings.Contains(string(b), "got SIGTERM") {
			t.Errorf("%s: %s %v", name, b, err)
		}
	}
	f.leftWithin(patience, 1)

	// The end of one is the end of all.
	h = f.serve(r, rev)
	f.get(at(h, "9001"), "/")
	f.poke(at(h, "9001"), "/crash")
	if exit := f.awaitExit(h); exit.Code != 3 || exit.OOM {
		t.Errorf("exit: %+v", exit)
	}
	if got := h.LogTail(1000); !strings.Contains(got, "crashing, as asked") {
		t.Errorf("the log of what ended it: %q", got)
	}
	f.stop(h)
	f.leftWithin(patience, 1)

	h = f.serve(r, rev)
	f.get(at(h, "9000"), "/")
	f.poke(at(h, "9000"), "/oom")
	if exit := f.awaitExit(h); !exit.OOM {
		t.Errorf("exit: %+v", exit)
	}
	// Without a stop it is not taken for an instance that runs.
	f.check(r.Close())
	r = f.open()
	if all, err := r.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("List: %v %v", all, err)
	}
	f.leftWithin(patience, 1)
}

// elsewhere is an instance at another of its ports.
type elsewhere struct {
	instancepool.Handle
	address string
}

func (e elsewhere) Address() string { return e.address }

// TestSidecarsFail leaves nothing of an instance that cannot be whole.
func TestSidecarsFail(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for want, change := range map[string]func(*servingv1.RevisionTemplateSpec){
		"/none": templates(sidecar("proxy"), func(t *servingv1.RevisionTemplateSpec) { t.Spec.Containers[1].Command = []string{"/none"} }),
		`container proxy: env X: secret "none" not found`: templates(sidecar("proxy"), func(t *servingv1.RevisionTemplateSpec) {
			t.Spec.Containers[1].Env = []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("none", "a", nil)}}
		}),
		"localhost:1/gone@sha256:0000": templates(sidecar("proxy"), func(t *servingv1.RevisionTemplateSpec) { t.Spec.Containers[1].Image = goneImage }),
	} {
		if err := f.fails(r, f.revisionOf(r, change)); !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

// TestSidecarsKilled kills a process between any two steps of the starts of
// instances with sidecars.
func TestSidecarsKilled(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revisionOf(r, sidecar("proxy", "PORT=9000"))
	f.check(r.Close())
	f.killVictims(rev, loops(4, 100))
}
