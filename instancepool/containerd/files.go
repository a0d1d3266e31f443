package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const hostsFile = "hosts"

// writeFiles makes the files that an instance finds in its /etc.
func (n *names) writeFiles(dir, hostname, address string) error {
	n.mu.Lock() // a name comes in by what is written here, or is added afterwards
	defer n.mu.Unlock()
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("making the instance's files: %w", err)
	}
	resolv := resolvConf(os.ReadFile)
	if a, err := netip.ParseAddr(address); err == nil && a.IsLoopback() { // the host's network: all of its servers can be reached
		if b, err := os.ReadFile("/etc/resolv.conf"); err == nil {
			resolv = string(b)
		}
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + address + "\t" + hostname + "\n" + n.text
	for name, text := range map[string]string{
		hostsFile:     hosts,
		"hostname":    hostname + "\n",
		"resolv.conf": resolv,
	} {
		path := filepath.Join(dir, name)
		err := os.WriteFile(path, []byte(text), 0o600)
		if err == nil {
			err = os.Chmod(path, 0o644) //nolint:gosec // any user of the container reads it, whatever the umask
		}
		if err != nil {
			return fmt.Errorf("making the instance's files: %w", err)
		}
	}
	return nil
}

// noteStart notes when the instance was started: its container's record only says
// when it was made, which may be much earlier.
func noteStart(dir string, at time.Time) error {
	if err := os.Chtimes(filepath.Join(dir, "hostname"), at, at); err != nil {
		return fmt.Errorf("noting the start: %w", err)
	}
	return nil
}

// startedAt is what noteStart has noted, or made if that is not there.
func startedAt(dir string, made time.Time) time.Time {
	info, err := os.Stat(filepath.Join(dir, "hostname"))
	if err != nil {
		return made
	}
	return info.ModTime()
}

func removeFiles(dir string) error {
	if err := errors.Join(unmountVolumes(filepath.Join(dir, volumesDir)), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("removing the instance's files: %w", err)
	}
	return nil
}

// resolvConf returns the host's resolver configuration without name servers on
// the loopback interface, which an instance cannot reach; if none is left, that
// of systemd-resolved, which knows the servers behind it.
func resolvConf(read func(string) ([]byte, error)) string {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		b, err := read(path)
		if err != nil {
			continue
		}
		if text, servers := withoutLoopback(string(b)); servers > 0 {
			return text
		}
	}
	return ""
}

func withoutLoopback(conf string) (text string, servers int) {
	var b strings.Builder
	for line := range strings.Lines(conf) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "nameserver" {
			if a, err := netip.ParseAddr(fields[1]); err == nil && a.IsLoopback() {
				continue
			}
			servers++
		}
		b.WriteString(line)
	}
	return b.String(), servers
}

// missing reports whether err says that a file is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
