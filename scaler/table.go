package scaler

import (
	"math/rand/v2"
	"slices"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
)

// table says where the requests of a service go. It never changes: a request
// reads it once, so it always sees one that existed.
type table struct {
	shares []share // those above zero
	total  int     // of all shares; 100, unless a target is gone
	tags   map[string]*instancepool.Pool
	pools  []*deployment // each once
	// targets are what it was made of, waits what it stays for when others are wanted.
	targets []revisions.Target
	waits   string
	// disabled is set when no request is to be taken.
	disabled bool
	// internal is set when only requests of instances are to be taken.
	internal bool
}

type share struct {
	upTo int // exclusive
	pool *instancepool.Pool
}

func newTable(targets []revisions.Target, deployed func(*revisions.Revision) *deployment) *table {
	t := &table{targets: targets}
	for _, target := range targets {
		d := deployed(target.Revision)
		if !slices.Contains(t.pools, d) {
			t.pools = append(t.pools, d)
		}
		if target.Percent > 0 {
			t.total += target.Percent
			t.shares = append(t.shares, share{upTo: t.total, pool: d.pool})
		}
		if target.Tag == "" {
			continue
		}
		if t.tags == nil {
			t.tags = make(map[string]*instancepool.Pool)
		}
		// While a rollout divides a tag's target its tag means the new one, which
		// is the last.
		t.tags[target.Tag] = d.pool
	}
	return t
}

// before returns the pool that a client's requests went to before, as long as
// the split still has it.
func (t *table) before(r Request) *instancepool.Pool {
	if r.Revision == "" || r.Tag != "" {
		return nil
	}
	for _, s := range t.shares {
		if rev := s.pool.Revision(); rev.Name == r.Revision && rev.Spec().Affinity {
			return s.pool
		}
	}
	return nil
}

// load is how many requests all of its pools have.
func (t *table) load() int {
	sum := 0
	for _, d := range t.pools {
		sum += d.pool.Load()
	}
	return sum
}

// percent is the share of d.
func (t *table) percent(d *deployment) int {
	sum, from := 0, 0
	for _, s := range t.shares {
		if s.pool == d.pool {
			sum += s.upTo - from
		}
		from = s.upTo
	}
	return sum
}

// pick chooses the pool of one request: by its tag, else at random by percent.
// It is nil when there is none.
// Source: Knative Serving API, "Route": a split is per request.
func (t *table) pick(tag string) *instancepool.Pool {
	switch {
	case tag != "":
		return t.tags[tag]
	case len(t.shares) == 0:
		return nil
	case len(t.shares) == 1:
		return t.shares[0].pool
	}
	n := rand.IntN(t.total) //nolint:gosec // nobody gains by guessing it
	for _, s := range t.shares {
		if n < s.upTo {
			return s.pool
		}
	}
	return nil // cannot be: the last upTo is total
}
