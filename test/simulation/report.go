package simulation

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Report compares policies on traces.
type Report struct{ runs []policyRun }

type policyRun struct {
	trace, policy string
	*Result
}

// Add puts in what a policy has made of a trace.
func (r *Report) Add(trace, policy string, made *Result) {
	r.runs = append(r.runs, policyRun{trace, policy, made})
}

// Of returns what a policy has made of a trace, or nil.
func (r *Report) Of(trace, policy string) *Result {
	for _, run := range r.runs {
		if run.trace == trace && run.policy == policy {
			return run.Result
		}
	}
	return nil
}

// Total is what a policy has made of all traces together.
func (r *Report) Total(policy string) *Result {
	total := new(Result)
	for _, run := range r.runs {
		if run.policy == policy {
			total.add(run.Result)
		}
	}
	return total
}

// traces and policies return the names of all, in the order in which they came.
func (r *Report) traces() []string   { return names(r.runs, func(p policyRun) string { return p.trace }) }
func (r *Report) policies() []string { return names(r.runs, func(p policyRun) string { return p.policy }) }

func names(runs []policyRun, of func(policyRun) string) []string {
	var all []string
	for _, run := range runs {
		if name := of(run); !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// WriteTable prints a line for each policy on each trace, and its totals.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "trace\tpolicy\trequests\trejected\twait p50\tp99\tp99.9\tstarts\tmost\texisting s\tunfrozen s\tfreezes\t")
	for _, trace := range r.traces() {
		for _, policy := range r.policies() {
			if made := r.Of(trace, policy); made != nil {
				writeRow(t, trace, policy, fmt.Sprint(made.Most), made)
			}
		}
	}
	for _, policy := range r.policies() {
		writeRow(t, "all", policy, "", r.Total(policy))
	}
	return t.Flush()
}

func writeRow(w io.Writer, trace, policy, most string, r *Result) {
	fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%d\t%s\t%.0f\t%.0f\t%d\t\n", trace, policy, len(r.Waits)+r.Rejected, r.Rejected,
		inMs(r.Wait(0.5)), inMs(r.Wait(0.99)), inMs(r.Wait(0.999)), r.Starts, most, r.Existing.Seconds(), r.Unfrozen.Seconds(), r.Freezes)
}

func inMs(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

// WriteRatios prints, for each trace, how a policy compares with two others: the
// instance time of one, and of the bound that is the other.
func (r *Report) WriteRatios(w io.Writer, policy, other, bound string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "%s\texisting / %s\tunfrozen / %s\tunfrozen / %s\tp99 wait\tof %s\t\n", policy, other, other, bound, other)
	line := func(trace string, of, than, least *Result) {
		fmt.Fprintf(t, "%s\t%.3f\t%.3f\t%.3f\t%s\t%s\t\n", trace, ratio(of.Existing, than.Existing), ratio(of.Unfrozen, than.Unfrozen),
			ratio(of.Unfrozen, least.Unfrozen), inMs(of.Wait(0.99)), inMs(than.Wait(0.99)))
	}
	for _, trace := range r.traces() {
		line(trace, r.Of(trace, policy), r.Of(trace, other), r.Of(trace, bound))
	}
	line("all", r.Total(policy), r.Total(other), r.Total(bound))
	return t.Flush()
}

func ratio(of, than time.Duration) float64 { return float64(of) / float64(than) }
