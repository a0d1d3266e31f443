package caddymodule

import (
	"strconv"

	"github.com/spf13/pflag"
	"knative.dev/serving/pkg/apis/autoscaling"

	"github.com/fairway-run/fairway/revisions"
)

// mostInstances keeps a typing error from being a number.
const mostInstances = 1 << 30

// scalingFlags adds the flags that say how many instances there are. Source:
// gcloud run deploy.
func scalingFlags(f *pflag.FlagSet) {
	f.String("min-instances", "", "How many instances, `N`, of the new revision are kept running at least, or 'default' (0)")
	f.String("max-instances", "", "How many instances, `N`, of the new revision may run at most, or 'default' (100)")
	f.String("min", "", "How many instances, `N`, of the service are kept running at least, shared among its revisions by their traffic, or 'default' (0); makes no revision")
	f.String("max", "", "How many instances, `N`, of the service may run at most, or 'default' (no bound but that of each revision); makes no revision")
	f.String("scaling", "", "'auto', or a fixed number `N` of instances of the service; at 0 it takes no requests; makes no revision")
	f.String("scaling-concurrency-target", "", "The `PART` of its slots, 0.1 to 0.95, from whose use on another instance is started ahead of need; 'default' (0.6) or 'disabled'")
	f.String("scaling-cpu-target", "", "The same of its CPU, `PART`, 0.1 to 0.95; 'default' (0.6) or 'disabled'")
	boolPair(f, "cpu-throttling", "Give an instance CPU only while it has requests: it is frozen while it has none")
	f.Duration("idle-timeout", 0, "How long an instance may be without a request before it is stopped (not in gcloud)")
	f.Duration("drain-timeout", 0, "How long a replaced revision may take for the requests, streams and WebSockets that it has (not in gcloud)")
	f.String("prepared", "", "How many instances, `N`, are kept made but not started, or 'default' (not in gcloud)")
	f.Int("queue-depth", 0, "How many requests may wait for a free slot (not in gcloud)")
}

func (e edits) scaling() error {
	of := func(keys ...string) func(string) { return func(value string) { e.annotate(keys, value) } }
	for _, err := range []error{
		e.count("min-instances", 0, mostInstances, of(autoscaling.MinScaleAnnotation...)),
		e.count("max-instances", 0, mostInstances, of(autoscaling.MaxScaleAnnotation...)),
		e.count("prepared", 0, revisions.MaxPrepared, of(revisions.PreparedAnnotation)),
		e.count("min", 0, mostInstances, func(value string) { e.annotateService(revisions.ServiceMinAnnotation, value) }),
		e.count("max", 1, mostInstances, func(value string) { e.annotateService(revisions.ServiceMaxAnnotation, value) }),
	} {
		if err != nil {
			return err
		}
	}
	for flag, key := range map[string]string{
		"idle-timeout": revisions.IdleTimeoutAnnotation, "drain-timeout": revisions.DrainTimeoutAnnotation,
	} {
		if !e.set(flag) {
			continue
		}
		d, _ := e.flags.GetDuration(flag)
		if d <= 0 {
			return usageError("--%s: %s is not above zero", flag, d)
		}
		e.annotate([]string{key}, d.String())
	}
	if e.set("queue-depth") {
		n, _ := e.flags.GetInt("queue-depth")
		if n < 1 || n > revisions.MaxQueueDepth {
			return usageError("--queue-depth: %d is not a number from 1 to %d", n, revisions.MaxQueueDepth)
		}
		e.annotate([]string{revisions.QueueDepthAnnotation}, strconv.Itoa(n))
	}
	if err := e.targets(); err != nil {
		return err
	}
	return e.mode()
}

// count has put set a number that a flag may give; empty for 'default'.
func (e edits) count(flag string, lowest, highest int, put func(value string)) error {
	if !e.set(flag) {
		return nil
	}
	n, err := e.number(flag, lowest, highest)
	switch {
	case err != nil:
		return err
	case n == nil:
		put("")
	default:
		put(strconv.Itoa(*n))
	}
	return nil
}

func (e edits) targets() error {
	for flag, key := range map[string]string{
		"scaling-concurrency-target": revisions.ConcurrencyTargetAnnotation, "scaling-cpu-target": revisions.CPUTargetAnnotation,
	} {
		if !e.set(flag) {
			continue
		}
		text := e.text(flag)
		if text != "default" && text != "disabled" {
			if part, err := strconv.ParseFloat(text, 64); err != nil || !(part >= 0.1 && part <= 0.95) {
				return usageError("--%s: %q is not a number from 0.1 to 0.95, 'default' or 'disabled'", flag, text)
			}
		}
		if text == "default" {
			text = ""
		}
		e.annotate([]string{key}, text)
	}
	return nil
}

// mode sets whether the number of the service's instances is fixed.
func (e edits) mode() error {
	if !e.set("scaling") {
		return nil
	}
	text := e.text("scaling")
	if text == "auto" {
		e.annotateService(revisions.ScalingModeAnnotation, "")
		e.annotateService(revisions.ManualCountAnnotation, "")
		return nil
	}
	if n, err := strconv.Atoi(text); err != nil || n < 0 {
		return usageError("--scaling: %q is not 'auto' or a number of instances", text)
	}
	e.annotateService(revisions.ScalingModeAnnotation, "manual")
	e.annotateService(revisions.ManualCountAnnotation, text)
	return nil
}

// annotateService sets an annotation of the service, or removes it.
func (e edits) annotateService(key, value string) {
	if value == "" {
		delete(e.svc.Annotations, key)
		return
	}
	if e.svc.Annotations == nil {
		e.svc.Annotations = make(map[string]string)
	}
	e.svc.Annotations[key] = value
}
