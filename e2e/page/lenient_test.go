package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// repair turns JSON as people print it in documentation into JSON: "..." stands for what is left out, commas are
// missing or left over, the end may be cut off. It says what it repaired.
func repair(text string) (json.RawMessage, []string, error) {
	var out bytes.Buffer
	var open []byte // closing brackets that are due
	var repaired []string
	note := func(what string) {
		if !slices.Contains(repaired, what) {
			repaired = append(repaired, what)
		}
	}
	comma := false // one was read and not yet written: it must not end up before a bracket
	value := false // a value or key has just ended
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case strings.IndexByte(" \t\r\n", c) >= 0:
			i++
			continue
		case strings.HasPrefix(text[i:], "..."):
			note("ellipsis")
			i += 3
			continue
		case c == ',':
			comma, value = true, false
			i++
			continue
		case c == '}' || c == ']':
			if len(open) == 0 || open[len(open)-1] != c {
				return nil, nil, fmt.Errorf("bracket %q at offset %d closes nothing", c, i)
			}
			if comma {
				note("comma left over")
			}
			open, comma, value = open[:len(open)-1], false, true
			out.WriteByte(c)
			i++
			continue
		case c == ':':
			out.WriteByte(c)
			value = false
			i++
			continue
		}
		// A string, a number, a word or an opening bracket begins.
		switch {
		case comma:
			out.WriteByte(',')
		case value:
			out.WriteByte(',')
			note("comma missing")
		}
		comma, value = false, true
		switch c {
		case '{', '[':
			open = append(open, map[byte]byte{'{': '}', '[': ']'}[c])
			out.WriteByte(c)
			value = false
			i++
		case '"':
			end := i + 1
			for end < len(text) && text[end] != '"' {
				if text[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(text) {
				return nil, nil, fmt.Errorf("string at offset %d does not end", i)
			}
			out.WriteString(text[i : end+1])
			i = end + 1
		default:
			n := strings.IndexAny(text[i:], " \t\r\n,]}:")
			if n < 0 {
				n = len(text) - i
			}
			out.WriteString(text[i : i+n])
			i += n
		}
	}
	if len(open) > 0 {
		note("end missing")
		slices.Reverse(open)
		out.Write(open)
	}
	if !json.Valid(out.Bytes()) {
		return nil, nil, fmt.Errorf("cannot be repaired: %s", out.Bytes())
	}
	return out.Bytes(), repaired, nil
}

func TestRepair(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
		repaired         []string
	}{
		{"leaves JSON alone", `{"a": [1, true, null, "b: ... , c"], "d": {}}`, `{"a":[1,true,null,"b: ... , c"],"d":{}}`, nil},
		{"leaves out what dots stand for", "{\"a\": 1,\n ...\n}", `{"a":1}`, []string{"ellipsis", "comma left over"}},
		{"empties a list of dots", `{"a": [...], "b": 2}`, `{"a":[],"b":2}`, []string{"ellipsis"}},
		{"puts missing commas", "{\"a\": {}\n \"b\": [1 2]\n}", `{"a":{},"b":[1,2]}`, []string{"comma missing"}},
		{"drops commas left over", `[1, 2, ]`, `[1,2]`, []string{"comma left over"}},
		{"closes what is open", `{"a": [{"b": 1}`, `{"a":[{"b":1}]}`, []string{"end missing"}},
		{"knows escapes", `["a\"", "\\"]`, `["a\"","\\"]`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, repaired, err := repair(tc.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tc.repaired, repaired); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, text := range []string{`{"a": 1]`, `["a`, `{"a" 1}`, `}`, `[a]`} {
		if got, _, err := repair(text); err == nil {
			t.Errorf("%s became %s", text, got)
		}
	}
}
