package revisions

import (
	"fmt"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// hosts maps hosts to a service.
func hosts(text string) func(*servingv1.Service) {
	return func(svc *servingv1.Service) {
		if svc.Annotations == nil {
			svc.Annotations = make(map[string]string)
		}
		svc.Annotations[HostsAnnotation] = text
	}
}

func TestHosts(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.create("other", "app:1")
	owners := func(want ...string) {
		t.Helper()
		var got []string
		for _, host := range []string{"example.com", "www.example.com", "api.example.com"} {
			got = append(got, d.ServiceOfHost(host))
		}
		match(t, "owners", got, want)
	}
	owners("", "", "")
	d.mustChange("hello", hosts(" WWW.example.com, example.com ,,example.com"))
	owners("hello", "hello", "")
	_, err := d.change("other", hosts("api.example.com, www.example.com"))
	refused(t, "another's host", err, apierrors.IsBadRequest, "the host www.example.com belongs to service hello")
	owners("hello", "hello", "")
	for _, bad := range []string{"*.example.com", "http://example.com", "example.com:443", "exa mple.com", "-"} {
		_, err := d.change("other", hosts(bad))
		refused(t, bad, err, apierrors.IsBadRequest, "is not a host name")
	}
	d.mustChange("hello", hosts("www.example.com"))
	d.mustChange("other", hosts("example.com, api.example.com"))
	owners("other", "hello", "other")
	d.mustChange("hello", func(svc *servingv1.Service) { delete(svc.Annotations, HostsAnnotation) })
	owners("other", "", "other")
	if _, err := d.Delete("other", OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	owners("", "", "")
	d.mustChange("hello", hosts("example.com"))
	d.deploy("app:2")
	owners("hello", "", "")
}

// Of all that want a host at the same time one has it, and it is free again when
// that one does not want it any more.
func TestOneServiceOfAHost(t *testing.T) {
	d := newDesk(t, Options{})
	const services = 8
	name := func(n int) string { return fmt.Sprint("service-", n) }
	for n := range services {
		d.create(name(n), "app:1")
	}
	for range 20 {
		var all sync.WaitGroup
		for n := range services {
			all.Go(func() { _, _ = d.change(name(n), hosts("example.com")) })
		}
		all.Wait()
		owner := d.ServiceOfHost("example.com")
		if owner == "" {
			t.Fatal("nobody has it")
		}
		for n := range services {
			if name(n) != owner {
				d.mustChange(name(n), hosts(""))
			}
		}
		match(t, "owner", d.ServiceOfHost("example.com"), owner)
		d.mustChange(owner, hosts(""))
		match(t, "owner", d.ServiceOfHost("example.com"), "")
	}
}
