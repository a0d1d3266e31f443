package caddymodule

import (
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// repeatAfter is how long a step may take before it is printed again where
// there is no live line.
const repeatAfter = 15 * time.Second

// progress shows what is going on: on a terminal as one line that changes, else
// as a line for each step.
type progress struct {
	w       io.Writer
	file    *os.File // the terminal, or nil
	prefix  string
	now     func() time.Time
	began   time.Time
	step    string
	shown   string
	printed time.Time
}

func (c *cli) newProgress(prefix string) *progress {
	p := &progress{w: c.msg, prefix: prefix, now: c.now, began: c.now()}
	if f, ok := terminal(c.msg); ok && os.Getenv("TERM") != "dumb" {
		p.file = f
	}
	return p
}

// show shows a step, and how far it has come, which may be empty.
func (p *progress) show(step, detail string) {
	text := step
	if detail != "" {
		text += ": " + detail
	}
	now := p.now()
	if p.file == nil {
		if step == p.step && (text == p.shown || now.Sub(p.printed) < repeatAfter) {
			return
		}
		p.step, p.shown, p.printed = step, text, now
		fmt.Fprintf(p.w, "%s: %s\n", p.prefix, text)
		return
	}
	line := fmt.Sprintf("%s: %s (%s)", p.prefix, text, now.Sub(p.began).Truncate(time.Second))
	if width, _, err := term.GetSize(int(p.file.Fd())); err == nil && width > 1 {
		line = cut(line, width-1)
	}
	fmt.Fprint(p.w, "\r\x1b[K"+line)
}

// end clears the live line.
func (p *progress) end() {
	if p.file != nil {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// cut shortens a line to so many characters.
func cut(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}

// bytesText is an amount of bytes for people: "12.3 MB".
func bytesText(n int64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/unit, 0
	for ; value >= unit && i < 3; i++ {
		value /= unit
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGT"[i])
}
