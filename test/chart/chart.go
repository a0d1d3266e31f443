// Package chart draws numbers over time as an SVG.
package chart

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// The chart's measures, in pixels.
const (
	width               = 860
	plotLeft, plotRight = 70, 840
	plotTop, plotHeight = 60, 160
	plotEvery           = 200
)

// Plot is one of the coordinate systems of a chart, which stand one below the other.
type Plot struct {
	Name string
	// Highest is where the scale is to reach. Default: the highest value.
	Highest float64
	Lines   []Line
}

// Line is a series of values in one color, such as "#1a73e8".
type Line struct {
	Color string
	// Width is in pixels. Default: 1.
	Width  int
	Dashed bool
	// Points are in the order of time.
	Points []Point
}

// Point is a value at a time since the chart's begin.
type Point struct {
	At    time.Duration
	Value float64
}

// SVG draws plots from 0 to end.
func SVG(title string, end time.Duration, plots ...Plot) []byte {
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#3c4043">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="%d" y="28" font-size="16">%s</text>
`, width, plotTop+plotEvery*len(plots), plotLeft, html.EscapeString(title))
	for n, p := range plots {
		s := system{svg: &svg, top: plotTop + plotEvery*n, end: end.Seconds(), high: roundUp(p.highest())}
		s.axes(p.Name)
		for _, l := range p.Lines {
			s.line(l)
		}
	}
	svg.WriteString("</svg>\n")
	return []byte(svg.String())
}

func (p Plot) highest() float64 {
	highest := p.Highest
	for _, l := range p.Lines {
		for _, point := range l.Points {
			highest = max(highest, point.Value)
		}
	}
	return highest
}

// system is a coordinate system that is being drawn.
type system struct {
	svg       *strings.Builder
	top       int
	end, high float64 // of the axes
}

func (s *system) x(seconds float64) float64 {
	return plotLeft + seconds/s.end*(plotRight-plotLeft)
}

func (s *system) y(value float64) float64 { return float64(s.top) + plotHeight*(1-value/s.high) }

func (s *system) axes(name string) {
	fmt.Fprintf(s.svg, "<text x=\"%d\" y=\"%d\">%s</text>\n", plotLeft, s.top-8, html.EscapeString(name))
	for value := 0.0; value <= s.high; value += s.high / 4 {
		y := s.y(value)
		fmt.Fprintf(s.svg, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#dadce0\"/>\n", plotLeft, y, plotRight, y)
		fmt.Fprintf(s.svg, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", plotLeft-8, y+4, value)
	}
	step := max(1, roundUp(s.end/8))
	for seconds := 0.0; seconds <= s.end; seconds += step {
		fmt.Fprintf(s.svg, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g s</text>\n", s.x(seconds), s.top+plotHeight+18, seconds)
	}
}

func (s *system) line(l Line) {
	dashes := ""
	if l.Dashed {
		dashes = ` stroke-dasharray="3 3"`
	}
	fmt.Fprintf(s.svg, `<polyline fill="none" stroke="%s" stroke-width="%d"%s points="`, l.Color, max(l.Width, 1), dashes)
	for _, p := range l.Points {
		fmt.Fprintf(s.svg, "%.1f,%.1f ", s.x(p.At.Seconds()), s.y(p.Value))
	}
	s.svg.WriteString("\"/>\n")
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
