package caddymodule

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

func trafficCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "traffic SERVICE [flags]",
		Short: "Shows or changes which revisions get a service's requests",
		Long: `
Shows which revisions get a service's requests, or changes it. Flags are those
of 'gcloud run services update-traffic'. LATEST is the latest ready revision,
whichever that is. What the named revisions leave of 100 percent is divided
between the others that have a share, in the proportions that they have.
Requests move when the revisions that get more of them have the instances that
the present load needs; the command waits for that.

A tag gives a revision a URL of its own, with or without a share of the rest.`,
		Example: `  caddy fairway traffic hello
  caddy fairway traffic hello --to-latest
  caddy fairway traffic hello --to-revisions hello-00001=90,LATEST=10
  caddy fairway traffic hello --update-tags next=hello-00003
  caddy fairway traffic hello --to-tags next=5`,
		ValidArgsFunction: completeService,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Bool("to-latest", false, "Send all requests to the latest ready revision, also of later deploys")
	f.String("to-revisions", "", "The shares of revisions, `REVISION=PERCENT,…`")
	f.String("to-tags", "", "The shares of what tags name, `TAG=PERCENT,…`")
	f.String("set-tags", "", "The tags, `TAG=REVISION,…`, and no others")
	f.String("update-tags", "", "Tags to set, `TAG=REVISION,…`; the others stay")
	f.String("remove-tags", "", "Tags to remove, `TAG,…`")
	f.Bool("clear-tags", false, "Remove all tags")
	waitFlags(f)
	cmd.RunE = runE(func(ctx context.Context, c *cli, args []string) error { return c.traffic(ctx, args) })
	_ = cmd.RegisterFlagCompletionFunc("to-revisions", completeShares) // they exist
	_ = cmd.RegisterFlagCompletionFunc("set-tags", completeTagged)
	_ = cmd.RegisterFlagCompletionFunc("update-tags", completeTagged)
	return cmd
}

// trafficChange is what the flags ask for.
type trafficChange struct {
	tags   tagChange
	flag   string // which shares come from
	named  []pair
	shares map[string]int64
	byTag  bool
}

// parseTraffic reads the flags; nil means that there are none.
func (c *cli) parseTraffic() (*trafficChange, error) {
	e := edits{flags: c.cmd.Flags()}
	for _, err := range []error{
		e.alone("to-latest", "to-revisions", "to-tags"), e.alone("to-revisions", "to-tags"),
		e.alone("set-tags", "update-tags", "remove-tags", "clear-tags"), e.alone("clear-tags", "update-tags", "remove-tags"),
	} {
		if err != nil {
			return nil, err
		}
	}
	var t trafficChange
	var err error
	for _, flag := range []string{"set-tags", "update-tags"} {
		if !e.set(flag) {
			continue
		}
		if t.tags.set, err = splitPairs(e.text(flag)); err != nil {
			return nil, usageError("--%s: %s", flag, err)
		}
		t.tags.clear = flag == "set-tags"
	}
	if t.tags.remove, err = splitList(e.text("remove-tags")); err != nil {
		return nil, usageError("--remove-tags: %s", err)
	}
	if on, _ := e.flags.GetBool("clear-tags"); on {
		t.tags.clear = true
	}
	for _, flag := range []string{"to-revisions", "to-tags"} {
		if !e.set(flag) {
			continue
		}
		if t.named, t.shares, err = parseShares(e.text(flag)); err != nil {
			return nil, usageError("--%s: %s", flag, err)
		}
		t.flag, t.byTag = flag, flag == "to-tags"
	}
	if on, _ := e.flags.GetBool("to-latest"); on {
		t.flag, t.shares = "to-latest", map[string]int64{latestKey: 100}
	}
	if t.tags.empty() && t.shares == nil {
		return nil, nil //nolint:nilnil // there is no change
	}
	return &t, nil
}

// names are the revisions that the change names.
func (t *trafficChange) names() []string {
	var names []string
	for _, p := range t.tags.set {
		names = append(names, p.value)
	}
	if !t.byTag {
		for _, p := range t.named {
			names = append(names, p.key)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == latestKey })
}

// apply makes the wanted traffic out of the present one.
func (t *trafficChange) apply(targets []servingv1.TrafficTarget) ([]servingv1.TrafficTarget, error) {
	targets = t.tags.apply(targets)
	if t.shares == nil {
		return targets, nil
	}
	shares := t.shares
	if t.byTag {
		shares = make(map[string]int64, len(t.shares))
		for _, p := range t.named {
			key, ok := tagged(targets, p.key)
			if !ok {
				return nil, exitWith(exitNotFound, "--to-tags: no revision has the tag [%s]", p.key)
			}
			shares[key] += t.shares[p.key]
		}
	}
	next, err := split(targets, shares)
	if err != nil {
		return nil, usageError("--%s: %s", t.flag, err)
	}
	return next, nil
}

func (c *cli) traffic(ctx context.Context, args []string) error {
	name, err := oneArg(args, "service", true)
	if err != nil {
		return err
	}
	change, err := c.parseTraffic()
	if err != nil {
		return err
	}
	if change == nil {
		svc, err := c.service(ctx, name)
		if err != nil {
			return err
		}
		return c.showTraffic(svc)
	}
	if err := c.checkRevisions(ctx, name, change.names()); err != nil {
		return err
	}
	return c.route(ctx, name, change.apply)
}

// checkRevisions fails unless the service has all these revisions: traffic for
// what does not exist would not move at all.
func (c *cli) checkRevisions(ctx context.Context, service string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if _, err := c.service(ctx, service); err != nil {
		return err
	}
	all, err := c.revisions(ctx, service)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(r servingv1.Revision) bool { return r.Name == name }) {
			return exitWith(exitNotFound, "service [%s] has no revision [%s]", service, name)
		}
	}
	return nil
}

// route changes the traffic of a service, waits, and shows what came of it.
func (c *cli) route(ctx context.Context, name string, change func([]servingv1.TrafficTarget) ([]servingv1.TrafficTarget, error)) error {
	timeout, wait, err := c.waits()
	if err != nil {
		return err
	}
	_, after, err := c.update(ctx, name, func(before *servingv1.Service) (*servingv1.Service, error) {
		if before == nil {
			return nil, exitWith(exitNotFound, "service [%s] could not be found", name)
		}
		next := before.DeepCopy()
		next.Spec.Traffic, err = change(next.Spec.Traffic)
		return next, err
	})
	if err != nil {
		return err
	}
	if !wait {
		if c.json {
			return c.printJSON(after)
		}
		c.say("The traffic of service [%s] is being changed. To see how it does: caddy fairway traffic %s", name, name)
		return nil
	}
	svc, err := c.await(ctx, name, awaited{generation: after.Generation, what: "Routing traffic of"}, timeout)
	if err != nil {
		return err
	}
	return c.showTraffic(svc)
}

// showTraffic prints where requests go. Source: gcloud run services describe.
func (c *cli) showTraffic(svc *servingv1.Service) error {
	if c.json {
		return c.printJSON(svc)
	}
	c.printTraffic(svc)
	if route := svc.Status.GetCondition(servingv1.ServiceConditionRoutesReady); !route.IsTrue() {
		c.say("\nWhat is wanted is not so yet: %s", conditionText(route))
		for _, t := range svc.Spec.Traffic {
			c.say("  %3d%% %s%s", targetPercent(t), targetKey(t), tagText(t))
		}
	}
	return nil
}

func tagText(t servingv1.TrafficTarget) string {
	if t.Tag == "" {
		return ""
	}
	return " (tag " + t.Tag + ")"
}

func (c *cli) printTraffic(svc *servingv1.Service) {
	if svc.Status.URL != nil {
		c.say("URL: %s", svc.Status.URL)
	}
	c.say("Traffic:")
	var shown []string
	shares := make(map[string]int64)
	key := func(t servingv1.TrafficTarget) string {
		if t.LatestRevision != nil && *t.LatestRevision {
			return fmt.Sprintf("LATEST (currently %s)", t.RevisionName)
		}
		return t.RevisionName
	}
	for _, t := range svc.Status.Traffic {
		shares[key(t)] += targetPercent(t)
	}
	for _, t := range svc.Status.Traffic {
		if slices.Contains(shown, key(t)) {
			continue
		}
		shown = append(shown, key(t))
		c.say("  %3d%% %s", shares[key(t)], key(t))
		for _, tag := range svc.Status.Traffic {
			switch {
			case key(tag) != key(t) || tag.Tag == "":
			case tag.URL == nil:
				c.say("       %s", tag.Tag)
			default:
				c.say("       %s: %s", tag.Tag, tag.URL)
			}
		}
	}
	if len(shown) == 0 {
		c.say("  none yet")
	}
}

func rollbackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback SERVICE [REVISION] [flags]",
		Short: "Sends all requests of a service to an earlier revision",
		Long: `
Sends all requests of a service to an earlier revision: the one that is named,
or the newest ready one before that which has most of the traffic now. They stay
where they are until it has the instances that the present load needs; the
command waits for that.

The traffic is then pinned to it: what is deployed later gets none until
'caddy fairway traffic SERVICE --to-latest'. Tags stay.`,
		Example: `  caddy fairway rollback hello
  caddy fairway rollback hello hello-00004`,
		ValidArgsFunction: completeServiceThenRevision,
	}
	waitFlags(cmd.Flags())
	cmd.RunE = runE(func(ctx context.Context, c *cli, args []string) error { return c.rollback(ctx, args) })
	return cmd
}

func (c *cli) rollback(ctx context.Context, args []string) error {
	if len(args) == 0 || len(args) > 2 {
		return usageError("a service is needed, and perhaps one of its revisions")
	}
	name := args[0]
	svc, err := c.service(ctx, name)
	if err != nil {
		return err
	}
	all, err := c.revisions(ctx, name)
	if err != nil {
		return err
	}
	to := ""
	if len(args) == 2 {
		to = args[1]
		i := slices.IndexFunc(all, func(r servingv1.Revision) bool { return r.Name == to })
		if i < 0 {
			return exitWith(exitNotFound, "service [%s] has no revision [%s]", name, to)
		}
		if ready := all[i].Status.GetCondition(servingv1.RevisionConditionReady); !ready.IsTrue() {
			return exitWith(exitFailed, "revision [%s] is not ready: %s", to, conditionText(ready))
		}
	} else if to, err = earlier(svc, all); err != nil {
		return err
	}
	if err := c.route(ctx, name, func(targets []servingv1.TrafficTarget) ([]servingv1.TrafficTarget, error) {
		return split(targets, map[string]int64{to: 100})
	}); err != nil {
		return err
	}
	c.say("\nThe traffic of service [%s] is pinned to revision [%s]: what is deployed later gets 0 percent of it.", name, to)
	c.say("To send all of it to the latest revision again: caddy fairway traffic %s --to-latest", name)
	return nil
}

// earlier is the newest ready revision before the one with most of the traffic.
func earlier(svc *servingv1.Service, all []servingv1.Revision) (string, error) {
	shares := percents(svc.Status.Traffic)
	slices.SortFunc(all, func(a, b servingv1.Revision) int { return cmp.Compare(generationOf(&a), generationOf(&b)) })
	at, most := -1, int64(0)
	for i, r := range all {
		if share := shares[r.Name]; share >= most && share > 0 {
			at, most = i, share
		}
	}
	if at < 0 {
		return "", exitWith(exitFailed, "service [%s] has no traffic to move", svc.Name)
	}
	for _, r := range slices.Backward(all[:at]) {
		if r.Status.GetCondition(servingv1.RevisionConditionReady).IsTrue() {
			return r.Name, nil
		}
	}
	return "", exitWith(exitNotFound, "service [%s] has no ready revision before [%s]", svc.Name, all[at].Name)
}

// generationOf is a revision's place in the order in which a service made them.
func generationOf(r *servingv1.Revision) int64 {
	n, _ := strconv.ParseInt(r.Labels[serving.ConfigurationGenerationLabelKey], 10, 64)
	return n
}
