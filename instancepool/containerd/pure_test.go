package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestOptions(t *testing.T) {
	d := Options{}.WithDefaults()
	if err := d.validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	if d.StateDir != "/var/lib/fairway/fairway" || d.LogDir != "/var/lib/fairway/fairway/logs" || d.bridge() != "fairway0" {
		t.Errorf("the defaults: %+v, bridge %s", d, d.bridge())
	}
	names := make(map[string]bool)
	for _, o := range []Options{{}, {Namespace: "other"}, {Subnet: "10.64.0.0/16"}, {Namespace: "other", Subnet: "10.64.0.0/16"}} {
		name := o.WithDefaults().bridge()
		if names[name] || len(name) > 15 {
			t.Errorf("bridge %q of %+v", name, o)
		}
		names[name] = true
	}
	for _, ok := range []Options{{Network: Host}, {Subnet: "10.1.0.0/29"}, {Subnet: "fd00::/64"}, {StateDir: "/srv"}} {
		if _, err := New(ok); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	for want, bad := range map[string]Options{
		"address \"run/s\"":      {Address: "run/s"},
		"namespace \"a b\"":      {Namespace: "a b"},
		"network is bridge or":   {Network: "mesh"},
		"subnet \"10.1.2.3/16\"": {Subnet: "10.1.2.3/16"},
		"subnet \"10.1.0.0/30\"": {Subnet: "10.1.0.0/30"},
		"subnet \"all\"":         {Subnet: "all"},
		"directory \"state\"":    {StateDir: "state"},
		"directory \"logs\"":     {LogDir: "logs"},
		"directory \"bin\"":      {CNIBinDirs: []string{"bin"}},
		"a negative number":      {Prepared: -1},
	} {
		if _, err := New(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v; want %q", bad, err, want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	const etc, systemd = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"as it is":      {map[string]string{etc: "search a.test\nnameserver 192.0.2.1\noptions ndots:2\n"}, "search a.test\nnameserver 192.0.2.1\noptions ndots:2\n"},
		"one loopback":  {map[string]string{etc: "nameserver 127.0.0.1\nnameserver 192.0.2.1\n"}, "nameserver 192.0.2.1\n"},
		"only loopback": {map[string]string{etc: "nameserver 127.0.0.53\nsearch a\n", systemd: "nameserver 192.0.2.2\n"}, "nameserver 192.0.2.2\n"},
		"IPv6 loopback": {map[string]string{etc: "nameserver ::1\n", systemd: "nameserver 2001:db8::1\n"}, "nameserver 2001:db8::1\n"},
		"zone":          {map[string]string{etc: "nameserver fe80::1%eth0\n"}, "nameserver fe80::1%eth0\n"},
		"none":          {map[string]string{etc: "nameserver 127.0.0.1\n"}, ""},
		"no file":       {nil, ""},
	} {
		got := resolvConf(func(path string) ([]byte, error) {
			if text, ok := test.files[path]; ok {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		})
		if got != test.want {
			t.Errorf("%s: %q; want %q", name, got, test.want)
		}
	}
}

func TestWriteFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "files")
	if err := new(names).writeFiles(dir, "hello-1", "192.0.2.7"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"hosts": "192.0.2.7\thello-1\n", "hostname": "hello-1\n", "resolv.conf": ""} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.HasSuffix(string(b), want) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for range 2 {
		if err := removeFiles(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestBridgeConf(t *testing.T) {
	for subnet, route := range map[string]string{"10.1.0.0/16": "0.0.0.0/0", "fd00::/64": "::/0"} {
		var conf struct {
			Plugins []struct {
				Type, Bridge string
				IPAM         struct {
					DataDir string
					Ranges  [][]struct{ Subnet string }
					Routes  []struct{ Dst string }
				}
			}
		}
		if err := json.Unmarshal(bridgeConf("br0", netip.MustParsePrefix(subnet), "/data"), &conf); err != nil {
			t.Fatal(err)
		}
		p := conf.Plugins[0]
		if p.Type != "bridge" || p.Bridge != "br0" || p.IPAM.DataDir != "/data" || p.IPAM.Ranges[0][0].Subnet != subnet || p.IPAM.Routes[0].Dst != route {
			t.Errorf("%s: %+v", subnet, p)
		}
	}
}

func TestAttachment(t *testing.T) {
	for address, want := range map[string]struct {
		host string
		port int
	}{"192.0.2.1:80": {"192.0.2.1", 80}, "[::1]:81": {"::1", 81}, "192.0.2.1": {"192.0.2.1", 9}} {
		a := attachment{Address: address}
		if a.host() != want.host || a.port(9) != want.port {
			t.Errorf("%s: %s %d", address, a.host(), a.port(9))
		}
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := tail(path, 10); got != "" {
		t.Errorf("of no file: %q", got)
	}
	if err := os.WriteFile(path, []byte("first\nsecond\nthird\xff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{0: "", 100: "first\nsecond\nthird\uFFFD", 16: "second\nthird\uFFFD", 7: "third\uFFFD"} {
		if got := tail(path, n); got != want {
			t.Errorf("the last %d bytes: %q; want %q", n, got, want)
		}
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int64, age time.Duration) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte("begin"), 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		return path
	}
	long := write("live.log", logLimit+1, time.Hour)
	short := write("short.log", logLimit, time.Hour)
	other := write("other.txt", 5, 100*time.Hour)
	for n := range logsKept + 3 {
		write(fmt.Sprintf("ended%02d.log", n), 5, time.Duration(n)*time.Minute)
		write(fmt.Sprintf("ended%02d.log%s", n, oldPart), 5, time.Duration(n)*time.Minute)
	}
	// What is appended afterwards is at the beginning of the emptied file.
	writer, err := os.OpenFile(long, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	if err := rotateService(dir, map[string]bool{"live": true, "short": true}); err != nil {
		t.Fatal(err)
	}
	if _, err := writer.WriteString("after"); err != nil {
		t.Fatal(err)
	}
	size := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	if size(long) != 5 || size(long+oldPart) != logLimit {
		t.Errorf("the long log has %d bytes, its old part %d", size(long), size(long+oldPart))
	}
	if size(short) != logLimit || size(other) != 5 {
		t.Errorf("the short log has %d bytes, another file %d", size(short), size(other))
	}
	for n := range logsKept + 3 {
		path := filepath.Join(dir, fmt.Sprintf("ended%02d.log", n))
		if kept := size(path) > 0 && size(path+oldPart) > 0; kept != (n < logsKept) {
			t.Errorf("%s: %d bytes, old part %d", path, size(path), size(path+oldPart))
		}
	}
}

func TestLimits(t *testing.T) {
	limit := func(cpu, memory string) *specs.LinuxResources {
		t.Helper()
		limits := make(corev1.ResourceList)
		for kind, text := range map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory} {
			if text != "" {
				limits[kind] = resource.MustParse(text)
			}
		}
		s := &oci.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
		if err := withLimits(limits)(context.Background(), nil, nil, s); err != nil {
			t.Fatal(err)
		}
		return s.Linux.Resources
	}
	for cpu, want := range map[string]int64{"1": 100_000, "250m": 25_000, "0.5": 50_000, "2": 200_000, "1m": 1000} {
		if got := limit(cpu, "").CPU; got == nil || *got.Quota != want || *got.Period != cpuPeriod {
			t.Errorf("cpu %s: %+v; want %d", cpu, got, want)
		}
	}
	for memory, want := range map[string]int64{"64Mi": 64 << 20, "1G": 1e9} {
		got := limit("", memory).Memory
		if got == nil || *got.Limit != want || (got.Swap != nil) != swapLimited() || (got.Swap != nil && *got.Swap != want) {
			t.Errorf("memory %s: %+v; want %d", memory, got, want)
		}
	}
	if got := limit("", ""); got.CPU != nil || got.Memory != nil {
		t.Errorf("no limits: %+v", got)
	}
}

func TestNames(t *testing.T) {
	for image, want := range map[string]string{
		"app": "docker.io/library/app:latest", "ghcr.io/a/b:1": "ghcr.io/a/b:1", "localhost/x": "localhost/x:latest",
	} {
		if got, err := normalize(image); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", image, got, err, want)
		}
	}
	if _, err := normalize("No Such Thing"); err == nil {
		t.Error("no error for what is no reference")
	}
	const digest = "sha256:0123456789012345678901234567890123456789012345678901234567890123"
	if got, err := pinnedName("ghcr.io/a/b:1", digest); err != nil || got != "ghcr.io/a/b@"+digest {
		t.Errorf("%s, %v", got, err)
	}
}

// TestHolds looks into the layers of a file system.
func TestHolds(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"empty", "upper", "lower/tmp", "deleted"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "deleted", "tmp"), unix.S_IFCHR, 0); err != nil {
		t.Skip(err)
	}
	overlay := func(upper string, lower ...string) []mount.Mount {
		for i, l := range lower {
			lower[i] = filepath.Join(dir, l)
		}
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
			"index=off", "workdir=/x", "upperdir=" + filepath.Join(dir, upper), "lowerdir=" + strings.Join(lower, ":"),
		}}}
	}
	for name, test := range map[string]struct {
		mounts []mount.Mount
		want   bool
	}{
		"bind":       {[]mount.Mount{{Type: "bind", Source: filepath.Join(dir, "lower")}}, true},
		"empty bind": {[]mount.Mount{{Type: "bind", Source: filepath.Join(dir, "empty")}}, false},
		"lower":      {overlay("upper", "empty", "lower"), true},
		"nowhere":    {overlay("upper", "empty"), false},
		"deleted":    {overlay("upper", "deleted", "lower"), false},
		"made again": {overlay("upper", "lower", "deleted", "lower"), true},
		"by mounting": {[]mount.Mount{
			{Type: "tmpfs", Source: "tmpfs"}, {Type: "bind", Source: filepath.Join(dir, "lower"), Options: []string{"rbind", "ro"}},
		}, true},
	} {
		if got, err := holds(t.Context(), test.mounts, "tmp"); err != nil || got != test.want {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}
