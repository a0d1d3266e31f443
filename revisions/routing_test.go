package revisions

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// router is who follows a registry in tests. While it is held it routes nothing
// elsewhere.
type router struct {
	registry *Registry
	routing  atomic.Pointer[Routing]
	held     atomic.Bool
}

func (r *router) options() Options {
	return Options{Changed: r.follow, Routing: func(string) *Routing { return r.routing.Load() }}
}

func (r *router) follow(name string) {
	st := r.registry.State(name)
	if st == nil || r.held.Load() {
		return
	}
	r.routing.Store(&Routing{Targets: st.Targets})
}

// routed returns a registry with a router, and in it hello with two revisions, of
// which the second has all requests.
func routed(t testing.TB, store Store) (*desk, *router) {
	t.Helper()
	r := new(router)
	d := newDesk(t, r.options())
	r.registry = d.Registry
	if store != nil {
		if err := d.Open(t.Context(), store); err != nil {
			t.Fatal(err)
		}
	}
	d.create("hello", "app:1")
	d.ready("hello-00001")
	d.deploy("app:2")
	d.ready("hello-00002")
	return d, r
}

// routesReady is the service's condition RoutesReady in words.
func routesReady(st *State) string {
	c := st.Service.Status.GetCondition(servingv1.ServiceConditionRoutesReady)
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message))
}

const notMigrated = "Unknown TrafficNotMigrated Traffic is not yet migrated"

func TestReadyWhenItIsRouted(t *testing.T) {
	d, r := routed(t, nil)
	match(t, "before", routesReady(d.State("hello")), "True")
	r.held.Store(true)
	written := d.traffic("hello-00001=100")
	match(t, "held", routesReady(written), notMigrated+".")
	match(t, "route", says(written.Route.Conditions),
		"AllTrafficAssigned=True CertificateProvisioned=True:TLSNotEnabled IngressReady=Unknown:TrafficNotMigrated Ready=Unknown:TrafficNotMigrated")
	match(t, "service", says(written.Service.Status.Conditions),
		"ConfigurationsReady=True Ready=Unknown:TrafficNotMigrated RoutesReady=Unknown:TrafficNotMigrated")
	match(t, "wanted", routes(written), "hello-00001=100")

	// Nothing has changed: nobody is told of anything.
	version := d.Version()
	d.Confirm("hello")
	d.Confirm("unknown")
	match(t, "version", d.Version(), version)

	old := r.routing.Load().Targets
	r.routing.Store(&Routing{Targets: old, Waits: "revision hello-00001 rests"})
	d.Confirm("hello")
	match(t, "with a reason", routesReady(d.State("hello")), notMigrated+": revision hello-00001 rests")

	w, err := d.Watch(d.Version())
	if err != nil {
		t.Fatal(err)
	}
	r.held.Store(false)
	r.follow("hello")
	d.Confirm("hello")
	st := d.State("hello")
	match(t, "routed", routesReady(st), "True")
	all, err := w.Next(t.Context())
	if err != nil || len(all) != 1 || all[0].State != st || all[0].Kind != Modified || formatVersion(all[0].Version) != st.Service.ResourceVersion {
		t.Errorf("watchers are told %+v, %v", all, err)
	}
	match(t, "where", routes(st), "hello-00001=100")
	version = d.Version()
	d.Confirm("hello")
	match(t, "versions since", d.Version(), version)
}

// A move that is done at once is ready for who has asked for it, and who watches
// sees that it was not for a moment, as in Knative.
func TestReadyAtOnce(t *testing.T) {
	d, _ := routed(t, nil)
	w, err := d.Watch(d.Version())
	if err != nil {
		t.Fatal(err)
	}
	before := d.State("hello")
	written := d.traffic("hello-00001=100")
	match(t, "answered", routesReady(written), "True")
	match(t, "read", d.Settled("hello") == written, true)
	all, err := w.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, c := range all {
		if c.Revision == nil {
			seen = append(seen, routesReady(c.State))
		}
	}
	match(t, "seen", seen, []string{notMigrated + ".", "True"})
	// Who has written it may write again.
	again := written.Written(before.Service)
	again.Labels = map[string]string{"a": "b"}
	if _, err := d.Update(again, OwnerAPI); err != nil {
		t.Error(err)
	}
}

func TestMovedBack(t *testing.T) {
	d, r := routed(t, nil)
	r.held.Store(true)
	d.traffic("hello-00001=100")
	match(t, "another move", routesReady(d.traffic("hello-00001=50 hello-00002=50")), notMigrated+".")
	match(t, "another tag", routesReady(d.traffic("hello-00002=100#tag")), notMigrated+".")
	match(t, "back", routesReady(d.traffic("hello-00002=100")), "True")
	match(t, "which the latest one is", routesReady(d.traffic("latest=100")), "True")
}

// Nothing of it outlives its service, nor its process.
func TestRoutingIsNotKept(t *testing.T) {
	m := newMemory()
	d, r := routed(t, m)
	r.held.Store(true)
	match(t, "held", routesReady(d.traffic("hello-00001=100")), notMigrated+".")
	r.routing.Store(nil) // it ends
	d.Confirm("hello")
	match(t, "at the end", routesReady(d.Settled("hello")), notMigrated+".")
	d.close()

	r = new(router)
	d = opened(t, m, r.options())
	r.registry = d.Registry
	version := d.Version()
	match(t, "before it is followed", routesReady(d.State("hello")), "True")
	r.follow("hello")
	match(t, "read", routesReady(d.Settled("hello")), "True")
	match(t, "versions since", d.Version(), version)

	r.held.Store(true)
	match(t, "held", routesReady(d.traffic("hello-00002=100")), notMigrated+".")
	if _, err := d.Delete("hello", OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	version = d.Version()
	d.Confirm("hello")
	match(t, "versions since", d.Version(), version)
	r.routing.Store(nil)
	d.create("hello", "app:3")
	d.ready("hello-00003")
	match(t, "another of the name", routesReady(d.State("hello")), "True")
	d.close()
}

// Whoever changes, reads or routes a service at the same time waits for the others
// at most, and in the end the status is true.
func TestConfirmWhileItChanges(t *testing.T) {
	d, r := routed(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var changes, others sync.WaitGroup
	for i := range 2 {
		changes.Go(func() {
			for n := range 50 {
				want := d.State("hello").ServiceObject()
				want.ResourceVersion = ""
				want.Spec.Traffic = targets(fmt.Sprintf("hello-0000%d=100", 1+(n+i)%2))
				if _, err := d.Update(want, OwnerAPI); err != nil {
					t.Error(err)
				}
			}
		})
		others.Go(func() {
			for ctx.Err() == nil {
				d.Settled("hello")
			}
		})
	}
	others.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			r.held.Store(n%2 == 0)
			r.follow("hello")
			d.Confirm("hello")
		}
	})
	changes.Wait()
	stop()
	others.Wait()
	r.held.Store(true)
	r.routing.Store(&Routing{Targets: d.State("hello").Targets})
	d.Confirm("hello")
	match(t, "in the end", routesReady(d.State("hello")), "True")
	r.routing.Store(&Routing{})
	match(t, "without a route", routesReady(d.Settled("hello")), notMigrated+".")
}
