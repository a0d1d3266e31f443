package revisions

import (
	"maps"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Images are the images of the revision's containers, each once, as the user
// wrote them: Image first.
func (r *Revision) Images() []string {
	all := []string{r.Image}
	seen := map[string]bool{r.Image: true}
	for i := range r.Template.Spec.Containers {
		if image := r.Template.Spec.Containers[i].Image; !seen[image] {
			seen[image] = true
			all = append(all, image)
		}
	}
	return all
}

// ImageDigest is the digest that one of Images was pinned to, or "" while it has
// not been resolved yet. That of Image is Digest.
func (r *Revision) ImageDigest(image string) string {
	if image == r.Image {
		return r.Digest()
	}
	if others := r.digests.Load(); others != nil {
		return (*others)[image]
	}
	return ""
}

// PinImage records the digest that one of Images was resolved to, and returns the
// one that counts: of several calls for an image that of the first.
func (r *Revision) PinImage(image, digest string) string {
	if image == r.Image {
		r.Pin(digest)
		return r.Digest()
	}
	for {
		before := r.digests.Load()
		var after map[string]string
		if before != nil {
			if pinned := (*before)[image]; pinned != "" {
				return pinned
			}
			after = maps.Clone(*before)
		}
		if after == nil {
			after = make(map[string]string, 1)
		}
		after[image] = digest
		if r.digests.CompareAndSwap(before, &after) {
			return digest
		}
	}
}

// containerStatuses says which images the containers run, in their order, as far
// as that is known.
func (r *Revision) containerStatuses() []servingv1.ContainerStatus {
	var all []servingv1.ContainerStatus
	for i := range r.Template.Spec.Containers {
		c := &r.Template.Spec.Containers[i]
		if d := r.ImageDigest(c.Image); d != "" {
			all = append(all, servingv1.ContainerStatus{Name: c.Name, ImageDigest: pinnedImage(c.Image, d)})
		}
	}
	return all
}

// container returns the container of a name, or nil.
func (r *Revision) container(name string) *corev1.Container {
	for i := range r.Template.Spec.Containers {
		if c := &r.Template.Spec.Containers[i]; c.Name == name {
			return c
		}
	}
	return nil
}

// pinnedImage is an image by its digest: "ghcr.io/acme/hello@sha256:…".
func pinnedImage(image, digest string) string {
	if named, err := reference.ParseNormalizedNamed(image); err == nil {
		image = reference.FamiliarName(named)
	}
	return image + "@" + digest
}
