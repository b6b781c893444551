package page

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// openKeys are the keys of an answer below which keys are data, not part of the form: versions, types of resources, names
// of backends. There an example's entry is matched by the entry of the same key, or else by any.
var openKeys = []string{"kumaDp", "envoy", "stat", "policies", "issuedBackends", "supportedBackends"}

// missing returns the paths of the keys of an example that an answer does not have. An element of a list must have its
// like in the answer's list, at any place.
func missing(example, got any) []string { return missingAt("", example, got) }

func missingAt(path string, example, got any) []string {
	switch e := example.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %T, not an object", path, got)}
		}
		var out []string
		for _, key := range slices.Sorted(maps.Keys(e)) {
			at := strings.TrimPrefix(path+"."+key, ".")
			value, ok := g[key]
			switch {
			case ok:
				out = append(out, missingAt(at, e[key], value)...)
			case isMap(path):
				out = append(out, likeAny(at, e[key], slices.Collect(maps.Values(g)))...)
			default:
				out = append(out, at)
			}
		}
		return out
	case []any:
		g, ok := got.([]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %T, not a list", path, got)}
		}
		var out []string
		for i, element := range e {
			out = append(out, likeAny(fmt.Sprintf("%s[%d]", path, i), element, g)...)
		}
		return out
	default:
		return nil
	}
}

// likeAny returns what is missing in the candidate that comes closest.
func likeAny(path string, example any, candidates []any) []string {
	best := []string{path}
	for i, c := range candidates {
		if m := missingAt(path, example, c); i == 0 || len(m) < len(best) {
			best = m
		}
	}
	return best
}

func isMap(path string) bool {
	return slices.Contains(openKeys, path[strings.LastIndexByte(path, '.')+1:])
}

// changed returns the paths at which an answer does not say what was sent. It may say more. Durations and times are
// compared as such.
func changed(sent, got any) []string { return changedAt("", sent, got) }

func changedAt(path string, sent, got any) []string {
	differs := []string{fmt.Sprintf("%s was sent as %v and read as %v", path, sent, got)}
	switch s := sent.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return differs
		}
		var out []string
		for _, key := range slices.Sorted(maps.Keys(s)) {
			at := strings.TrimPrefix(path+"."+key, ".")
			value, ok := g[key]
			if !ok {
				out = append(out, at+" was sent and is gone")
				continue
			}
			out = append(out, changedAt(at, s[key], value)...)
		}
		return out
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(s) {
			return differs
		}
		var out []string
		for i := range s {
			out = append(out, changedAt(fmt.Sprintf("%s[%d]", path, i), s[i], g[i])...)
		}
		return out
	case string:
		g, ok := got.(string)
		if ok && (s == g || sameDuration(s, g) || sameTime(s, g)) {
			return nil
		}
		return differs
	default:
		if sent != got {
			return differs
		}
		return nil
	}
}

func sameDuration(a, b string) bool {
	x, errX := time.ParseDuration(a)
	y, errY := time.ParseDuration(b)
	return errX == nil && errY == nil && x == y
}

func sameTime(a, b string) bool {
	x, errX := time.Parse(time.RFC3339Nano, a)
	y, errY := time.Parse(time.RFC3339Nano, b)
	return errX == nil && errY == nil && x.Equal(y)
}

func TestMatching(t *testing.T) {
	object := func(kv ...any) map[string]any {
		m := map[string]any{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return m
	}
	list := func(v ...any) []any { return v }
	for _, tc := range []struct {
		name         string
		example, got any
		missing      []string
		changed      []string
	}{
		{
			"more may be said", object("a", 1.0), object("a", 1.0, "b", 2.0), nil, nil,
		},
		{
			"a key is missed where it is", object("a", object("b", 1.0, "c", 1.0)), object("a", object("b", 1.0)),
			[]string{"a.c"},
			[]string{"a.c was sent and is gone"},
		},
		{
			"an element is matched at any place", list(object("a", 1.0), object("b", 1.0)), list(object("b", 1.0), object("a", 1.0)),
			nil,
			[]string{"[0].a was sent and is gone", "[1].b was sent and is gone"},
		},
		{
			"an element without its like is missed", list(object("a", 1.0)), list(),
			[]string{"[0]"},
			[]string{" was sent as [map[a:1]] and read as []"},
		},
		{
			"below a map any entry will do", object("stat", object("Mesh", object("sent", "1"))), object("stat", object("Zone", object("sent", "1"))),
			nil,
			[]string{"stat.Mesh was sent and is gone"},
		},
		{
			"but not one without its keys", object("stat", object("Mesh", object("sent", "1"))), object("stat", object("Zone", object())),
			[]string{"stat.Mesh.sent"},
			[]string{"stat.Mesh was sent and is gone"},
		},
		{"forms of a duration are the same", object("d", "0.2s"), object("d", "0.200s"), nil, nil},
		{
			"forms of a time are the same",
			object("t", "2020-05-12T12:31:45.5+02:00"), object("t", "2020-05-12T10:31:45.500Z"), nil, nil,
		},
		{
			"values differ", object("a", "x", "b", false), object("a", "y", "b", nil), nil,
			[]string{"a was sent as x and read as y", "b was sent as false and read as <nil>"},
		},
		{
			"kinds differ", object("a", object("b", 1.0), "c", list()), object("a", "x", "c", nil),
			[]string{"a is string, not an object", "c is <nil>, not a list"},
			[]string{"a was sent as map[b:1] and read as x", "c was sent as [] and read as <nil>"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.missing, missing(tc.example, tc.got)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tc.changed, changed(tc.example, tc.got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
