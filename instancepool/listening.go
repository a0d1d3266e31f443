package instancepool

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// listeningHint says what an app may be told that refuses connections to port. What it
// listens on shows what it does instead, if that can be seen.
func listeningHint(h Handle, port int) string {
	at, err := netip.ParseAddrPort(h.Address())
	return hintOf(listeners(h.PID()), uint16(port), err == nil && at.Addr().Is6())
}

// hintOf is listeningHint for an instance with an IPv4 address, or one of IPv6.
func hintOf(listening []netip.AddrPort, port uint16, six bool) string {
	family, all := "IPv4", "0.0.0.0"
	if six {
		family, all = "IPv6", "[::]"
	}
	usual := fmt.Sprintf("; does the container listen on %s and the port in $PORT?", all)
	var here, elsewhere []string
	loopback := true
	for _, a := range listening {
		if a.Port() != port {
			elsewhere = append(elsewhere, a.String())
			continue
		}
		here = append(here, a.String())
		loopback = loopback && a.Addr().IsLoopback()
	}
	switch {
	case len(here) > 0 && loopback:
		return fmt.Sprintf("; it listens on %s, where only the container itself reaches it: it is to listen on %s", strings.Join(here, " and "), all)
	case len(here) > 0:
		return fmt.Sprintf("; it listens on %s, but not for %s: it is to listen on %s", strings.Join(here, " and "), family, all)
	case len(elsewhere) > 0:
		return fmt.Sprintf("; it listens on %s%s", strings.Join(elsewhere, " and "), strings.Replace(usual, ";", ":", 1))
	}
	return usual
}

// listeners are the addresses on which a process's network takes TCP connections; nil
// when that is this process's own, where all of the host's programs listen.
func listeners(pid int) []netip.AddrPort {
	dir := "/proc/" + strconv.Itoa(pid)
	its, err := os.Readlink(dir + "/ns/net")
	if err != nil {
		return nil
	}
	if own, err := os.Readlink("/proc/self/ns/net"); err != nil || its == own {
		return nil
	}
	var all []netip.AddrPort
	for _, table := range []string{"/net/tcp", "/net/tcp6"} {
		if text, err := os.ReadFile(dir + table); err == nil {
			all = append(all, listenersIn(string(text))...)
		}
	}
	return all
}

// listenersIn reads the kernel's table of TCP sockets.
func listenersIn(table string) []netip.AddrPort {
	const listen = "0A" // TCP_LISTEN
	var all []netip.AddrPort
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != listen {
			continue
		}
		address, port, _ := strings.Cut(fields[1], ":")
		b, err := hex.DecodeString(address)
		n, portErr := strconv.ParseUint(port, 16, 16)
		if err != nil || portErr != nil || len(b)%4 != 0 {
			continue
		}
		for i := 0; i < len(b); i += 4 { // each word is in the machine's order
			binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
		}
		if a, ok := netip.AddrFromSlice(b); ok {
			all = append(all, netip.AddrPortFrom(a, uint16(n)))
		}
	}
	return all
}
