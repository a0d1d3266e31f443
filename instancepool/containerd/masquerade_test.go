package containerd

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/netns"
	cnins "github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/fairway-run/fairway/test/containerdtest"
)

// outside is a host that the network's instances reach through this one, and
// which knows no way to them.
type outside struct {
	ns *netns.NetNS
	// near is this host's address on the way to it, far its own.
	near, far netip.Addr
}

func newOutside(t *testing.T, dir, subnet string) *outside {
	t.Helper()
	p := netip.MustParsePrefix(subnet)
	o := &outside{near: p.Addr().Next(), far: p.Addr().Next().Next()}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	o.ns, err = netns.NewNetNS(dir)
	check(err)
	t.Cleanup(func() { check(o.ns.Remove()) })
	name := fmt.Sprintf("fwt%x", o.near.As4())
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	check(netlink.LinkAdd(veth))
	t.Cleanup(func() { check(netlink.LinkDel(veth)) })
	up := func(link netlink.Link, address netip.Addr) error {
		a, err := netlink.ParseAddr(netip.PrefixFrom(address, p.Bits()).String())
		if err == nil {
			err = netlink.AddrAdd(link, a)
		}
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		return err
	}
	check(up(veth, o.near))
	peer, err := netlink.LinkByName(veth.PeerName)
	check(err)
	file, err := os.Open(o.ns.GetPath())
	check(err)
	defer file.Close()
	check(netlink.LinkSetNsFd(peer, int(file.Fd())))
	check(o.ns.Do(func(cnins.NetNS) error {
		link, err := netlink.LinkByName(veth.PeerName)
		if err == nil {
			err = up(link, o.far)
		}
		return err
	}))
	return o
}

// answers serves who asks it, in a network namespace, and returns its address.
func answers(t *testing.T, ns *netns.NetNS, address string) string {
	t.Helper()
	var l net.Listener
	err := ns.Do(func(cnins.NetNS) (err error) {
		l, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, host)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

// seenAs is the address that a server sees a client in a network namespace at.
func seenAs(t *testing.T, ns *netns.NetNS, server string) string {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = ns.Do(func(cnins.NetNS) error {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("http://" + server)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// rules is how many there are in the table of a bridge; -1 without a table.
func rules(t testing.TB, bridge string) int {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	for _, table := range tables {
		if table.Name != bridge {
			continue
		}
		all, err := c.GetRules(table, &nftables.Chain{Name: "postrouting"})
		if err != nil {
			t.Fatal(err)
		}
		n = max(n, 0) + len(all)
	}
	return n
}

// TestMasquerade reaches a host that knows nothing of the bridge's network, and
// leaves addresses within it alone. There is one rule, however often the network
// is made, and none when nobody is left.
func TestMasquerade(t *testing.T) {
	f := newFixture(t)
	f.opts.Prepared = 0
	bridge := f.opts.bridge()
	want := func(when string, n int) {
		t.Helper()
		if got := rules(t, bridge); got != n {
			t.Errorf("%s: %d rules; want %d", when, got, n)
		}
	}
	r := f.open()
	first, second := f.serve(r, f.revision(r)), f.serve(r, f.revision(r))
	want("with instances", 1)
	out := newOutside(t, t.TempDir(), strings.Replace(freeSubnet(t), "/24", "/30", 1))
	server := answers(t, out.ns, out.far.String())
	namespaceOf := func(id string) *netns.NetNS {
		t.Helper()
		h := r.handles[id]
		return netns.LoadNetNS(r.network.(*bridgeNetwork).netns + "/" + h.net.ID)
	}
	a, b := namespaceOf(first.ID()), namespaceOf(second.ID())
	if got := seenAs(t, a, server); got != out.near.String() {
		t.Errorf("outside it is seen as %s; want %s", got, out.near)
	}
	own, _, _ := net.SplitHostPort(first.Address())
	other, _, _ := net.SplitHostPort(second.Address())
	if got := seenAs(t, a, answers(t, b, other)); got != own {
		t.Errorf("by another instance it is seen as %s; want %s", got, own)
	}

	f.check(r.Close())
	want("while instances run on", 1)
	r = f.open()
	all, err := r.List(t.Context())
	f.check(err)
	f.serve(r, f.revision(r))
	want("after a restart", 1)
	if got := seenAs(t, a, server); got != out.near.String() {
		t.Errorf("after a restart it is seen as %s; want %s", got, out.near)
	}
	if len(all) != 2 {
		t.Errorf("%d instances run on", len(all))
	}
	f.stopAll(r)
	want("while the runtime is open", 1)
	f.check(r.Close())
	want("in the end", -1)
}

// Networks of either kind can be masqueraded, once each: what was there of another
// subnet of the same kind is replaced.
func TestMasqueradeTwice(t *testing.T) {
	if reason := containerdtest.Missing(); reason != "" {
		t.Skip(reason)
	}
	const bridge = "fw-test"
	masqueraded := func(want ...string) {
		t.Helper()
		if got := subnets(t, bridge); !slices.Equal(got, want) {
			t.Errorf("masqueraded are %q; want %q", got, want)
		}
	}
	four, narrower, six := netip.MustParsePrefix("10.191.0.0/16"), netip.MustParsePrefix("10.191.3.128/25"), netip.MustParsePrefix("fd00:fa1::/64")
	for _, subnet := range []netip.Prefix{four, four, narrower, six, six} {
		if err := masquerade(bridge, subnet); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unmasquerade(bridge, subnet) })
		if subnet.Addr().Is4() {
			masqueraded(subnet.String())
		}
	}
	masqueraded(narrower.String(), six.String())
	for _, subnet := range []netip.Prefix{six, six} {
		if err := unmasquerade(bridge, subnet); err != nil {
			t.Error(err)
		}
	}
	masqueraded(narrower.String())
	if err := unmasquerade(bridge, four); err != nil { // the kind says which
		t.Error(err)
	}
	if n := rules(t, bridge); n != -1 {
		t.Errorf("%d rules are left", n)
	}
}

// subnets are those that the rules of a bridge's tables are about, as the kernel
// has them, in order.
func subnets(t *testing.T, bridge string) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, table := range tables {
		if table.Name != bridge {
			continue
		}
		rules, err := c.GetRules(table, &nftables.Chain{Name: "postrouting"})
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range rules {
			all = append(all, sourceOf(rule))
		}
	}
	slices.Sort(all)
	return all
}

// sourceOf is the network of a rule's first comparison, which is about the
// packet's source.
func sourceOf(rule *nftables.Rule) string {
	bits := 0
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Bitwise:
			bits, _ = net.IPMask(e.Mask).Size()
		case *expr.Cmp:
			address, _ := netip.AddrFromSlice(e.Data)
			return netip.PrefixFrom(address, bits).String()
		}
	}
	return "none"
}
