package containerd

import "strings"

// expand replaces $(NAME) by what value says of NAME, and $$ by $. What value
// does not know stays as it is, as does everything else.
// Source: Kubernetes: "Define dependent environment variables", and the fields
// command, args and env of a container.
func expand(text string, value func(name string) (string, bool)) string {
	before, after, found := strings.Cut(text, "$")
	if !found {
		return text
	}
	var b strings.Builder
	for ; found; before, after, found = strings.Cut(after, "$") {
		b.WriteString(before)
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			after = after[1:]
		case strings.HasPrefix(after, "("):
			name, rest, closed := strings.Cut(after[1:], ")")
			if !closed {
				b.WriteByte('$')
				continue
			}
			v, known := value(name)
			if !known {
				v = "$(" + name + ")"
			}
			b.WriteString(v)
			after = rest
		default:
			b.WriteByte('$')
		}
	}
	b.WriteString(before)
	return b.String()
}
