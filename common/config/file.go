package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// file decodes YAML into a configuration struct. It walks the nodes itself, because a problem is worth most with its
// line, and because one problem must not hide the next.
type file struct {
	name     string
	problems []error
}

func (f *file) bad(n *yaml.Node, format string, args ...any) {
	f.problems = append(f.problems, fmt.Errorf("%s:%d: %w", f.name, n.Line, fmt.Errorf(format, args...)))
}

// decode fills v, a settable struct. A file of comments or nothing changes nothing.
func (f *file) decode(content []byte, v reflect.Value) {
	dec := yaml.NewDecoder(bytes.NewReader(content))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return
	} else if err != nil {
		f.problems = append(f.problems, fmt.Errorf("%s: %w", f.name, err))
		return
	}
	f.mapping(doc.Content[0], v, "")
	if err := dec.Decode(&doc); err == nil {
		f.bad(&doc, "a second document: one file holds one configuration")
	} else if !errors.Is(err, io.EOF) {
		f.problems = append(f.problems, fmt.Errorf("%s: %w", f.name, err))
	}
}

func (f *file) mapping(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		f.bad(n, "%s: not a mapping of keys to values", orRoot(path))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if val.Kind == yaml.AliasNode {
			val = val.Alias
		}
		keyPath := join(path, key.Value)
		if line, twice := seen[key.Value]; twice {
			f.bad(key, "%s: given twice, first in line %d", keyPath, line)
			continue
		}
		seen[key.Value] = key.Line
		sf, sv, ok := byKey(v, key.Value)
		switch {
		case !ok:
			f.bad(key, "%s: no such key; known here: %s", keyPath, strings.Join(keys(v), ", "))
		case sf.Type.Kind() == reflect.Struct:
			f.mapping(val, sv, keyPath)
		default:
			f.leaf(val, field{path: keyPath, value: sv})
		}
	}
}

func (f *file) leaf(n *yaml.Node, fl field) {
	if isNull(n) {
		return // as if the key were not there
	}
	if n.Kind == yaml.SequenceNode && fl.value.Type() == stringsType {
		list := make([]string, 0, len(n.Content))
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				f.bad(item, "%s: not a list of strings", fl.path)
				return
			}
			list = append(list, item.Value)
		}
		fl.value.Set(reflect.ValueOf(list))
		return
	}
	if n.Kind != yaml.ScalarNode {
		f.bad(n, "%s: not a single value", fl.path)
		return
	}
	if err := fl.set(n.Value); err != nil {
		f.bad(n, "%s: %w", fl.path, err)
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func orRoot(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func byKey(v reflect.Value, key string) (reflect.StructField, reflect.Value, bool) {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if name, _, _ := strings.Cut(sf.Tag.Get("yaml"), ","); name == key && name != "-" && sf.IsExported() {
			return sf, v.Field(i), true
		}
	}
	return reflect.StructField{}, reflect.Value{}, false
}

func keys(v reflect.Value) []string {
	var names []string
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if name, _, _ := strings.Cut(sf.Tag.Get("yaml"), ","); name != "" && name != "-" && sf.IsExported() {
			names = append(names, name)
		}
	}
	return names
}
