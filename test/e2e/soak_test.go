package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/sys/unix"
)

// soak is a day of a host, compressed: users of several services who come and go
// as the day does, and what an operator does meanwhile. All that is random comes
// of the seed; what overlaps in time need not be the same in another run.
//
// A request that does not go as it should is noted with its time. At the end each
// is held against what happened meanwhile and against Caddy's access log, which
// says by its ID which instance had it.
type soak struct {
	*protocolHost

	t    *testing.T
	seed uint64
	ids  atomic.Int64
	gate sync.RWMutex // held by the operator when no request may begin
	gone sync.RWMutex // the same, of the service that is deleted and made again

	mu       sync.Mutex
	quic     []*quic.Conn
	failures []failure
	done     map[string]int // requests that went well, by kind
	events   []event
	day, end time.Time // the day that is being simulated
	phase    string

	config  int
	version int
	ready   map[string]time.Time // when an instance was first seen up
	lost    map[string]bool      // revisions of which an instance was killed
}

// event is something that the operator did to a service ("" is to all).
type event struct {
	kind, service string
	instance      string // that was killed
	began, ended  time.Time
}

func (e event) String() string {
	return fmt.Sprintf("%s %s %s from %s to %s", e.kind, e.service, e.instance, e.began.Format(time.StampMilli), e.ended.Format(time.StampMilli))
}

// reloads tells whether Caddy got a new config.
func (e event) reloads() bool {
	return strings.HasSuffix(e.kind, "reload") || e.kind == "fixed deploy"
}

// failure is a request that did not go as it should.
type failure struct {
	id, kind, service string
	phase             string
	began, ended      time.Time
	status            int // of the response; 0 if there was none
	close             int // code of the WebSocket's close frame; 0 if it is none, -1 if there was no frame
	err               error
}

func (f failure) String() string {
	return fmt.Sprintf("%s: %s, request %s to %s: %v", f.phase, f.kind, f.id, f.service, f.err)
}

// during reports whether the request was there at any time of the event.
func (f failure) during(e event) bool {
	return (e.service == "" || e.service == f.service) && !f.began.After(e.ended) && !f.ended.Before(e.began)
}

const (
	drain = time.Second // of what has WebSockets
	idle  = 6 * time.Second
)

// soakServices are what is deployed by the API: annotations of the template, the
// container without the image's quotes and the version, and what uses it.
var soakServices = []struct {
	name, annotations, container string
	protocols                    bool // the image
	concurrency                  int
	users                        int
	kinds                        []string
}{
	{"web", fmt.Sprintf(`"run.fairway/idle-timeout": %q`, idle), `"ports": [{"containerPort": 8080}]`, false, 20, 5, []string{"get", "get", "get", "events", "upload", "post", "expect", "head", "leave", "download"}},
	{"rpc", fmt.Sprintf(`"run.fairway/idle-timeout": %q`, idle), `"ports": [{"name": "h2c", "containerPort": 8080}]`, true, 10, 3, []string{"unary", "server stream", "both streams", "client stream", "post", "file head", "leave"}},
	{"chat", fmt.Sprintf(`"run.fairway/idle-timeout": %q, "run.fairway/drain-timeout": %q`, idle, drain), `"ports": [{"containerPort": 8080}]`, true, 10, 4, []string{"websocket"}},
	{"heavy", fmt.Sprintf(`"run.fairway/idle-timeout": %q, "autoscaling.knative.dev/max-scale": "3"`, idle), `"ports": [{"containerPort": 8080}]`, false, 1, 2, []string{"exclusive"}},
	{"icy", fmt.Sprintf(`"run.fairway/idle-timeout": %q`, idle), `"ports": [{"containerPort": 8080}]`, false, 10, 1, []string{"get", "post"}},
	{"brief", `"run.fairway/idle-timeout": "100ms"`, `"ports": [{"containerPort": 8080}]`, false, 10, 1, []string{"get", "events"}},
	{"guest", fmt.Sprintf(`"run.fairway/idle-timeout": %q`, idle), `"ports": [{"containerPort": 8080}]`, false, 10, 1, []string{"get", "upload"}},
}

// TestSoak simulates a day (FAIRWAY_FULL=1: in ten minutes; else in a few seconds, with
// everything that can happen once). No status is one that it should not be,
// and what Caddy and the machine hold in the end is what they held before.
// FAIRWAY_SEED repeats a schedule.
func TestSoak(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("FAIRWAY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FAIRWAY_SEED: %v", err)
		}
	}
	t.Logf("FAIRWAY_SEED=%d", seed)
	h := newProtocolHost(t, onExit("keep"), fairwayOption("domain http://test"), fairwayOption("memory 4GiB"))
	s := &soak{protocolHost: h, t: t, seed: seed, done: make(map[string]int), ready: make(map[string]time.Time), lost: make(map[string]bool)}
	s.minders()
	h.start(s.caddyfile())
	rng := rand.New(rand.NewPCG(seed, 0))

	// Caddy is killed in the first day alone, so that what it holds can be compared.
	kinds := []string{"deploy", "deploy", "split", "rollback", "reload", "forced reload", "changed reload", "fixed deploy", "failing deploy", "kill", "recreate"}
	s.deployAll()
	s.live("warm-up", rng, 14*time.Second, append(slices.Clone(kinds), "caddy kill"), 0)
	before := s.rest()
	s.deployAll()
	s.live("day", rng, time.Duration(loops(14, 600))*time.Second, kinds, loops(0, 150))
	after := s.rest()
	before.compare(t, after)
	s.judge()
	for _, kind := range append(kinds, "caddy kill") {
		if !slices.ContainsFunc(s.events, func(e event) bool { return e.kind == kind }) {
			t.Errorf("no %s could be tried", kind)
		}
	}
	t.Logf("went well: %v; %d events", s.done, len(s.events))
	if t.Failed() {
		t.Logf("repeat with FAIRWAY_SEED=%d", seed)
	}
}

// minders notes the connections of QUIC: nobody tells their client that the other end is gone.
func (s *soak) minders() {
	h3, ok := s.clients["h3"].Transport.(*http3.Transport)
	if !ok {
		s.t.Fatal("the client of HTTP/3 has another transport")
	}
	dial := h3.Dial
	h3.Dial = func(ctx context.Context, address string, config *tls.Config, settings *quic.Config) (*quic.Conn, error) {
		conn, err := dial(ctx, address, config, settings)
		if err == nil {
			s.mu.Lock()
			s.quic = append(s.quic, conn)
			s.mu.Unlock()
		}
		return conn, err
	}
}

// caddyfile is the config of the moment: one service is declared in it.
func (s *soak) caddyfile() string {
	fixed := ""
	if s.version > 0 {
		fixed = s.vhost("fixed", "concurrency 10", "idle_timeout "+idle.String(), fmt.Sprintf("env VERSION %d", s.version))
	}
	return s.everywhere(fmt.Sprintf("log {\n\toutput stderr\n\tformat json\n}\nheader X-Config %d\n%sfairway\n", s.config, fixed))
}

// hour is the time of the simulated day.
func (s *soak) hour() float64 {
	return 24 * float64(time.Since(s.day)) / float64(s.end.Sub(s.day))
}

// loadAt is a part of the day's highest load: a quiet night, a morning ramp, and
// peaks at noon and in the evening.
func loadAt(hour float64) float64 {
	curve := []float64{.05, .01, 0, 0, 0, .01, .1, .3, .6, .7, .7, .8, 1, .7, .6, .6, .6, .7, .9, 1, .7, .4, .2, .1, .05}
	at := min(max(hour, 0), 23.99)
	n := int(at)
	return curve[n] + (curve[n+1]-curve[n])*(at-float64(n))
}

// stamp is when in the schedule it is.
func (s *soak) stamp() string {
	hour := s.hour()
	return fmt.Sprintf("%s %02d:%02d", s.phase, int(hour), int(hour*60)%60)
}

// live lets a day pass, in which everything of kinds happens once, and so much more.
func (s *soak) live(phase string, rng *rand.Rand, length time.Duration, kinds []string, more int) {
	s.t.Helper()
	for range more {
		kinds = append(kinds, kinds[rng.IntN(len(kinds))])
	}
	rng.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	s.phase, s.day = phase, time.Now()
	s.end = s.day.Add(length)
	stop := make(chan struct{})
	users := crowd(s.t)
	leave := sync.OnceFunc(func() { close(stop) })
	s.t.Cleanup(leave)
	everyone := slices.Clone(soakServices)
	everyone = append(everyone, everyone[4]) // used like icy
	everyone[len(soakServices)].name = "fixed"
	for n, svc := range everyone {
		for user := range svc.users {
			own := rand.New(rand.NewPCG(s.seed, uint64(1+100*n+user)+uint64(length)))
			users.Go(func() { s.use(stop, own, svc.name, svc.kinds) })
		}
	}
	for n, kind := range kinds {
		due := s.day.Add(length * time.Duration(n+1) / time.Duration(len(kinds)+1))
		for time.Now().Before(due) {
			s.look()
			time.Sleep(100 * time.Millisecond)
		}
		s.operate(kind, rng)
		if s.t.Failed() {
			break
		}
	}
	time.Sleep(time.Until(s.end))
	leave()
	users.Wait()
	if s.t.Failed() {
		s.judge()
		s.t.FailNow()
	}
}

// look notes since when instances are up.
func (s *soak) look() {
	for _, i := range s.instances() {
		if _, seen := s.ready[i.Instance]; i.up() && !seen {
			s.ready[i.Instance] = time.Now()
		}
	}
}

// manifest is a service of soakServices with a new version, and more in its
// environment and its container.
func (s *soak) manifest(name, env, more string) string {
	s.version++
	for _, svc := range soakServices {
		if svc.name != name {
			continue
		}
		image, delay := probeName+"1", ""
		if svc.protocols {
			image = protocolsName
		}
		if name == "heavy" {
			delay = `, {"name": "START_DELAY_MS", "value": "400"}`
		}
		return fmt.Sprintf(`{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": %q}, "spec": {"template": {
			"metadata": {"annotations": {%s}}, "spec": {"containerConcurrency": %d, "containers": [{"image": %q,
			"resources": {"limits": {"memory": "128Mi"}}, "env": [{"name": "VERSION", "value": "%d"}%s%s], %s%s}]}}}}`,
			name, svc.annotations, svc.concurrency, image, s.version, delay, env, svc.container, more)
	}
	panic("no service " + name)
}

func (s *soak) patch(name, env, more string) {
	s.t.Helper()
	s.apply(http.MethodPatch, knative+"services/"+name, "application/merge-patch+json", s.manifest(name, env, more))
}

// awaitLatest waits until what was created last is ready.
func (s *soak) awaitLatest(name string) {
	s.t.Helper()
	within(s.t, time.Minute, s.stamp()+": "+name+" is ready", func() bool {
		svc := s.state(name)
		return svc != nil && svc.IsReady() && svc.Status.LatestReadyRevisionName == svc.Status.LatestCreatedRevisionName
	})
}

func (s *soak) deployAll() {
	s.t.Helper()
	for _, svc := range soakServices {
		s.apply(http.MethodPost, knative+"services", "application/json", s.manifest(svc.name, "", ""))
	}
	for _, svc := range soakServices {
		s.awaitLatest(svc.name)
	}
	s.check(s.reload(s.caddyfile(), false)) // with the fixed one
}

// operate does what an operator does, and waits for it to be done.
func (s *soak) operate(kind string, rng *rand.Rand) {
	s.t.Helper()
	e := event{kind: kind, began: time.Now()}
	deployed := []string{"web", "rpc", "chat", "icy", "heavy", "brief"}
	e.service = deployed[rng.IntN(len(deployed))]
	command := func(args ...string) {
		s.t.Helper()
		s.cli("", args...).wants(s.t, 0)
	}
	previous := func() string {
		name := s.state(e.service).Status.LatestReadyRevisionName
		s.patch(e.service, "", "")
		s.awaitLatest(e.service)
		return name
	}
	switch kind {
	case "deploy":
		s.patch(e.service, "", "")
		s.awaitLatest(e.service)
	case "split":
		command("traffic", e.service, "--to-revisions", previous()+"=50,LATEST=50")
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
		command("traffic", e.service, "--to-latest")
	case "rollback":
		previous()
		command("rollback", e.service)
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
		command("traffic", e.service, "--to-latest")
	case "failing deploy":
		e.service = []string{"web", "icy"}[rng.IntN(2)]
		serving := s.state(e.service).Status.LatestReadyRevisionName
		s.patch(e.service, `, {"name": "FAIL_START", "value": "nolisten"}`, `, "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}`)
		within(s.t, time.Minute, s.stamp()+": it fails", func() bool { return s.state(e.service).IsFailed() })
		if now := s.state(e.service).Status.LatestReadyRevisionName; now != serving {
			s.t.Errorf("%s: %s is ready; want %s", s.stamp(), now, serving)
		}
		s.patch(e.service, "", "")
		s.awaitLatest(e.service)
	case "reload", "forced reload", "changed reload", "fixed deploy":
		e.service = ""
		switch kind {
		case "changed reload":
			s.config++
		case "fixed deploy":
			s.version++
		}
		s.check(s.reload(s.caddyfile(), kind == "forced reload"))
		time.Sleep(250 * time.Millisecond) // until the old listeners are closed
	case "recreate":
		e.service = "guest"
		s.gone.Lock()
		s.apply(http.MethodDelete, knative+"services/guest", "", "")
		e.ended = time.Now()
		s.apply(http.MethodPost, knative+"services", "application/json", s.manifest("guest", "", ""))
		s.awaitLatest("guest")
		s.gone.Unlock()
	case "kill":
		e = s.killOne(rng)
	case "caddy kill":
		e = s.killCaddy()
	}
	if e.ended.IsZero() {
		e.ended = time.Now()
	}
	s.mu.Lock()
	s.events = append(s.events, e)
	s.mu.Unlock()
}

// killOne kills a busy instance. One that ends soon after its start is replaced at once
// only the first time: so each revision loses one such.
func (s *soak) killOne(rng *rand.Rand) event {
	s.t.Helper()
	const settled = 11 * time.Second
	var victims []instance
	for until := time.Now().Add(patience); len(victims) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			s.t.Logf("%s: no instance is busy and old enough to be killed", s.stamp())
			return event{kind: "no kill", began: time.Now()}
		}
		s.look()
		victims = slices.DeleteFunc(s.instances(), func(i instance) bool {
			young := s.ready[i.Instance].IsZero() || time.Since(s.ready[i.Instance]) < settled
			return i.State != "ready" || i.InFlight == 0 || young && s.lost[i.Revision]
		})
	}
	victim := victims[rng.IntN(len(victims))]
	s.lost[victim.Revision] = true
	e := event{kind: "kill", service: victim.Service, instance: victim.Instance, began: time.Now()}
	process, err := unix.PidfdOpen(victim.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return e
	}
	s.check(err)
	defer unix.Close(process)
	s.check(unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0))
	// Its connections are open until the last of its threads has ended, though it is a
	// zombie before.
	eventually(s.t, s.stamp()+": the process has ended", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
	return e
}

// killCaddy kills Caddy and starts it: requests in flight break, instances do not.
func (s *soak) killCaddy() event {
	s.t.Helper()
	s.gate.Lock()
	defer s.gate.Unlock()
	up := s.instances()
	e := event{kind: "caddy kill", began: time.Now()}
	s.kill()
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
	s.mu.Lock()
	for _, conn := range s.quic {
		_ = conn.CloseWithError(0, "Caddy was killed")
	}
	s.quic = nil
	s.mu.Unlock()
	e.ended = time.Now()
	s.start(s.caddyfile())
	gone := func(i instance) bool { // what was about to go may have gone
		return slices.ContainsFunc(s.logged("instance draining"), func(e entry) bool { return e["instance"] == i.Instance })
	}
	eventually(s.t, s.stamp()+": the instances are adopted", func() bool {
		after := s.instances()
		return !slices.ContainsFunc(up, func(i instance) bool {
			there := slices.ContainsFunc(after, func(a instance) bool { return a.Instance == i.Instance && a.PID == i.PID && a.up() })
			return i.up() && !there && !gone(i)
		})
	})
	return e
}

// use uses a service as one user does, more or less often as the day goes.
func (s *soak) use(stop <-chan struct{}, rng *rand.Rand, service string, kinds []string) {
	const (
		tick = 20 * time.Millisecond
		rate = 8 // requests a second of one user who need not wait, at most
	)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	u := newUser(s, rng, service)
	defer u.leave()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		if rng.Float64() > rate*tick.Seconds()*loadAt(s.hour()) {
			continue
		}
		kind := kinds[rng.IntN(len(kinds))]
		s.gate.RLock()
		if service == "guest" {
			s.gone.RLock()
		}
		f := failure{id: strconv.FormatInt(s.ids.Add(1), 10), kind: kind, service: service, phase: s.stamp(), began: time.Now()}
		if service == "guest" {
			s.gone.RUnlock()
		}
		s.gate.RUnlock()
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		u.do(ctx, &f)
		cancel()
		f.ended = time.Now()
		s.mu.Lock()
		if f.err == nil {
			s.done[f.kind]++
		} else {
			s.failures = append(s.failures, f)
		}
		s.mu.Unlock()
	}
}

// access is what Caddy's access log says of a request.
type access struct {
	Request struct {
		Headers http.Header `json:"headers"`
	} `json:"request"`
	Status   int    `json:"status"`
	Instance string `json:"fairway_instance"`
}

// judge fails the test for each failure that nothing excuses.
func (s *soak) judge() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := make(map[string][]string) // the lines about a request
	for _, f := range s.failures {
		wanted[f.id] = nil
	}
	accesses := make(map[string]access)
	for line := range strings.Lines(s.rawLog()) {
		if !strings.Contains(line, `"X-Soak"`) || len(wanted) == 0 {
			continue
		}
		var a access
		if json.Unmarshal([]byte(line), &a) != nil {
			continue
		}
		id := a.Request.Headers.Get("X-Soak")
		if _, ok := wanted[id]; !ok {
			continue
		}
		wanted[id] = append(wanted[id], line)
		if a.Request.Headers != nil && strings.Contains(line, "http.log.access") {
			accesses[id] = a
		}
	}
	excuses := make(map[string]int)
	bad := 0
	for _, f := range s.failures {
		a, reached := accesses[f.id]
		if excuse := s.excuse(f, a, reached); excuse != "" {
			excuses[excuse]++
			continue
		}
		bad++
		if bad > 20 {
			continue
		}
		var around []string
		for _, e := range s.events {
			if f.began.Before(e.ended.Add(2*time.Second)) && f.ended.After(e.began.Add(-2*time.Second)) {
				around = append(around, e.String())
			}
		}
		s.t.Errorf("%s\n  instance %q, from %s to %s, status %d, close code %d\n  meanwhile: %s\n  Caddy's log %s says:\n%s",
			f, a.Instance, f.began.Format(time.StampMicro), f.ended.Format(time.StampMicro), f.status, f.close, around, s.logFile(), strings.Join(wanted[f.id], ""))
	}
	if bad > 0 {
		s.t.Errorf("%d requests failed, FAIRWAY_SEED=%d", bad, s.seed)
	}
	total := len(s.failures)
	for _, n := range s.done {
		total += n
	}
	s.t.Logf("excused: %v, of %d requests", excuses, total)
	if n := excuses[closedListener] + excuses[closedConnection]; n > 1+total/100 {
		s.t.Errorf("%d of %d connections were reset", n, total)
	}
	s.failures = nil
}

// closedListener excuses what never got to Caddy: each of its configs has a listening
// socket of its own, and when an old one is closed the kernel resets what nobody has accepted.
const closedListener = "a listening socket that was just closed"

// closedConnection excuses the same of a connection of HTTP/1.1 that was in use when its
// config was replaced: the old server looks each half second for those that have become
// idle, and may close one that the client has just chosen for a POST. (It repeats others by
// itself.)
const closedConnection = "a connection that was just closed"

// lingers is for how long after a reload responses may go on.
const lingers = 3 * time.Second

// excuse says why a request may have failed, "" if it may not.
func (s *soak) excuse(f failure, a access, reached bool) string {
	for _, e := range s.events {
		if !f.during(e) {
			continue
		}
		switch {
		case e.kind == "caddy kill" && f.status == 0:
			return "Caddy was killed"
		case e.kind == "kill" && reached && a.Instance == e.instance && f.close <= 0 && (f.status == 0 || f.status == http.StatusBadGateway):
			return "its instance was killed"
		case e.reloads():
			if f.status == 0 && !reached {
				return closedListener
			}
		case e.kind == "recreate" && (f.status == http.StatusNotFound || f.status == http.StatusServiceUnavailable):
			return "its service was deleted"
		case (e.kind == "deploy" || e.kind == "rollback" || e.kind == "split") && f.close == goingAway:
			return "its revision was replaced"
		}
	}
	if f.status == 0 && !reached && strings.HasSuffix(f.kind, " by HTTP/1.1") && slices.ContainsFunc(s.events, func(e event) bool {
		since := f.began.Sub(e.ended)
		return e.reloads() && since >= 0 && since < lingers
	}) {
		return closedConnection
	}
	var closed *quic.ApplicationError
	if f.status == 0 && !reached && errors.As(f.err, &closed) && !closed.Remote && closed.ErrorCode == quic.ApplicationErrorCode(http3.ErrCodeNoError) {
		// It closes one that a reload has said goodbye on when the last response has come,
		// though the next request has been given to it by then.
		return "the client of HTTP/3 has closed its own connection"
	}
	return ""
}
