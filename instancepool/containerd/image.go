package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// progressEvery is how often the progress of a pull is told.
const progressEvery = 250 * time.Millisecond

// leaseExpiry is when containerd gives up a lease whose holder was killed.
const leaseExpiry = 24 * time.Hour

// Resolve implements instancepool.Runtime. The image is recorded under its digest
// alone, so that it stays when the tag moves on or is deleted.
func (r *Runtime) Resolve(ctx context.Context, image string, progress func(instancepool.Progress)) (string, error) {
	c, err := r.connect()
	if err != nil {
		return "", err
	}
	ref, err := normalize(image)
	if err != nil {
		return "", err
	}
	img, err := r.local(ctx, c, ref)
	switch {
	case errdefs.IsNotFound(err):
		img, err = r.fetch(ctx, c, ref, progress)
	case err == nil:
		err = r.record(ctx, c, ref, img)
	}
	if err != nil {
		return "", err
	}
	if err := r.unpack(ctx, c, img); err != nil {
		return "", err
	}
	return img.Target().Digest.String(), nil
}

// record records a local image under its digest.
func (r *Runtime) record(ctx context.Context, c *client.Client, ref string, img client.Image) error {
	pinned, err := pinnedName(ref, img.Target().Digest.String())
	if err != nil {
		return err
	}
	rpc, cancel := r.within(ctx)
	defer cancel()
	record := images.Image{Name: pinned, Target: img.Target(), Labels: map[string]string{labelManaged: "true"}}
	if _, err := c.ImageService().Create(rpc, record); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("pinning image %s: %w", ref, explain(ctx, err))
	}
	return nil
}

// fetch returns the image that a registry has under a name now.
func (r *Runtime) fetch(ctx context.Context, c *client.Client, ref string, progress func(instancepool.Progress)) (client.Image, error) {
	_, found, err := resolver().Resolve(ctx, ref)
	if err != nil {
		return nil, unfetched(ctx, ref, err)
	}
	pinned, err := pinnedName(ref, found.Digest.String())
	if err != nil {
		return nil, err
	}
	img, err := r.local(ctx, c, pinned)
	if errdefs.IsNotFound(err) {
		img, err = r.pull(ctx, c, pinned, progress)
	}
	return img, err
}

// Prune implements instancepool.Runtime.
func (r *Runtime) Prune(ctx context.Context, used iter.Seq2[string, string]) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	keep := make(map[string]bool)
	note := func(image, digest string) {
		if ref, err := normalize(image); err == nil {
			if ref, err = pinnedName(ref, digest); err == nil {
				keep[ref] = true
			}
		}
	}
	for image, digest := range used {
		note(image, digest)
	}
	r.mu.Lock()
	for _, h := range r.handles {
		for image, digest := range h.rev.Pins() {
			note(image, digest)
		}
	}
	clear(r.specs) // those of revisions that are gone, and the others are made anew in a moment
	r.mu.Unlock()
	rpc, cancel := r.within(ctx)
	defer cancel()
	all, err := c.ImageService().List(rpc, managed)
	if err != nil {
		return fmt.Errorf("listing images: %w", explain(ctx, err))
	}
	all = slices.DeleteFunc(all, func(img images.Image) bool { return keep[img.Name] })
	for i, img := range all {
		var opts []images.DeleteOpt
		if i == len(all)-1 {
			opts = append(opts, images.SynchronousDelete()) // the collector looks for what they held
		}
		if err := c.ImageService().Delete(rpc, img.Name, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("removing image %s: %w", img.Name, explain(ctx, err))
		}
		r.log.Info("image removed: no revision has it any more", zap.String("image", img.Name))
	}
	return nil
}

// normalize completes a reference as Docker does: app means
// docker.io/library/app:latest.
func normalize(image string) (string, error) {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return "", fmt.Errorf("%w: %q is no image reference: %w", instancepool.ErrImage, image, err)
	}
	return named.String(), nil
}

// pinnedName is the record's name for an image of a certain digest.
func pinnedName(ref, digest string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("%w: %q is no image reference: %w", instancepool.ErrImage, ref, err)
	}
	return reference.TrimNamed(named).String() + "@" + digest, nil
}

func (r *Runtime) local(ctx context.Context, c *client.Client, ref string) (client.Image, error) {
	rpc, cancel := r.within(ctx)
	defer cancel()
	img, err := c.GetImage(rpc, ref)
	if err != nil {
		return nil, fmt.Errorf("looking for image %s: %w", ref, explain(ctx, err))
	}
	return img, nil
}

// pinned returns the image of a revision's container.
func (r *Runtime) pinned(ctx context.Context, c *client.Client, rev *revisions.Revision, container *corev1.Container) (client.Image, error) {
	ref, err := normalize(container.Image)
	if err != nil {
		return nil, err
	}
	ref, err = pinnedName(ref, rev.ImageDigest(container.Image))
	if err != nil {
		return nil, err
	}
	img, err := r.local(ctx, c, ref)
	if errdefs.IsNotFound(err) {
		// Somebody removed it; what has the digest is the same image.
		img, err = r.pull(ctx, c, ref, nil)
	}
	if err != nil {
		return nil, err
	}
	return img, r.unpack(ctx, c, img)
}

// pull fetches an image that is named by its digest.
func (r *Runtime) pull(ctx context.Context, c *client.Client, ref string, progress func(instancepool.Progress)) (client.Image, error) {
	pulling, cancel := context.WithCancel(ctx)
	defer cancel()
	if progress != nil {
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.tell(pulling, c, progress)
		}()
		defer func() { cancel(); <-done }()
	}
	leased, release, err := r.lease(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, explain(ctx, err))
	}
	defer release()
	img, err := c.Pull(leased, ref,
		client.WithResolver(resolver()), client.WithPlatform(platforms.DefaultString()), client.WithPullLabel(labelManaged, "true"))
	if err != nil {
		return nil, unfetched(ctx, ref, err)
	}
	return img, nil
}

func resolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(docker.MatchLocalhost),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(credentials))),
		docker.WithClient(&http.Client{}),
	)})
}

// unfetched explains why a registry gave no image.
func unfetched(ctx context.Context, ref string, err error) error {
	if ctx.Err() != nil || errdefs.IsUnavailable(err) {
		return fmt.Errorf("pulling %s: %w", ref, explain(ctx, err))
	}
	return unusable("pulling", ref, err)
}

// unusable explains why an image cannot be used.
func unusable(doing, ref string, err error) error {
	if errdefs.IsNotFound(err) && strings.Contains(err.Error(), "no match for platform") {
		return fmt.Errorf("%w: %s has no variant for %s: %w", instancepool.ErrImage, ref, platforms.DefaultString(), err)
	}
	return fmt.Errorf("%w: %s %s: %w", instancepool.ErrImage, doing, ref, err)
}

// lease keeps containerd's garbage collector from what is fetched until release
// is called. The client's own lease would stay for a day if ctx ended before, or
// while containerd makes it.
func (r *Runtime) lease(ctx context.Context, c *client.Client) (_ context.Context, release func(), _ error) {
	rpc, cancel := r.within(context.WithoutCancel(ctx))
	defer cancel()
	l, err := c.LeasesService().Create(rpc, leases.WithRandomID(), leases.WithExpiration(leaseExpiry))
	if err != nil {
		return ctx, nil, err
	}
	return leases.WithLease(withNamespace(ctx, r.opts.Namespace), l.ID), func() {
		rpc, cancel := r.within(context.WithoutCancel(ctx))
		defer cancel()
		if err := c.LeasesService().Delete(rpc, l); err != nil {
			r.log.Warn("giving back a lease, which containerd does by itself in a day", zap.Error(err))
		}
	}, nil
}

// tell reports how many bytes have been fetched, until ctx ends.
func (r *Runtime) tell(ctx context.Context, c *client.Client, progress func(instancepool.Progress)) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		rpc, cancel := r.within(ctx)
		active, err := c.ContentStore().ListStatuses(rpc)
		cancel()
		if err != nil || len(active) == 0 {
			continue
		}
		var p instancepool.Progress
		for _, s := range active {
			p.Done += s.Offset
			p.Total += s.Total
		}
		progress(p)
	}
}

// credentials looks in Docker's config.json and its credential helpers.
func credentials(host string) (user, secret string, err error) {
	if host == "registry-1.docker.io" {
		host = name.DefaultRegistry
	}
	registry, err := name.NewRegistry(host, name.WeakValidation)
	if err != nil {
		return "", "", fmt.Errorf("reading credentials for %s: %w", host, err)
	}
	a, err := authn.DefaultKeychain.Resolve(registry)
	if err != nil {
		return "", "", fmt.Errorf("reading credentials for %s: %w", host, err)
	}
	cfg, err := a.Authorization()
	if err != nil {
		return "", "", fmt.Errorf("reading credentials for %s: %w", host, err)
	}
	if cfg.IdentityToken != "" {
		return "", cfg.IdentityToken, nil
	}
	return cfg.Username, cfg.Password, nil
}

// unpack makes the image's file system ready for containers.
func (r *Runtime) unpack(ctx context.Context, c *client.Client, img client.Image) error {
	ctx = withNamespace(ctx, r.opts.Namespace)
	unpacked, err := img.IsUnpacked(ctx, r.opts.Snapshotter)
	if err == nil && !unpacked {
		var release func()
		if ctx, release, err = r.lease(ctx, c); err == nil {
			defer release()
			err = img.Unpack(ctx, r.opts.Snapshotter)
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil, errdefs.IsUnavailable(err):
		return fmt.Errorf("unpacking image %s: %w", img.Name(), explain(ctx, err))
	}
	return unusable("unpacking", img.Name(), err)
}

// Import reads an OCI or Docker archive and returns the names of its images.
func (r *Runtime) Import(ctx context.Context, archive io.Reader) ([]string, error) {
	c, err := r.connect()
	if err != nil {
		return nil, err
	}
	ctx, release, err := r.lease(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("importing an archive: %w", explain(ctx, err))
	}
	defer release()
	imported, err := c.Import(ctx, archive)
	if err != nil {
		return nil, fmt.Errorf("importing an archive: %w", explain(ctx, err))
	}
	if len(imported) == 0 {
		return nil, errors.New("importing an archive: it holds no image with a name")
	}
	names := make([]string, 0, len(imported))
	for _, img := range imported {
		if err := r.unpack(ctx, c, client.NewImage(c, img)); err != nil {
			return nil, err
		}
		names = append(names, img.Name)
	}
	return names, nil
}
