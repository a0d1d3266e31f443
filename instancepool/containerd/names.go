package containerd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/fairway-run/fairway/instancepool"
)

// names are the host names that lead from an instance to this host. They are in
// each one's /etc/hosts, which needs no server that could be away, and no port
// that a firewall could close.
type names struct {
	gateway netip.Addr

	mu   sync.Mutex // guards all, and is held while a file is written
	all  []string   // sorted
	text string     // their lines
}

// lines are those of a hosts file for some names.
func (n *names) lines(all []string) string {
	var b strings.Builder
	for _, name := range all {
		b.WriteString(n.gateway.String())
		b.WriteByte('\t')
		b.WriteString(name)
		b.WriteByte('\n')
	}
	return b.String()
}

// set makes all the names that new instances get, and adds what is new to the
// files of those that exist, in the directories of a pattern. Nothing is taken from a
// file: whoever reads it at that moment could see half of it.
func (n *names) set(all []string, pattern string) error {
	n.mu.Lock() // also while looking: what is made afterwards has the new names
	defer n.mu.Unlock()
	n.all, n.text = slices.Clone(all), n.lines(all)
	dirs, problems := filepath.Glob(pattern)
	for _, dir := range dirs {
		if err := n.add(filepath.Join(dir, hostsFile)); err != nil && !missing(err) { // else it has gone
			problems = errors.Join(problems, err)
		}
	}
	return problems
}

// add completes one file, by one write at its end. The caller holds mu.
func (n *names) add(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	has := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if fields := strings.Fields(line); len(fields) > 1 {
			for _, name := range fields[1:] {
				has[name] = true
			}
		}
	}
	lines := n.lines(slices.DeleteFunc(slices.Clone(n.all), func(name string) bool { return has[name] }))
	if lines == "" {
		return nil
	}
	if len(text) > 0 && text[len(text)-1] != '\n' { // the instance may have written to it
		lines = "\n" + lines
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(lines)
	return errors.Join(err, f.Close())
}

// Gateway implements instancepool.Namer.
func (r *Runtime) Gateway() netip.Addr { return r.names.gateway }

// SetNames implements instancepool.Namer.
func (r *Runtime) SetNames(all []string) error {
	if err := r.names.set(all, r.filesDir("*")); err != nil {
		return fmt.Errorf("telling instances of host names: %w", err)
	}
	return nil
}

// gateway is the host's address on the instances' network.
func (o Options) gateway() netip.Addr {
	if o.Network == Host {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.MustParsePrefix(o.Subnet).Masked().Addr().Next() // what host-local gives the bridge
}

// InstanceAt implements instancepool.Locator. On the host's network all have the
// same address, so that nobody can be told from another.
func (r *Runtime) InstanceAt(a netip.Addr) (h instancepool.Handle, inside bool) {
	if r.opts.Network == Host || !r.subnet.Contains(a) || a == r.names.gateway {
		return nil, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.at[a.String()]; h != nil {
		return h, true
	}
	return nil, true
}

// settle notes which instance has an address.
func (r *Runtime) settle(h *handle) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at[h.net.host()] = h
}

// leave notes that an instance's address is not its own any more. The caller holds
// mu.
func (r *Runtime) leave(h *handle) {
	if r.at[h.net.host()] == h { // else another has it by now
		delete(r.at, h.net.host())
	}
}

var (
	_ instancepool.Namer   = (*Runtime)(nil)
	_ instancepool.Locator = (*Runtime)(nil)
)
