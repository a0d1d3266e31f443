package caddymodule

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSplitList(t *testing.T) {
	for _, test := range []struct {
		text string
		want []string
		bad  bool
	}{
		{"", nil, false},
		{"a", []string{"a"}, false},
		{"a,b", []string{"a", "b"}, false},
		{"a,b,", []string{"a", "b"}, false},
		{"a,,b", []string{"a", "", "b"}, false},
		{"^;^a=b,c;d=e", []string{"a=b,c", "d=e"}, false},
		{"^::^a,b::c", []string{"a,b", "c"}, false},
		{"^;^", nil, false},
		{"^only", []string{"^only"}, false},
		{"^^a,b", nil, true},
	} {
		got, err := splitList(test.text)
		if !slices.Equal(got, test.want) || (err != nil) != test.bad {
			t.Errorf("splitList(%q) = %q, %v", test.text, got, err)
		}
	}
}

func FuzzSplitPairs(f *testing.F) {
	for _, text := range []string{"", "a=b", "a=b,c=d", "^;^a=1,2;b=3", "^^", "^", "a==b,", "a=1,a=2", "=x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pairs, err := splitPairs(text)
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, p := range pairs {
			if p.key == "" || seen[p.key] || strings.Contains(p.key, "=") {
				t.Errorf("%q: the key %q in %q", text, p.key, pairs)
			}
			seen[p.key] = true
			if !strings.Contains(text, p.key+"="+p.value) {
				t.Errorf("%q: %s=%s is not in it", text, p.key, p.value)
			}
		}
		// With a delimiter that is nowhere in it, the same comes out again.
		parts := make([]string, 0, len(pairs))
		for _, p := range pairs {
			parts = append(parts, p.key+"="+p.value)
		}
		delimiter := "::"
		if strings.Contains(text, delimiter) || strings.Contains(strings.Join(parts, ""), delimiter) || slices.ContainsFunc(parts, func(p string) bool {
			return strings.HasPrefix(p, ":") || strings.HasSuffix(p, ":")
		}) {
			return
		}
		again, err := splitPairs("^" + delimiter + "^" + strings.Join(parts, delimiter))
		if err != nil || (len(pairs) > 0 && !reflect.DeepEqual(again, pairs)) {
			t.Errorf("%q: %q becomes %q, %v", text, pairs, again, err)
		}
	})
}

func TestEnvFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	want := []pair{{"A", "1"}, {"B", "two words"}, {"C", "a=b"}}
	for _, file := range []string{
		write("vars.env", "# the vars\nA=1\nexport B=\"two words\"\n\nC='a=b'\n"),
		write("vars", "A=1 # one\nB=two words\nC=a=b\n"),
		write("vars.yaml", "B: two words\nA: '1'\nC: a=b\n"),
	} {
		if got, err := readEnvFile(file); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v", file, got, err)
		}
	}
	for name, text := range map[string]string{
		"number.yaml": "A: 1\n", "list.yaml": "- A\n", "twice.yaml": "A: x\nA: y\n", "none.env": "A\n", "empty.env": "=x\n",
	} {
		if got, err := readEnvFile(write(name, text)); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}
