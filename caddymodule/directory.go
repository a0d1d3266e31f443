package caddymodule

import (
	"context"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

// directory makes the registry follow a watched directory of services.
type directory struct {
	engine *engine
	path   string
	owner  revisions.Owner
	stop   func()

	mu       sync.Mutex // guards all below
	problems map[string]error
	files    map[string]string             // service → the file that it was last in
	applied  map[string]*servingv1.Service // what was applied, to do nothing twice
}

// watchDirectory follows path until it is closed.
func (e *engine) watchDirectory(path string) *directory {
	d := &directory{
		engine: e, path: path, owner: revisions.OwnerDirectory(path), problems: make(map[string]error),
		files: make(map[string]string), applied: make(map[string]*servingv1.Service),
	}
	d.stop = revisions.WatchDirectory(context.Background(), path, d.apply)
	return d
}

// apply brings the registry to what the files say.
func (d *directory) apply(files []revisions.ServiceFile) {
	registry := d.engine.scaler.Registry()
	d.mu.Lock()
	defer d.mu.Unlock()
	problems := make(map[string]error)
	present := make(map[string]bool)
	for _, f := range files {
		if f.Err != nil {
			problems[f.Path] = f.Err
		}
		for _, svc := range f.Services {
			present[svc.Name] = true
			d.files[svc.Name] = f.Path
			if err := d.applyOne(registry, svc); err != nil {
				problems[f.Path] = err
			}
		}
	}
	d.remove(registry, present, problems)
	for path, err := range problems {
		if before := d.problems[path]; before == nil || before.Error() != err.Error() {
			d.engine.log.Error("services_dir", zap.Error(err))
		}
	}
	for path := range d.problems {
		if problems[path] == nil {
			d.engine.log.Info("services_dir: all is well again", zap.String("path", path))
		}
	}
	d.problems = problems
}

func (d *directory) applyOne(registry *revisions.Registry, svc *servingv1.Service) error {
	if d.applied[svc.Name] == svc && registry.Known(svc.Name) {
		return nil
	}
	if _, _, err := registry.Apply(svc, d.owner); err != nil {
		delete(d.applied, svc.Name)
		return err
	}
	d.applied[svc.Name] = svc
	return nil
}

// remove deletes the services that no file has any more. While a file cannot be
// read, what it may have had stays.
func (d *directory) remove(registry *revisions.Registry, present map[string]bool, problems map[string]error) {
	for _, name := range registry.Names() {
		st := registry.State(name)
		if st == nil || st.Service == nil || st.Owner != d.owner || present[name] {
			continue
		}
		file, known := d.files[name]
		if problems[d.path] != nil || problems[file] != nil || (!known && len(problems) > 0) {
			continue
		}
		if _, err := registry.Delete(name, d.owner, nil); err != nil {
			problems[d.path] = err
			continue
		}
		delete(d.files, name)
		delete(d.applied, name)
	}
}

func (d *directory) close() { d.stop() }

// problem is something that a user has to know of: a bad file, a bad record.
type problem struct {
	Source string `json:"source"`
	Error  string `json:"error"`
}

func (d *directory) errors() []problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]problem, 0, len(d.problems))
	for path, err := range d.problems {
		all = append(all, problem{Source: path, Error: err.Error()})
	}
	slices.SortFunc(all, func(a, b problem) int { return strings.Compare(a.Source, b.Source) })
	return all
}
