package caddymodule

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/fairway-run/fairway/instancepool"
)

// setForwarded says who asks, in the standard's way, to an instance. It is made
// of the X-Forwarded-* fields, which the proxy has just set by Caddy's rules of
// which proxies are trusted: what a client claims itself does not get through.
func setForwarded(h http.Header, caller instancepool.Handle) {
	delete(h, "Forwarded")
	if hops := strings.Join(h["X-Forwarded-For"], ", "); hops != "" {
		h["Forwarded"] = []string{forwarded(hops, h.Get("X-Forwarded-Host"), h.Get("X-Forwarded-Proto"), caller)}
	}
}

// forwarded is the field of that name. hops are addresses, as in X-Forwarded-For;
// that of caller, which may be nil, is replaced by its name, "_web-00001-7kq2m".
// Source: RFC 7239; Knative: container runtime contract.
func forwarded(hops, host, proto string, caller instancepool.Handle) string {
	own := ""
	if caller != nil {
		own, _, _ = net.SplitHostPort(caller.Address())
	}
	b := make([]byte, 0, 128)
	for hop := range strings.SplitSeq(hops, ",") {
		if hop = strings.TrimSpace(hop); hop == "" {
			continue
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, "for="...)
		if hop == own {
			b = append(append(b, '_'), caller.ID()...)
			continue
		}
		b = appendNode(b, hop)
	}
	if host != "" {
		b = appendToken(append(b, ";host="...), host)
	}
	if proto != "" {
		b = appendToken(append(b, ";proto="...), proto)
	}
	return strings.TrimPrefix(string(b), ";")
}

// appendNode writes an address as the standard wants it.
func appendNode(b []byte, address string) []byte {
	if strings.Contains(address, ":") {
		if a, err := netip.ParseAddr(address); err == nil && a.Is6() {
			b = append(b, `"[`...)
			b = append(b, address...)
			return append(b, `]"`...)
		}
	}
	return appendToken(b, address)
}

// escape is made once: a request has no time for that.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// appendToken quotes what is not a token.
func appendToken(b []byte, text string) []byte {
	for _, c := range []byte(text) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			b = append(b, '"')
			b = append(b, escape.Replace(text)...)
			return append(b, '"')
		}
	}
	return append(b, text...)
}
