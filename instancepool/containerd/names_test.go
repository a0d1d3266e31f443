package containerd

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-run/fairway/instancepool"
)

func TestHostNames(t *testing.T) {
	root := t.TempDir()
	dir, pattern := filepath.Join(root, "hello-1"), filepath.Join(root, "*")
	if err := os.Mkdir(filepath.Join(root, "gone"), 0o700); err != nil { // almost
		t.Fatal(err)
	}
	n := names{gateway: netip.MustParseAddr("10.1.0.1")}
	text := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, hostsFile))
		if err != nil {
			t.Fatal(err)
		}
		_, own, _ := strings.Cut(string(b), "hello-1\n")
		return own
	}
	set := func(names ...string) {
		t.Helper()
		if err := n.set(names, pattern); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.set([]string{"a.test"}, pattern); err != nil {
		t.Fatal(err)
	}
	if err := n.writeFiles(dir, "hello-1", "10.1.0.7"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		names []string
		want  string
	}{
		{[]string{"a.test"}, "10.1.0.1\ta.test\n"},
		{[]string{"b.test"}, "10.1.0.1\ta.test\n10.1.0.1\tb.test\n"},
		{[]string{"a.test", "b.test"}, "10.1.0.1\ta.test\n10.1.0.1\tb.test\n"},
		{nil, "10.1.0.1\ta.test\n10.1.0.1\tb.test\n"},
	} {
		if set(step.names...); text() != step.want {
			t.Errorf("%q: %q; want %q", step.names, text(), step.want)
		}
	}
	// What the instance has written there itself counts, whatever its form.
	if err := os.WriteFile(filepath.Join(dir, hostsFile), []byte("10.1.0.7 hello-1\n192.0.2.1 a.test c.test # b.test"), 0o600); err != nil {
		t.Fatal(err)
	}
	if set("a.test", "b.test", "c.test"); text() != "192.0.2.1 a.test c.test # b.test\n10.1.0.1\tb.test\n" {
		t.Errorf("%q", text())
	}
	if _, err := os.Stat(filepath.Join(root, "gone", hostsFile)); err == nil {
		t.Error("an instance that has gone is there again")
	}
}

// An instance that is made while a name comes has it too.
func TestHostNamesOfAnInstanceInTheMaking(t *testing.T) {
	root := t.TempDir()
	n := names{gateway: netip.MustParseAddr("10.1.0.1")}
	for i := range 500 {
		dir, name := filepath.Join(root, fmt.Sprint(i)), fmt.Sprintf("n%d.test", i)
		var made sync.WaitGroup
		made.Go(func() {
			if err := n.writeFiles(dir, "hello-1", "10.1.0.7"); err != nil {
				t.Error(err)
			}
		})
		if err := n.set([]string{name}, filepath.Join(root, "*")); err != nil {
			t.Error(err)
		}
		made.Wait()
		if b, err := os.ReadFile(filepath.Join(dir, hostsFile)); err != nil || !strings.Contains(string(b), name) {
			t.Fatalf("%d: %q, %v", i, b, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGateway(t *testing.T) {
	for want, o := range map[string]Options{
		"10.63.0.1": {}, "10.9.16.1": {Subnet: "10.9.16.0/20"}, "fd00::1": {Subnet: "fd00::/64"}, "127.0.0.1": {Network: Host},
	} {
		if got := o.WithDefaults().gateway().String(); got != want {
			t.Errorf("%+v: %s; want %s", o, got, want)
		}
	}
}

// Instances know what they are told of, and are known by their address as long as
// they exist.
func TestHostNamesOfInstances(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revision(r)
	ask := func(h instancepool.Handle, want string) {
		t.Helper()
		if got := f.get(h, "/file?path=/etc/hosts"); !strings.HasSuffix(got, want) {
			t.Errorf("%s: %q; want %q at its end", h.ID(), got, want)
		}
	}
	at := func(h instancepool.Handle) netip.Addr {
		t.Helper()
		p, err := netip.ParseAddrPort(h.Address())
		f.check(err)
		return p.Addr()
	}
	first := f.serve(r, rev)
	gateway := r.Gateway().String()
	f.check(r.SetNames([]string{"a.internal", "b.internal"}))
	second := f.serve(r, rev)
	for _, h := range []instancepool.Handle{first, second} {
		ask(h, h.ID()+"\n"+gateway+"\ta.internal\n"+gateway+"\tb.internal")
		if got, inside := r.InstanceAt(at(h)); got != h || !inside {
			t.Errorf("at %s: %v, %t", at(h), got, inside)
		}
	}
	for _, a := range []netip.Addr{r.Gateway(), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1"), netip.IPv6Loopback()} {
		if h, inside := r.InstanceAt(a); h != nil || inside {
			t.Errorf("at %s: %v, %t", a, h, inside)
		}
	}
	address := at(second)
	f.stop(second)
	if h, inside := r.InstanceAt(address); h != nil || !inside {
		t.Errorf("at the address of one that has gone: %v, %t", h, inside)
	}
	f.check(r.Close())

	r = f.open()
	all, err := r.List(t.Context())
	f.check(err)
	if len(all) != 1 {
		t.Fatalf("%d instances were adopted", len(all))
	}
	if h, _ := r.InstanceAt(at(first)); h != all[0] {
		t.Errorf("at the address of one that was adopted: %v", h)
	}
	f.check(r.SetNames([]string{"b.internal", "c.internal"}))
	ask(all[0], "\n"+gateway+"\tb.internal\n"+gateway+"\tc.internal")
	f.stop(all[0])
	if n := len(r.at); n != 0 {
		t.Errorf("%d addresses are kept for nobody", n)
	}
}
