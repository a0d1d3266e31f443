package caddymodule

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// health is how something does, in a word or a glyph. Source: gcloud.
type health int

const (
	healthy  health = iota
	degraded        // something older serves
	failing
	waiting
)

func (h health) String() string { return [...]string{"ready", "degraded", "failed", "waiting"}[h] }

func (h health) glyph() string { return [...]string{"✔", "!", "✗", "…"}[h] }

func healthOf(c *apis.Condition) health {
	switch {
	case c.IsTrue():
		return healthy
	case c.IsFalse():
		return failing
	}
	return waiting
}

// serviceHealth is a service's: one that serves with an older revision than the
// one that was asked for last has not failed.
func serviceHealth(svc *servingv1.Service) health {
	h := healthOf(svc.Status.GetCondition(servingv1.ServiceConditionReady))
	if h == failing && svc.Status.LatestReadyRevisionName != "" {
		return degraded
	}
	return h
}

// conditionText is why a condition is as it is, in one line.
func conditionText(c *apis.Condition) string {
	if c == nil {
		return "nothing is known of it"
	}
	text := c.Reason
	if message := strings.TrimSpace(c.Message); message != "" {
		text = strings.TrimPrefix(text+": "+strings.Join(strings.Fields(message), " "), ": ")
	}
	if text == "" && c.Status != corev1.ConditionTrue {
		text = strings.ToLower(string(c.Type)) + " is not known yet"
	}
	return text
}

// table prints columns. The first says how each row does: a glyph for people,
// a word for programs.
type table struct {
	w      *tabwriter.Writer
	glyphs bool
	rows   int
}

func (c *cli) newTable(headings ...string) *table {
	t := &table{w: tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0), glyphs: c.glyphs()}
	first := "STATUS"
	if t.glyphs {
		first = ""
	}
	fmt.Fprintln(t.w, strings.Join(append([]string{first}, headings...), "\t"))
	return t
}

func (t *table) row(h health, cells ...string) {
	first := h.String()
	if t.glyphs {
		first = h.glyph()
	}
	t.rows++
	fmt.Fprintln(t.w, strings.Join(append([]string{first}, cells...), "\t"))
}

// glyphs tells whether the output is a terminal that shows all characters.
func (c *cli) glyphs() bool {
	if _, ok := terminal(c.out); !ok {
		return false
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" { // the first that is set counts
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// mark is how something does, before its name.
func (c *cli) mark(h health) string {
	if c.glyphs() {
		return h.glyph()
	}
	return h.String()
}

// age is how long ago something was.
func (c *cli) age(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return duration.HumanDuration(c.now().Sub(at))
}

// orDash stands for what is empty, so that columns stay columns.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
