package scaler

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// tables makes tables of revisions that are called by numbers.
type tables struct {
	deployed map[*revisions.Revision]*deployment
}

func (s *tables) of(rev *revisions.Revision) *deployment {
	if s.deployed[rev] == nil {
		s.deployed[rev] = &deployment{rev: rev, pool: instancepool.New(rev, instancepool.Options{})}
	}
	return s.deployed[rev]
}

func numbered(n int) []*revisions.Revision {
	var all []*revisions.Revision
	for i := range n {
		all = append(all, revisions.New("hello", fmt.Sprint("hello-", i), int64(i), &revisions.Spec{Concurrency: 80}))
	}
	return all
}

// count picks n times without a tag.
func (t *table) count(n int) map[string]int {
	picked := make(map[string]int)
	for range n {
		picked[t.pick("").Revision().Name]++
	}
	return picked
}

// Whatever the targets are: each revision gets its share of the requests that
// name no tag, within six standard deviations, one of 0 percent nothing at all,
// and a tag means its own target alone.
func TestTableProperties(t *testing.T) {
	for range 60 {
		s := &tables{deployed: make(map[*revisions.Revision]*deployment)}
		revs := numbered(1 + rand.IntN(5))
		want := make(map[string]int)
		tags := make(map[string]string)
		var targets []revisions.Target
		left := 100
		for i := range 1 + rand.IntN(6) {
			target := revisions.Target{Revision: revs[rand.IntN(len(revs))], Percent: rand.IntN(left + 1)}
			if rand.IntN(2) == 0 {
				target.Tag = fmt.Sprint("tag-", i)
				tags[target.Tag] = target.Revision.Name
			}
			left -= target.Percent
			want[target.Revision.Name] += target.Percent
			targets = append(targets, target)
		}
		targets = append(targets, revisions.Target{Revision: revs[0], Percent: left})
		want[revs[0].Name] += left
		rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })

		table := newTable(targets, s.of)
		const n = 20_000
		picked := table.count(n)
		for _, rev := range revs {
			p := float64(want[rev.Name]) / 100
			if off := math.Abs(float64(picked[rev.Name]) - n*p); off > 6*math.Sqrt(n*p*(1-p)) {
				t.Errorf("%v: %s was picked %d times of %d", targets, rev.Name, picked[rev.Name], n)
			}
			if d := s.deployed[rev]; d != nil && table.percent(d) != want[rev.Name] {
				t.Errorf("%v: %s has %d percent", targets, rev.Name, table.percent(d))
			}
		}
		for tag, name := range tags {
			if got := table.pick(tag); got == nil || got.Revision().Name != name {
				t.Errorf("%v: tag %s", targets, tag)
			}
		}
		if table.pick("unheard-of") != nil {
			t.Errorf("%v: an unknown tag means something", targets)
		}
		equal(t, "pools", len(table.pools), len(s.deployed))
	}
}

// A target that is gone leaves its share to the others.
func TestTableOfAPart(t *testing.T) {
	s := &tables{deployed: make(map[*revisions.Revision]*deployment)}
	revs := numbered(2)
	table := newTable([]revisions.Target{{Revision: revs[0], Percent: 10}, {Revision: revs[1], Percent: 30}}, s.of)
	picked := table.count(4000)
	if n := picked[revs[0].Name]; n < 800 || n > 1200 || picked[revs[1].Name] != 4000-n {
		t.Errorf("picked %v", picked)
	}
	empty := newTable(nil, s.of)
	if empty.pick("") != nil || empty.pick("x") != nil || empty.load() != 0 {
		t.Error("nothing is something")
	}
	tagged := newTable([]revisions.Target{{Revision: revs[0], Tag: "x"}}, s.of)
	if tagged.pick("") != nil || tagged.pick("x") == nil {
		t.Error("a tag leaks into the split")
	}
}

// While a rollout divides a target its tag means the new revision.
func TestTagInARollout(t *testing.T) {
	s := &tables{deployed: make(map[*revisions.Revision]*deployment)}
	revs := numbered(2)
	table := newTable([]revisions.Target{
		{Revision: revs[0], Percent: 99, Tag: "x", Latest: true}, {Revision: revs[1], Percent: 1, Tag: "x", Latest: true},
	}, s.of)
	equal(t, "revision", table.pick("x").Revision().Name, revs[1].Name)
}

// Tables are replaced while requests pick: each pick is from one that existed.
// Here every table has its two halves from the same pair of revisions.
func TestTablesAreSwappedAsAWhole(t *testing.T) {
	s := &tables{deployed: make(map[*revisions.Revision]*deployment)}
	revs := numbered(8)
	made := make([]*table, 4)
	for i := range made {
		a, b := revs[2*i], revs[2*i+1]
		made[i] = newTable([]revisions.Target{{Revision: a, Percent: 50, Tag: "a"}, {Revision: b, Percent: 50, Tag: "b"}}, s.of)
	}
	var now atomic.Pointer[table]
	now.Store(made[0])
	var done atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for !done.Load() {
				table := now.Load()
				a, b, either := table.pick("a"), table.pick("b"), table.pick("")
				if either != a && either != b {
					t.Error("a pick is of another table")
					return
				}
			}
		})
	}
	for n := range 20_000 {
		now.Store(made[n%len(made)])
	}
	done.Store(true)
	all.Wait()
}
