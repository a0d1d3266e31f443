package revisions

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// sidecars is a service whose second container gets the requests, and of which
// two have the same image.
const sidecars = `{image: ghcr.io/acme/proxy:1, name: proxy}, {image: app, name: app, ports: [{containerPort: 8081}]},
	{image: ghcr.io/acme/proxy:1, name: other}, {image: app, name: again}`

func TestImages(t *testing.T) {
	rev := revise(t, hello(sidecars, "{}"))
	if diff := cmp.Diff([]string{"app", "ghcr.io/acme/proxy:1"}, rev.Spec().Images()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"app"}, revise(t, hello("{image: app}", "{}")).Spec().Images()); diff != "" {
		t.Errorf("of one container (-want +got):\n%s", diff)
	}
}

// TestPinImage pins each image once, in whatever order they are resolved, and
// shows and reads back those that are known.
func TestPinImage(t *testing.T) {
	const proxy = "ghcr.io/acme/proxy:1"
	status := func(name, image string) servingv1.ContainerStatus {
		return servingv1.ContainerStatus{Name: name, ImageDigest: image}
	}
	rev := revise(t, hello(sidecars, "{}"))
	for _, step := range []struct {
		image, digest, counts string
		want                  []servingv1.ContainerStatus
	}{
		{proxy, "sha256:1", "sha256:1", []servingv1.ContainerStatus{
			status("proxy", "ghcr.io/acme/proxy@sha256:1"), status("other", "ghcr.io/acme/proxy@sha256:1"),
		}},
		{proxy, "sha256:2", "sha256:1", []servingv1.ContainerStatus{
			status("proxy", "ghcr.io/acme/proxy@sha256:1"), status("other", "ghcr.io/acme/proxy@sha256:1"),
		}},
		{"app", "sha256:3", "sha256:3", []servingv1.ContainerStatus{
			status("proxy", "ghcr.io/acme/proxy@sha256:1"), status("app", "app@sha256:3"),
			status("other", "ghcr.io/acme/proxy@sha256:1"), status("again", "app@sha256:3"),
		}},
	} {
		if got := rev.Pin(step.image, step.digest); got != step.counts {
			t.Errorf("pinning %s to %s: %s counts", step.image, step.digest, got)
		}
		if diff := cmp.Diff(step.want, rev.Object().Status.ContainerStatuses); diff != "" {
			t.Errorf("after %s %s (-want +got):\n%s", step.image, step.digest, diff)
		}
		b, err := json.Marshal(rev)
		if err != nil {
			t.Fatal(err)
		}
		read := new(Revision)
		if err := json.Unmarshal(b, read); err != nil {
			t.Fatal(err)
		}
		for _, image := range append(rev.Spec().Images(), "none") {
			if got, want := read.ImageDigest(image), rev.ImageDigest(image); got != want {
				t.Errorf("%s: %q was read as %q", image, want, got)
			}
		}
	}
	if got := rev.Digest(); got != "sha256:3" || rev.ImageDigest("none") != "" {
		t.Errorf("pinned to %q, and what it does not run to %q", got, rev.ImageDigest("none"))
	}
}

// TestPinImageConcurrently has many resolve the same images: all of them are told
// the same.
func TestPinImageConcurrently(t *testing.T) {
	rev := revise(t, hello(sidecars+`, {image: third, name: third}`, "{}"))
	told := make([]map[string]string, 8)
	var all sync.WaitGroup
	for n := range told {
		told[n] = make(map[string]string)
		all.Go(func() {
			for _, image := range rev.Spec().Images() {
				told[n][image] = rev.Pin(image, fmt.Sprint("sha256:", n))
			}
		})
	}
	all.Wait()
	for n := range told {
		for _, image := range rev.Spec().Images() {
			if want := rev.ImageDigest(image); want == "" || told[n][image] != want {
				t.Errorf("%s: %q was told; want %q", image, told[n][image], want)
			}
		}
	}
}
