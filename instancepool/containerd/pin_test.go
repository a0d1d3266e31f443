package containerd

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/test/images"
)

// TestSidecarsArePinned has a sidecar's tag move on: instances of the revision go
// on with the image that the first of them had, after a restart too.
func TestSidecarsArePinned(t *testing.T) {
	const image = "localhost/fairway/sidecar:1"
	version := func(f *fixture, text string) {
		f.image(image, images.Options{Files: map[string][]byte{"/version": []byte(text)}})
	}
	f := newFixture(t)
	version(f, "one")
	r := f.open()
	template := templates(sidecar("proxy", "PORT=9000"), func(t *servingv1.RevisionTemplateSpec) {
		t.Spec.Containers[1].Image = image
	})
	rev := f.revisionOf(r, template)
	proxy := func(h instancepool.Handle) instancepool.Handle {
		ip, _, _ := strings.Cut(h.Address(), ":")
		return elsewhere{h, ip + ":9000"}
	}
	h := f.serve(r, rev)
	f.expect(proxy(h), "/file?path=/version", "one")
	first := rev.ImageDigest(image)
	if first == "" || first == rev.Digest() {
		t.Fatalf("pinned to %q; the app to %q", first, rev.Digest())
	}

	version(f, "two")
	f.check(r.Close())
	r = f.open()
	all, err := r.List(t.Context())
	f.check(err)
	if len(all) != 1 || all[0].Revision().ImageDigest(image) != first {
		t.Fatalf("adopted: %v", all)
	}
	next := f.serve(r, all[0].Revision()) // nothing of it is remembered by now
	f.expect(proxy(next), "/file?path=/version", "one")

	newer := f.revisionOf(r, templates(template, func(t *servingv1.RevisionTemplateSpec) {
		t.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "B"}}
	}))
	last := f.serve(r, newer)
	f.expect(proxy(last), "/file?path=/version", "two")
	if newer.ImageDigest(image) == first {
		t.Error("the next revision has the old image")
	}
	for _, h := range []instancepool.Handle{all[0], next, last} {
		f.stop(h)
	}
}

// TestEndedOnceStopped finds an instance ended as soon as its Stop is over,
// whichever of its processes is the last one.
func TestEndedOnceStopped(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	for _, rev := range []*revisions.Revision{f.revision(r), f.revisionOf(r, sidecar("proxy", "PORT=9000"))} {
		for range loops(3, 30) {
			h := f.start(r, rev)
			// At once: the kernel keeps SIGTERM from a first process that does not
			// listen to it yet.
			f.check(h.Stop(t.Context(), 0))
			select {
			case <-h.Exited():
			default:
				t.Fatal("it has stopped and not ended")
			}
			if h.Exit().At.IsZero() {
				t.Errorf("exit: %+v", h.Exit())
			}
		}
	}
}
