package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	corev1 "k8s.io/api/core/v1"
)

// capabilities are Docker's default set without those that a web service has no
// use for: raw sockets, device nodes, audit, file capabilities, chroot.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
}

// withSecurity gives a container what its securityContext says, and that of the
// pod where its own says nothing. A container may give up more than others do; it
// gets no more than they have, except privileges by setuid programs if it says
// allowPrivilegeEscalation.
func withSecurity(pod *corev1.PodSecurityContext, c *corev1.Container) oci.SpecOpts {
	own := c.SecurityContext
	if own == nil {
		own = new(corev1.SecurityContext)
	}
	if pod == nil {
		pod = new(corev1.PodSecurityContext)
	}
	refuse := func(field string, err error) error { return &ConfigError{c.Name, "securityContext: " + field, err} }
	return func(ctx context.Context, client oci.Client, record *containers.Container, s *oci.Spec) error {
		if err := checkSeccomp(first(own.SeccompProfile, pod.SeccompProfile)); err != nil {
			return refuse("seccompProfile", err)
		}
		allowed, err := allowedCapabilities(own.Capabilities)
		if err != nil {
			return refuse("capabilities", err)
		}
		opts := []oci.SpecOpts{
			withUser(first(own.RunAsUser, pod.RunAsUser), first(own.RunAsGroup, pod.RunAsGroup)),
			withGroups(pod), oci.WithNoNewPrivileges, oci.WithCapabilities(allowed),
		}
		if isTrue(own.AllowPrivilegeEscalation) {
			opts = append(opts, oci.WithNewPrivileges)
		}
		if isTrue(own.ReadOnlyRootFilesystem) {
			opts = append(opts, oci.WithRootFSReadonly())
		}
		opts = append(opts, seccomp.WithDefaultProfile()) // last: it depends on the capabilities
		if err := oci.Compose(opts...)(ctx, client, record, s); err != nil {
			return err
		}
		if isTrue(first(own.RunAsNonRoot, pod.RunAsNonRoot)) && s.Process.User.UID == 0 {
			return refuse("runAsNonRoot", errors.New("the container would run as root: set runAsUser, or use an image that sets a user"))
		}
		return nil
	}
}

// first returns the first that is not nil, or nil.
func first[T any](all ...*T) *T {
	for _, v := range all {
		if v != nil {
			return v
		}
	}
	return nil
}

// withUser replaces the user and group that the image says. The groups are those
// that the image's /etc/group has the user in.
func withUser(uid, gid *int64) oci.SpecOpts {
	return func(ctx context.Context, c oci.Client, container *containers.Container, s *oci.Spec) error {
		if uid == nil && gid == nil {
			return nil
		}
		if uid != nil {
			if err := oci.WithUserID(uint32(*uid))(ctx, c, container, s); err != nil {
				return err
			}
		}
		if gid != nil {
			s.Process.User.GID = uint32(*gid)
		}
		return oci.WithAdditionalGIDs(strconv.FormatUint(uint64(s.Process.User.UID), 10))(ctx, c, container, s)
	}
}

// withGroups adds the pod's groups.
func withGroups(pod *corev1.PodSecurityContext) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		groups := slices.Clone(pod.SupplementalGroups)
		if pod.FSGroup != nil {
			groups = append(groups, *pod.FSGroup)
		}
		for _, g := range groups {
			if !slices.Contains(s.Process.User.AdditionalGids, uint32(g)) {
				s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, uint32(g))
			}
		}
		return nil
	}
}

func checkSeccomp(p *corev1.SeccompProfile) error {
	if p != nil && p.Type != corev1.SeccompProfileTypeRuntimeDefault {
		return fmt.Errorf("%s is not supported: %s is", p.Type, corev1.SeccompProfileTypeRuntimeDefault)
	}
	return nil
}

// allowedCapabilities are the usual ones without those that are dropped. One can
// be added only if all others are: it is the way to drop all others.
func allowedCapabilities(c *corev1.Capabilities) ([]string, error) {
	if c == nil {
		return capabilities, nil
	}
	dropped := func(name string) bool {
		return slices.ContainsFunc(c.Drop, func(d corev1.Capability) bool { return d == "ALL" || capabilityName(d) == name })
	}
	var added []string
	for _, a := range c.Add {
		name := capabilityName(a)
		if !slices.Contains(capabilities, name) {
			return nil, fmt.Errorf("%s cannot be added: no container has it", a)
		}
		added = append(added, name)
	}
	allowed := make([]string, 0, len(capabilities))
	for _, name := range capabilities {
		if slices.Contains(added, name) || !dropped(name) {
			allowed = append(allowed, name)
		}
	}
	return allowed, nil
}

func capabilityName(c corev1.Capability) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")
}
