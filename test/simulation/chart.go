package simulation

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
	"time"
)

// The sizes of a chart, in pixels.
const (
	chartWidth  = 900
	chartLeft   = 60
	chartRight  = 60
	panelHeight = 150
	panelTop    = 30 // of the panel, above its axes
	panelBottom = 30
	chartTop    = 50 // for the title and what the colours mean
)

// The lines of a chart, in the order in which they are drawn, and their colours.
var lines = []struct {
	name, colour string
	of           func(Sample) float64
	requests     bool // it has the left scale
}{
	{"requests waiting or in an instance (left scale)", "#2a9d3a", func(s Sample) float64 { return s.Requests }, true},
	{"instances (right scale)", "#1f4e9c", func(s Sample) float64 { return s.Existing }, false},
	{"instances that are not frozen", "#6db9ef", func(s Sample) float64 { return s.Unfrozen }, false},
}

// WriteSVG draws a trace: below one another, and to the same scales, what each policy
// made of it over time.
func (r *Report) WriteSVG(w io.Writer, trace string) error {
	var runs []policyRun
	var length time.Duration
	var requests, instances float64
	for _, run := range r.runs {
		if run.trace != trace {
			continue
		}
		runs = append(runs, run)
		length = max(length, time.Duration(len(run.Series))*run.Every)
		for _, s := range run.Series {
			requests, instances = max(requests, s.Requests), max(instances, s.Existing)
		}
	}
	c := &chart{length: length, requests: roundUp(requests), instances: roundUp(instances)}
	c.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`, chartWidth, chartTop+len(runs)*panelHeight)
	c.printf(`<rect width="100%%" height="100%%" fill="white"/>`)
	c.printf(`<text x="%d" y="18" font-size="15">%s</text>`, chartLeft, html.EscapeString(trace))
	for i, line := range lines {
		c.printf(`<text x="%d" y="36" fill="%s">%s</text>`, chartLeft+i*270, line.colour, line.name)
	}
	for n, run := range runs {
		c.panel(chartTop+n*panelHeight, run)
	}
	c.printf(`</svg>`)
	_, err := io.WriteString(w, c.String())
	return err
}

type chart struct {
	strings.Builder
	length              time.Duration
	requests, instances float64 // the ends of the scales
}

func (c *chart) printf(format string, args ...any) {
	fmt.Fprintf(c, format, args...)
	c.WriteByte('\n')
}

func (c *chart) panel(y int, run policyRun) {
	const right = chartWidth - chartRight
	top, bottom := y+panelTop, y+panelHeight-panelBottom
	c.printf(`<text x="%d" y="%d" font-weight="bold">%s</text>`, chartLeft, top-8, html.EscapeString(run.policy))
	c.printf(`<text x="%d" y="%d" text-anchor="end">p99 wait %s, %d starts, %.0f instance seconds, %.0f of them not frozen</text>`,
		right, top-8, inMs(run.Wait(0.99)), run.Starts, run.Existing.Seconds(), run.Unfrozen.Seconds())
	c.printf(`<path d="M%d %dV%dH%dV%d" fill="none" stroke="#999"/>`, chartLeft, top, bottom, right, top)
	c.printf(`<text x="%d" y="%d" text-anchor="end" fill="%s">%g</text>`, chartLeft-5, top+8, lines[0].colour, c.requests)
	c.printf(`<text x="%d" y="%d" fill="%s">%g</text>`, right+5, top+8, lines[1].colour, c.instances)
	for n := range 5 {
		at := c.length * time.Duration(n) / 4
		c.printf(`<text x="%d" y="%d" text-anchor="middle">%.1f min</text>`, chartLeft+(right-chartLeft)*n/4, bottom+14, at.Minutes())
	}
	for _, line := range lines {
		scale := c.instances
		if line.requests {
			scale = c.requests
		}
		c.printf(`<path d="%s" fill="none" stroke="%s"/>`, c.path(run.Result, top, bottom, scale, line.of), line.colour)
	}
}

// path draws the mean of each part of the time as a step, and what has ended as 0.
func (c *chart) path(r *Result, top, bottom int, scale float64, of func(Sample) float64) string {
	var b strings.Builder
	x := func(at time.Duration) float64 {
		return chartLeft + float64(chartWidth-chartLeft-chartRight)*float64(at)/float64(c.length)
	}
	fmt.Fprintf(&b, "M%d %d", chartLeft, bottom)
	for n, s := range r.Series {
		fmt.Fprintf(&b, "V%.1fH%.1f", float64(bottom)-float64(bottom-top)*of(s)/scale, x(time.Duration(n+1)*r.Every))
	}
	fmt.Fprintf(&b, "V%dH%d", bottom, chartWidth-chartRight)
	return b.String()
}

// roundUp returns the next number that makes a good end of a scale.
func roundUp(x float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(max(x, 1))))
	for _, n := range []float64{1, 2, 5} {
		if n*unit >= x {
			return n * unit
		}
	}
	return 10 * unit
}
