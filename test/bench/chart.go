package main

import (
	"fmt"
	"math"
	"strings"
)

// The chart's measures, in pixels.
const (
	chartWidth, chartHeight = 860, 460
	plotLeft, plotRight     = 70, 840
	plotHeight              = 160
	upperTop, lowerTop      = 60, 260
)

// chart draws samples as Google's page about concurrency does: the requests over
// time as a green line on top, the instances as a blue line below, as an SVG. The
// scales end at the given numbers.
func chart(title string, samples []sample, fastest, highest float64) []byte {
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#3c4043">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="%d" y="28" font-size="16">%s</text>
`, chartWidth, chartHeight, plotLeft, title)
	end := samples[len(samples)-1].at.Seconds()
	upper := plot{&svg, upperTop, end, roundUp(fastest)}
	upper.axes("requests per second")
	upper.line("#1e8e3e", "2", samples, func(s sample) float64 { return s.rate })
	lower := plot{&svg, lowerTop, end, roundUp(highest)}
	lower.axes("instances (dashed: those that are not frozen; pale: and those that are being started)")
	instances := func(color, width string, f func(sample) int) {
		lower.line(color, width, samples, func(s sample) float64 { return float64(f(s)) })
	}
	instances("#aecbfa", "1", wanted)
	instances("#1a73e8", "2", started)
	instances("#1a73e8", `1" stroke-dasharray="3 3`, awake)
	svg.WriteString("</svg>\n")
	return []byte(svg.String())
}

// plot is one of the two coordinate systems of a chart.
type plot struct {
	svg       *strings.Builder
	top       int
	end, high float64 // of the axes
}

func (p *plot) x(seconds float64) float64 { return plotLeft + seconds/p.end*(plotRight-plotLeft) }

func (p *plot) y(value float64) float64 { return float64(p.top) + plotHeight*(1-value/p.high) }

func (p *plot) axes(name string) {
	fmt.Fprintf(p.svg, "<text x=\"%d\" y=\"%d\">%s</text>\n", plotLeft, p.top-8, name)
	for value := 0.0; value <= p.high; value += p.high / 4 {
		y := p.y(value)
		fmt.Fprintf(p.svg, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#dadce0\"/>\n", plotLeft, y, plotRight, y)
		fmt.Fprintf(p.svg, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", plotLeft-8, y+4, value)
	}
	step := max(1, roundUp(p.end/8))
	for seconds := 0.0; seconds <= p.end; seconds += step {
		fmt.Fprintf(p.svg, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g s</text>\n", p.x(seconds), p.top+plotHeight+18, seconds)
	}
}

func (p *plot) line(color, width string, samples []sample, value func(sample) float64) {
	fmt.Fprintf(p.svg, `<polyline fill="none" stroke="%s" stroke-width="%s" points="`, color, width)
	for _, s := range samples {
		fmt.Fprintf(p.svg, "%.1f,%.1f ", p.x(s.at.Seconds()), p.y(value(s)))
	}
	p.svg.WriteString("\"/>\n")
}

// roundUp is the end of a scale with four parts: 1, 2, 4, 6 or 8 times a power of
// ten.
func roundUp(x float64) float64 {
	if x <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(x)))
	for _, n := range []float64{1, 2, 4, 6, 8} {
		if x <= n*power {
			return n * power
		}
	}
	return 10 * power
}
