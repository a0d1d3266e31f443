package containerd

import (
	"os"
	"path/filepath"
	"testing"
)

// TestReservations has a plugin that was killed while it wrote an address, or is
// about to write one.
func TestReservations(t *testing.T) {
	n := newBridgeNetwork(Options{StateDir: t.TempDir()}.WithDefaults())
	if ids, err := n.unused(); err != nil || len(ids) != 0 {
		t.Errorf("at first: %v %v", ids, err)
	}
	if err := os.MkdirAll(n.leases, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"lock": "", "last_reserved_ip.0": "10.63.0.4", "10.63.0.2": "mine\r\neth0", "10.63.0.3": "left\neth0", "10.63.0.4": "",
	} {
		if err := os.WriteFile(filepath.Join(n.leases, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.adopt("mine")
	unused := func() {
		t.Helper()
		if ids, err := n.unused(); err != nil || len(ids) != 1 || ids[0] != "left" {
			t.Errorf("unused: %v %v; want left", ids, err)
		}
	}
	plugin, err := takeLock(filepath.Join(n.leases, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	unused()
	if size(filepath.Join(n.leases, "10.63.0.4")) != 0 {
		t.Error("an address was taken from a plugin at work")
	}
	if err := plugin.Close(); err != nil {
		t.Fatal(err)
	}
	unused()
	if size(filepath.Join(n.leases, "10.63.0.4")) != -1 {
		t.Error("an address without an owner is still reserved")
	}
}
