package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

const (
	// pollInterval is how often a service is looked at while it changes.
	pollInterval = 150 * time.Millisecond
	// absence is how long the admin endpoint may be away while a command waits: it
	// restarts whenever Caddy's config is loaded.
	absence = 15 * time.Second
)

var errWaitTimeout = errors.New("it was not done in time")

// awaited is what a command waits for.
type awaited struct {
	generation int64
	// revision is set when the latest revision has to get ready, not only the
	// traffic to its targets.
	revision bool
	what     string // in a word: "Deploying"
}

// await waits until a service is as it is wanted, and shows how that goes. It
// returns the service as it was last seen, with an error too.
func (c *cli) await(ctx context.Context, name string, w awaited, timeout time.Duration) (*servingv1.Service, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errWaitTimeout)
	defer cancel()
	p := c.newProgress(fmt.Sprintf("%s service [%s]", w.what, name))
	svc, err := c.follow(ctx, name, w, p)
	p.end()
	switch {
	case err == nil, ctx.Err() == nil:
	case errors.Is(context.Cause(ctx), errWaitTimeout):
		why := ""
		if svc != nil && !w.revision && migrating(svc) != "" {
			why = ", but waits: " + migrating(svc)
		}
		err = exitWith(exitTimeout, "service [%s] was not ready within %s%s; it goes on: see caddy fairway services %s", name, timeout, why, name)
	default:
		c.note("What was asked for goes on: see caddy fairway services %s", name)
		err = context.Canceled
	}
	return svc, err
}

func (c *cli) follow(ctx context.Context, name string, w awaited, p *progress) (svc *servingv1.Service, err error) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var gone time.Time // since when nothing answers
	for {
		now, done, err := c.look(ctx, name, w, p)
		if now != nil {
			svc = now
		}
		var away *unreachableError
		switch {
		case !errors.As(err, &away):
			if err != nil || done {
				return svc, err
			}
			gone = time.Time{}
		case gone.IsZero():
			gone = time.Now()
		case time.Since(gone) > absence:
			return svc, err
		}
		select {
		case <-ctx.Done():
			return svc, context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// look looks at a service once.
func (c *cli) look(ctx context.Context, name string, w awaited, p *progress) (svc *servingv1.Service, done bool, err error) {
	if svc, err = c.service(ctx, name); err != nil {
		if exitCode(err) == exitNotFound {
			err = exitWith(exitNotFound, "service [%s] has been deleted meanwhile", name)
		}
		return nil, false, err
	}
	done, failed := verdict(svc, w)
	if failed != nil {
		return svc, false, c.failure(ctx, svc, failed)
	}
	if done {
		return svc, true, nil
	}
	if !w.revision {
		p.show("routing traffic", migrating(svc))
		return svc, false, nil
	}
	views, err := c.views(ctx, name)
	if err != nil {
		return svc, false, err
	}
	instances, err := c.instances(ctx, name)
	if err != nil {
		return svc, false, err
	}
	p.show(stage(svc, views, instances))
	return svc, false, nil
}

// verdict tells whether a service is as it is wanted, or which condition says
// that it cannot be.
func verdict(svc *servingv1.Service, w awaited) (done bool, failed *apis.Condition) {
	st := &svc.Status
	if svc.Generation < w.generation || st.ObservedGeneration != svc.Generation {
		return false, nil
	}
	configuration := st.GetCondition(servingv1.ServiceConditionConfigurationsReady)
	route := st.GetCondition(servingv1.ServiceConditionRoutesReady)
	if w.revision {
		switch {
		case configuration.IsFalse():
			return false, configuration
		case !configuration.IsTrue():
			return false, nil
		}
	}
	if route.IsFalse() {
		return false, route
	}
	return route.IsTrue(), nil
}

// migrating says, in one line, what the traffic of a service waits for.
func migrating(svc *servingv1.Service) string {
	route := svc.Status.GetCondition(servingv1.ServiceConditionRoutesReady)
	if route == nil || route.IsTrue() || svc.Status.ObservedGeneration != svc.Generation {
		return ""
	}
	text := route.Message
	if route.Reason == revisions.ReasonTrafficNotMigrated { // which is said already
		_, text, _ = strings.Cut(text, ": ")
	}
	text, _, _ = strings.Cut(text, "\n")
	return text
}

// stage says what is going on with a service's latest revision.
func stage(svc *servingv1.Service, views []serviceView, instances []instanceView) (step, detail string) {
	if svc.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady).IsTrue() {
		return "routing traffic", migrating(svc)
	}
	name := svc.Status.LatestCreatedRevisionName
	image := ""
	if c := (edits{svc: svc.DeepCopy()}).container(); c != nil {
		image = c.Image
	}
	for _, i := range instances {
		if i.Revision == name && i.PID != 0 {
			return "probing", "instance " + i.Instance
		}
	}
	for _, v := range views {
		for _, r := range v.Revisions {
			switch {
			case r.Revision != name:
			case r.Pulling != nil && r.Pulling.TotalBytes > 0:
				return "pulling image " + image, fmt.Sprintf("%s of %s", bytesText(r.Pulling.DoneBytes), bytesText(r.Pulling.TotalBytes))
			case r.Pulling != nil:
				return "pulling image " + image, ""
			case r.Digest != "":
				return "starting revision [" + name + "]", ""
			}
		}
	}
	return "creating revision [" + name + "]", ""
}

// failure says why a service cannot be as it is wanted: for a revision, with
// what its container has last said.
func (c *cli) failure(ctx context.Context, svc *servingv1.Service, failed *apis.Condition) error {
	about := fmt.Sprintf("service [%s] cannot be as it is wanted", svc.Name)
	reason, message := failed.GetReason(), failed.GetMessage()
	if failed.Type == servingv1.ServiceConditionConfigurationsReady {
		name := svc.Status.LatestCreatedRevisionName
		rev, err := c.revision(ctx, name)
		if err == nil {
			if ready := rev.Status.GetCondition(servingv1.RevisionConditionReady); ready != nil && ready.Status == corev1.ConditionFalse {
				reason, message = ready.Reason, ready.Message
			}
			about = fmt.Sprintf("revision [%s] is not ready and cannot serve traffic", name)
		}
	}
	text := about + ": " + reason
	if message = indent(strings.TrimSpace(message)); message != "" {
		text += ": " + message
	}
	if shares := sharesText(svc.Status.Traffic); len(svc.Status.Traffic) > 0 {
		text += "\nThe traffic stays where it was: " + shares + "."
	}
	return exitWith(exitFailed, "%s", text)
}

// indent sets the lines after the first off: they are a container's.
func indent(text string) string {
	first, rest, more := strings.Cut(text, "\n")
	if !more {
		return text
	}
	lines := slices.Collect(strings.Lines(rest))
	return first + "\n    " + strings.Join(lines, "    ")
}
