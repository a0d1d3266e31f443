package containerd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

const (
	// logLimit is the size at which an instance's log is turned over; one older
	// part is kept.
	logLimit = 10 << 20
	// logEvery is how often that is looked at.
	logEvery = 5 * time.Second
	// logsKept is how many logs of ended instances a service keeps.
	logsKept = 10
	// oldLogsLimit bounds the logs of ended instances of all services together.
	oldLogsLimit = 1 << 30
	oldPart      = ".1"
)

// logFile returns the path of the log of an instance's container; sidecar is its
// name, if it is one. The shim writes it: it goes on while Caddy is away, and
// never makes the container wait.
func (r *Runtime) logFile(service, id, sidecar string) (string, error) {
	dir := filepath.Join(r.opts.LogDir, service)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("making the log directory: %w", err)
	}
	if sidecar != "" {
		id += "." + sidecar
	}
	return filepath.Join(dir, id+".log"), nil
}

// rotateLoop bounds the logs until the runtime is closed. While all instances are
// frozen, or there are none, it does nothing.
func (r *Runtime) rotateLoop() {
	tick := time.NewTicker(logEvery)
	defer tick.Stop()
	for {
		tick.Stop()
		select {
		case <-r.ctx.Done():
			return
		case <-r.writes:
		}
		tick.Reset(logEvery)
		for busy := true; busy; {
			select {
			case <-r.ctx.Done():
				return
			case <-tick.C:
			}
			busy = r.writing() // first: what is frozen meanwhile has written more
			if err := r.rotate(); err != nil {
				r.log.Warn("bounding logs", zap.Error(err))
			}
		}
	}
}

// logsGrow has the logs bounded from now on.
func (r *Runtime) logsGrow() {
	select {
	case r.writes <- struct{}{}:
	default:
	}
}

// writing reports whether an instance runs that is not frozen.
func (r *Runtime) writing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.handles {
		if !h.asleep.Load() {
			return true
		}
	}
	return false
}

// rotate turns over the logs that are too long and deletes the oldest ones of
// instances that are gone.
func (r *Runtime) rotate() error {
	r.mu.Lock()
	live := make(map[string]bool, len(r.handles)+len(r.starting))
	for id := range r.handles {
		live[id] = true
	}
	for id := range r.starting {
		live[id] = true
	}
	r.mu.Unlock()
	services, err := os.ReadDir(r.opts.LogDir)
	if err != nil {
		return err
	}
	for _, service := range services {
		if service.IsDir() {
			if err := rotateService(filepath.Join(r.opts.LogDir, service.Name()), live); err != nil {
				return err
			}
		}
	}
	return dropOldest(r.opts.LogDir, live, oldLogsLimit)
}

// dropOldest deletes the oldest logs of ended instances, of whatever service,
// until the rest is no larger than limit.
func dropOldest(dir string, live map[string]bool, limit int64) error {
	type part struct {
		path string
		size int64
		at   time.Time
	}
	var parts []part
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*.log*"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		id, _, _ := strings.Cut(filepath.Base(path), ".log")
		if info, err := os.Stat(path); err == nil && !live[instanceOf(id)] {
			parts = append(parts, part{path, info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(parts, func(a, b part) int { return b.at.Compare(a.at) })
	for _, p := range parts {
		if limit -= p.size; limit >= 0 {
			continue
		}
		if err := os.Remove(p.path); err != nil && !missing(err) {
			return err
		}
	}
	return nil
}

func rotateService(dir string, live map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type ended struct {
		path string
		at   time.Time
	}
	var old []ended
	for _, e := range entries {
		id, isLog := strings.CutSuffix(e.Name(), ".log")
		info, err := e.Info()
		if !isLog || err != nil {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if info.Size() > logLimit {
			if err := turnOver(path); err != nil {
				return err
			}
		}
		if !live[instanceOf(id)] {
			old = append(old, ended{path, info.ModTime()})
		}
	}
	slices.SortFunc(old, func(a, b ended) int { return cmp.Compare(b.at.UnixNano(), a.at.UnixNano()) })
	for _, o := range old[min(len(old), logsKept):] {
		for _, path := range []string{o.path, o.path + oldPart} {
			if err := os.Remove(path); err != nil && !missing(err) {
				return err
			}
		}
	}
	return nil
}

// turnOver copies a log's end away and empties it in place: the shim has it open,
// and writes at its end wherever that is.
func turnOver(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if info, err := in.Stat(); err == nil && info.Size() > logLimit {
		if _, err := in.Seek(-logLimit, io.SeekEnd); err != nil {
			return err
		}
	}
	out, err := os.Create(path + oldPart)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Truncate(path, 0)
}

// awaitQuiet returns when a file has not grown for a while, or has grown for too
// long.
func awaitQuiet(ctx context.Context, path string) {
	const pause, quiet, most = 5 * time.Millisecond, 5, 60
	tick := time.NewTicker(pause)
	defer tick.Stop()
	last, since := int64(-1), 0
	for range most {
		if info, err := os.Stat(path); err != nil || info.Size() == last {
			since++
		} else {
			last, since = info.Size(), 0
		}
		if since >= quiet {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// tail returns the last whole lines of a log, at most n bytes, also those before
// it was turned over.
func tail(path string, n int) string {
	b, cut := lastBytes(path, n)
	if !cut {
		var before []byte
		before, cut = lastBytes(path+oldPart, n-len(b))
		b = slices.Concat(before, b)
	}
	if cut {
		if i := bytes.IndexByte(b, '\n'); i >= 0 && i+1 < len(b) {
			b = b[i+1:]
		}
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(b), "\uFFFD"))
}

// lastBytes returns at most the last n bytes of a file, and whether there are
// more.
func lastBytes(path string, n int) (b []byte, more bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, false
	}
	from := max(0, info.Size()-int64(n))
	b = make([]byte, min(int64(n), info.Size()))
	read, err := f.ReadAt(b, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false
	}
	return b[:read], from > 0
}
