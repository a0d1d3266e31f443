package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-run/fairway/revisions"
)

const (
	// cpuPeriod is the kernel's usual period of a CPU quota, in microseconds.
	cpuPeriod = 100_000
	// pidsLimit keeps a fork bomb inside its container.
	pidsLimit = 4096
	// oomScore makes the kernel take an instance before Caddy or containerd.
	oomScore = 500
)

// specBase is what the specs of a container have in common in all instances of a
// revision. It is made with the first of them: reading the image's configuration
// and its users takes as long as all the rest.
type specBase struct {
	image  client.Image
	parent string // the snapshot of the image's file system
	stop   string // the signal that the image wants its process to be asked to end by

	mu   sync.Mutex // guards json
	json []byte
}

// perInstance is what differs between the specs of a container of a revision's
// instances.
type perInstance struct {
	id      string // the instance's
	netns   string // empty: the host's network
	files   string // directory with hosts, hostname and resolv.conf
	cgroups string
	env     *environment
	mounts  []specs.Mount // of volumes
	own     int           // how many of the last arguments are the revision's, not the image's
}

// spec returns an option that makes an instance's spec.
func (b *specBase) spec(rev *revisions.Revision, c *corev1.Container, p perInstance) oci.SpecOpts {
	return func(ctx context.Context, engine oci.Client, record *containers.Container, s *oci.Spec) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.json == nil {
			base, err := oci.GenerateSpec(ctx, engine, record, common(rev, c, b.image)...)
			if err != nil {
				return err
			}
			if b.json, err = json.Marshal(base); err != nil {
				return fmt.Errorf("encoding the spec: %w", err)
			}
		}
		*s = oci.Spec{}
		if err := json.Unmarshal(b.json, s); err != nil {
			return fmt.Errorf("decoding the spec: %w", err)
		}
		p.apply(s)
		return nil
	}
}

// common says what a container is in all instances of a revision.
func common(rev *revisions.Revision, c *corev1.Container, image client.Image) []oci.SpecOpts {
	opts := []oci.SpecOpts{oci.WithDefaultPathEnv}
	switch {
	case len(c.Command) > 0: // Kubernetes: command replaces the entrypoint and the arguments
		opts = append(opts, oci.WithImageConfig(image), oci.WithProcessArgs(slices.Concat(c.Command, c.Args)...))
	case len(c.Args) > 0:
		opts = append(opts, oci.WithImageConfigArgs(image, c.Args))
	default:
		opts = append(opts, oci.WithImageConfig(image))
	}
	if c.WorkingDir != "" {
		opts = append(opts, oci.WithProcessCwd(c.WorkingDir))
	}
	opts = append(opts,
		oci.WithoutRunMount, // what the image has in /run counts
		withCgroups, withTmp,
		oci.WithPidsLimit(pidsLimit), withoutRlimits, withOOMScore, withLimits(c.Resources.Limits), withShares(c.Resources.Requests),
		withSecurity(rev.Spec().Template.Spec.SecurityContext, c),
	)
	return opts
}

// ownArguments is how many of a process's arguments its container sets, and not
// its image: they are the last ones.
func ownArguments(c *corev1.Container) int { return len(c.Command) + len(c.Args) }

// withCgroups shows the container its own limits (Knative: runtime contract).
func withCgroups(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"},
	})
	return nil
}

// withShares gives a container its share of CPUs that are short
// (Kubernetes: requests.cpu).
func withShares(requests corev1.ResourceList) oci.SpecOpts {
	return func(ctx context.Context, c oci.Client, container *containers.Container, s *oci.Spec) error {
		q, ok := requests[corev1.ResourceCPU]
		if !ok {
			return nil
		}
		shares := max(q.MilliValue()*1024/1000, 2) // the kernel takes no less
		return oci.WithCPUShares(uint64(shares))(ctx, c, container, s)
	}
}

// withoutRlimits leaves containerd's own limits to the instance. The default is
// 1024 open files, fewer than an instance may have requests.
func withoutRlimits(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Process.Rlimits = nil
	return nil
}

func withOOMScore(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	score := oomScore
	s.Process.OOMScoreAdj = &score
	return nil
}

func withLimits(limits corev1.ResourceList) oci.SpecOpts {
	return func(ctx context.Context, c oci.Client, container *containers.Container, s *oci.Spec) error {
		if q, ok := limits[corev1.ResourceCPU]; ok {
			quota := max(q.MilliValue()*cpuPeriod/1000, 1000) // the kernel takes no less than 1 ms
			if err := oci.WithCPUCFS(quota, cpuPeriod)(ctx, c, container, s); err != nil {
				return err
			}
		}
		if q, ok := limits[corev1.ResourceMemory]; ok {
			if err := oci.WithMemoryLimit(uint64(q.Value()))(ctx, c, container, s); err != nil {
				return err
			}
			// Memory and swap together may be no more: swap would only make an app
			// that exceeds its limit slow, and the host with it.
			if swapLimited() {
				if err := oci.WithMemorySwap(q.Value())(ctx, c, container, s); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// swapLimited reports whether the kernel can limit swap: version 2 of cgroups
// always can, version 1 where it accounts for swap.
var swapLimited = sync.OnceValue(func() bool {
	for _, file := range []string{"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"} {
		if _, err := os.Stat(file); err == nil {
			return true
		}
	}
	return false
})

// apply makes a common spec that of one instance.
func (p perInstance) apply(s *oci.Spec) {
	s.Hostname = p.id
	s.Linux.CgroupsPath = p.cgroups
	s.Process.Env = p.env.over(s.Process.Env)
	for i := max(len(s.Process.Args)-p.own, 0); i < len(s.Process.Args); i++ {
		s.Process.Args[i] = p.env.expand(s.Process.Args[i])
	}
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.NetworkNamespace
	})
	if p.netns != "" {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: p.netns})
	}
	s.Mounts = p.over(s.Mounts)
}

// over returns the mounts that all instances have, and then this one's, each
// after those that it is inside of. A volume takes the place of what else would
// be mounted there.
func (p perInstance) over(common []specs.Mount) []specs.Mount {
	own := make([]specs.Mount, 0, len(p.mounts)+3)
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		own = append(own, specs.Mount{
			Destination: "/etc/" + name, Type: "bind", Source: filepath.Join(p.files, name),
			Options: []string{"rbind", "ro", "nosuid", "nodev", "noexec"},
		})
	}
	volume := func(m specs.Mount) bool {
		return slices.ContainsFunc(p.mounts, func(v specs.Mount) bool { return v.Destination == m.Destination })
	}
	own = append(slices.DeleteFunc(own, volume), p.mounts...)
	slices.SortStableFunc(own, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return append(slices.DeleteFunc(common, volume), own...)
}

// cgroupPath is where an instance's limits are, below the root of the hierarchy.
func cgroupPath(namespace, id string) string { return "/fairway/" + namespace + "/" + id }

// withNamespace says which of containerd's namespaces a call is about.
func withNamespace(ctx context.Context, namespace string) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// Labels of everything that Fairway makes. What lacks labelManaged is never
// touched.
const (
	labelManaged  = "run.fairway/managed"
	labelService  = "run.fairway/service"
	labelRevision = "run.fairway/revision"
	// labelContainer is the container's name in the revision.
	labelContainer = "run.fairway/container"
	labelNetwork   = "run.fairway/network"
	labelAddress   = "run.fairway/address"
	labelLog       = "run.fairway/log"
	// extensionRevision holds the whole revision, so that a later process knows
	// what it adopts.
	extensionRevision = "run.fairway.revision"
	// labelRoot keeps containerd's garbage collector from a snapshot whose
	// container is not recorded yet.
	labelRoot = "containerd.io/gc.root"
)

func labels(rev *revisions.Revision, more map[string]string) map[string]string {
	all := map[string]string{labelManaged: "true", labelService: rev.Service, labelRevision: rev.Name}
	maps.Copy(all, more)
	return all
}
