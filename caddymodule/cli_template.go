package caddymodule

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairway-run/fairway/revisions"
)

// Annotations of Cloud Run's that flags set.
const (
	descriptionAnnotation     = "run.googleapis.com/description"
	sessionAffinityAnnotation = "run.googleapis.com/sessionAffinity"
)

// templateFlags adds the flags that say what a service runs, and how. Each
// changes only what it names. Source: gcloud run deploy.
func templateFlags(f *pflag.FlagSet) {
	f.String("image", "", "The container `IMAGE`, such as ghcr.io/acme/hello:1.4")
	f.String("command", "", "What to run instead of the image's entrypoint, `WORD,…`; '' for the image's own")
	f.String("args", "", "The arguments instead of the image's, `WORD,…`; '' for the image's own")
	f.String("port", "", "The `PORT` that the container listens on, or 'default' (8080); the container finds it in $PORT")
	boolPair(f, "use-http2", "Speak HTTP/2 without TLS to the container, as gRPC needs")
	f.StringArray("set-env-vars", nil, "The environment variables, `NAME=VALUE,…`, and no others")
	f.StringArray("update-env-vars", nil, "Environment variables to set, `NAME=VALUE,…`; the others stay")
	f.StringArray("remove-env-vars", nil, "Environment variables to remove, `NAME,…`")
	f.Bool("clear-env-vars", false, "Remove all environment variables")
	f.String("env-vars-file", "", "A YAML or .env `FILE` with all environment variables")
	f.StringArray("set-secrets", nil, "The secrets as variables or files, `NAME=SECRET:KEY,…` or /path/file=SECRET:KEY,…, and no others")
	f.StringArray("update-secrets", nil, "Secrets to set as variables or files, `NAME=SECRET:KEY,…` or /path/file=SECRET:KEY,…; the others stay")
	f.StringArray("remove-secrets", nil, "Secrets to remove from the container, `NAME,…` or /path/file,…")
	f.Bool("clear-secrets", false, "Remove all secrets from the container")
	f.String("concurrency", "", "How many requests, `N`, one instance gets at the same time, 1 to 1000, or 'default' (80)")
	f.String("cpu", "", "The `CPUs` of one instance, such as 1, 0.5 or 500m")
	f.String("memory", "", "The `MEMORY` of one instance, such as 512Mi or 1Gi")
	f.String("timeout", "", "How long a request may take, a `DURATION` such as 300, 300s or 10m; at most 1h")
	scalingFlags(f)
	boolPair(f, "session-affinity", "Send the requests of one client to the same instance while it lasts")
	f.String("startup-probe", "", "When an instance has started, `KEY=VALUE,…`; '' for the default, a connection to the port. Keys: httpGet.path, httpGet.port, tcpSocket.port, grpc.port, grpc.service, initialDelaySeconds, periodSeconds (default 10), timeoutSeconds (1), failureThreshold (3)")
	f.String("liveness-probe", "", "Whether an instance is still healthy, `KEY=VALUE,…`; '' for none. Keys as for --startup-probe")
	f.String("readiness-probe", "", "Whether an instance is to get new requests, `KEY=VALUE,…`; '' for the default, always. Keys as for --startup-probe, and successThreshold")
	f.StringArray("labels", nil, "The same as --update-labels, `KEY=VALUE,…`")
	f.StringArray("update-labels", nil, "Labels to set, of the service and its new revision, `KEY=VALUE,…`; the others stay")
	f.StringArray("remove-labels", nil, "Labels to remove, `KEY,…`")
	f.Bool("clear-labels", false, "Remove all labels")
	f.String("ingress", "", "Who may send requests: 'all', or 'internal', instances on this host only; makes no revision")
	f.String("description", "", "What the service is, in `WORDS`")
	f.String("revision-suffix", "", "The end of the new revision's name, hello-`SUFFIX`; it makes one even if nothing changes")
}

// boolPair adds a flag with gcloud's opposite, --no-NAME.
func boolPair(f *pflag.FlagSet, name, usage string) {
	f.Bool(name, false, usage+"; or --no-"+name)
	f.Bool("no-"+name, false, "The opposite of --"+name)
	_ = f.MarkHidden("no-" + name) // it exists
}

// edits are the changes that flags ask for.
type edits struct {
	flags *pflag.FlagSet
	svc   *servingv1.Service
}

// editService changes svc as the flags say. Errors name the flag.
func editService(flags *pflag.FlagSet, svc *servingv1.Service) error {
	e := edits{flags: flags, svc: svc}
	for _, edit := range []func() error{
		e.run, e.ports, e.env, e.secrets, e.limits, e.scaling, e.annotations, e.probes, e.labels,
	} {
		if err := edit(); err != nil {
			return err
		}
	}
	return nil
}

// set tells whether the user has given a flag.
func (e edits) set(name string) bool { return e.flags.Changed(name) }

func (e edits) text(name string) string {
	v, _ := e.flags.GetString(name)
	return v
}

func (e edits) texts(name string) []string {
	v, _ := e.flags.GetStringArray(name)
	return v
}

// onOff is a flag that boolPair has made.
func (e edits) onOff(name string) (on, set bool, err error) {
	yes, _ := e.flags.GetBool(name)
	no, _ := e.flags.GetBool("no-" + name)
	switch {
	case e.set(name) && e.set("no-"+name):
		return false, false, usageError("--%s and --no-%s are opposites", name, name)
	case e.set(name):
		return yes, true, nil
	case e.set("no-" + name):
		return !no, true, nil
	}
	return false, false, nil
}

// alone fails if a flag is given with one of others, which it excludes.
func (e edits) alone(name string, others ...string) error {
	for _, other := range others {
		if e.set(name) && e.set(other) {
			return usageError("--%s and --%s exclude each other", name, other)
		}
	}
	return nil
}

// container is the one that gets the requests, made if there is none.
func (e edits) container() *corev1.Container {
	spec := &e.svc.Spec.Template.Spec
	if len(spec.Containers) == 0 {
		spec.Containers = []corev1.Container{{}}
	}
	for i := range spec.Containers {
		if len(spec.Containers[i].Ports) > 0 {
			return &spec.Containers[i]
		}
	}
	return &spec.Containers[0]
}

func (e edits) run() error {
	c := e.container()
	if e.set("image") {
		if c.Image = e.text("image"); c.Image == "" {
			return usageError("--image: it is empty")
		}
	}
	for flag, words := range map[string]*[]string{"command": &c.Command, "args": &c.Args} {
		if !e.set(flag) {
			continue
		}
		items, err := splitList(e.text(flag))
		if err != nil {
			return usageError("--%s: %s", flag, err)
		}
		*words = items
	}
	return nil
}

func (e edits) ports() error {
	h2c, set, err := e.onOff("use-http2")
	if err != nil {
		return err
	}
	c := e.container()
	port := corev1.ContainerPort{ContainerPort: revisions.DefaultPort}
	if len(c.Ports) > 0 {
		port = c.Ports[0]
	}
	if e.set("port") {
		port.ContainerPort = revisions.DefaultPort
		if v := e.text("port"); v != "default" {
			n, err := strconv.ParseUint(v, 10, 16)
			if err != nil || n == 0 {
				return usageError("--port: %q is not a number from 1 to 65535", v)
			}
			port.ContainerPort = int32(n)
		}
	}
	if set {
		port.Name = ""
		if h2c {
			port.Name = "h2c"
		}
	}
	if !set && !e.set("port") {
		return nil
	}
	if len(c.Ports) == 0 && port.Name == "" && port.ContainerPort == revisions.DefaultPort {
		return nil // it is so without being said
	}
	c.Ports = []corev1.ContainerPort{port}
	return nil
}

// env changes the variables that have a value. Those from secrets are not
// touched. Variables keep their places, so that the same words make the same
// template.
func (e edits) env() error {
	for _, whole := range []string{"set-env-vars", "clear-env-vars", "env-vars-file"} {
		if err := e.alone(whole, "update-env-vars", "remove-env-vars"); err != nil {
			return err
		}
	}
	for _, err := range []error{
		e.alone("set-env-vars", "clear-env-vars", "env-vars-file"), e.alone("clear-env-vars", "env-vars-file"),
	} {
		if err != nil {
			return err
		}
	}
	flag := "update-env-vars"
	if e.set("set-env-vars") {
		flag = "set-env-vars"
	}
	pairs, err := splitAllPairs(flag, e.texts(flag))
	if err != nil {
		return err
	}
	if e.set("env-vars-file") {
		flag = "env-vars-file"
		if pairs, err = readEnvFile(e.text(flag)); err != nil {
			return usageError("--env-vars-file: %s", err)
		}
	}
	removed, err := splitAll("remove-env-vars", e.texts("remove-env-vars"))
	if err != nil {
		return err
	}
	clearAll, _ := e.flags.GetBool("clear-env-vars")
	replace := clearAll || e.set("set-env-vars") || e.set("env-vars-file")
	c := e.container()
	c.Env = slices.DeleteFunc(c.Env, func(v corev1.EnvVar) bool {
		kept := !replace || slices.ContainsFunc(pairs, func(p pair) bool { return p.key == v.Name })
		return v.ValueFrom == nil && (!kept || slices.Contains(removed, v.Name))
	})
	for _, p := range pairs {
		i := slices.IndexFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == p.key })
		switch {
		case i < 0:
			c.Env = append(c.Env, corev1.EnvVar{Name: p.key, Value: p.value})
		case c.Env[i].ValueFrom != nil:
			return usageError("--%s: the variable %s is set from a secret: remove that first, with --remove-secrets", flag, p.key)
		default:
			c.Env[i].Value = p.value
		}
	}
	return nil
}

// readEnvFile reads variables from a file: NAME=VALUE lines, or a map in YAML.
func readEnvFile(name string) ([]pair, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if ext := path.Ext(name); ext == ".env" || ext == "" && !strings.Contains(string(b), ": ") {
		pairs, err := parseEnvFile(string(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return pairs, nil
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(b, &values); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	pairs := make([]pair, 0, len(values))
	for key, v := range values {
		text, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("%s: the value of %s is not a string: put it in quotes", name, key)
		}
		pairs = append(pairs, pair{key, text})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	return pairs, nil
}

func (e edits) limits() error {
	spec := &e.svc.Spec.Template.Spec
	if e.set("concurrency") {
		n, err := e.number("concurrency", 1, revisions.MaxConcurrency)
		if err != nil {
			return err
		}
		spec.ContainerConcurrency = nil
		if n != nil {
			concurrency := int64(*n)
			spec.ContainerConcurrency = &concurrency
		}
	}
	if e.set("timeout") {
		seconds, err := parseSeconds(e.text("timeout"))
		if err != nil {
			return usageError("--timeout: %s", err)
		}
		spec.TimeoutSeconds = &seconds
	}
	for flag, name := range map[string]corev1.ResourceName{"cpu": corev1.ResourceCPU, "memory": corev1.ResourceMemory} {
		if !e.set(flag) {
			continue
		}
		q, err := resource.ParseQuantity(e.text(flag))
		if err != nil || q.Sign() <= 0 {
			return usageError("--%s: %q is not an amount, such as 1, 500m or 512Mi", flag, e.text(flag))
		}
		c := e.container()
		if c.Resources.Limits == nil {
			c.Resources.Limits = make(corev1.ResourceList)
		}
		c.Resources.Limits[name] = q
	}
	return nil
}

// number is a flag that is a number or "default", which is nil.
func (e edits) number(flag string, lowest, highest int) (*int, error) {
	v := e.text(flag)
	if v == "default" {
		return nil, nil //nolint:nilnil // there is no number
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest {
		return nil, usageError("--%s: %q is neither a number from %d to %d nor 'default'", flag, v, lowest, highest)
	}
	return &n, nil
}

// parseSeconds reads a duration as gcloud has it: a plain number is seconds.
func parseSeconds(text string) (int64, error) {
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n > 0 {
		return n, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d%time.Second != 0 {
		return 0, fmt.Errorf("%q is not a duration in whole seconds, such as 300, 300s or 5m", text)
	}
	return int64(d / time.Second), nil
}

func (e edits) annotations() error {
	for flag, key := range map[string]string{"session-affinity": sessionAffinityAnnotation, "cpu-throttling": revisions.ThrottlingAnnotation} {
		on, set, err := e.onOff(flag)
		if err != nil {
			return err
		}
		if set {
			e.annotate([]string{key}, strconv.FormatBool(on))
		}
	}
	if e.set("ingress") {
		value := e.text("ingress")
		if value != "all" && value != revisions.IngressInternal {
			return usageError("--ingress: %q is not all or internal", value)
		}
		e.annotateService(revisions.IngressAnnotation, value)
	}
	if e.set("description") {
		e.annotateService(descriptionAnnotation, e.text("description"))
	}
	return nil
}

// annotate sets an annotation of the template that has several spellings, or
// removes it. The last spelling is Cloud Run's; one that says the same already
// stays.
func (e edits) annotate(keys []string, value string) {
	t := &e.svc.Spec.Template
	for _, key := range keys {
		if t.Annotations[key] == value && value != "" {
			return
		}
	}
	for _, key := range keys {
		delete(t.Annotations, key)
	}
	if value == "" {
		return
	}
	if t.Annotations == nil {
		t.Annotations = make(map[string]string)
	}
	t.Annotations[keys[len(keys)-1]] = value
}

func (e edits) probes() error {
	c := e.container()
	for flag, probe := range map[string]**corev1.Probe{
		"startup-probe": &c.StartupProbe, "liveness-probe": &c.LivenessProbe, "readiness-probe": &c.ReadinessProbe,
	} {
		if !e.set(flag) {
			continue
		}
		pairs, err := splitPairs(e.text(flag))
		if err == nil {
			*probe, err = parseProbe(pairs)
		}
		if err != nil {
			return usageError("--%s: %s", flag, err)
		}
	}
	if p := c.ReadinessProbe; p != nil && e.set("readiness-probe") {
		// Cloud Run's defaults, where Knative has others.
		p.PeriodSeconds = cmp.Or(p.PeriodSeconds, int32(revisions.DefaultPeriod/time.Second))
		p.SuccessThreshold = cmp.Or(p.SuccessThreshold, revisions.DefaultSuccessThreshold)
	}
	return nil
}

// parseProbe makes a probe of gcloud's keys; no keys make none.
func parseProbe(pairs []pair) (*corev1.Probe, error) {
	if len(pairs) == 0 {
		return nil, nil //nolint:nilnil // there is no probe
	}
	p := new(corev1.Probe)
	for _, kv := range pairs {
		if err := setProbe(p, kv); err != nil {
			return nil, err
		}
	}
	kinds := 0
	for _, has := range []bool{p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
		if has {
			kinds++
		}
	}
	switch kinds {
	case 0:
		p.TCPSocket = new(corev1.TCPSocketAction)
	case 1:
	default:
		return nil, fmt.Errorf("a probe is one of httpGet, tcpSocket and grpc")
	}
	return p, nil
}

func setProbe(p *corev1.Probe, kv pair) error {
	httpGet := func() *corev1.HTTPGetAction {
		if p.HTTPGet == nil {
			p.HTTPGet = new(corev1.HTTPGetAction)
		}
		return p.HTTPGet
	}
	grpc := func() *corev1.GRPCAction {
		if p.GRPC == nil {
			p.GRPC = new(corev1.GRPCAction)
		}
		return p.GRPC
	}
	switch kv.key {
	case "httpGet.path":
		httpGet().Path = kv.value
		return nil
	case "grpc.service":
		grpc().Service = &kv.value
		return nil
	}
	n, err := strconv.ParseInt(kv.value, 10, 32)
	number := int32(n)
	switch kv.key {
	case "httpGet.port":
		httpGet().Port = intstr.FromInt32(number)
	case "tcpSocket.port":
		p.TCPSocket = &corev1.TCPSocketAction{Port: intstr.FromInt32(number)}
	case "grpc.port":
		grpc().Port = number
	case "initialDelaySeconds":
		p.InitialDelaySeconds = number
	case "periodSeconds":
		p.PeriodSeconds = number
	case "timeoutSeconds":
		p.TimeoutSeconds = number
	case "failureThreshold":
		p.FailureThreshold = number
	case "successThreshold":
		p.SuccessThreshold = number
	default:
		return fmt.Errorf("%q is not a key of a probe", kv.key)
	}
	if err != nil || n < 0 {
		return fmt.Errorf("%s: %q is not a number", kv.key, kv.value)
	}
	return nil
}

// labels are those of the service; gcloud gives them to its new revision too.
func (e edits) labels() error {
	pairs, err := splitAllPairs("labels", slices.Concat(e.texts("labels"), e.texts("update-labels")))
	if err != nil {
		return err
	}
	removed, err := splitAll("remove-labels", e.texts("remove-labels"))
	if err != nil {
		return err
	}
	if err := e.alone("clear-labels", "remove-labels"); err != nil {
		return err
	}
	clearAll, _ := e.flags.GetBool("clear-labels")
	for _, labels := range []*map[string]string{&e.svc.Labels, &e.svc.Spec.Template.Labels} {
		if clearAll {
			*labels = nil
		}
		for _, key := range removed {
			delete(*labels, key)
		}
		for _, p := range pairs {
			if *labels == nil {
				*labels = make(map[string]string)
			}
			(*labels)[p.key] = p.value
		}
	}
	return nil
}
