package simulator

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// result is what a policy has made of a trace.
type result struct {
	waits    []time.Duration // of each request that got an instance
	rejected int
	starts   int
	freezes  int
	existing time.Duration // of all instances, from the begin of their starts
	unfrozen time.Duration // the same of the time that they had the CPU
	most     int           // instances at a time, as far as was sampled
	samples  []sample      // by second
}

// sample is a moment of a trace.
type sample struct{ requests, existing, unfrozen int }

// add joins the results of services.
func (r *result) add(o result) {
	r.waits = append(r.waits, o.waits...)
	r.rejected += o.rejected
	r.starts += o.starts
	r.freezes += o.freezes
	r.existing += o.existing
	r.unfrozen += o.unfrozen
	r.most += o.most
	for i, s := range o.samples {
		if i == len(r.samples) {
			r.samples = append(r.samples, sample{})
		}
		at := &r.samples[i]
		at.requests, at.existing, at.unfrozen = at.requests+s.requests, at.existing+s.existing, at.unfrozen+s.unfrozen
	}
}

// wait is the wait that the given part of the requests did not exceed.
func (r *result) wait(part float64) time.Duration {
	if len(r.waits) == 0 {
		return 0
	}
	slices.Sort(r.waits)
	return r.waits[min(len(r.waits)-1, int(part*float64(len(r.waits))))]
}

// row is a line of the table: what a policy has made of a trace.
type row struct {
	trace, policy string
	result
}

// printTable prints what is known of each policy, by trace.
func printTable(w io.Writer, rows []row) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "trace\tpolicy\trequests\trejected\twait p50\tp99\tp99.9\tstarts\tmost\texisting s\tunfrozen s\tfreezes\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%d\t%d\t%.0f\t%.0f\t%d\t\n", r.trace, r.policy, len(r.waits)+r.rejected, r.rejected,
			ms(r.wait(0.5)), ms(r.wait(0.99)), ms(r.wait(0.999)), r.starts, r.most, r.existing.Seconds(), r.unfrozen.Seconds(), r.freezes)
	}
	return t.Flush()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond)) }
