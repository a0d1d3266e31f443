package revisions

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// told writes changes: "ADDED hello", "MODIFIED hello-00001".
func told(changes []Change) []string {
	var all []string
	for _, c := range changes {
		name := c.State.Name()
		if c.Revision != nil {
			name = c.Revision.Name
		}
		all = append(all, string(c.Kind)+" "+name)
	}
	return all
}

func (d *desk) watch(since uint64) *Watcher {
	d.t.Helper()
	w, err := d.Watch(since)
	if err != nil {
		d.t.Fatal(err)
	}
	return w
}

func next(t testing.TB, w *Watcher) []Change {
	t.Helper()
	changes, err := w.Next(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func TestWatch(t *testing.T) {
	d := newDesk(t, Options{})
	w := d.watch(d.Version())
	step := func(what string, change func(), want ...string) {
		t.Helper()
		change()
		match(t, what, told(next(t, w)), want)
	}
	step("create", func() { d.create("hello", "app:1") }, "ADDED hello", "ADDED hello-00001")
	step("ready", func() { d.ready("hello-00001") }, "MODIFIED hello", "MODIFIED hello-00001")
	step("deploy", func() { d.deploy("app:2") }, "MODIFIED hello", "ADDED hello-00002")
	step("promote", func() { d.ready("hello-00002") }, "MODIFIED hello", "MODIFIED hello-00002", "MODIFIED hello-00001")
	step("label", func() {
		d.mustChange("hello", func(svc *servingv1.Service) { svc.Labels = map[string]string{"a": "b"} })
	}, "MODIFIED hello")
	step("delete a revision", func() {
		if _, err := d.DeleteRevision("hello-00001"); err != nil {
			t.Error(err)
		}
	}, "MODIFIED hello", "DELETED hello-00001")
	last := d.State("hello")
	var gone []Change
	if _, err := d.Delete("hello", OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	gone = next(t, w)
	match(t, "delete", told(gone), []string{"DELETED hello", "DELETED hello-00002"})
	// What is gone is told as it was last.
	for _, c := range gone {
		if c.State != last || c.Version != d.Version() {
			t.Errorf("%s: state %v at %d", told([]Change{c}), c.State, c.Version)
		}
	}
	obj := gone[1].State.RevisionObject(gone[1].Revision)
	match(t, "its service", obj.Labels[serving.ServiceUIDLabelKey], string(last.Service.UID))
	step("create again", func() { d.create("hello", "app:1") }, "ADDED hello", "ADDED hello-00003")
}

// Whoever watches from a version on sees each change after it, and none twice.
func TestWatchSince(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	version := d.Version()
	if got := d.State("hello").Service.ResourceVersion; got != formatVersion(version) {
		t.Errorf("the service has version %s at %d", got, version)
	}
	d.ready("hello-00001")
	d.create("other", "app:1")
	match(t, "since the first", told(next(t, d.watch(version))), []string{"MODIFIED hello", "MODIFIED hello-00001", "ADDED other", "ADDED other-00001"})
	match(t, "from the beginning", len(next(t, d.watch(0))), 6)
	w := d.watch(d.Version())
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	cancel(over)
	if changes, err := w.Next(ctx); !errors.Is(err, over) {
		t.Errorf("got %v, %v", told(changes), err)
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, Options{})
		w := d.watch(d.Version())
		var got []Change
		go func() { got, _ = w.Next(t.Context()) }()
		synctest.Wait()
		if got != nil {
			t.Fatalf("got %v", told(got))
		}
		time.Sleep(time.Hour)
		d.create("hello", "app:1")
		synctest.Wait()
		match(t, "told", told(got), []string{"ADDED hello", "ADDED hello-00001"})
	})
}

// What is forgotten is not left out in silence.
func TestWatchExpires(t *testing.T) {
	d := newDesk(t, Options{})
	before := d.Version()
	slow := d.watch(before)
	d.create("hello", "app:1")
	rev := d.Revision("hello-00001")
	first := d.Version()
	change := func(n int) {
		for i := range n {
			d.Mark(rev, func(st *servingv1.RevisionStatus) { st.MarkActiveUnknown(fmt.Sprint(d.Version(), i), "") })
		}
	}
	change(watchLog/2 - 1) // two changes each, and two of the creation
	match(t, "all that is remembered", len(next(t, d.watch(first))), watchLog-2)
	change(1)
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrExpired) {
		t.Errorf("a slow one: got %v", err)
	}
	if _, err := d.Watch(before); !errors.Is(err, ErrExpired) {
		t.Errorf("since before: got %v", err)
	}
	change(1)
	if _, err := d.Watch(first); !errors.Is(err, ErrExpired) {
		t.Errorf("since the creation: got %v", err)
	}
	// Versions of an earlier process are older than all of this one.
	if _, err := newDesk(t, Options{}).Watch(before); !errors.Is(err, ErrExpired) {
		t.Errorf("of an earlier process: got %v", err)
	}
}

// Any number may watch while services change: each sees the same, in order.
func TestWatchersAgree(t *testing.T) {
	d := newDesk(t, Options{})
	const services, deploys = 4, 20
	since := d.Version()
	var watching, changing sync.WaitGroup
	seen := make([][]Change, 5)
	for i := range seen {
		w := d.watch(since)
		watching.Go(func() {
			for n := 0; n < services*(2+2*deploys); n = len(seen[i]) {
				changes, err := w.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				seen[i] = append(seen[i], changes...)
			}
		})
	}
	for n := range services {
		changing.Go(func() {
			name := fmt.Sprint("service-", n)
			d.create(name, "app:0")
			for i := range deploys {
				d.mustChange(name, image(fmt.Sprint("app:", i+1), ""))
			}
		})
	}
	changing.Wait()
	watching.Wait()
	for i, changes := range seen {
		match(t, "changes", told(changes), told(seen[0]))
		for n := range changes {
			if n > 0 && changes[n].Version < changes[n-1].Version {
				t.Errorf("watcher %d: version %d after %d", i, changes[n].Version, changes[n-1].Version)
			}
		}
	}
}
