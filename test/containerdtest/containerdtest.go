// Package containerdtest runs private containerd daemons for tests: with their
// own root, state and socket, so that a test may kill and restart one, and so
// that nothing of the host's own containerd is ever touched. What a daemon
// leaves behind is found by what it wrote down itself and removed.
package containerdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// startTimeout bounds the start of a daemon; it takes well under a second.
const startTimeout = 30 * time.Second

// Daemon is a private containerd. Its methods may be called one at a time.
type Daemon struct {
	dir    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been waited for
}

// Start starts a daemon that ends with the test, or skips the test where there
// is no root or no containerd.
func Start(t testing.TB) *Daemon {
	t.Helper()
	if reason := Missing(); reason != "" {
		t.Skip(reason)
	}
	d, err := New(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// shared is the daemon that all tests of a test binary have in common.
var shared struct {
	sync.Mutex

	main   bool
	daemon *Daemon
}

// Shared returns a daemon that lives as long as the test binary, whose TestMain
// must call Main. It skips the test like Start.
func Shared(t testing.TB) *Daemon {
	t.Helper()
	if reason := Missing(); reason != "" {
		t.Skip(reason)
	}
	shared.Lock()
	defer shared.Unlock()
	if !shared.main {
		t.Fatal("containerdtest.Shared needs a TestMain that calls containerdtest.Main")
	}
	if shared.daemon == nil {
		d, err := New(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		shared.daemon = d
	}
	return shared.daemon
}

// Main runs the tests, removes the shared daemon and returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(containerdtest.Main(m)) }
func Main(m *testing.M) int {
	shared.Lock()
	shared.main = true
	shared.Unlock()
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.daemon == nil {
		return code
	}
	if err := shared.daemon.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// Missing says what this machine lacks to run a daemon; nothing when it can.
func Missing() string {
	if os.Geteuid() != 0 {
		return "needs root, to run containerd"
	}
	for _, program := range []string{"containerd", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return "needs " + program + " in PATH"
		}
	}
	return ""
}

// New starts a daemon and returns when it serves. It removes first what earlier
// test processes left that could not clean up themselves.
func New(ctx context.Context) (*Daemon, error) {
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("removing what earlier tests left: %w", err)
	}
	// Not t.TempDir: a socket's path must be shorter than 108 bytes.
	dir, err := os.MkdirTemp(baseDir, fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("making the daemon's directory: %w", err)
	}
	d := &Daemon{dir: dir}
	if err := os.WriteFile(d.path("config.toml"), d.config(), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("writing containerd's config: %w", err), d.Close())
	}
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Address is the absolute path of the daemon's socket.
func (d *Daemon) Address() string { return d.path("s") }

// Dir is where the daemon keeps all it has.
func (d *Daemon) Dir() string { return d.dir }

// Log returns what the daemon has logged so far.
func (d *Daemon) Log() string {
	data, err := os.ReadFile(d.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Kill ends the daemon as a crash would. Shims and containers go on running.
func (d *Daemon) Kill() error {
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing containerd: %w", err)
	}
	<-d.exited
	d.cmd = nil
	return nil
}

// Restart kills the daemon, if it runs, and starts it again on what it left.
func (d *Daemon) Restart(ctx context.Context) error {
	if err := d.Kill(); err != nil {
		return err
	}
	return d.start(ctx)
}

// Import imports an OCI archive into a namespace, unpacked and ready to run.
func (d *Daemon) Import(ctx context.Context, archive, namespace string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("opening the archive: %w", err)
	}
	defer func() { _ = f.Close() }()
	client, err := containerd.New(d.Address())
	if err != nil {
		return fmt.Errorf("connecting to containerd: %w", err)
	}
	defer func() { _ = client.Close() }()
	ctx = namespaces.WithNamespace(ctx, namespace)
	imported, err := client.Import(ctx, f)
	if err != nil {
		return fmt.Errorf("importing %s: %w", archive, err)
	}
	for _, image := range imported {
		if err := containerd.NewImage(client, image).Unpack(ctx, ""); err != nil {
			return fmt.Errorf("unpacking %s: %w", image.Name, err)
		}
	}
	return nil
}

// Close ends the daemon, its shims and its containers and removes all it had.
func (d *Daemon) Close() error {
	if err := d.Kill(); err != nil {
		return err
	}
	return removeDaemon(d.dir)
}

func (d *Daemon) path(name string) string { return filepath.Join(d.dir, name) }

// config is in the version that containerd 1.6, 1.7 and 2 read. The CRI plugin
// is off: it wants a network of its own and takes most of the start.
func (d *Daemon) config() []byte {
	return fmt.Appendf(nil, `version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri",
]

[grpc]
  address = %q

[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, d.path("root"), d.path("state"), d.Address(), d.path("opt"))
}

// start starts the daemon and waits until it says that it is ready, as it would
// tell systemd.
func (d *Daemon) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d.path("n"), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listening for containerd's notification: %w", err)
	}
	defer func() {
		_ = ready.Close()
		_ = os.Remove(d.path("n"))
	}()
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening containerd's log: %w", err)
	}
	defer func() { _ = log.Close() }()

	cmd := exec.Command("containerd", "--config", d.path("config.toml"))
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+d.path("n"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting containerd: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	d.cmd, d.exited = cmd, exited

	notified := make(chan error, 1)
	go func() { notified <- awaitReady(ready) }()
	select {
	case err = <-notified:
	case <-exited:
		err = errors.New("it ended")
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("waiting for containerd: %w; its log:\n%s", err, d.Log())
	}
	return nil
}

// awaitReady reads notifications until the one that says ready.
func awaitReady(conn *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return fmt.Errorf("reading containerd's notification: %w", err)
		}
		for line := range bytes.Lines(buf[:n]) {
			if strings.TrimSpace(string(line)) == "READY=1" {
				return nil
			}
		}
	}
}
