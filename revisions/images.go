package revisions

import (
	"iter"
	"maps"
	"slices"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Images are the images of all containers, each once, as the user wrote them:
// Image first.
func (s *Spec) Images() []string {
	all := []string{s.Image}
	seen := map[string]bool{s.Image: true}
	for i := range s.Template.Spec.Containers {
		if image := s.Template.Spec.Containers[i].Image; !seen[image] {
			seen[image] = true
			all = append(all, image)
		}
	}
	return all
}

// Digest is the digest that the ingress container's image was pinned to, such as
// "sha256:…", or "" while it has not been resolved yet.
func (r *Revision) Digest() string { return r.ImageDigest(r.Spec().Image) }

// ImageDigest is the digest that one of the revision's images was pinned to, or
// "" while it has not been resolved yet.
func (r *Revision) ImageDigest(image string) string {
	if all := r.digests.Load(); all != nil {
		return (*all)[image]
	}
	return ""
}

// Pins are the images of the revision whose digests are known, with these.
func (r *Revision) Pins() iter.Seq2[string, string] {
	if all := r.digests.Load(); all != nil {
		return maps.All(*all)
	}
	return func(func(string, string) bool) {}
}

// Pinned reports whether the digests of all images are known.
func (r *Revision) Pinned() bool {
	return !slices.ContainsFunc(r.Spec().Images(), func(image string) bool { return r.ImageDigest(image) == "" })
}

// Pin records the digest that one of the revision's images was resolved to, and
// returns the one that counts: of several calls for an image that of the first. A
// revision means one image for ever.
func (r *Revision) Pin(image, digest string) string {
	for {
		before := r.digests.Load()
		after := make(map[string]string, 1)
		if before != nil {
			if pinned := (*before)[image]; pinned != "" {
				return pinned
			}
			maps.Copy(after, *before)
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
	for i := range r.Spec().Template.Spec.Containers {
		c := &r.Spec().Template.Spec.Containers[i]
		if d := r.ImageDigest(c.Image); d != "" {
			all = append(all, servingv1.ContainerStatus{Name: c.Name, ImageDigest: pinnedImage(c.Image, d)})
		}
	}
	return all
}

// container returns the container of a name, or nil.
func (r *Revision) container(name string) *corev1.Container {
	for i := range r.Spec().Template.Spec.Containers {
		if c := &r.Spec().Template.Spec.Containers[i]; c.Name == name {
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
