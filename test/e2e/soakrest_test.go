package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// holdings are what Caddy and the machine hold at rest: counts by what is counted.
type holdings struct {
	heap   int64
	counts map[string]int
	named  []string // services with series
}

// heapSlack is by how much Caddy's heap may be larger after a day of any length: caches
// that are bounded but not yet full in the beginning, as the log of changes for those that
// watch (2 MB), the sessions of TLS and the buffers of logs and HTTP/2.
const heapSlack = 4 << 20

// rest waits until nothing runs for want of requests, removes all services, and takes stock
// when everything has settled.
func (s *soak) rest() holdings {
	s.t.Helper()
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
	within(s.t, 2*patience, "all is scaled to zero", func() bool { return len(s.instances()) == 0 })
	for _, svc := range soakServices {
		s.apply(http.MethodDelete, knative+"services/"+svc.name, "", "")
	}
	version := s.version
	s.version = 0 // the config without the fixed service
	s.check(s.reload(s.caddyfile(), false))
	s.version = version
	s.assertOnly(0)
	// A minute after revisions have gone nothing is kept for starts of them.
	time.Sleep(time.Duration(loops(0, 65)) * time.Second)
	// What is still under way changes; connections that nobody closes end within Caddy's and
	// quic-go's time-outs.
	const still = 2 * time.Second
	last, since, settled := s.take(), time.Now(), false
	defer func() {
		if !settled {
			s.t.Logf("%s, not at rest: %v; series of %q; changed last %s ago", s.phase, last.counts, last.named, time.Since(since))
		}
	}()
	within(s.t, 3*patience, "all has settled", func() bool {
		time.Sleep(200 * time.Millisecond)
		now := s.take()
		if !maps.Equal(now.counts, last.counts) {
			since = time.Now()
		}
		last = now
		settled = time.Since(since) >= still && now.counts["networks"] == 4 && now.counts["services with series"] == 0
		return settled
	})
	s.t.Logf("%s, at rest: %d KB of heap, %v", s.phase, last.heap>>10, last.counts)
	return last
}

func (s *soak) take() holdings {
	s.t.Helper()
	s.client.CloseIdleConnections()
	all := holdings{counts: map[string]int{"goroutines": s.goroutines()}}
	for line := range strings.Lines(s.ask("/debug/pprof/heap?gc=1&debug=1")) {
		_, _ = fmt.Sscanf(line, "# HeapAlloc = %d", &all.heap)
	}
	named := make(map[string]bool)
	for series := range s.metrics() {
		name, labels, _ := strings.Cut(series, "{")
		if !strings.HasPrefix(name, "caddy_fairway_") {
			continue
		}
		if _, revision, _ := strings.Cut(labels, `revision="`); revision != "" && revision[0] != '"' {
			all.counts["series of revisions"]++
		}
		if _, service, ok := strings.Cut(labels, `service="`); ok {
			// Requests for services that are not there have one together.
			if service, _, _ = strings.Cut(service, `"`); service != "" {
				named[service] = true
			}
		}
	}
	all.named = slices.Sorted(maps.Keys(named))
	all.counts["services with series"] = len(named)
	dir := fmt.Sprintf("/proc/%d/fd", s.pid())
	entries, err := os.ReadDir(dir)
	s.check(err)
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(to, ":[")
		all.counts["descriptors of "+kind]++
	}
	count := func(what string, names []string, err error) {
		s.t.Helper()
		s.check(err)
		all.counts[what] = len(names)
	}
	shims, err := s.shims()
	count("shims", shims, err)
	count("cgroups", s.cgroups(), nil)
	networks, err := s.mounts()
	count("networks", networks, err)
	addresses, err := s.reservations()
	count("addresses", addresses, err)
	rules, err := s.rules()
	count("tables of rules", rules, err)
	records, err := s.records()
	count("CNI records", records, err)
	count("containers", s.containers(), nil)
	count("state entries", s.entries(s.stateDir, s.logDir), nil)
	count("records of services", s.entries(filepath.Join(s.dir, "storage", "fairway"), ""), nil)
	logs := s.entries(s.logDir, "")
	perService := make(map[string]int)
	for _, log := range logs {
		perService[filepath.Dir(log)]++
	}
	const kept, sinceLastLook = 10, 60
	for dir, n := range perService {
		if n > kept+sinceLastLook {
			s.t.Errorf("%d logs of ended instances are kept in %s", n, dir)
		}
	}
	return all
}

// entries are all files below a directory, without those below another.
func (s *soak) entries(dir, without string) []string {
	s.t.Helper()
	var all []string
	s.check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil
		case err != nil:
			return err
		case path == without:
			return fs.SkipDir
		case !d.IsDir():
			all = append(all, path)
		}
		return nil
	}))
	return all
}

// compare fails the test where more is held after than before.
func (before holdings) compare(t *testing.T, after holdings) {
	t.Helper()
	for what, n := range after.counts {
		slack := 0
		if what == "goroutines" {
			slack = runtime.NumCPU() // the runtime's own workers of the collector are counted
		}
		if n > before.counts[what]+slack {
			t.Errorf("%s: %d before, %d after", what, before.counts[what], n)
		}
	}
	if after.heap > before.heap+heapSlack {
		t.Errorf("heap: %d KB before, %d KB after; want at most %d KB more", before.heap>>10, after.heap>>10, heapSlack>>10)
	}
}
