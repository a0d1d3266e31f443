package caddymodule

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func deleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete SERVICE… | delete --revision REVISION [flags]",
		Short: "Deletes services, or revisions that get no traffic",
		Long: `
Deletes services with all their revisions, or single revisions that get no
traffic. Requests that an instance has are finished.

On a terminal it asks first.`,
		Example: `  caddy fairway delete hello
  caddy fairway delete --revision hello-00001 --revision hello-00002
  caddy fairway delete hello --quiet`,
	}
	f := cmd.Flags()
	f.StringArray("revision", nil, "Delete this `REVISION`; may be repeated")
	f.BoolP("quiet", "q", false, "Do not ask")
	cmd.RunE = runE(func(ctx context.Context, c *cli, args []string) error { return c.remove(ctx, args) })
	_ = cmd.RegisterFlagCompletionFunc("revision", completeRevisions) // it exists
	return cmd
}

func (c *cli) remove(ctx context.Context, names []string) error {
	flags := c.cmd.Flags()
	revisions, _ := flags.GetStringArray("revision")
	quiet, _ := flags.GetBool("quiet")
	resource, what, effect := "services", "service", "deleted with all revisions"
	switch {
	case len(revisions) > 0 && len(names) > 0:
		return usageError("SERVICE and --revision exclude each other")
	case len(revisions) > 0:
		resource, what, effect, names = "revisions", "revision", "deleted", revisions
	case len(names) == 0:
		return usageError("which service? It must be given, or --revision")
	}
	for _, name := range names {
		if err := c.exists(ctx, what, name); err != nil {
			return err
		}
	}
	if !quiet {
		// What is named is still there: an answer must not be about a typing error.
		yes, err := c.confirm(fmt.Sprintf("%s [%s] will be %s.", strings.ToUpper(what[:1])+what[1:], strings.Join(names, "], ["), effect))
		if err != nil {
			return err
		}
		if !yes {
			return exitWith(exitFailed, "nothing is deleted")
		}
	}
	done := make([]metav1.Status, 0, len(names))
	for _, name := range names {
		var status metav1.Status
		err := c.serving(ctx, http.MethodDelete, resource, name, nil, nil, &status)
		if apierrors.IsNotFound(err) {
			err = exitWith(exitNotFound, "%s [%s] could not be found", what, name)
		}
		if err != nil {
			return err
		}
		done = append(done, status)
		c.say("Deleted %s [%s].", what, name)
	}
	if c.json {
		return c.printJSON(done)
	}
	return nil
}

func (c *cli) exists(ctx context.Context, what, name string) error {
	var err error
	if what == "service" {
		_, err = c.service(ctx, name)
	} else {
		_, err = c.revision(ctx, name)
	}
	return err
}
