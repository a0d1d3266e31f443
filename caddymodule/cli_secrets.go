package caddymodule

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// secrets changes the variables and files that come from secrets.
// Source: gcloud run deploy --set-secrets.
func (e edits) secrets() error {
	for _, whole := range []string{"set-secrets", "clear-secrets"} {
		if err := e.alone(whole, "update-secrets", "remove-secrets"); err != nil {
			return err
		}
	}
	if err := e.alone("set-secrets", "clear-secrets"); err != nil {
		return err
	}
	flag := "update-secrets"
	if e.set("set-secrets") {
		flag = "set-secrets"
	}
	pairs, err := splitAllPairs(flag, e.texts(flag))
	if err != nil {
		return err
	}
	removed, err := splitAll("remove-secrets", e.texts("remove-secrets"))
	if err != nil {
		return err
	}
	clearAll, _ := e.flags.GetBool("clear-secrets")
	replace := clearAll || e.set("set-secrets")
	e.dropSecrets(func(name string) bool {
		wanted := slices.ContainsFunc(pairs, func(p pair) bool { return p.key == name })
		return slices.Contains(removed, name) || replace && !wanted
	})
	for _, p := range pairs {
		secret, key, ok := strings.Cut(p.value, ":")
		if !ok || secret == "" || key == "" {
			return usageError("--%s: %q is not SECRET:KEY", flag, p.value)
		}
		set := e.secretVariable
		if strings.HasPrefix(p.key, "/") {
			set = e.secretFile
		}
		if err := set(p.key, secret, key); err != nil {
			return usageError("--%s: %s", flag, err)
		}
	}
	return nil
}

// dropSecrets removes variables by name and files by path.
func (e edits) dropSecrets(unwanted func(string) bool) {
	c, spec := e.container(), &e.svc.Spec.Template.Spec
	c.Env = slices.DeleteFunc(c.Env, func(v corev1.EnvVar) bool {
		return v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil && unwanted(v.Name)
	})
	c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 || spec.Volumes[i].Secret == nil {
			return false
		}
		source := spec.Volumes[i].Secret
		if len(source.Items) == 0 { // all keys, as files of their names
			return unwanted(m.MountPath)
		}
		source.Items = slices.DeleteFunc(source.Items, func(k corev1.KeyToPath) bool { return unwanted(path.Join(m.MountPath, k.Path)) })
		return len(source.Items) == 0
	})
	used := func(v corev1.Volume) bool {
		return slices.ContainsFunc(spec.Containers, func(c corev1.Container) bool {
			return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		})
	}
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && !used(v) })
}

func (e edits) secretVariable(name, secret, key string) error {
	c := e.container()
	from := &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key,
	}}
	i := slices.IndexFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == name })
	switch {
	case i < 0:
		c.Env = append(c.Env, corev1.EnvVar{Name: name, ValueFrom: from})
	case c.Env[i].ValueFrom == nil || c.Env[i].ValueFrom.SecretKeyRef == nil:
		return fmt.Errorf("the variable %s has a value of its own: remove that first, with --remove-env-vars", name)
	default:
		c.Env[i].ValueFrom = from
	}
	return nil
}

// secretFile shows a key of a secret as a file. A directory holds files of one
// secret, as in Cloud Run.
func (e edits) secretFile(file, secret, key string) error {
	dir, base := path.Split(path.Clean(file))
	dir = path.Clean(dir)
	if base == "" || dir == "/" {
		return fmt.Errorf("%q: a file in a directory of its own is needed, such as /secrets/%s", file, strings.Trim(file, "/"))
	}
	c, spec := e.container(), &e.svc.Spec.Template.Spec
	for _, m := range c.VolumeMounts {
		if path.Clean(m.MountPath) != dir {
			continue
		}
		i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 || spec.Volumes[i].Secret == nil || spec.Volumes[i].Secret.SecretName != secret || len(spec.Volumes[i].Secret.Items) == 0 {
			return fmt.Errorf("%q: something else is mounted at %s already", file, dir)
		}
		source := spec.Volumes[i].Secret
		at := slices.IndexFunc(source.Items, func(k corev1.KeyToPath) bool { return k.Path == base })
		if at < 0 {
			source.Items = append(source.Items, corev1.KeyToPath{Key: key, Path: base})
		} else {
			source.Items[at].Key = key
		}
		return nil
	}
	name := secret
	for n := 2; slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }); n++ {
		name = fmt.Sprintf("%s-%d", secret, n)
	}
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		Secret: &corev1.SecretVolumeSource{SecretName: secret, Items: []corev1.KeyToPath{{Key: key, Path: base}}},
	}})
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: dir})
	return nil
}
