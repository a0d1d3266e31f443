package simulation

import "time"

// samples is about how many a series has while its trace lasts.
const samples = 600

// meter notes what goes on in a simulation.
type meter struct {
	result   *Result
	at       time.Duration // what was before is in result
	requests int
	existing int
	unfrozen int
}

func newMeter(t Trace) *meter {
	return &meter{result: &Result{Every: max(time.Second, t.Length/samples)}}
}

// note accounts for the time until now. It is called before any number changes.
func (m *meter) note(now time.Duration) {
	r := m.result
	r.Existing += time.Duration(m.existing) * (now - m.at)
	r.Unfrozen += time.Duration(m.unfrozen) * (now - m.at)
	for m.at < now {
		n := int(m.at / r.Every)
		for len(r.Series) <= n {
			r.Series = append(r.Series, Sample{})
		}
		until := min(now, time.Duration(n+1)*r.Every)
		part := float64(until-m.at) / float64(r.Every)
		s := &r.Series[n]
		s.Requests += part * float64(m.requests)
		s.Existing += part * float64(m.existing)
		s.Unfrozen += part * float64(m.unfrozen)
		m.at = until
	}
}

// instances notes that there are so many more, and so many more that are not frozen.
func (m *meter) instances(now time.Duration, existing, unfrozen int) {
	m.note(now)
	m.existing += existing
	m.unfrozen += unfrozen
	m.result.Most = max(m.result.Most, m.existing)
}

// started notes that the start of an instance has begun.
func (m *meter) started(now time.Duration) {
	m.result.Starts++
	m.instances(now, 1, 1)
}

// froze notes that an instance is frozen.
func (m *meter) froze(now time.Duration) {
	m.result.Freezes++
	m.instances(now, 0, -1)
}

func (m *meter) thawed(now time.Duration) { m.instances(now, 0, 1) }

// ended notes that an instance does not exist any more.
func (m *meter) ended(now time.Duration, frozen bool) {
	if frozen {
		m.instances(now, -1, 0)
	} else {
		m.instances(now, -1, -1)
	}
}

func (m *meter) came(now time.Duration) {
	m.note(now)
	m.requests++
}

func (m *meter) left(now time.Duration) {
	m.note(now)
	m.requests--
}

func (m *meter) admitted(waited time.Duration) { m.result.Waits = append(m.result.Waits, waited) }

func (m *meter) rejected() { m.result.Rejected++ }
