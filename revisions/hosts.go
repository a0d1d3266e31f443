package revisions

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// HostsAnnotation, on a service, maps further hosts to it: "www.example.com,
// example.com". Source: Cloud Run and Knative: domain mapping.
const HostsAnnotation = "run.fairway/hosts"

// hostsOf returns the hosts that are mapped to a service.
func hostsOf(svc *servingv1.Service) []string {
	if svc == nil || svc.Annotations[HostsAnnotation] == "" {
		return nil
	}
	var hosts []string
	for host := range strings.SplitSeq(svc.Annotations[HostsAnnotation], ",") {
		if host = strings.ToLower(strings.TrimSpace(host)); host != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// Hosts are those that are mapped to the service, beside the one below the domain.
func (s *State) Hosts() []string { return hostsOf(s.Service) }

// checkHosts refuses hosts that are none, or that belong to another service.
func (g *Registry) checkHosts(svc *servingv1.Service) error {
	for _, host := range hostsOf(svc) {
		if problems := validation.IsDNS1123Subdomain(host); len(problems) > 0 {
			return fmt.Errorf("service %s: annotation %s: %q is not a host name: %s", svc.Name, HostsAnnotation, host, problems[0])
		}
		if other := g.ServiceOfHost(host); other != "" && other != svc.Name {
			return fmt.Errorf("service %s: annotation %s: the host %s belongs to service %s", svc.Name, HostsAnnotation, host, other)
		}
	}
	return nil
}

// mapHosts notes which hosts a service has now. The caller holds mu.
func (g *Registry) mapHosts(service string, before, now []string) {
	for _, host := range before {
		if !slices.Contains(now, host) {
			g.hosts.CompareAndDelete(host, service)
		}
	}
	for _, host := range now {
		g.hosts.LoadOrStore(host, service) // two may have asked at the same time: the first has it
	}
}
