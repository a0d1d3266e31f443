package caddymodule

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"knative.dev/serving/pkg/apis/serving"
)

// completionTimeout bounds what a shell waits for names.
const completionTimeout = 2 * time.Second

// complete asks the API for names. A shell is told nothing of what goes wrong.
func complete(cmd *cobra.Command, names func(context.Context, *cli) ([]string, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	c, err := newCLI(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.close()
	all, err := names(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

// completeService completes the first argument; delete takes more than one.
func completeService(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "delete" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return complete(cmd, func(ctx context.Context, c *cli) ([]string, error) {
		all, err := c.services(ctx)
		names := make([]string, 0, len(all))
		for _, svc := range all {
			if !slices.Contains(args, svc.Name) {
				names = append(names, svc.Name)
			}
		}
		return names, err
	})
}

func completeServiceThenRevision(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return completeService(cmd, args, typed)
	case 1:
		return completeRevisions(cmd, args, typed)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeRevisions completes the name of a revision: of the service that is
// the first argument, if there is one.
func completeRevisions(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return complete(cmd, func(ctx context.Context, c *cli) ([]string, error) {
		return c.revisionNames(ctx, args)
	})
}

func (c *cli) revisionNames(ctx context.Context, args []string) ([]string, error) {
	service := ""
	if len(args) > 0 {
		service = args[0]
	}
	all, err := c.revisions(ctx, service)
	names := make([]string, 0, len(all))
	for _, rev := range all {
		if service == "" || rev.Labels[serving.ServiceLabelKey] == service {
			names = append(names, rev.Name)
		}
	}
	return names, err
}

// completeShares completes the revision in the last item of REVISION=PERCENT,…
func completeShares(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	before := typed[:strings.LastIndexByte(typed, ',')+1]
	return completeListed(cmd, args, before, "=")
}

// completeTagged completes the revision in the last item of TAG=REVISION,…
func completeTagged(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	before := typed[:strings.LastIndexByte(typed, '=')+1]
	if before == "" || strings.Contains(typed[len(before):], ",") {
		return nil, cobra.ShellCompDirectiveNoFileComp // a new tag
	}
	return completeListed(cmd, args, before, "")
}

func completeListed(cmd *cobra.Command, args []string, before, after string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names, directive := complete(cmd, func(ctx context.Context, c *cli) ([]string, error) {
		names, err := c.revisionNames(ctx, args)
		return append(names, latestKey), err
	})
	for i := range names {
		names[i] = before + names[i] + after
	}
	return names, directive | cobra.ShellCompDirectiveNoSpace
}
