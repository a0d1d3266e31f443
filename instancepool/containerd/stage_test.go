package containerd

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// appAfterProxy has the container that gets the requests start after its sidecar.
func appAfterProxy(t *servingv1.RevisionTemplateSpec) {
	sidecar("proxy", "PORT=9000")(t)
	t.Annotations = map[string]string{revisions.DependenciesAnnotation: `{"app":["proxy"]}`}
}

// TestStages starts the containers of an instance one by one, at once and from
// what was prepared.
func TestStages(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revisionOf(r, appAfterProxy)
	for name, begin := range map[string]func() (instancepool.Handle, error){
		"at once": func() (instancepool.Handle, error) {
			return r.Start(t.Context(), instancepool.StartSpec{ID: f.newID(), Revision: rev})
		},
		"prepared": func() (instancepool.Handle, error) { return f.prepare(r, rev).Start(t.Context(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			h, err := begin()
			f.check(err)
			ip, _, _ := strings.Cut(h.Address(), ":")
			f.get(elsewhere{h, ip + ":9000"}, "/")
			if conn, err := net.Dial("tcp", h.Address()); err == nil {
				conn.Close()
				t.Error("the app runs before it has been started")
			}
			begun := time.Now()
			since, err := h.(instancepool.Stager).StartContainer(t.Context(), "app")
			f.check(err)
			if since.Before(begun) || since.After(time.Now()) {
				t.Errorf("started at %s, between %s and now", since, begun)
			}
			f.get(h, "/")
			if again, err := h.(instancepool.Stager).StartContainer(t.Context(), "app"); err != nil || !again.Equal(since) {
				t.Errorf("once more: %s %v; it was started at %s", again, err, since)
			}
			f.check(h.(instancepool.Execer).Exec(t.Context(), "proxy", []string{"/app", "check", "/healthz"}))
			if err := h.(instancepool.Execer).Exec(t.Context(), "proxy", []string{"/app", "check", "/none"}); err == nil || !strings.Contains(err.Error(), "exited with code 1") {
				t.Errorf("Exec: %v", err)
			}
			if err := h.(instancepool.Execer).Exec(t.Context(), "none", []string{"/app"}); err == nil || !strings.Contains(err.Error(), `no container "none"`) {
				t.Errorf("Exec: %v", err)
			}
			f.stop(h)
			f.leftWithin(patience, 1)
		})
	}
}

// TestHalfStarted stops an instance whose containers have not all been started,
// and lets a later process find one.
func TestHalfStarted(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revisionOf(r, appAfterProxy)
	half := func() instancepool.Handle {
		h, err := r.Start(t.Context(), instancepool.StartSpec{ID: f.newID(), Revision: rev})
		f.check(err)
		return h
	}
	f.stop(half())
	f.leftWithin(patience, 1)

	half()
	f.check(r.Close())
	r = f.open()
	if all, err := r.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("List: %v %v; it is not whole", all, err)
	}
	f.leftWithin(patience, 1)
}

// TestStageFails has a container that cannot be started once others have.
func TestStageFails(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	rev := f.revisionOf(r, templates(appAfterProxy, func(t *servingv1.RevisionTemplateSpec) {
		t.Spec.Containers[0].Command = []string{"/none"}
		t.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "b"}}
	}))
	h, err := r.Start(t.Context(), instancepool.StartSpec{ID: f.newID(), Revision: rev})
	if err == nil { // the engine may find out at either step
		_, err = h.(instancepool.Stager).StartContainer(t.Context(), "app")
		f.check(h.Stop(context.Background(), patience))
	}
	if err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("got %v", err)
	}
	f.leftWithin(patience, 1)
}
