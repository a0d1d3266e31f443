package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

func deployCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deploy SERVICE --image IMAGE [flags] | deploy -f FILE",
		Short: "Makes a service, or a new revision of it",
		Long: `
Makes a service, or a new revision of one that exists. Flags are those of
'gcloud run deploy'; each changes only what it names, and all else stays. What
changes nothing makes no revision, unless the latest one has failed: then it is
tried again, as a new one. Where a tag has come to mean another image, give the
revision a name with --revision-suffix.

A new revision is started and probed while the old one goes on serving. It gets
the traffic when it is ready. If it never is, nothing moves, and the reason and
the container's last output are shown.

With -f, services are made or replaced as files in Knative's YAML say, which is
also Cloud Run's (gcloud run services replace). What the files do not say goes
back to its default.

Lists have commas between their items. For items that contain commas, begin the
list with another delimiter between carets: '^;^A=1,2;B=3'.`,
		Example: `  caddy fairway deploy hello --image ghcr.io/acme/hello:1.4
  caddy fairway deploy hello --update-env-vars GREETING=hi --concurrency 20
  caddy fairway deploy hello --image ghcr.io/acme/hello:1.5 --no-traffic --tag next
  caddy fairway deploy -f service.yaml
  caddy fairway export hello | ssh other caddy fairway deploy -f -`,
	}
	f := cmd.Flags()
	f.SortFlags = false
	templateFlags(f)
	f.Bool("no-traffic", false, "Leave the traffic with the revisions that have it")
	f.String("tag", "", "Give the new revision a `TAG`, and so a URL of its own")
	f.StringArrayP("filename", "f", nil, "A `FILE` of services in Knative's YAML, or - for standard input; may be repeated")
	waitFlags(f)
	cmd.RunE = runE(func(ctx context.Context, c *cli, args []string) error { return c.deploy(ctx, args) })
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json") // it exists
	_ = cmd.MarkFlagFilename("env-vars-file")
	return cmd
}

// waitFlags adds the flags that say whether a command waits.
func waitFlags(f *pflag.FlagSet) {
	f.Bool("async", false, "Do not wait until it is done")
	f.Bool("no-wait", false, "The same as --async")
	f.Duration("wait-timeout", 15*time.Minute, "How long to wait at most")
}

// waits tells whether the command should wait, and for how long.
func (c *cli) waits() (timeout time.Duration, wait bool, err error) {
	f := c.cmd.Flags()
	async, _ := f.GetBool("async")
	noWait, _ := f.GetBool("no-wait")
	timeout, _ = f.GetDuration("wait-timeout")
	if timeout <= 0 {
		return 0, false, usageError("--wait-timeout: %s is not above zero", timeout)
	}
	return timeout, !async && !noWait, nil
}

// order is one service that is to be deployed.
type order struct {
	name string
	// change makes what is wanted out of what there is, nil for nothing.
	change    func(before *servingv1.Service) (*servingv1.Service, error)
	noTraffic bool
	tag       string
}

func (c *cli) deploy(ctx context.Context, args []string) error {
	timeout, wait, err := c.waits()
	if err != nil {
		return err
	}
	orders, err := c.orders(args)
	if err != nil {
		return err
	}
	// All are asked for before any is waited for. One that fails does not keep the
	// others back.
	var failures []error
	made := make([]*deploying, 0, len(orders))
	for _, o := range orders {
		d, err := c.place(ctx, o)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		made = append(made, d)
	}
	for _, d := range made {
		if err := c.finishDeployment(ctx, d, wait, timeout); err != nil {
			failures = append(failures, err)
		}
		if ctx.Err() != nil {
			return context.Canceled
		}
	}
	if c.json && len(made) > 0 {
		if err := c.printDeployed(made, len(orders) > 1); err != nil {
			return err
		}
	}
	if len(failures) == 0 {
		return nil
	}
	for _, err := range failures[1:] {
		c.note("Error: %s", errorText(err))
	}
	return failures[0] // printed too; it is the exit code
}

func (c *cli) printDeployed(made []*deploying, list bool) error {
	if !list {
		return c.printJSON(made[0].after)
	}
	all := make([]*servingv1.Service, 0, len(made))
	for _, d := range made {
		all = append(all, d.after)
	}
	return c.printJSON(all)
}

func (c *cli) files() []string {
	files, _ := c.cmd.Flags().GetStringArray("filename")
	return files
}

// orders reads what the user wants.
func (c *cli) orders(args []string) ([]order, error) {
	flags := c.cmd.Flags()
	name, err := oneArg(args, "service", len(c.files()) == 0)
	if err != nil {
		return nil, err
	}
	if len(c.files()) > 0 {
		return c.fileOrders(name)
	}
	suffix, _ := flags.GetString("revision-suffix")
	o := order{name: name}
	o.noTraffic, _ = flags.GetBool("no-traffic")
	o.tag, _ = flags.GetString("tag")
	o.change = func(before *servingv1.Service) (*servingv1.Service, error) {
		next := new(servingv1.Service)
		switch {
		case before != nil:
			next = before.DeepCopy()
		case !flags.Changed("image"):
			return nil, exitWith(exitNotFound, "service [%s] could not be found; to make it, say --image", name)
		}
		next.Name = name
		if err := editService(flags, next); err != nil {
			return nil, err
		}
		// A name is of one revision; wanted puts it back where no new one is made.
		next.Spec.Template.Name = ""
		if suffix != "" {
			next.Spec.Template.Name = name + "-" + suffix
		}
		return next, nil
	}
	return []order{o}, nil
}

// fileOrders reads the services of files.
func (c *cli) fileOrders(name string) ([]order, error) {
	if name != "" {
		return nil, usageError("SERVICE and --filename exclude each other: the file names its services")
	}
	var wrong error
	c.cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "filename", "async", "no-wait", "wait-timeout", "no-traffic", "tag", "json", "address", "config", "adapter":
		default:
			wrong = usageError("--%s and --filename exclude each other: say it in the file", f.Name)
		}
	})
	if wrong != nil {
		return nil, wrong
	}
	var orders []order
	for _, file := range c.files() {
		docs, err := readServices(file, c.in)
		if err != nil {
			return nil, usageError("--filename: %s", err)
		}
		for _, doc := range docs {
			if slices.ContainsFunc(orders, func(o order) bool { return o.name == doc.Name }) {
				return nil, usageError("--filename: %s: the service %s is there twice", file, doc.Name)
			}
			o := order{name: doc.Name, change: func(before *servingv1.Service) (*servingv1.Service, error) { return replacement(doc, before), nil }}
			o.noTraffic, _ = c.cmd.Flags().GetBool("no-traffic")
			o.tag, _ = c.cmd.Flags().GetString("tag")
			orders = append(orders, o)
		}
	}
	return orders, nil
}

// deploying is a service that is being deployed.
type deploying struct {
	order

	// before is nil when the service is new.
	before, after *servingv1.Service
	revision      string // its latest, that has just been made if created is set
	created       bool
	changed       bool // anything is new
}

// movable is the image, if its name may come to mean another.
func (d *deploying) movable() string {
	image := edits{svc: d.after.DeepCopy()}.container().Image
	if strings.Contains(image, "@") {
		return ""
	}
	return image
}

// place asks for a service.
func (c *cli) place(ctx context.Context, o order) (*deploying, error) {
	before, after, err := c.update(ctx, o.name, func(before *servingv1.Service) (*servingv1.Service, error) {
		next, err := o.change(before)
		if err != nil {
			return nil, err
		}
		if o.noTraffic {
			if before == nil {
				return nil, usageError("--no-traffic: service [%s] is new, nothing else could get its traffic", o.name)
			}
			now := before.Status.LatestReadyRevisionName
			if now == "" {
				return nil, exitWith(exitFailed, "--no-traffic: service [%s] has no ready revision that could keep the traffic", o.name)
			}
			next.Spec.Traffic = unLatest(before.Spec.Traffic, now)
		}
		if o.tag != "" {
			// The new revision has no name yet, and must not be named before it is ready:
			// nothing would move at all if it never is.
			if len(next.Spec.Traffic) == 0 {
				next.Spec.Traffic = withShares(nil, map[string]int64{latestKey: 100})
			}
			next.Spec.Traffic = tagChange{set: []pair{{o.tag, latestKey}}}.apply(next.Spec.Traffic)
		}
		return wanted(next, before)
	})
	if err != nil {
		return nil, err
	}
	d := &deploying{order: o, before: before, after: after, revision: after.Status.LatestCreatedRevisionName}
	d.created = before == nil || before.Status.LatestCreatedRevisionName != d.revision
	d.changed = before == nil || differs(before, after)
	return d, nil
}

// differs reports whether a service is wanted otherwise. Its version does not
// tell: that changes with its status too.
func differs(a, b *servingv1.Service) bool {
	return a.Generation != b.Generation || !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations)
}

// maxAttempts bounds how often a change is tried again because the service has
// changed meanwhile.
const maxAttempts = 10

// update changes a service: what change makes of it is put in its place. It is
// tried again when somebody else was faster. before is nil for a new service.
func (c *cli) update(ctx context.Context, name string, change func(before *servingv1.Service) (*servingv1.Service, error)) (before, after *servingv1.Service, err error) {
	var last error
	tried := ""
	for range maxAttempts {
		version := ""
		before, err = c.service(ctx, name)
		switch {
		case err == nil:
			version = before.ResourceVersion
		case exitCode(err) != exitNotFound:
			return nil, nil, err
		default:
			before = nil
		}
		if last != nil && version == tried {
			return nil, nil, last // it is refused for another reason
		}
		next, err := change(before)
		if err != nil {
			return nil, nil, err
		}
		next.ResourceVersion = version
		after, err = c.put(ctx, next)
		if err == nil {
			return before, after, nil
		}
		if errors.Is(err, context.Canceled) { // it has been sent
			c.note("What was asked for may go on: see caddy fairway services %s", name)
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return nil, nil, err
		}
		last, tried = err, version
	}
	return nil, nil, last
}

// finishDeployment waits for a deployment if it should, and says how it went.
func (c *cli) finishDeployment(ctx context.Context, d *deploying, wait bool, timeout time.Duration) error {
	if wait {
		svc, err := c.await(ctx, d.name, awaited{generation: d.after.Generation, revision: true, what: "Deploying"}, timeout)
		if svc != nil {
			d.after = svc
		}
		if err != nil {
			if d.tag != "" && exitCode(err) == exitFailed {
				c.untag(ctx, d)
			}
			return err
		}
	}
	if d.tag != "" && wait {
		after, err := c.retag(ctx, d.name, tagChange{set: []pair{{d.tag, d.revision}}})
		if err != nil {
			return err
		}
		if d.after, err = c.await(ctx, d.name, awaited{generation: after.Generation, what: "Routing traffic of"}, timeout); err != nil {
			return err
		}
	}
	if !wait {
		c.say("Service [%s] revision [%s] is being deployed. To see how it does: caddy fairway services %s", d.name, d.revision, d.name)
		if d.tag != "" {
			c.say("The tag [%s] follows the latest ready revision. To keep it on this one: caddy fairway traffic %s --update-tags %s=%s", d.tag, d.name, d.tag, d.revision)
		}
		return nil
	}
	c.sayDeployed(d)
	return nil
}

// retag changes the tags of a service.
func (c *cli) retag(ctx context.Context, name string, change tagChange) (*servingv1.Service, error) {
	_, after, err := c.update(ctx, name, func(svc *servingv1.Service) (*servingv1.Service, error) {
		if svc == nil {
			return nil, exitWith(exitNotFound, "service [%s] has been deleted meanwhile", name)
		}
		next := svc.DeepCopy()
		next.Spec.Traffic = change.apply(next.Spec.Traffic)
		return next, nil
	})
	return after, err
}

// untag gives the tag of a revision that has failed back to what had it.
func (c *cli) untag(ctx context.Context, d *deploying) {
	change := tagChange{remove: []string{d.tag}}
	if d.before != nil {
		if key, ok := tagged(d.before.Spec.Traffic, d.tag); ok {
			change = tagChange{set: []pair{{d.tag, key}}}
		}
	}
	after, err := c.retag(ctx, d.name, change)
	if err != nil {
		c.note("The tag [%s] could not be removed: %s", d.tag, errorText(err))
		return
	}
	d.after = after
}

// sayDeployed tells how a deployment went, in gcloud's words.
func (c *cli) sayDeployed(d *deploying) {
	svc, revision := d.after, d.revision
	share := percents(svc.Status.Traffic)[revision]
	switch {
	case d.created && share == 0 && !d.noTraffic:
		c.say("Service [%s] revision [%s] has been deployed and is serving 0 percent of traffic: the traffic is pinned to %s.",
			d.name, revision, sharesText(svc.Status.Traffic))
	case d.created:
		c.say("Service [%s] revision [%s] has been deployed and is serving %d percent of traffic.", d.name, revision, share)
	case d.changed:
		c.say("Service [%s] has been changed; that took no new revision: [%s] is serving %d percent of traffic.", d.name, revision, share)
	default:
		c.say("Service [%s] has not changed: revision [%s] is serving %d percent of traffic.", d.name, revision, share)
		if image := d.movable(); image != "" && c.cmd.Flags().Changed("image") {
			c.say("If %s has come to mean another image: --revision-suffix NAME makes a revision of it.", image)
		}
	}
	if share == 0 {
		c.say("To send all of it to the latest revision: caddy fairway traffic %s --to-latest", d.name)
	}
	if svc.Status.URL != nil {
		c.say("Service URL: %s", svc.Status.URL)
	}
	for _, t := range svc.Status.Traffic {
		if d.tag != "" && t.Tag == d.tag && t.URL != nil {
			c.say("The revision can be reached directly at %s", t.URL)
		}
	}
}

// sharesText names the revisions that have the traffic: "[a]", or "[a] (60
// percent) and [b] (40 percent)".
func sharesText(targets []servingv1.TrafficTarget) string {
	var order []string
	shares := percents(targets)
	for _, t := range targets {
		if key := targetKey(t); shares[key] > 0 && !slices.Contains(order, key) {
			order = append(order, key)
		}
	}
	switch len(order) {
	case 0:
		return "no revision"
	case 1:
		return "[" + order[0] + "]"
	}
	parts := make([]string, 0, len(order))
	for _, key := range order {
		parts = append(parts, fmt.Sprintf("[%s] (%d percent)", key, shares[key]))
	}
	last := len(parts) - 1
	return strings.Join(parts[:last], ", ") + " and " + parts[last]
}
