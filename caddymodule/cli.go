package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "fairway",
		Usage:     "<command>",
		Short:     "Deploys and manages containers (Cloud Run on this host)",
		CobraFunc: buildCommand,
	})
}

// Exit codes that scripts can tell apart.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnreachable = 5
	exitTimeout     = 6
	exitInterrupted = 130 // as shells say it
)

const exitCodesHelp = `Exit codes:

	0    it is done
	1    it has failed: the revision is not ready, or cannot get the traffic
	2    wrong usage, or a value that is refused
	3    there is no such service or revision
	4    it belongs to another owner (Caddy's config, a watched file), or it has
	     changed meanwhile
	5    Caddy's admin endpoint cannot be reached, or has no Fairway
	6    it was not done within --wait-timeout, and goes on
	130  interrupted: what was asked for goes on`

// buildCommand fills in "caddy fairway", which Caddy has made.
func buildCommand(cmd *cobra.Command) {
	cmd.Long = `Deploys and manages services: containers that start when a request comes, as
Cloud Run's do. It talks to a running Caddy through its admin endpoint; flags
and messages are those of gcloud.

Names complete in shells that have loaded 'caddy completion'.

` + exitCodesHelp
	cmd.Example = `  caddy fairway deploy hello --image ghcr.io/acme/hello:1.4
  caddy fairway services
  caddy fairway traffic hello --to-revisions hello-00001=90,LATEST=10
  caddy fairway rollback hello`
	flags := cmd.PersistentFlags()
	flags.String("address", "", "The admin endpoint of the Caddy to talk to, such as localhost:2019 or unix//run/caddy/admin.sock (default $CADDY_ADMIN, or Caddy's own)")
	flags.StringP("config", "c", "", "Find the admin endpoint's address in this config file")
	flags.StringP("adapter", "a", "", "The config adapter for --config")
	flags.Bool("json", false, "Print the API's objects as JSON")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return finish(cmd, usageError("%s", explainFlag(err))) })
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		message := fmt.Sprintf("%q is not a command of %s: see %[2]s --help", args[0], cmd.CommandPath())
		if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
			message = fmt.Sprintf("%q is not a command of %s: is it %s?", args[0], cmd.CommandPath(), strings.Join(similar, " or "))
		}
		return finish(cmd, usageError("%s", message))
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(
		deployCommand(), servicesCommand(), revisionsCommand(), instancesCommand(),
		trafficCommand(), rollbackCommand(), deleteCommand(), exportCommand(),
	)
	for _, sub := range cmd.Commands() {
		sub.Args = cobra.ArbitraryArgs // checked by each, for the exit code
		sub.Long = strings.TrimSpace(sub.Long)
		sub.DisableFlagsInUseLine = true
		if sub.ValidArgsFunction == nil {
			sub.ValidArgsFunction = completeService
		}
	}
}

// cli is one run of a command.
type cli struct {
	*adminClient

	cmd  *cobra.Command
	in   io.Reader
	out  io.Writer // results
	msg  io.Writer // progress, questions and errors
	json bool
	now  func() time.Time
}

func newCLI(cmd *cobra.Command) (*cli, error) {
	flags := caddycmd.Flags{FlagSet: cmd.Flags()}
	address, err := caddycmd.DetermineAdminAPIAddress(flags.String("address"), nil, flags.String("config"), flags.String("adapter"))
	if err != nil {
		return nil, usageError("--config: %s", err)
	}
	client, err := newAdminClient(address)
	if err != nil {
		return nil, usageError("--address: %s", err)
	}
	client.warn = func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), "Warning: "+text) }
	return &cli{
		adminClient: client, cmd: cmd, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), msg: cmd.ErrOrStderr(),
		json: flags.Bool("json"), now: time.Now,
	}, nil
}

// action is what a command does.
type action func(ctx context.Context, c *cli, args []string) error

// runE makes an action out of which cobra runs: it ends when the user
// interrupts it, and exits with a code that says how it went.
func runE(f action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		c, err := newCLI(cmd)
		if err != nil {
			return finish(cmd, err)
		}
		defer c.close()
		return finish(cmd, f(ctx, c, args))
	}
}

// finish prints an error and returns what makes Caddy exit with its code.
func finish(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	cmd.SilenceErrors = true // it is printed here
	if message := errorText(err); message != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "Error: "+message)
	}
	code := exitCode(err)
	if code == exitFailed {
		return err
	}
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return code, nil })(cmd, nil)
}

// exitError is an error that has an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func exitWith(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

func usageError(format string, args ...any) error { return exitWith(exitUsage, format, args...) }

func exitCode(err error) int {
	var coded *exitError
	switch {
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case apierrors.IsNotFound(err):
		return exitNotFound
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return exitConflict
	case apierrors.IsBadRequest(err), apierrors.IsInvalid(err), apierrors.IsRequestEntityTooLargeError(err):
		return exitUsage
	case apierrors.IsServiceUnavailable(err):
		return exitUnreachable
	}
	return exitFailed
}

// errorText is an error in words for a user.
func errorText(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	text := err.Error()
	// Kubernetes' preface for conflicts says little to those who have no Kubernetes.
	if _, rest, ok := strings.Cut(text, "Operation cannot be fulfilled on services.serving.knative.dev "); ok {
		return "service " + bracketed(rest)
	}
	if _, rest, ok := strings.Cut(text, "Operation cannot be fulfilled on revisions.serving.knative.dev "); ok {
		return "revision " + bracketed(rest)
	}
	return text
}

// bracketed turns `"hello": it …` into gcloud's `[hello]: it …`.
func bracketed(text string) string {
	name, rest, ok := strings.Cut(strings.TrimPrefix(text, `"`), `"`)
	if !ok {
		return text
	}
	return "[" + name + "]" + rest
}

// elsewhere are flags of gcloud that scripts bring along.
var elsewhere = map[string]string{
	"region": "there is one host", "platform": "there is one host", "project": "there is one host", "zone": "there is one host",
	"allow-unauthenticated":    "who may send requests is up to the site in Caddy's config",
	"no-allow-unauthenticated": "who may send requests is up to the site in Caddy's config",
	"service-account":          "there are no accounts of a cloud; give the container a secret with --set-secrets",
	"source":                   "build the image first, and deploy it with --image",
	"vpc-connector":            "containers are on the host's network", "execution-environment": "there is one",
	"format": "--json prints JSON, and export prints YAML",
}

// explainFlag says more of gcloud's flags that have no meaning here.
func explainFlag(err error) string {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "unknown flag: --"); ok {
		if why := elsewhere[name]; why != "" {
			return fmt.Sprintf("--%s has no meaning here: %s", name, why)
		}
	}
	return text
}

// printJSON prints an object of the API for scripts.
func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// say prints a result for people; scripts that want JSON get none of it.
func (c *cli) say(format string, args ...any) {
	if !c.json {
		fmt.Fprintf(c.out, format+"\n", args...)
	}
}

// note prints what is not the result.
func (c *cli) note(format string, args ...any) { fmt.Fprintf(c.msg, format+"\n", args...) }

// terminal returns the file behind a stream if it is a terminal.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks a question if there is somebody to ask.
func (c *cli) confirm(question string) (bool, error) {
	if _, ok := terminal(c.in); !ok {
		return true, nil
	}
	// Nothing has begun: an interrupt ends the program, as it would not while it
	// reads.
	signal.Reset(os.Interrupt, syscall.SIGTERM)
	fmt.Fprintf(c.msg, "%s\n\nDo you want to continue (Y/n)?  ", question)
	var answer [64]byte
	n, err := c.in.Read(answer[:])
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("reading the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(string(answer[:n]))) {
	case "", "y", "yes":
		return err == nil, nil
	}
	return false, nil
}

// oneArg returns the only argument, or "" if none is needed.
func oneArg(args []string, what string, needed bool) (string, error) {
	switch {
	case len(args) > 1:
		return "", usageError("one %s, not %d: %s", what, len(args), strings.Join(args, " "))
	case len(args) == 0 && needed:
		return "", usageError("which %s? It must be given", what)
	case len(args) == 0:
		return "", nil
	}
	return args[0], nil
}
