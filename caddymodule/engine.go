package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
)

var errUnknownService = scaler.ErrUnknownService

// exitBudget is what stopping all instances may take when Caddy exits: systemd
// ends a Caddy that takes longer than five seconds.
const exitBudget = 4 * time.Second

// engines are the engines of this process, by the key of their runtime. They
// outlive configs: a reload provisions the new config before the old one is
// cleaned up, so the count never falls to zero in between.
var engines = caddy.NewUsagePool()

// closing counts the engines that are being closed.
var closing sync.WaitGroup

// engine is what runs, whatever config is loaded.
type engine struct {
	settings string
	scaler   *scaler.Scaler
	log      *zap.Logger
	target   atomic.Pointer[zap.Logger] // of the config that was started last
	keep     atomic.Bool
	used     atomic.Bool
	space    atomic.Pointer[string] // the namespace that the API shows

	locator    instancepool.Locator // nil: nobody can tell instances from others
	neighbours *neighbours          // nil: instances cannot be told of names
	followers  sync.WaitGroup       // what tells them

	// values are the secrets and config maps that instances refer to.
	values *revisions.Values

	opening sync.Mutex // guards all below
	storage string     // where records were read from; empty: not yet
	watched *directory // nil: none
	// following ends followers; nil: there are none yet.
	following context.CancelFunc
	closed    bool
}

// current is the engine of the config that was started last.
var current atomic.Pointer[engine]

// namespace is the one that the API has.
func (e *engine) namespace() string { return *e.space.Load() }

// open reads the registry's records, once.
func (e *engine) open(ctx context.Context, storage certmagic.Storage, domain revisions.Domain) error {
	e.opening.Lock()
	defer e.opening.Unlock()
	name := fmt.Sprint(storage)
	if e.storage != "" {
		if e.storage != name {
			return fmt.Errorf("the storage cannot change while Caddy runs: it is %s, not %s: restart Caddy to change it", e.storage, name)
		}
		return nil
	}
	e.scaler.Registry().SetDomain(domain)
	if err := e.scaler.Registry().Open(ctx, storage); err != nil {
		return fmt.Errorf("reading the registry: %w", err)
	}
	e.storage = name
	return nil
}

func loadEngine(key string, rt Runtime) (*engine, error) {
	v, _, err := engines.LoadOrNew(key, func() (caddy.Destructor, error) {
		e := &engine{settings: rt.Settings()}
		space := defaultNamespace
		e.space.Store(&space)
		e.keep.Store(true)
		e.target.Store(caddy.Log().Named("fairway"))
		e.log = zap.New(currentCore{target: &e.target})
		e.values = revisions.NewValues(rt.Dir())
		engine, err := rt.Open(e.log, e.values)
		if err != nil {
			return nil, err
		}
		e.scaler = scaler.New(scaler.Options{Runtime: engine, Observer: e, Registry: revisions.Options{Report: e.report}})
		e.locator, _ = engine.(instancepool.Locator)
		if namer, ok := engine.(instancepool.Namer); ok {
			e.neighbours = &neighbours{registry: e.scaler.Registry(), namer: namer, log: e.log}
		}
		return e, nil
	})
	if err != nil {
		return nil, err
	}
	e := v.(*engine)
	if want := rt.Settings(); e.settings != want {
		_, err := engines.Delete(key)
		return nil, errors.Join(fmt.Errorf(
			"its settings cannot change while Caddy runs: they are %s, not %s: restart Caddy to change them", e.settings, want), err)
	}
	return e, nil
}

// use notes the settings of the config that is started.
func (e *engine) use(a *App) {
	e.target.Store(a.log)
	e.keep.Store(a.OnExit == onExitKeep)
	e.space.Store(&a.Namespace)
	e.used.Store(true)
	current.Store(e)
	e.scaler.Registry().SetDomain(a.domain)
	e.scaler.Limit(a.limits)
	e.follow(a.ServicesDir)
}

// introduce tells instances of the hosts that Caddy serves, and from then on of
// the services that come; nil: of none.
func (e *engine) introduce(sites []string) {
	if e.neighbours == nil {
		return
	}
	e.opening.Lock()
	if !e.closed && e.following == nil {
		var ctx context.Context
		ctx, e.following = context.WithCancel(context.Background())
		e.followers.Go(func() { e.neighbours.follow(ctx) })
	}
	e.opening.Unlock()
	e.neighbours.use(sites)
}

// follow watches a directory of services instead of the one before.
func (e *engine) follow(path string) {
	e.opening.Lock()
	defer e.opening.Unlock()
	if e.closed || (e.watched != nil && e.watched.path == path) {
		return
	}
	e.unwatch()
	e.scaler.Registry().Disown(revisions.OwnerDirectory(path))
	if path != "" {
		e.watched = e.watchDirectory(path)
	}
}

// unwatch ends the watch. The caller holds opening.
func (e *engine) unwatch() {
	if e.watched != nil {
		e.watched.close()
		e.watched = nil
	}
}

// problems are what a user has to know of.
func (e *engine) problems() []problem {
	all := make([]problem, 0)
	for _, p := range e.scaler.Registry().Problems() {
		all = append(all, problem{Source: p.Key, Error: p.Error()})
	}
	e.opening.Lock()
	defer e.opening.Unlock()
	if e.watched != nil {
		all = append(all, e.watched.errors()...)
	}
	return all
}

// report logs what the registry could not read or write.
func (e *engine) report(err error) { e.log.Error("registry", zap.Error(err)) }

// Destruct is called when no config uses the engine any more. While Caddy runs
// on that must not hold it up, as the instances may take long to drain.
func (e *engine) Destruct() error {
	current.CompareAndSwap(e, nil)
	e.opening.Lock()
	e.closed = true
	e.unwatch()
	if e.following != nil {
		e.following()
	}
	e.opening.Unlock()
	e.followers.Wait()
	if !e.used.Load() || caddy.Exiting() {
		ctx, cancel := context.WithTimeout(context.Background(), exitBudget)
		defer cancel()
		ending := scaler.Stop
		if e.keep.Load() {
			ending = scaler.Keep
		}
		return e.scaler.Close(ctx, ending)
	}
	closing.Go(func() {
		if err := e.scaler.Close(context.Background(), scaler.Drain); err != nil {
			e.log.Error("closing the engine", zap.Error(err))
		}
	})
	return nil
}

// Instance logs and counts a change of an instance's state.
func (e *engine) Instance(ev instancepool.Event) {
	countInstance(ev)
	level, msg := zapcore.InfoLevel, "instance "+ev.State.String()
	switch ev.State {
	case instancepool.Failed:
		level = zapcore.ErrorLevel
	case instancepool.Frozen: // which is told only when it is not
		level, msg = zapcore.WarnLevel, "instance cannot be frozen"
	default:
	}
	c := e.log.Check(level, msg)
	if c == nil {
		return
	}
	fields := []zap.Field{
		zap.String("service", ev.Service), zap.String("revision", ev.Revision), zap.String("instance", ev.Instance),
	}
	if ev.Reason != "" {
		fields = append(fields, zap.String("reason", ev.Reason))
	}
	if ev.PID != 0 {
		fields = append(fields, zap.Int("pid", ev.PID), zap.String("address", ev.Address))
	}
	if ev.Adopted {
		fields = append(fields, zap.Bool("adopted", true))
	}
	if ev.Took != 0 {
		fields = append(fields, zap.Duration("took", ev.Took))
	}
	for phase, took := range ev.Phases {
		fields = append(fields, zap.Duration("took_"+phase, took))
	}
	if ev.Err != nil {
		fields = append(fields, zap.Error(ev.Err))
	}
	c.Write(fields...)
}

// Revision logs a change of a revision's state, or of a whole service.
func (e *engine) Revision(ev scaler.RevisionEvent) {
	countRevision(ev)
	level := zapcore.InfoLevel
	if ev.Err != nil {
		level = zapcore.ErrorLevel
	}
	what := "revision "
	if ev.Kind == "removed" {
		what = "service "
	}
	for _, text := range ev.Warnings { // whoever wrote it in a file hears of it in no other way
		e.log.Warn(text, zap.String("service", ev.Service), zap.String("revision", ev.Revision))
	}
	c := e.log.Check(level, what+ev.Kind)
	if c == nil {
		return
	}
	fields := []zap.Field{zap.String("service", ev.Service)}
	if ev.Revision != "" {
		fields = append(fields, zap.String("revision", ev.Revision))
	}
	if ev.Digest != "" {
		fields = append(fields, zap.String("digest", ev.Digest))
	}
	if ev.Took != 0 {
		fields = append(fields, zap.Duration("took", ev.Took))
	}
	if ev.Err != nil {
		fields = append(fields, zap.Error(ev.Err))
	}
	c.Write(fields...)
}

// currentCore writes to the logger of the config that was started last: what
// outlives a config must not log to the closed files of an old one.
type currentCore struct {
	target *atomic.Pointer[zap.Logger]
	fields []zapcore.Field
}

func (c currentCore) core() zapcore.Core { return c.target.Load().Core() }

// Enabled implements zapcore.Core.
func (c currentCore) Enabled(l zapcore.Level) bool { return c.core().Enabled(l) }

// With implements zapcore.Core.
func (c currentCore) With(fields []zapcore.Field) zapcore.Core {
	c.fields = slices.Concat(c.fields, fields)
	return c
}

// Check implements zapcore.Core.
func (c currentCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c currentCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	target := c.target.Load()
	name := target.Name()
	if e.LoggerName != "" {
		name += "." + e.LoggerName
	}
	e.LoggerName = name
	return target.Core().Write(e, slices.Concat(c.fields, fields))
}

// Sync implements zapcore.Core.
func (c currentCore) Sync() error { return c.core().Sync() }
