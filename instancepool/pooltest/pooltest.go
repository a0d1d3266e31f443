// Package pooltest has a Runtime for tests. Its instances are no processes: they
// start, become ready, exit and stop when the test says so, and count what is
// done to them. All their time is the time package's, so they live in testing/synctest
// bubbles as well.
package pooltest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// ErrUnready is what the probe of an instance that does not get ready returns.
var ErrUnready = errors.New("connection refused")

// Plan says what an instance does. The zero value starts and gets ready at once,
// and runs until it is asked to stop.
type Plan struct {
	// StartTime is what Start takes.
	StartTime time.Duration
	// StartErr is what Start returns instead of an instance.
	StartErr error
	// Hang makes Start wait for its context's end.
	Hang bool
	// ReadyAfter is how long after its start the instance passes its probe.
	ReadyAfter time.Duration
	// Unready makes its probe fail, with ErrUnready, after ReadyAfter.
	Unready bool
	// ExitAfter is how long after its start it exits by itself, with ExitCode; 0
	// means never.
	ExitAfter time.Duration
	ExitCode  int
	// IgnoreTerm makes it run until SIGKILL.
	IgnoreTerm bool
	// StopTime is how long it takes to end after SIGTERM, KillTime after SIGKILL.
	StopTime, KillTime time.Duration
	// Log is what it has written.
	Log string
	// FreezeTime and ThawTime are what Freeze and Thaw take; FreezeErr and ThawErr
	// are what they return instead of doing it.
	FreezeTime, ThawTime time.Duration
	FreezeErr, ThawErr   error
	// AheadErr is what Prepare returns instead of an instance.
	AheadErr error
	// PreparedStart is what the start of an instance takes that was prepared, in
	// StartTime; PreparedErr is what it returns instead.
	PreparedStart time.Duration
	PreparedErr   error
	// Usage is what the instance uses.
	Usage instancepool.Usage
	// Exec is what a command in one of its containers, such as a probe, does; nil: it
	// succeeds.
	Exec func(ctx context.Context, container string, command []string) error
	// ContainerErr is what the start of a container that depends on others returns.
	ContainerErr error
}

// Runtime is an instancepool.Runtime for tests. It is safe for concurrent use.
type Runtime struct {
	mu        sync.Mutex
	plan      func(instancepool.StartSpec) Plan
	image     func(ctx context.Context, name string) (string, error)
	progress  []instancepool.Progress
	listErr   error
	pruneErr  error
	pruned    [][]string
	attempts  int
	starting  int
	parallel  int
	pid       int
	instances []*Instance
	byID      map[string]*Instance
	prepared  map[string]bool
	capacity  instancepool.Capacity
	closed    bool

	busy      float64 // the part of the processors that has worked since busySince
	busySince time.Time
	worked    time.Duration // before busySince; of had
	had       time.Duration
}

// NewRuntime returns a runtime whose instances follow the zero Plan.
func NewRuntime() *Runtime {
	return &Runtime{
		plan:  func(instancepool.StartSpec) Plan { return Plan{} },
		image: func(context.Context, string) (string, error) { return "sha256:0123", nil },
		byID:  make(map[string]*Instance),
		pid:   1000,

		prepared: make(map[string]bool),
		capacity: instancepool.Capacity{Memory: 64 << 30, CPU: 16},
	}
}

// Plan makes what is started from now on follow plan.
func (rt *Runtime) Plan(plan Plan) {
	rt.PlanFor(func(instancepool.StartSpec) Plan { return plan })
}

// PlanFor makes what is started from now on follow the plan that f returns.
func (rt *Runtime) PlanFor(f func(instancepool.StartSpec) Plan) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.plan = f
}

// Image makes f resolve images from now on.
func (rt *Runtime) Image(f func(ctx context.Context, name string) (string, error)) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.image = f
}

// Progress makes the resolution of images report steps from now on.
func (rt *Runtime) Progress(steps ...instancepool.Progress) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.progress = steps
}

// FailList makes List return err, until it is nil.
func (rt *Runtime) FailList(err error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.listErr = err
}

// Leave makes an instance that runs as if an earlier process had started it.
func (rt *Runtime) Leave(id string, rev *revisions.Revision, plan Plan) *Instance {
	return rt.make(id, rev, plan)
}

// Attempts counts the calls of Start.
func (rt *Runtime) Attempts() int {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.attempts
}

// Parallel is how many calls of Start there were at most at the same time.
func (rt *Runtime) Parallel() int {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.parallel
}

// Instances returns all there ever were, in the order they were started.
func (rt *Runtime) Instances() []*Instance {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return slices.Clone(rt.instances)
}

// Instance returns one by its name, or nil.
func (rt *Runtime) Instance(id string) *Instance {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.byID[id]
}

// Running returns the instances that have not exited.
func (rt *Runtime) Running() []*Instance {
	return slices.DeleteFunc(rt.Instances(), func(i *Instance) bool { return i.hasExited() })
}

// Closed reports whether Close has been called.
func (rt *Runtime) Closed() bool {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.closed
}

// Resolve implements instancepool.Runtime.
func (rt *Runtime) Resolve(ctx context.Context, image string, progress func(instancepool.Progress)) (string, error) {
	rt.mu.Lock()
	resolve, steps := rt.image, rt.progress
	rt.mu.Unlock()
	for _, step := range steps {
		progress(step)
	}
	return resolve(ctx, image)
}

// Prune implements instancepool.Runtime: Pruned tells of it.
func (rt *Runtime) Prune(_ context.Context, used iter.Seq2[string, string]) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	var kept []string
	for image, digest := range used {
		kept = append(kept, image+"@"+digest)
	}
	slices.Sort(kept)
	rt.pruned = append(rt.pruned, slices.Compact(kept))
	return rt.pruneErr
}

// Pruned returns what was kept, as "image@digest" in order, each time that images
// were pruned.
func (rt *Runtime) Pruned() [][]string {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return slices.Clone(rt.pruned)
}

// FailPrune makes Prune fail; nil ends that.
func (rt *Runtime) FailPrune(err error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.pruneErr = err
}

// Size is the host's from now on.
func (rt *Runtime) Size(c instancepool.Capacity) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.capacity = c
}

// Busy sets which part of the host's processors works from now on.
func (rt *Runtime) Busy(part float64) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.work()
	rt.busy = part
}

// work notes what the processors have done until now. The caller holds mu.
func (rt *Runtime) work() {
	now := time.Now()
	if !rt.busySince.IsZero() {
		passed := now.Sub(rt.busySince) * time.Duration(rt.capacity.CPU)
		rt.had += passed
		rt.worked += time.Duration(rt.busy * float64(passed))
	}
	rt.busySince = now
}

// Worked implements instancepool.Gauger.
func (rt *Runtime) Worked() (busy, idle time.Duration, err error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.work()
	return rt.worked, rt.had - rt.worked, nil
}

// Capacity implements instancepool.Sizer.
func (rt *Runtime) Capacity() (instancepool.Capacity, error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.capacity, nil
}

// Prepared counts the instances that are prepared and neither started nor
// discarded.
func (rt *Runtime) Prepared() int {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return len(rt.prepared)
}

// Prepare implements instancepool.Preparer.
func (rt *Runtime) Prepare(ctx context.Context, spec instancepool.StartSpec) (instancepool.Prepared, error) {
	rt.mu.Lock()
	plan := rt.plan(spec)
	rt.mu.Unlock()
	if plan.AheadErr != nil {
		return nil, plan.AheadErr
	}
	if err := wait(ctx, plan.StartTime-plan.PreparedStart); err != nil {
		return nil, err
	}
	if plan.StartErr != nil {
		return nil, plan.StartErr
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.prepared[spec.ID] = true
	return &prepared{rt: rt, spec: spec, plan: plan}, nil
}

type prepared struct {
	rt   *Runtime
	spec instancepool.StartSpec
	plan Plan
}

func (p *prepared) ID() string { return p.spec.ID }

func (p *prepared) use() error {
	p.rt.mu.Lock()
	defer p.rt.mu.Unlock()
	if !p.rt.prepared[p.spec.ID] {
		return fmt.Errorf("prepared instance %s has been used already", p.spec.ID)
	}
	delete(p.rt.prepared, p.spec.ID)
	return nil
}

func (p *prepared) Start(ctx context.Context, _ func(string, time.Duration)) (instancepool.Handle, error) {
	if err := p.use(); err != nil {
		return nil, err
	}
	if err := wait(ctx, p.plan.PreparedStart); err != nil {
		return nil, err
	}
	if p.plan.PreparedErr != nil {
		return nil, p.plan.PreparedErr
	}
	return p.rt.make(p.spec.ID, p.spec.Revision, p.plan), nil
}

func (p *prepared) Discard(context.Context) error { return p.use() }

// Start implements instancepool.Runtime.
func (rt *Runtime) Start(ctx context.Context, spec instancepool.StartSpec) (instancepool.Handle, error) {
	rt.mu.Lock()
	rt.attempts++
	rt.starting++
	rt.parallel = max(rt.parallel, rt.starting)
	f := rt.plan
	rt.mu.Unlock()
	defer func() {
		rt.mu.Lock()
		defer rt.mu.Unlock()
		rt.starting--
	}()
	plan := f(spec)
	if plan.Hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := wait(ctx, plan.StartTime); err != nil {
		return nil, err
	}
	if plan.StartErr != nil {
		return nil, plan.StartErr
	}
	return rt.make(spec.ID, spec.Revision, plan), nil
}

func (rt *Runtime) make(id string, rev *revisions.Revision, plan Plan) *Instance {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.pid++
	i := &Instance{id: id, rev: rev, plan: plan, pid: rt.pid, started: time.Now(), exited: make(chan struct{}), removed: make(chan struct{})}
	i.since, i.execs = make(map[string]time.Time), make(map[string]int)
	for _, h := range rev.Spec().Health {
		if len(h.After) == 0 {
			i.since[h.Container] = i.started
		}
	}
	i.address = fmt.Sprintf("10.88.0.1:%d", i.pid)
	rt.instances = append(rt.instances, i)
	rt.byID[id] = i
	if plan.ExitAfter > 0 {
		i.end = time.AfterFunc(plan.ExitAfter, func() { i.Kill(plan.ExitCode) })
	}
	return i
}

// Probe is an instancepool.Options.Probe: it looks at the instance's plan.
func (rt *Runtime) Probe(ctx context.Context, h instancepool.Handle) error {
	i := h.(*Instance)
	t := time.NewTimer(time.Until(i.started.Add(i.readyAfter())))
	defer t.Stop()
	select {
	case <-t.C:
	case <-i.exited:
		return fmt.Errorf("the container %s", i.Exit())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if i.unready() || i.Frozen() {
		return ErrUnready
	}
	return nil
}

// List implements instancepool.Runtime.
func (rt *Runtime) List(context.Context) ([]instancepool.Handle, error) {
	rt.mu.Lock()
	err := rt.listErr
	rt.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var all []instancepool.Handle
	for _, i := range rt.Running() {
		all = append(all, i)
	}
	return all, nil
}

// Close implements instancepool.Runtime.
func (rt *Runtime) Close() error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.closed = true
	return nil
}

// Instance is an instance of a Runtime.
type Instance struct {
	id      string
	rev     *revisions.Revision
	pid     int
	address string
	started time.Time
	exited  chan struct{}
	removed chan struct{} // closed once the first Stop is done
	end     *time.Timer

	mu     sync.Mutex
	plan   Plan
	exit   instancepool.Exit
	stops  int
	freeze freezing
	since  map[string]time.Time // when its containers were started
	execs  map[string]int       // how often commands ran in them
}

// freezing is what an instance's freezer has done.
type freezing struct {
	frozen  bool
	since   time.Time // of frozen
	total   time.Duration
	freezes int
}

// Freeze implements instancepool.Freezer.
func (i *Instance) Freeze(ctx context.Context) error {
	plan := i.planned()
	if err := wait(ctx, plan.FreezeTime); err != nil {
		return err
	}
	if plan.FreezeErr != nil {
		return plan.FreezeErr
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if f := &i.freeze; !f.frozen {
		f.frozen, f.since = true, time.Now()
		f.freezes++
	}
	return nil
}

// Thaw implements instancepool.Freezer.
func (i *Instance) Thaw(ctx context.Context) error {
	plan := i.planned()
	if err := wait(ctx, plan.ThawTime); err != nil {
		return err
	}
	if plan.ThawErr != nil {
		return plan.ThawErr
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.thaw(time.Now())
	return nil
}

// thaw ends a freeze. The caller holds mu.
func (i *Instance) thaw(at time.Time) {
	if f := &i.freeze; f.frozen {
		f.frozen = false
		f.total += at.Sub(f.since)
	}
}

// Frozen reports whether the instance is frozen.
func (i *Instance) Frozen() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.freeze.frozen
}

// Freezes counts how often it was frozen.
func (i *Instance) Freezes() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.freeze.freezes
}

// Lived is how long the instance has existed, and how much of that it could run.
func (i *Instance) Lived() (existed, unfrozen time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	end := time.Now()
	select {
	case <-i.exited:
		end = i.exit.At
	default:
	}
	existed = end.Sub(i.started)
	unfrozen = existed - i.freeze.total
	if i.freeze.frozen {
		unfrozen -= end.Sub(i.freeze.since)
	}
	return existed, unfrozen
}

// Replan changes what the instance does from now on.
func (i *Instance) Replan(change func(*Plan)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(&i.plan)
}

func (i *Instance) planned() Plan {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.plan
}

// Exec implements instancepool.Execer.
func (i *Instance) Exec(ctx context.Context, container string, command []string) error {
	i.mu.Lock()
	i.execs[container]++
	exec := i.plan.Exec
	i.mu.Unlock()
	if exec == nil {
		return ctx.Err()
	}
	return exec(ctx, container, command)
}

// Execs counts the commands that were run in a container.
func (i *Instance) Execs(container string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.execs[container]
}

// StartContainer implements instancepool.Stager.
func (i *Instance) StartContainer(_ context.Context, container string) (time.Time, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.plan.ContainerErr != nil {
		return time.Time{}, i.plan.ContainerErr
	}
	if _, ok := i.since[container]; !ok {
		i.since[container] = time.Now()
	}
	return i.since[container], nil
}

// ContainerStarted is how long after the instance a container was started; -1 when
// it was not.
func (i *Instance) ContainerStarted(container string) time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	at, ok := i.since[container]
	if !ok {
		return -1
	}
	return at.Sub(i.started)
}

// Usage implements instancepool.Meter.
func (i *Instance) Usage() (instancepool.Usage, error) { return i.planned().Usage, nil }

// Kill ends the instance, as a crash would.
func (i *Instance) Kill(code int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.exited:
	default:
		i.exit = instancepool.Exit{Code: code, At: time.Now()}
		i.thaw(i.exit.At)
		close(i.exited)
	}
}

// Break makes its probe fail from now on.
func (i *Instance) Break() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.plan.Unready = true
}

// ReadyAt makes its probe succeed from at on, and wait until then.
func (i *Instance) ReadyAt(at time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.plan.ReadyAfter = at.Sub(i.started)
}

// Stops counts the calls of Stop.
func (i *Instance) Stops() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stops
}

func (i *Instance) hasExited() bool {
	select {
	case <-i.exited:
		return true
	default:
		return false
	}
}

func (i *Instance) readyAfter() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.plan.ReadyAfter
}

func (i *Instance) unready() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.plan.Unready
}

// ID implements instancepool.Handle.
func (i *Instance) ID() string { return i.id }

// Revision implements instancepool.Handle.
func (i *Instance) Revision() *revisions.Revision { return i.rev }

// PID implements instancepool.Handle.
func (i *Instance) PID() int { return i.pid }

// Started implements instancepool.Handle.
func (i *Instance) Started() time.Time { return i.started }

// Address implements instancepool.Handle. Nothing listens there.
func (i *Instance) Address() string { return i.address }

// Exited implements instancepool.Handle.
func (i *Instance) Exited() <-chan struct{} { return i.exited }

// Exit implements instancepool.Handle.
func (i *Instance) Exit() instancepool.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// LogTail implements instancepool.Handle.
func (i *Instance) LogTail(n int) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.plan.Log[max(0, len(i.plan.Log)-n):]
}

// Stop implements instancepool.Handle.
func (i *Instance) Stop(ctx context.Context, grace time.Duration) error {
	i.mu.Lock()
	i.stops++
	first := i.stops == 1
	plan := i.plan
	i.mu.Unlock()
	if !first {
		select {
		case <-i.removed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer close(i.removed)
	if i.end != nil {
		i.end.Stop()
	}
	takes, code := plan.StopTime, 0
	if plan.IgnoreTerm || takes > grace || grace == 0 {
		takes, code = grace+plan.KillTime, 137
	}
	if takes > 0 && !i.hasExited() {
		t := time.NewTimer(takes)
		defer t.Stop()
		select {
		case <-t.C:
		case <-i.exited:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	i.Kill(code)
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
