package caddymodule

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

func servicesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "services [SERVICE] [flags]",
		Short: "Lists services, or describes one",
		Long: `
Lists all services, or describes one: its URL, where its traffic goes, who owns
it, its instances, and why it is not ready if it is not.

The first column says how each one does: ready (✔); degraded (!), when the
latest revision has failed and an older one serves; failed (✗); or waiting (…).`,
		Example: `  caddy fairway services
  caddy fairway services hello
  caddy fairway services --json | jq -r '.[].metadata.name'`,
		RunE: runE(func(ctx context.Context, c *cli, args []string) error {
			name, err := oneArg(args, "service", false)
			if err != nil {
				return err
			}
			if name == "" {
				return c.listServices(ctx)
			}
			return c.describe(ctx, name)
		}),
	}
}

func (c *cli) listServices(ctx context.Context) error {
	all, err := c.services(ctx)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(emptyNotNull(all))
	}
	instances, err := c.instances(ctx, "")
	if err != nil {
		return err
	}
	running := make(map[string]int)
	for _, i := range instances {
		running[i.Service]++
	}
	t := c.newTable("SERVICE", "URL", "SERVING", "LATEST", "INSTANCES", "CREATED")
	for i := range all {
		svc := &all[i]
		url := ""
		if svc.Status.URL != nil {
			url = svc.Status.URL.String()
		}
		t.row(serviceHealth(svc), svc.Name, orDash(url), orDash(serving100(svc.Status.Traffic)),
			orDash(svc.Status.LatestCreatedRevisionName), strconv.Itoa(running[svc.Name]), c.age(svc.CreationTimestamp.Time))
	}
	return t.end(c, "There are no services. To make one: caddy fairway deploy NAME --image IMAGE")
}

// end prints the table, or what to say if it has no rows.
func (t *table) end(c *cli, empty string) error {
	if t.rows == 0 {
		c.note("%s", empty)
		return nil
	}
	return t.w.Flush()
}

func emptyNotNull[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

// serving100 names the revisions that have the traffic, with their shares
// unless there is one.
func serving100(targets []servingv1.TrafficTarget) string {
	var parts []string
	shares := percents(targets)
	for _, t := range targets {
		key := targetKey(t)
		share := shares[key]
		delete(shares, key)
		switch {
		case share == 100:
			return key
		case share > 0:
			parts = append(parts, fmt.Sprintf("%s %d%%", key, share))
		}
	}
	return strings.Join(parts, ", ")
}

// describe prints all of a service that people ask for.
func (c *cli) describe(ctx context.Context, name string) error {
	svc, err := c.service(ctx, name)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(svc)
	}
	views, err := c.views(ctx, name)
	if err != nil {
		return err
	}
	instances, err := c.instances(ctx, name)
	if err != nil {
		return err
	}
	c.say("%s Service %s", c.mark(serviceHealth(svc)), name)
	if text := svc.Annotations[descriptionAnnotation]; text != "" {
		c.say("%s", text)
	}
	for _, v := range views {
		if v.Owner != "" {
			c.say("Owner: %s", v.Owner)
		}
	}
	c.printTraffic(svc)
	c.say("Latest revision: %s", orDash(svc.Status.LatestCreatedRevisionName))
	if ready := svc.Status.LatestReadyRevisionName; ready != svc.Status.LatestCreatedRevisionName {
		c.say("Latest ready revision: %s", cmp.Or(ready, "none"))
	}
	configuration := svc.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady)
	why := configuration
	if configuration.IsFalse() { // because of its revision, which knows more
		if rev, err := c.revision(ctx, svc.Status.LatestCreatedRevisionName); err == nil {
			why = cmp.Or(rev.Status.GetCondition(servingv1.RevisionConditionReady), configuration)
		}
	}
	c.say("Conditions:")
	c.sayCondition(configuration, why)
	route := svc.Status.GetCondition(servingv1.ServiceConditionRoutesReady)
	c.sayCondition(route, route)
	if healthOf(configuration) == waiting {
		step, detail := stage(svc, views, instances)
		c.say("Now: %s", strings.TrimSuffix(step+": "+detail, ": "))
	}
	if len(instances) == 0 {
		c.say("Instances: none")
		return nil
	}
	c.say("")
	return c.printInstances(instances)
}

// sayCondition prints a condition, and why it is not true.
func (c *cli) sayCondition(condition, why *apis.Condition) {
	if condition.IsTrue() {
		c.say("  %s %s", c.mark(healthy), condition.Type)
		return
	}
	name := "unknown"
	if condition != nil {
		name = string(condition.Type)
	}
	c.say("  %s %s: %s", c.mark(healthOf(condition)), name, conditionText(why))
}

func revisionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revisions [SERVICE] [flags]",
		Short: "Lists the revisions of a service, or of all",
		Long: `
Lists the revisions of a service, or of all, newest first: the share of the
traffic and the tags that each has, its image, and why it is not ready if it is
not.`,
		Example: `  caddy fairway revisions hello
  caddy fairway revisions hello --json`,
		RunE: runE(func(ctx context.Context, c *cli, args []string) error {
			name, err := oneArg(args, "service", false)
			if err != nil {
				return err
			}
			return c.listRevisions(ctx, name)
		}),
	}
}

func (c *cli) listRevisions(ctx context.Context, service string) error {
	var services []servingv1.Service
	if service != "" {
		svc, err := c.service(ctx, service)
		if err != nil {
			return err
		}
		services = append(services, *svc)
	} else {
		var err error
		if services, err = c.services(ctx); err != nil {
			return err
		}
	}
	all, err := c.revisions(ctx, service)
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b servingv1.Revision) int {
		return cmp.Or(
			strings.Compare(a.Labels[serving.ServiceLabelKey], b.Labels[serving.ServiceLabelKey]),
			cmp.Compare(generationOf(&b), generationOf(&a)),
		)
	})
	if c.json {
		return c.printJSON(emptyNotNull(all))
	}
	shares, tags := make(map[string]int64), make(map[string][]string)
	for _, svc := range services {
		for _, t := range svc.Status.Traffic {
			shares[t.RevisionName] += targetPercent(t)
			if t.Tag != "" {
				tags[t.RevisionName] = append(tags[t.RevisionName], t.Tag)
			}
		}
	}
	t := c.newTable("REVISION", "TRAFFIC", "TAGS", "IMAGE", "INSTANCES", "CREATED", "REASON")
	for i := range all {
		rev := &all[i]
		share := "-"
		if n := shares[rev.Name]; n > 0 {
			share = fmt.Sprintf("%d%%", n)
		}
		ready := rev.Status.GetCondition(servingv1.RevisionConditionReady)
		why := ""
		if !ready.IsTrue() {
			why = cut(conditionText(ready), 100)
		}
		running := int32(0)
		if rev.Status.ActualReplicas != nil {
			running = *rev.Status.ActualReplicas
		}
		t.row(healthOf(ready), rev.Name, share, orDash(strings.Join(tags[rev.Name], ",")), orDash(imageText(rev)),
			strconv.Itoa(int(running)), c.age(rev.CreationTimestamp.Time), orDash(why))
	}
	return t.end(c, "There are no revisions.")
}

// imageText is the image as it was asked for, with the beginning of the digest
// that it was pinned to.
func imageText(rev *servingv1.Revision) string {
	spec := servingv1.Service{}
	spec.Spec.Template.Spec = rev.Spec
	image := edits{svc: &spec}.container().Image
	if strings.Contains(image, "@") {
		return image
	}
	for _, s := range rev.Status.ContainerStatuses {
		if _, digest, ok := strings.Cut(s.ImageDigest, "@sha256:"); ok {
			return image + "@" + digest[:min(len(digest), 12)]
		}
	}
	return image
}

func instancesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "instances [SERVICE] [flags]",
		Short: "Lists the instances of a service, or of all",
		Long: `
Lists the instances of a service, or of all: the containers that run, start or
end, that are frozen until their next request, or only prepared. WHY says why
each was started.`,
		Example: `  caddy fairway instances
  caddy fairway instances hello --json`,
		RunE: runE(func(ctx context.Context, c *cli, args []string) error {
			name, err := oneArg(args, "service", false)
			if err != nil {
				return err
			}
			if name != "" {
				if _, err := c.service(ctx, name); err != nil {
					return err
				}
			}
			all, err := c.instances(ctx, name)
			switch {
			case err != nil:
				return err
			case c.json:
				return c.printJSON(emptyNotNull(all))
			case len(all) == 0:
				c.note("There are no instances: they start when requests come.")
				return nil
			}
			return c.printInstances(all)
		}),
	}
}

func (c *cli) printInstances(all []instanceView) error {
	t := c.newTable("INSTANCE", "REVISION", "STATE", "REQUESTS", "MEMORY", "PID", "ADDRESS", "SINCE", "WHY")
	for _, i := range all {
		h := waiting
		switch i.State {
		case "ready", "frozen", "prepared":
			h = healthy
		case "failed":
			h = failing
		}
		held := ""
		if i.MemoryBytes > 0 {
			held = bytesText(i.MemoryBytes)
		}
		pid := ""
		if i.PID != 0 {
			pid = strconv.Itoa(i.PID)
		}
		t.row(h, i.Instance, i.Revision, i.State, strconv.Itoa(i.InFlight), orDash(held), orDash(pid), orDash(i.Address), c.age(i.Since), orDash(i.Why))
	}
	return t.w.Flush()
}
