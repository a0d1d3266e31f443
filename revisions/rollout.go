package revisions

import (
	"slices"
	"time"

	"knative.dev/serving/pkg/apis/serving"
)

// rolloutStep is the least time between two steps of a gradual rollout.
const rolloutStep = time.Second

// rollout is a gradual move to a new latest revision: 1 percent first, then
// ever more in equal steps until its time is over. It never changes.
// Source: Knative Serving, "Gradually roll out traffic".
type rollout struct {
	to       *Revision
	since    time.Time
	duration time.Duration
	// base is how each of the service's latest targets, by tag, was divided when
	// the rollout began; the newest revision is the last.
	base map[string][]Target
}

// Step is when the next step of a gradual rollout is due, if there is one.
func (s *State) Step(now time.Time) (time.Duration, bool) {
	if s.rollout == nil {
		return 0, false
	}
	next := s.rollout.duration
	for _, t := range s.Targets {
		if !t.Latest || t.Revision != s.rollout.to {
			continue
		}
		whole := t.Percent
		for _, b := range s.Targets {
			if b.Latest && b.Tag == t.Tag && b.Revision != t.Revision {
				whole += b.Percent
			}
		}
		if whole > 1 && t.Percent < whole {
			steps := time.Duration(whole - 1) // rounded up: a moment too early is a step too few
			next = min(next, (s.rollout.duration*time.Duration(t.Percent)+steps-1)/steps)
		}
	}
	return max(rolloutStep, s.rollout.since.Add(next).Sub(now)), true
}

// advance turns wanted targets into those of now: while a rollout is under way
// a target of the latest revision is divided between old and new ones.
func (s *State) advance(wanted []Target, now time.Time) []Target {
	s.updateRollout(wanted, now)
	if s.rollout == nil {
		return wanted
	}
	var targets []Target
	moving := false
	for _, t := range wanted {
		base := s.rollout.base[t.Tag]
		if !t.Latest || len(base) == 0 {
			targets = append(targets, t)
			continue
		}
		n := s.rollout.percent(t.Percent, now)
		moving = moving || n < t.Percent
		targets = append(targets, divide(base, t, n)...)
	}
	if !moving {
		s.rollout = nil
		return wanted
	}
	return targets
}

// updateRollout begins, keeps or gives up a rollout.
func (s *State) updateRollout(wanted []Target, now time.Time) {
	_, text, _ := serving.RolloutDurationAnnotation.Get(s.Service.Annotations)
	duration, err := time.ParseDuration(text)
	if err != nil || duration < rolloutStep {
		s.rollout = nil
		return
	}
	if s.rollout != nil && s.rollout.fits(wanted) {
		return // under way
	}
	s.rollout = nil
	base := make(map[string][]Target)
	var to *Revision
	for _, t := range wanted {
		if !t.Latest || t.Percent == 0 {
			continue
		}
		to = t.Revision
		for _, old := range s.Targets {
			if old.Latest && old.Tag == t.Tag && old.Percent > 0 && slices.Contains(s.Revisions, old.Revision) {
				base[t.Tag] = append(base[t.Tag], old)
			}
		}
		if total(base[t.Tag]) != t.Percent || slices.ContainsFunc(base[t.Tag], func(o Target) bool { return o.Revision == t.Revision }) {
			delete(base, t.Tag) // its share has changed as well: there is nothing to divide by
		}
	}
	if len(base) > 0 {
		s.rollout = &rollout{to: to, since: now, duration: duration, base: base}
	}
}

// fits reports whether the wanted targets are still those that the rollout
// began with.
func (r *rollout) fits(wanted []Target) bool {
	n := 0
	for _, t := range wanted {
		base := r.base[t.Tag]
		if !t.Latest || len(base) == 0 {
			continue
		}
		if t.Revision != r.to || t.Percent != total(base) {
			return false
		}
		n++
	}
	return n == len(r.base)
}

func total(targets []Target) int {
	sum := 0
	for _, t := range targets {
		sum += t.Percent
	}
	return sum
}

// record is the rollout as it is kept.
func (r *rollout) record() *rolloutRecord {
	if r == nil {
		return nil
	}
	base := make(map[string][]shareRecord, len(r.base))
	for tag, targets := range r.base {
		for _, t := range targets {
			base[tag] = append(base[tag], shareRecord{Revision: t.Revision.Name, Percent: t.Percent})
		}
	}
	return &rolloutRecord{To: r.to.Name, Since: r.since, Duration: r.duration, Base: base}
}

// rollout is what was kept of one, or nil if its revisions are not all there.
func (r *rolloutRecord) rollout(st *State) *rollout {
	if r == nil || st.Revision(r.To) == nil {
		return nil
	}
	base := make(map[string][]Target, len(r.Base))
	for tag, shares := range r.Base {
		for _, share := range shares {
			rev := st.Revision(share.Revision)
			if rev == nil {
				return nil
			}
			base[tag] = append(base[tag], Target{Revision: rev, Percent: share.Percent, Tag: tag, Latest: true})
		}
	}
	return &rollout{to: st.Revision(r.To), since: r.Since, duration: r.Duration, base: base}
}

// percent is how much of whole has moved.
func (r *rollout) percent(whole int, now time.Time) int {
	passed := min(max(now.Sub(r.since), 0), r.duration)
	return min(whole, 1+int(time.Duration(whole-1)*passed/r.duration))
}

// divide takes n percent from base, from its newest revision first, for t.
func divide(base []Target, t Target, n int) []Target {
	divided := slices.Clone(base)
	left := n
	for i := range slices.Backward(divided) {
		taken := min(left, divided[i].Percent)
		divided[i].Percent -= taken
		left -= taken
	}
	divided = slices.DeleteFunc(divided, func(b Target) bool { return b.Percent == 0 })
	t.Percent = n
	return append(divided, t)
}
