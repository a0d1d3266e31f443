package instancepool

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

// F49: who looks at a probe that is refused is told where the app listens instead.
func TestListeningHint(t *testing.T) {
	for listening, want := range map[string]string{
		"":                              "; does the container listen on 0.0.0.0 and the port in $PORT?",
		"127.0.0.1:8080":                "; it listens on 127.0.0.1:8080, where only the container itself reaches it: it is to listen on 0.0.0.0",
		"127.0.0.1:8080 [::1]:8080":     "; it listens on 127.0.0.1:8080 and [::1]:8080, where only the container itself reaches it: it is to listen on 0.0.0.0",
		"[::]:8080 0.0.0.0:9000":        "; it listens on [::]:8080, but not for IPv4: it is to listen on 0.0.0.0",
		"0.0.0.0:3000 127.0.0.1:18080":  "; it listens on 0.0.0.0:3000 and 127.0.0.1:18080: does the container listen on 0.0.0.0 and the port in $PORT?",
		"[::1]:8080 [2001:db8::7]:8080": "; it listens on [::1]:8080 and [2001:db8::7]:8080, but not for IPv4: it is to listen on 0.0.0.0",
	} {
		var all []netip.AddrPort
		for a := range strings.FieldsSeq(listening) {
			all = append(all, netip.MustParseAddrPort(a))
		}
		if got := hintOf(all, 8080, false); got != want {
			t.Errorf("%q: %q; want %q", listening, got, want)
		}
	}
	const want = "; it listens on 0.0.0.0:8080, but not for IPv6: it is to listen on [::]"
	if got := hintOf([]netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8080")}, 8080, true); got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

// The kernel's own tables say where this process listens.
func TestListenersInTheKernelsTables(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network]
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		text, err := os.ReadFile("/proc/self/net/" + strings.TrimSuffix(network, "4"))
		if err != nil {
			t.Fatal(err)
		}
		all := listenersIn(string(text))
		if want := netip.MustParseAddrPort(l.Addr().String()); !slices.Contains(all, want) {
			t.Errorf("%s is not among %v", want, all)
		}
	}
	if all := listeners(os.Getpid()); all != nil {
		t.Errorf("the host's own: %v", all)
	}
}

func FuzzListeners(f *testing.F) {
	f.Add("  0: 0100007F:1F90 00000000:0000 0A 0")
	f.Add("  0: 00000000000000000000000001000000:1F90 0:0 0A")
	f.Fuzz(func(t *testing.T, table string) {
		for _, a := range listenersIn(table) {
			if !a.Addr().IsValid() {
				t.Errorf("%v in %q", a, table)
			}
		}
	})
}
