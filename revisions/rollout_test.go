package revisions

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// rolling returns hello with one ready revision and a rollout duration.
func rolling(t *testing.T, duration string) *desk {
	t.Helper()
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	d.mustChange("hello", func(svc *servingv1.Service) { svc.Annotations[serving.RolloutDurationKey] = duration })
	return d
}

// release deploys one more revision that is ready.
func (d *desk) release(image string) *Revision {
	rev := d.deploy(image)
	d.MarkReady(rev)
	return rev
}

// roll takes the steps of a rollout when they are due, at most for d, and
// returns all routes on the way, with their times.
func (d *desk) roll(most time.Duration) []string {
	d.t.Helper()
	began := time.Now()
	note := func() string { return fmt.Sprintf("%s %s", time.Since(began), routes(d.State("hello"))) }
	all := []string{note()}
	for {
		wait, ok := d.State("hello").Step(time.Now())
		if !ok || time.Since(began)+wait > most {
			return all
		}
		if wait < rolloutStep {
			d.t.Errorf("a step after %s", wait)
		}
		time.Sleep(wait)
		d.Advance("hello")
		if err := consistent(d.State("hello")); err != nil {
			d.t.Error(err)
		}
		all = append(all, note())
	}
}

// Source: Knative Serving, "Gradually roll out traffic": 1 percent first, then
// equal steps until the time is over.
func TestRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := rolling(t, "198s") // 2 s for each of 99 steps
		d.release("app:2")
		st := d.State("hello")
		match(t, "route", says(st.Route.Conditions),
			"AllTrafficAssigned=True CertificateProvisioned=True:TLSNotEnabled IngressReady=Unknown:RolloutInProgress Ready=Unknown:RolloutInProgress")
		match(t, "service", says(st.Service.Status.Conditions),
			"ConfigurationsReady=True Ready=Unknown:TrafficNotMigrated RoutesReady=Unknown:TrafficNotMigrated")
		var want []string
		for n := range 99 {
			want = append(want, fmt.Sprintf("%s hello-00001=%d* hello-00002=%d*", 2*time.Second*time.Duration(n), 99-n, 1+n))
		}
		match(t, "steps", d.roll(time.Hour), append(want, "3m18s hello-00002=100*"))
		st = d.State("hello")
		match(t, "route", says(st.Route.Conditions), "AllTrafficAssigned=True CertificateProvisioned=True:TLSNotEnabled IngressReady=True Ready=True")
		match(t, "service", says(st.Service.Status.Conditions), "ConfigurationsReady=True Ready=True RoutesReady=True")
		version := d.Version()
		d.Advance("hello")
		match(t, "versions since", d.Version(), version)
	})
}

// No two steps are closer than a second; a percent may take longer than that.
func TestRolloutSteps(t *testing.T) {
	for duration, steps := range map[string]int{"10s": 10, "2s": 2, "1s": 1, "99s": 99, "380s": 99, "1h": 99, "7m13s": 99} {
		t.Run(duration, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := rolling(t, duration)
				began := time.Now()
				d.release("app:2")
				all := d.roll(2 * time.Hour)
				match(t, "steps", len(all)-1, steps)
				match(t, "first", all[0], "0s hello-00001=99* hello-00002=1*")
				match(t, "last", routes(d.State("hello")), "hello-00002=100*")
				length, _ := time.ParseDuration(duration)
				if took := time.Since(began); took < length || took > length+time.Microsecond {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// A second deploy in the middle begins at once, and takes from the newest of its
// predecessors first.
func TestRolloutInARollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := rolling(t, "99s")
		d.release("app:2")
		d.roll(39 * time.Second)
		match(t, "in the middle", routes(d.State("hello")), "hello-00001=60* hello-00002=40*")
		d.release("app:3")
		all := d.roll(time.Hour)
		var percents []string
		for _, n := range []int{0, 1, 38, 39, 40, 98, 99} {
			percents = append(percents, all[n])
		}
		match(t, "steps", percents, []string{
			"0s hello-00001=60* hello-00002=39* hello-00003=1*",
			"1s hello-00001=60* hello-00002=38* hello-00003=2*",
			"38s hello-00001=60* hello-00002=1* hello-00003=39*",
			"39s hello-00001=60* hello-00003=40*",
			"40s hello-00001=59* hello-00003=41*",
			"1m38s hello-00001=1* hello-00003=99*",
			"1m39s hello-00003=100*",
		})
	})
}

// Only what follows the latest revision moves, within its share; a tag does not
// move, as it means one revision.
func TestRolloutOfAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := rolling(t, "10s")
		d.release("app:2")
		d.roll(time.Minute)
		d.traffic("hello-00001=60 latest=40 latest=0#next")
		d.release("app:3")
		match(t, "at first", routes(d.State("hello")), "hello-00001=60 hello-00002=39* hello-00003=1* hello-00003=0#next*")
		all := d.roll(time.Minute)
		match(t, "steps", len(all)-1, 10)
		match(t, "at last", routes(d.State("hello")), "hello-00001=60 hello-00003=40* hello-00003=0#next*")
	})
}

// Whoever changes the traffic has the last word: it is as wanted at once.
func TestRolloutIsGivenUp(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*desk)
		want   string
	}{
		{"all elsewhere", func(d *desk) { d.traffic("hello-00001=100") }, "hello-00001=100"},
		{"half elsewhere", func(d *desk) { d.traffic("latest=50 hello-00001=50") }, "hello-00002=50* hello-00001=50"},
		{"half under a tag", func(d *desk) { d.traffic("latest=50 latest=50#t") }, "hello-00002=50* hello-00002=50#t*"},
		{"no duration any more", func(d *desk) {
			d.mustChange("hello", func(svc *servingv1.Service) { delete(svc.Annotations, serving.RolloutDurationKey) })
		}, "hello-00002=100*"},
		{"another label", func(d *desk) {
			d.mustChange("hello", func(svc *servingv1.Service) { svc.Labels = map[string]string{"a": "b"} })
		}, "hello-00001=60* hello-00002=40*"},
		{"a tag more", func(d *desk) { d.traffic("latest=100 hello-00001=0#old") }, "hello-00001=60* hello-00002=40* hello-00001=0#old"},
		{"a deploy that is not ready", func(d *desk) { d.deploy("app:3") }, "hello-00001=60* hello-00002=40*"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := rolling(t, "99s")
				d.release("app:2")
				d.roll(39 * time.Second)
				test.change(d)
				match(t, "routes", routes(d.State("hello")), test.want)
				_, under := d.State("hello").Step(time.Now())
				match(t, "under way", under, strings.Contains(test.want, "=60*"))
			})
		})
	}
}

func TestNoRollout(t *testing.T) {
	d := rolling(t, "0s")
	d.release("app:2")
	match(t, "routes", routes(d.State("hello")), "hello-00002=100*")
	// The first has nobody to take from.
	d = newDesk(t, Options{})
	svc := parse(t, document("hello", "app:1"))
	svc.Annotations = map[string]string{serving.RolloutDurationKey: "1m"}
	if _, err := d.Create(svc, OwnerAPI); err != nil {
		t.Fatal(err)
	}
	d.ready("hello-00001")
	match(t, "routes", routes(d.State("hello")), "hello-00001=100*")
}

// A rollout goes on after a restart where time has brought it.
func TestRolloutAndRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		d := newDesk(t, Options{})
		if err := d.Open(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		d.create("hello", "app:1")
		d.ready("hello-00001")
		d.mustChange("hello", func(svc *servingv1.Service) { svc.Annotations[serving.RolloutDurationKey] = "99s" })
		d.release("app:2")
		d.roll(19 * time.Second)
		d.close()
		time.Sleep(20 * time.Second)
		for _, rest := range []string{"hello-00001=60* hello-00002=40*", "hello-00002=100*"} {
			d = newDesk(t, Options{})
			if err := d.Open(t.Context(), store); err != nil {
				t.Fatal(err)
			}
			match(t, "after the restart", routes(d.State("hello")), rest)
			d.roll(time.Hour)
			match(t, "in the end", routes(d.State("hello")), "hello-00002=100*")
			d.close()
		}
	})
}
