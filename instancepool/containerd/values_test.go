package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

// mapValues are values in memory.
type mapValues map[lookup]map[string][]byte

func (m mapValues) Lookup(kind revisions.ValueKind, name string) (map[string][]byte, bool, error) {
	if name == "broken" {
		return nil, false, errors.New("unreadable")
	}
	data, ok := m[lookup{kind, name}]
	return data, ok, nil
}

// changingValues are another version at each look.
type changingValues struct{ looks int }

func (c *changingValues) Lookup(revisions.ValueKind, string) (map[string][]byte, bool, error) {
	c.looks++
	return map[string][]byte{"a": fmt.Append(nil, c.looks), "b": fmt.Append(nil, c.looks)}, true, nil
}

func testValues() mapValues {
	return mapValues{
		{revisions.Secrets, "db"}:      {"password": []byte("s3cret"), "user": []byte("me"), "binary": {0xff}, "1st": []byte("x")},
		{revisions.ConfigMaps, "conf"}: {"mode": []byte("fast"), "user": []byte("other"), "PORT": []byte("1"), "K_SERVICE": []byte("x")},
		{revisions.ConfigMaps, "text"}: {"a": []byte("1"), "b.c": []byte("$(A)")},
		{revisions.Secrets, "empty"}:   nil,
	}
}

func secretKey(secret, key string, optional *bool) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key, Optional: optional,
	}}
}

func configKey(name, key string, optional *bool) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key, Optional: optional,
	}}
}

func secretFrom(name, prefix string, optional *bool) corev1.EnvFromSource {
	return corev1.EnvFromSource{Prefix: prefix, SecretRef: &corev1.SecretEnvSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: optional,
	}}
}

func configFrom(name, prefix string) corev1.EnvFromSource {
	return corev1.EnvFromSource{Prefix: prefix, ConfigMapRef: &corev1.ConfigMapEnvSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: name},
	}}
}

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "a", "B": "$(A)", "EMPTY": "", "odd name": "odd"}
	for text, want := range map[string]string{
		"":                "",
		"plain":           "plain",
		"$(A)":            "a",
		"-$(A)-$(A)-":     "-a-a-",
		"$(B)":            "$(A)", // once only
		"$(EMPTY)":        "",
		"$(NONE)":         "$(NONE)",
		"$$(A)":           "$(A)",
		"$$$(A)":          "$a",
		"$$$$":            "$$",
		"$":               "$",
		"$A ${A}":         "$A ${A}",
		"$(A":             "$(A",
		"$(A$(A)":         "$(A$(A)",
		"$()":             "$()",
		"$(odd name)":     "odd",
		"$(A$$(A)":        "$(A$$(A)",
		"100$":            "100$",
		"$(A)$":           "a$",
		"$($(A)":          "$($(A)",
		"\xff$(A)\x00$(A": "\xffa\x00$(A",
	} {
		if got := expand(text, func(name string) (string, bool) { v, ok := vars[name]; return v, ok }); got != want {
			t.Errorf("%q: %q; want %q", text, got, want)
		}
	}
}

// kubernetesExpand is how Kubernetes does it: third_party/forked/golang/expansion.
func kubernetesExpand(input string, mapping func(string) string) string {
	var buf bytes.Buffer
	checkpoint := 0
	for cursor := 0; cursor < len(input); cursor++ {
		if input[cursor] == '$' && cursor+1 < len(input) {
			buf.WriteString(input[checkpoint:cursor])
			read, isVar, advance := func(input string) (string, bool, int) {
				switch input[0] {
				case '$':
					return input[0:1], false, 1
				case '(':
					for i := 1; i < len(input); i++ {
						if input[i] == ')' {
							return input[1:i], true, i + 1
						}
					}
					return "$(", false, 1
				default:
					return "$" + string(input[0]), false, 1
				}
			}(input[cursor+1:])
			if isVar {
				read = mapping(read)
			}
			buf.WriteString(read)
			cursor += advance
			checkpoint = cursor + 1
		}
	}
	return buf.String() + input[checkpoint:]
}

// FuzzExpand compares expand with Kubernetes' own.
func FuzzExpand(f *testing.F) {
	for _, seed := range []string{"$(A)", "$$(A)$", "$(A", "x$y$(B)$(", "$($$)"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range text {
			if r > 0x7f {
				return // Kubernetes takes a byte after "$" for a character
			}
		}
		vars := map[string]string{"A": "1", "B": "$(A)", "": "nothing"}
		want := kubernetesExpand(text, func(name string) string {
			if v, ok := vars[name]; ok {
				return v
			}
			return "$(" + name + ")"
		})
		if got := expand(text, func(name string) (string, bool) { v, ok := vars[name]; return v, ok }); got != want {
			t.Errorf("%q: %q; want %q", text, got, want)
		}
	})
}

func TestEnvironment(t *testing.T) {
	c := &corev1.Container{
		Name: "app",
		EnvFrom: []corev1.EnvFromSource{
			configFrom("conf", ""), secretFrom("none", "", new(true)), configFrom("text", "T_"), secretFrom("empty", "", nil),
			{Prefix: "", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "numbers"}}},
		},
		Env: []corev1.EnvVar{
			{Name: "PASSWORD", ValueFrom: secretKey("db", "password", nil)},
			{Name: "user", ValueFrom: configKey("conf", "user", nil)},
			{Name: "NONE", ValueFrom: secretKey("db", "none", new(true))},
			{Name: "NOWHERE", ValueFrom: configKey("none", "none", new(true))},
			{Name: "DSN", Value: "$(user):$(PASSWORD)@$(HOST):$(PORT)/$(mode)/$(LATER)/$(NONE)/$$(user)"},
			{Name: "HOST", Value: "h"},
			{Name: "LATER", Value: "$(T_b.c)"},
			{Name: "HOST", Value: "$(HOST)2"},
		},
	}
	values := testValues()
	values[lookup{revisions.Secrets, "numbers"}] = map[string][]byte{"1st": []byte("x"), "ok": []byte("y")}
	l := &lookups{values: values}
	e, err := l.environment(c, "host-1", []string{"K_SERVICE=hello", "PORT=8080"})
	if err != nil {
		t.Fatal(err)
	}
	got := e.over([]string{"PATH=/bin", "HOST=image", "mode=image", "broken"})
	want := []string{
		"PATH=/bin", "broken",
		"HOSTNAME=host-1", "K_SERVICE=hello", "PORT=8080", "mode=fast", "user=other", "T_a=1", "T_b.c=$(A)", "ok=y",
		"PASSWORD=s3cret", "DSN=other:s3cret@$(HOST):8080/fast/$(LATER)/$(NONE)/$(user)", "HOST=h2", "LATER=$(A)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q;\nwant %q", got, want)
	}
	if !slices.Equal(e.skipped, []string{"1st"}) {
		t.Errorf("skipped %q", e.skipped)
	}
	if got := e.expand("--dsn=$(DSN)"); !strings.HasPrefix(got, "--dsn=other:s3cret@") {
		t.Errorf("argument %q", got)
	}
}

// TestEnvironmentErrors names what is missing, and never what is there.
func TestEnvironmentErrors(t *testing.T) {
	for want, c := range map[string]corev1.Container{
		`container app: env X: secret "none" not found`:              {Env: []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("none", "a", nil)}}},
		`container app: env X: secret "db" has no key "a"`:           {Env: []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("db", "a", new(false))}}},
		`container app: env X: config map "db" not found`:            {Env: []corev1.EnvVar{{Name: "X", ValueFrom: configKey("db", "password", nil)}}},
		`container app: env X: its value is not text: mount it as a`: {Env: []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("db", "binary", nil)}}},
		`container app: env X: secret "broken": unreadable`:          {Env: []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("broken", "a", new(true))}}},
		`container app: env X: valueFrom names neither a secret nor`: {Env: []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{}}}},
		`container app: envFrom 1: secret "none" not found`:          {EnvFrom: []corev1.EnvFromSource{configFrom("conf", ""), secretFrom("none", "", nil)}},
		`container app: envFrom 0: it names neither a secret nor a`:  {EnvFrom: []corev1.EnvFromSource{{}}},
	} {
		c.Name = "app"
		_, err := (&lookups{values: testValues()}).environment(&c, "h", nil)
		var config *ConfigError
		if err == nil || !strings.HasPrefix(err.Error(), want) || !errors.As(err, &config) || config.Reason() != "CreateContainerConfigError" {
			t.Errorf("%v; want %s", err, want)
		}
	}
	c := corev1.Container{Name: "app", Env: []corev1.EnvVar{{Name: "X", ValueFrom: secretKey("db", "a", new(true))}}}
	if _, err := new(lookups).environment(&c, "h", nil); err == nil || !strings.Contains(err.Error(), `secret "db": there is nowhere to look for it`) {
		t.Errorf("without values: %v", err)
	}
}

// TestOneVersion makes all of an instance of one version of a secret.
func TestOneVersion(t *testing.T) {
	values := new(changingValues)
	l := &lookups{values: values}
	e, err := l.environment(&corev1.Container{EnvFrom: []corev1.EnvFromSource{secretFrom("s", "", nil)}, Env: []corev1.EnvVar{
		{Name: "C", ValueFrom: secretKey("s", "a", nil)}, {Name: "D", ValueFrom: secretKey("s", "b", nil)},
	}}, "h", nil)
	if err != nil || values.looks != 1 || e.values["a"] != "1" || e.values["b"] != "1" || e.values["C"] != "1" || e.values["D"] != "1" {
		t.Errorf("%v %v after %d looks", e, err, values.looks)
	}
}

// TestWithoutValues keeps a program's name that is a secret out of errors.
func TestWithoutValues(t *testing.T) {
	e := new(environment)
	e.set("PROGRAM", "/s3cret")
	p := perInstance{env: e}
	cause := errors.New(`exec: "/s3cret": no such file or directory`)
	for _, c := range []corev1.Container{{Command: []string{"$(PROGRAM)"}}, {Args: []string{"$(PROGRAM)"}}} {
		if err := p.withoutValues(&c, cause); strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "$(PROGRAM)") {
			t.Errorf("%v", err)
		}
	}
	for _, c := range []corev1.Container{{Command: []string{"/app", "$(PROGRAM)"}}, {Args: []string{"-x"}}, {}} {
		if err := p.withoutValues(&c, cause); !errors.Is(err, cause) {
			t.Errorf("%v: %v", c.Command, err)
		}
	}
}

// volumesOf makes the volumes of a pod in a directory of the test's.
func volumesOf(t testing.TB, spec *corev1.PodSpec) *volumes {
	t.Helper()
	var template servingv1.RevisionTemplateSpec
	template.Spec.PodSpec = *spec
	rev := revisions.New("hello", "hello-00001", 1, &revisions.Spec{Template: template})
	v := &volumes{dir: filepath.Join(t.TempDir(), "volumes"), instance: "hello-00001-x", rev: rev, lookups: &lookups{values: testValues()}}
	t.Cleanup(func() {
		if err := unmountVolumes(v.dir); err != nil {
			t.Error(err)
		}
	})
	return v
}

// tree is what is in a directory: modes and contents, by path.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%o", info.Mode().Perm())
		if !d.IsDir() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(b)
		}
		rel, err := filepath.Rel(dir, path)
		all[rel] = text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func local(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }

func TestVolumeFiles(t *testing.T) {
	for name, test := range map[string]struct {
		source corev1.VolumeSource
		want   map[string]string
	}{
		"all": {
			corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "db", DefaultMode: new(int32(0o400))}},
			map[string]string{".": "755", "password": "400 s3cret", "user": "400 me", "binary": "400 \xff", "1st": "400 x"},
		},
		"items": {
			corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: local("conf"), Optional: new(true),
				Items: []corev1.KeyToPath{{Key: "mode", Path: "a/b/../c/mode"}, {Key: "none", Path: "none"}, {Key: "user", Path: "user", Mode: new(int32(0o600))}},
			}},
			map[string]string{".": "755", "a": "755", "a/c": "755", "a/c/mode": "644 fast", "user": "600 other"},
		},
		"optional": {
			corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none", Optional: new(true)}},
			map[string]string{".": "755"},
		},
		"projected": {
			corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: new(int32(0o440)), Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("conf"), Items: []corev1.KeyToPath{{Key: "user", Path: "user"}, {Key: "mode", Path: "mode"}}}},
				{Secret: &corev1.SecretProjection{LocalObjectReference: local("db"), Items: []corev1.KeyToPath{{Key: "user", Path: "user", Mode: new(int32(0o444))}}}},
				{Secret: &corev1.SecretProjection{LocalObjectReference: local("none"), Optional: new(true)}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
					{Path: "memory", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}},
					{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "app", Resource: "requests.cpu"}},
				}}},
			}}},
			map[string]string{".": "755", "user": "444 me", "mode": "440 fast", "memory": "440 64", "cpu": "440 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := volumesOf(t, &corev1.PodSpec{
				Containers: []corev1.Container{{Name: "app", Resources: corev1.ResourceRequirements{
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")},
				}}},
				Volumes: []corev1.Volume{{Name: "v", VolumeSource: test.source}},
			})
			if err := v.make(); err != nil {
				t.Fatal(err)
			}
			if got := tree(t, filepath.Join(v.dir, "v")); !maps.Equal(got, test.want) {
				t.Errorf("%q; want %q", got, test.want)
			}
			if info, err := os.Stat(v.dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the directory above: %v %v", info, err)
			}
		})
	}
}

func TestVolumeErrors(t *testing.T) {
	items := func(path string) corev1.VolumeSource {
		return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "db", Items: []corev1.KeyToPath{{Key: "user", Path: path}}}}
	}
	project := func(p corev1.VolumeProjection) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{p}}}
	}
	describe := func(f corev1.DownwardAPIVolumeFile) corev1.VolumeSource {
		f.Path = "f"
		return project(corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{f}}})
	}
	for want, source := range map[string]corev1.VolumeSource{
		`volume v: secret "none" not found`: {Secret: &corev1.SecretVolumeSource{SecretName: "none"}},
		`volume v: secret "db" has no key "none"`: {Secret: &corev1.SecretVolumeSource{
			SecretName: "db", Items: []corev1.KeyToPath{{Key: "none", Path: "p"}},
		}},
		`volume v: path "../up" is not a path inside the volume`:       items("../up"),
		`volume v: path "/abs" is not a path inside the volume`:        items("/abs"),
		`volume v: path "a/.." is not a path inside the volume`:        items("a/.."),
		`volume v: it is of a kind that is not supported`:              {HostPath: &corev1.HostPathVolumeSource{Path: "/"}},
		`volume v: source 0: serviceAccountToken is not supported`:     project(corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}}),
		`volume v: source 0: it is of a kind that is not supported`:    project(corev1.VolumeProjection{}),
		`volume v: source 0: downwardAPI f: fieldRef "spec.nodeName"`:  describe(corev1.DownwardAPIVolumeFile{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}),
		`volume v: source 0: downwardAPI f: resourceFieldRef: there`:   describe(corev1.DownwardAPIVolumeFile{ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "x", Resource: "limits.cpu"}}),
		`volume v: source 0: downwardAPI f: resourceFieldRef: contain`: describe(corev1.DownwardAPIVolumeFile{ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.cpu"}}),
	} {
		v := volumesOf(t, &corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}, Volumes: []corev1.Volume{{Name: "v", VolumeSource: source}}})
		var config *ConfigError
		if err := v.make(); !errors.As(err, &config) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

// TestVolumeMounts looks at what is mounted where.
func TestVolumeMounts(t *testing.T) {
	limit := resource.MustParse("1Mi")
	spec := &corev1.PodSpec{
		SecurityContext: &corev1.PodSecurityContext{FSGroup: new(int64(7))},
		Volumes: []corev1.Volume{
			{Name: "keys", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "db"}}},
			{Name: "maybe", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("none"), Optional: new(true)}}},
			{Name: "own", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}},
			{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}},
		},
		Containers: []corev1.Container{{Name: "app", VolumeMounts: []corev1.VolumeMount{
			{Name: "keys", MountPath: "/keys/", ReadOnly: true},
			{Name: "keys", MountPath: "/etc/user", SubPath: "user", ReadOnly: true},
			{Name: "maybe", MountPath: "/maybe", SubPath: "a/b", ReadOnly: true},
			{Name: "own", MountPath: "/own"},
			{Name: "shared", MountPath: "/shared", SubPath: "sub"},
			{Name: "shared", MountPath: "/all", ReadOnly: true},
		}}},
	}
	v := volumesOf(t, spec)
	if err := v.make(); err != nil {
		t.Fatal(err)
	}
	got, err := v.mounts(&spec.Containers[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []specs.Mount{
		{Destination: "/keys", Type: "bind", Source: v.dir + "/keys", Options: []string{"nosuid", "nodev", "ro", "rbind", "rprivate"}},
		{Destination: "/etc/user", Type: "bind", Source: v.dir + "/keys/user", Options: []string{"nosuid", "nodev", "ro", "rbind", "rprivate"}},
		{Destination: "/maybe", Type: "bind", Source: v.dir + "/maybe/a/b", Options: []string{"nosuid", "nodev", "ro", "rbind", "rprivate"}},
		{Destination: "/own", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=02777", "gid=7", "size=1048576"}},
		{Destination: "/shared", Type: "bind", Source: v.dir + "/shared/sub", Options: []string{"nosuid", "nodev", "rbind", "rprivate"}},
		{Destination: "/all", Type: "bind", Source: v.dir + "/shared", Options: []string{"nosuid", "nodev", "ro", "rbind", "rprivate"}},
	} {
		if got[i].Destination != want.Destination || got[i].Type != want.Type || got[i].Source != want.Source || !slices.Equal(got[i].Options, want.Options) {
			t.Errorf("%+v; want %+v", got[i], want)
		}
	}
	if err := os.WriteFile(filepath.Join(v.dir, "shared", "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("more fits into an emptyDir than its limit")
	}
	if info, err := os.Stat(filepath.Join(v.dir, "keys", "user")); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("a file of the fsGroup: %v %v", info, err)
	}
	for range 2 {
		if err := removeFiles(filepath.Dir(v.dir)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(v.dir); !missing(err) {
		t.Errorf("it is there: %v", err)
	}
	for sub, want := range map[string]string{"none": "is not in the volume", "../x": "is not a path inside", "/x": "is not a path inside", "user/x": "not a directory"} {
		spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "keys", MountPath: "/keys", SubPath: sub}}
		v := volumesOf(t, spec)
		if err := v.make(); err != nil {
			t.Fatal(err)
		}
		if _, err := v.mounts(&spec.Containers[0]); err == nil || !strings.Contains(err.Error(), "container app: mount of volume keys at /keys: subPath") || !strings.Contains(err.Error(), want) {
			t.Errorf("subPath %s: %v", sub, err)
		}
	}
}

// TestMountOrder has volumes take the place of the usual mounts, and each mount
// come after those that it is inside of.
func TestMountOrder(t *testing.T) {
	p := perInstance{files: "/f", mounts: []specs.Mount{
		{Destination: "/data/a/b"}, {Destination: "/etc"}, {Destination: "/data"}, {Destination: "/etc/hosts"}, {Destination: "/dev/shm"},
	}}
	var got []string
	for _, m := range p.over([]specs.Mount{{Destination: "/dev"}, {Destination: "/dev/shm"}, {Destination: "/sys"}}) {
		got = append(got, m.Destination)
	}
	want := []string{"/dev", "/sys", "/etc", "/data", "/etc/hostname", "/etc/resolv.conf", "/etc/hosts", "/dev/shm", "/data/a/b"}
	if !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestDescribed(t *testing.T) {
	svc, err := revisions.Prepare(&servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: "hello"}, Spec: servingv1.ServiceSpec{
		ConfigurationSpec: servingv1.ConfigurationSpec{Template: servingv1.RevisionTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"note": `say "hi"`}},
			Spec:       servingv1.RevisionSpec{PodSpec: corev1.PodSpec{Containers: []corev1.Container{{Image: "app"}}}},
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	rev, _, err := revisions.NewRegistry(revisions.Options{}).Apply(svc, revisions.OwnerConfig)
	if err != nil {
		t.Fatal(err)
	}
	v := &volumes{instance: "hello-00001-x", rev: rev}
	for field, want := range map[string]string{
		"metadata.name": "hello-00001-x", "metadata.labels['team']": "a", "metadata.annotations['note']": `say "hi"`, "metadata.labels['none']": "",
	} {
		if got, err := v.described(&corev1.DownwardAPIVolumeFile{FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}); err != nil || got != want {
			t.Errorf("%s: %q %v", field, got, err)
		}
	}
	for field, want := range map[string]string{"metadata.labels": `team="a"`, "metadata.annotations": `note="say \"hi\""`} {
		got, err := v.described(&corev1.DownwardAPIVolumeFile{FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}})
		if err != nil || !slices.Contains(strings.Split(got, "\n"), want) {
			t.Errorf("%s: %q %v; want %s", field, got, err, want)
		}
	}
}

// FuzzVolume makes a volume of any items: all that is made is inside of it.
func FuzzVolume(f *testing.F) {
	f.Add("a/b", "a", int32(0o644))
	f.Add("../x", "..", int32(-1))
	f.Add("a//b/./c", "a\x00", int32(0o7777))
	f.Fuzz(func(t *testing.T, path1, path2 string, mode int32) {
		v := volumesOf(t, &corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName: "db", DefaultMode: &mode, Items: []corev1.KeyToPath{{Key: "user", Path: path1}, {Key: "password", Path: path2}},
		}}}}})
		err := v.make()
		if got := entries(filepath.Dir(v.dir)); len(got) > 1 {
			t.Fatalf("made outside: %q", got)
		}
		if got := entries(v.dir); len(got) > 1 {
			t.Fatalf("made outside: %q", got)
		}
		if err == nil && len(tree(t, filepath.Join(v.dir, "v"))) < 2 {
			t.Error("nothing was made")
		}
	})
}

func TestCapabilities(t *testing.T) {
	for _, test := range []struct {
		drop, add []corev1.Capability
		want      int
	}{
		{nil, nil, len(capabilities)},
		{[]corev1.Capability{"ALL"}, nil, 0},
		{[]corev1.Capability{"ALL"}, []corev1.Capability{"NET_BIND_SERVICE"}, 1},
		{[]corev1.Capability{"CHOWN", "CAP_KILL", "SYS_ADMIN"}, nil, len(capabilities) - 2},
		{nil, []corev1.Capability{"SYS_ADMIN"}, -1},
		{nil, []corev1.Capability{"ALL"}, -1},
	} {
		got, err := allowedCapabilities(&corev1.Capabilities{Drop: test.drop, Add: test.add})
		if (err != nil) != (test.want < 0) || (err == nil && len(got) != test.want) {
			t.Errorf("drop %s, add %s: %q %v", test.drop, test.add, got, err)
		}
	}
}
