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
// service. Without a domain any parent will do. <service>.internal is there beside
// the domain, but only for who asks from inside: from an instance on this host.
// Source: Cloud Run: traffic tags.
func serviceOfHost(g *revisions.Registry, host string, inside bool) (service, tag string, err error) {
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
	var here bool
	switch domain = strings.ToLower(domain); parent {
	case "":
	case domain:
		here = true
	case internalDomain:
		here = inside
	default:
		here = domain == ""
	}
	if label == "" || !here {
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
