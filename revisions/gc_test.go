package revisions

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// deployed makes a service ready with one more revision.
func deployed(t *testing.T, g *Registry, n int, annotations string) *Revision {
	t.Helper()
	svc := parse(t, hello(fmt.Sprintf("{image: 'app:%d'}", n), annotations))
	if st := g.State("hello"); st != nil {
		svc.Spec.Traffic = st.Service.Spec.Traffic
	}
	rev, created, err := g.Apply(svc, OwnerAPI)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	g.MarkReady(rev)
	return rev
}

// Knative: config-gc. Twenty revisions without traffic are kept for rollbacks, and
// older ones for two days.
func TestGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewRegistry(Options{})
		pinned := deployed(t, g, 1, "{}")
		svc := g.State("hello").ServiceObject()
		whole, none := int64(100), int64(0)
		svc.Spec.Traffic = []servingv1.TrafficTarget{{Percent: &whole}, {RevisionName: pinned.Name, Tag: "old", Percent: &none}}
		if _, err := g.Update(svc, OwnerAPI); err != nil {
			t.Fatal(err)
		}
		kept := deployed(t, g, 2, "{serving.knative.dev/no-gc: 'true'}")
		for n := 3; n < 40; n++ {
			deployed(t, g, n, "{}")
		}
		if n := len(g.State("hello").Revisions); n != 39 {
			t.Errorf("%d revisions are left of 39, which are all young", n)
		}
		time.Sleep(retainSinceCreate + time.Second)
		deployed(t, g, 40, "{}")
		// The latest, and the one before it, which had the traffic until then; twenty
		// without any; the one with a tag and the preserved one.
		st := g.State("hello")
		if n := len(st.Revisions); n != 2+retainMin+2 {
			t.Errorf("%d revisions are left", n)
		}
		for _, rev := range []*Revision{pinned, kept} {
			if st.Revision(rev.Name) == nil || g.Revision(rev.Name) != rev {
				t.Errorf("%s is gone", rev.Name)
			}
		}
		if g.Revision("hello-00003") != nil || st.Revision("hello-00039") == nil {
			t.Error("the wrong ones are gone")
		}
	})
}
