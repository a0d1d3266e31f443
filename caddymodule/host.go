package caddymodule

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/fairway-run/fairway/revisions"
)

// errUnknownHost means that no service is served under a host name.
var errUnknownHost = errors.New("no service has this host")

// serviceOfHost says which service, and which tag of it, a host means:
// <service>.<domain>, <tag>---<service>.<domain>, or a host that is mapped to a
// service. Without a domain any parent will do.
// Source: Cloud Run: traffic tags.
func serviceOfHost(g *revisions.Registry, host string) (service, tag string, err error) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if service := g.ServiceOfHost(host); service != "" {
		return service, "", nil
	}
	label, parent, _ := strings.Cut(host, ".")
	domain := g.Domain().Host
	if h, _, err := net.SplitHostPort(domain); err == nil {
		domain = h
	}
	if label == "" || parent == "" || (domain != "" && parent != strings.ToLower(domain)) {
		return "", "", fmt.Errorf("%w: %s", errUnknownHost, host)
	}
	service = label
	if t, s, ok := strings.Cut(label, "---"); ok && t != "" && s != "" {
		tag, service = t, s
	}
	if !g.Known(service) {
		return "", "", fmt.Errorf("%w: %s", errUnknownHost, host)
	}
	return service, tag, nil
}
