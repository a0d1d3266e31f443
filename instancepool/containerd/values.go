package containerd

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fairway-run/fairway/revisions"
)

// Values holds the secrets and config maps that containers refer to.
// revisions.Values is one.
type Values interface {
	// Lookup returns what a secret or a config map holds, by key, and false if
	// there is none of that name. All keys are of one version.
	Lookup(kind revisions.ValueKind, name string) (data map[string][]byte, found bool, err error)
}

var _ Values = (*revisions.Values)(nil)

// ConfigError means that a container cannot be made as its revision says: it
// refers to a secret that is not there, or demands what an instance cannot have.
// It holds names, never values.
type ConfigError struct {
	// Container is the container's name; empty if it is about all of them.
	Container string
	// Field says what of it is wrong, such as "env DB_PASSWORD" or "volume keys".
	Field string
	Err   error
}

func (e *ConfigError) Error() string {
	if e.Container == "" {
		return e.Field + ": " + e.Err.Error()
	}
	return "container " + e.Container + ": " + e.Field + ": " + e.Err.Error()
}

func (e *ConfigError) Unwrap() error { return e.Err }

// Reason is Kubernetes' word for it.
func (e *ConfigError) Reason() string { return "CreateContainerConfigError" }

// lookups are the secrets and config maps that one start has read: all of an
// instance is made of one version of each.
type lookups struct {
	values Values // nil: there are none
	seen   map[lookup]map[string][]byte
}

type lookup struct {
	kind revisions.ValueKind
	name string
}

func (l lookup) String() string {
	if l.kind == revisions.Secrets {
		return fmt.Sprintf("secret %q", l.name)
	}
	return fmt.Sprintf("config map %q", l.name)
}

// get returns what an object holds. It is nil, without an error, if the object is
// optional and there is none.
func (l *lookups) get(ref lookup, optional *bool) (map[string][]byte, error) {
	data, known := l.seen[ref]
	if !known {
		if l.values == nil {
			return nil, fmt.Errorf("%s: there is nowhere to look for it", ref)
		}
		var found bool
		var err error
		if data, found, err = l.values.Lookup(ref.kind, ref.name); err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		if found && data == nil {
			data = make(map[string][]byte)
		}
		if l.seen == nil {
			l.seen = make(map[lookup]map[string][]byte)
		}
		l.seen[ref] = data
	}
	if data == nil && !isTrue(optional) {
		return nil, fmt.Errorf("%s not found", ref)
	}
	return data, nil
}

// key returns one value of an object, and false if it is optional and there is
// none.
func (l *lookups) key(ref lookup, key string, optional *bool) ([]byte, bool, error) {
	data, err := l.get(ref, optional)
	if err != nil {
		return nil, false, err
	}
	value, found := data[key]
	if !found && !isTrue(optional) {
		return nil, false, fmt.Errorf("%s has no key %q", ref, key)
	}
	return value, found, nil
}

func isTrue(b *bool) bool { return b != nil && *b }

// environment is what a process is told besides its image's variables. Its
// values are in the spec that containerd keeps of a container, and in /proc of
// the host, where only root can read them: whoever wants a secret in fewer places
// mounts it as a file.
type environment struct {
	names   []string // in order
	values  map[string]string
	skipped []string // keys of envFrom that are no names of variables
}

func (e *environment) set(name, value string) {
	if e.values == nil {
		e.values = make(map[string]string)
	}
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) setAll(pairs []string) {
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		e.set(name, value)
	}
}

// expand replaces references to variables in text.
func (e *environment) expand(text string) string {
	return expand(text, func(name string) (string, bool) {
		v, ok := e.values[name]
		return v, ok
	})
}

// over returns base, the environment of the image, with e's variables in place of
// those of the same names.
func (e *environment) over(base []string) []string {
	all := make([]string, 0, len(base)+len(e.names))
	for _, b := range base {
		name, _, _ := strings.Cut(b, "=")
		if _, replaced := e.values[name]; !replaced {
			all = append(all, b)
		}
	}
	for _, name := range e.names {
		all = append(all, name+"="+e.values[name])
	}
	return all
}

// environment returns the environment of a container. Of a name that is set
// twice the later value counts: first envFrom, then what platform says, such as
// PORT, then env, which Knative lets have none of the platform's names. A value
// in env may refer to whatever is set before it.
func (l *lookups) environment(c *corev1.Container, hostname string, platform []string) (*environment, error) {
	e := new(environment)
	e.set("HOSTNAME", hostname)
	e.setAll(platform)
	for i := range c.EnvFrom {
		if err := l.setFrom(e, &c.EnvFrom[i]); err != nil {
			return nil, &ConfigError{c.Name, fmt.Sprintf("envFrom %d", i), err}
		}
	}
	e.setAll(platform) // whatever the keys are called
	for i := range c.Env {
		if err := l.setOne(e, &c.Env[i]); err != nil {
			return nil, &ConfigError{c.Name, "env " + c.Env[i].Name, err}
		}
	}
	for _, name := range e.names {
		// The spec, which is JSON, would hold something else.
		if v := e.values[name]; !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
			return nil, &ConfigError{c.Name, "env " + name, errors.New("its value is not text: mount it as a file")}
		}
	}
	return e, nil
}

func (l *lookups) setFrom(e *environment, from *corev1.EnvFromSource) error {
	var ref lookup
	var optional *bool
	switch {
	case from.SecretRef != nil:
		ref, optional = lookup{revisions.Secrets, from.SecretRef.Name}, from.SecretRef.Optional
	case from.ConfigMapRef != nil:
		ref, optional = lookup{revisions.ConfigMaps, from.ConfigMapRef.Name}, from.ConfigMapRef.Optional
	default:
		return errors.New("it names neither a secret nor a config map")
	}
	data, err := l.get(ref, optional)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		name := from.Prefix + key
		if len(validation.IsEnvVarName(name)) > 0 { // Kubernetes skips it too
			e.skipped = append(e.skipped, name)
			continue
		}
		e.set(name, string(data[key]))
	}
	return nil
}

func (l *lookups) setOne(e *environment, v *corev1.EnvVar) error {
	from := v.ValueFrom
	var ref lookup
	var key string
	var optional *bool
	switch {
	case from == nil:
		e.set(v.Name, e.expand(v.Value))
		return nil
	case from.SecretKeyRef != nil:
		ref, key, optional = lookup{revisions.Secrets, from.SecretKeyRef.Name}, from.SecretKeyRef.Key, from.SecretKeyRef.Optional
	case from.ConfigMapKeyRef != nil:
		ref, key, optional = lookup{revisions.ConfigMaps, from.ConfigMapKeyRef.Name}, from.ConfigMapKeyRef.Key, from.ConfigMapKeyRef.Optional
	default:
		return errors.New("valueFrom names neither a secret nor a config map")
	}
	value, found, err := l.key(ref, key, optional)
	if err == nil && found {
		e.set(v.Name, string(value))
	}
	return err
}

// withoutValues returns err, which says why the process of c could not be made,
// without what it may tell of a secret: the engine's own errors name the program,
// and that can be a variable.
func (p perInstance) withoutValues(c *corev1.Container, err error) error {
	own := slices.Concat(c.Command, c.Args)
	if len(own) == 0 || errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) {
		return err
	}
	expanded := p.env.expand(own[0])
	// Without a command it is the program only if the image has none.
	if expanded == own[0] || (len(c.Command) == 0 && !strings.Contains(err.Error(), expanded)) {
		return err
	}
	return &ConfigError{c.Name, "command", fmt.Errorf("%s cannot be run", own[0])}
}
