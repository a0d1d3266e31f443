package caddymodule

import (
	"fmt"
	"strings"
)

// pair is one NAME=VALUE of a list.
type pair struct{ key, value string }

// splitList splits the value of a flag as gcloud does: at commas, or, where
// items have commas of their own, at a delimiter that comes first between
// carets: "^;^a=1,2;b=3". Source: gcloud topic escaping.
func splitList(text string) ([]string, error) {
	delimiter := ","
	if after, ok := strings.CutPrefix(text, "^"); ok {
		if d, rest, ok := strings.Cut(after, "^"); ok {
			if d == "" {
				return nil, fmt.Errorf("%q: the delimiter between the carets is empty", text)
			}
			delimiter, text = d, rest
		}
	}
	text = strings.TrimSuffix(text, delimiter)
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, delimiter), nil
}

// splitPairs splits a list of NAME=VALUE. Of a name that is given twice the
// last value counts.
func splitPairs(text string) ([]pair, error) {
	items, err := splitList(text)
	if err != nil {
		return nil, err
	}
	pairs := make([]pair, 0, len(items))
	for _, item := range items {
		key, value, ok := strings.Cut(item, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is not NAME=VALUE", item)
		}
		pairs = setPair(pairs, pair{key, value})
	}
	return pairs, nil
}

func setPair(pairs []pair, p pair) []pair {
	for i := range pairs {
		if pairs[i].key == p.key {
			pairs[i].value = p.value
			return pairs
		}
	}
	return append(pairs, p)
}

// splitAllPairs is splitPairs for a flag that may be given several times.
func splitAllPairs(flag string, texts []string) ([]pair, error) {
	var all []pair
	for _, text := range texts {
		pairs, err := splitPairs(text)
		if err != nil {
			return nil, usageError("--%s: %s", flag, err)
		}
		for _, p := range pairs {
			all = setPair(all, p)
		}
	}
	return all, nil
}

// splitAll is splitList for a flag that may be given several times.
func splitAll(flag string, texts []string) ([]string, error) {
	var all []string
	for _, text := range texts {
		items, err := splitList(text)
		if err != nil {
			return nil, usageError("--%s: %s", flag, err)
		}
		all = append(all, items...)
	}
	return all, nil
}

// parseEnvFile reads the NAME=VALUE lines of an .env file.
func parseEnvFile(text string) ([]pair, error) {
	var all []pair
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		key = strings.TrimSpace(key)
		if !ok || key == "" {
			return nil, fmt.Errorf("line %d: %q is not NAME=VALUE", n, line)
		}
		value = strings.TrimSpace(value)
		if q := value; len(q) >= 2 && (q[0] == '"' || q[0] == '\'') && q[len(q)-1] == q[0] {
			value = q[1 : len(q)-1]
		} else if i := strings.Index(value, " #"); i >= 0 {
			value = strings.TrimSpace(value[:i])
		}
		all = setPair(all, pair{key, value})
	}
	return all, nil
}
