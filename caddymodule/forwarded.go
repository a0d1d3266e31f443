package caddymodule

import (
	"net/http"
	"net/netip"
	"strings"
)

// setForwarded says who asks, in the standard's way, to an instance. It is made
// of the X-Forwarded-* fields, which the proxy has just set by Caddy's rules of
// which proxies are trusted: what a client claims itself does not get through.
// Source: RFC 7239; Knative: container runtime contract.
func setForwarded(h http.Header) {
	delete(h, "Forwarded")
	hops := h["X-Forwarded-For"]
	if len(hops) == 0 {
		return
	}
	var b strings.Builder
	for _, line := range hops {
		for hop := range strings.SplitSeq(line, ",") {
			if hop = strings.TrimSpace(hop); hop == "" {
				continue
			}
			if b.Len() > 0 {
				b.WriteString(", ")
			}
			b.WriteString("for=")
			b.WriteString(node(hop))
		}
	}
	if host := h.Get("X-Forwarded-Host"); host != "" {
		b.WriteString(";host=")
		b.WriteString(token(host))
	}
	if proto := h.Get("X-Forwarded-Proto"); proto != "" {
		b.WriteString(";proto=")
		b.WriteString(token(proto))
	}
	h["Forwarded"] = []string{b.String()}
}

// node writes an address as the standard wants it.
func node(address string) string {
	if a, err := netip.ParseAddr(address); err == nil && a.Is6() {
		return `"[` + address + `]"`
	}
	return token(address)
}

// escape is made once: a request has no time for that.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// token quotes what is not a token.
func token(text string) string {
	for _, c := range []byte(text) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return `"` + escape.Replace(text) + `"`
		}
	}
	return text
}
