package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestSVG(t *testing.T) {
	svg := string(SVG("a < b & c", 10*time.Second, Plot{Name: "above", Lines: []Line{
		{Color: "#000", Points: []Point{{0, 0}, {5 * time.Second, 3}, {10 * time.Second, 4}}},
		{Color: "#111", Width: 2, Dashed: true, Points: []Point{{0, 1}}},
	}}, Plot{Name: "below", Highest: 75}))
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{
		`height="460"`, "a &lt; b &amp; c",
		`stroke="#000" stroke-width="1" points="70.0,220.0 455.0,100.0 840.0,60.0 "`,
		`stroke="#111" stroke-width="2" stroke-dasharray="3 3" points="70.0,180.0 "`,
		`>80</text>`,
	} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
}

func TestRoundUp(t *testing.T) {
	for x, want := range map[float64]float64{0: 1, -1: 1, 0.3: 0.4, 1: 1, 5: 6, 7: 8, 9: 10, 150: 200, 801: 1000} {
		if got := roundUp(x); got != want {
			t.Errorf("%g: %g; want %g", x, got, want)
		}
	}
}
