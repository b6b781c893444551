package codec

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxAliased bounds how many values aliases of a YAML body may repeat: a few lines can otherwise stand for billions.
const maxAliased = 10_000

// parseYAML parses a single YAML document into the values that JSON has. Anchors, aliases and merge keys are resolved.
func parseYAML(text string) (*body, error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errEmpty()
		}
		return nil, malformedYAML(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var more yaml.Node
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, malformedYAML(strings.TrimPrefix(err.Error(), "yaml: "))
		}
		return nil, malformedYAML(fmt.Sprintf("only one document is allowed, the second begins at line %d", more.Line))
	}
	if len(doc.Content) == 0 {
		return nil, errEmpty()
	}
	var c yamlConverter
	root, err := c.value(doc.Content[0], 0)
	if err != nil {
		return nil, err
	}
	return &body{root: root, repeats: c.repeats}, nil
}

func malformedYAML(message string) error {
	return &Error{Violations: []Violation{{Message: "malformed YAML: " + message}}}
}

type yamlConverter struct {
	inAlias int // how many aliases the current value stands under
	aliased int // values that stand under an alias so far
	repeats bool
}

func (c *yamlConverter) fail(n *yaml.Node, message string) error {
	return malformedYAML(fmt.Sprintf("line %d: %s", n.Line, message))
}

func (c *yamlConverter) value(n *yaml.Node, depth int) (node, error) {
	if c.inAlias > 0 {
		if c.aliased++; c.aliased > maxAliased {
			return node{}, c.fail(n, fmt.Sprintf("aliases stand for more than %d values", maxAliased))
		}
	}
	if depth > maxDepth || depth == maxDepth && (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode) {
		return node{}, c.fail(n, fmt.Sprintf("nested deeper than %d levels", maxDepth))
	}
	switch n.Kind {
	case yaml.AliasNode:
		c.inAlias++
		defer func() { c.inAlias-- }()
		return c.value(n.Alias, depth+1) // one deeper, so that an alias inside its own anchor ends
	case yaml.MappingNode:
		members, err := c.members(n, depth)
		return node{kind: kindObject, children: members}, err
	case yaml.SequenceNode:
		var elements []node
		for _, item := range n.Content {
			element, err := c.value(item, depth+1)
			if err != nil {
				return node{}, err
			}
			elements = append(elements, element)
		}
		return node{kind: kindArray, children: elements}, nil
	case yaml.ScalarNode:
		return c.scalar(n)
	default:
		return node{}, c.fail(n, "not a value")
	}
}

func (c *yamlConverter) members(n *yaml.Node, depth int) ([]node, error) {
	var members, merged []node
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		if name.Kind == yaml.AliasNode {
			name = name.Alias
		}
		if name.Kind != yaml.ScalarNode {
			return nil, c.fail(name, "a name must be a plain value")
		}
		if !utf8.ValidString(name.Value) {
			return nil, c.fail(name, "not UTF-8")
		}
		member, err := c.value(value, depth+1)
		if err != nil {
			return nil, err
		}
		if name.ShortTag() == "!!merge" {
			sources := []node{member}
			if member.kind == kindArray {
				sources = member.children
			}
			for _, source := range sources {
				if source.kind != kindObject {
					return nil, c.fail(value, "<< needs a mapping or a list of mappings")
				}
				merged = append(merged, source.children...)
			}
			continue
		}
		member.name = name.Value
		members = append(members, member)
	}
	if markRepeats(members) {
		c.repeats = true
	}
	if len(merged) == 0 {
		return members, nil
	}
	// What the mapping says itself wins over what it merges, and an earlier merge over a later one.
	own := len(members)
	all := append(members, merged...)
	for i := range all[own:] {
		all[own+i].repeated = false
	}
	markRepeats(all)
	members = all[:own]
	for _, m := range all[own:] {
		if !m.repeated {
			members = append(members, m)
		}
	}
	return members, nil
}

func (c *yamlConverter) scalar(n *yaml.Node) (node, error) {
	switch tag := n.ShortTag(); tag {
	case "!!null":
		return node{kind: kindNull}, nil
	case "!!bool":
		var v bool
		if err := n.Decode(&v); err != nil {
			return node{}, c.fail(n, "not a boolean")
		}
		return node{kind: kindBool, text: strconv.FormatBool(v)}, nil
	case "!!int", "!!float":
		if length := numberLength(n.Value); length > 0 && length == len(n.Value) {
			return node{kind: kindNumber, text: n.Value}, nil
		}
		var v any
		if err := n.Decode(&v); err != nil {
			return node{}, c.fail(n, "not a number")
		}
		switch v := v.(type) {
		case int:
			return node{kind: kindNumber, text: strconv.Itoa(v)}, nil
		case int64:
			return node{kind: kindNumber, text: strconv.FormatInt(v, 10)}, nil
		case uint64:
			return node{kind: kindNumber, text: strconv.FormatUint(v, 10)}, nil
		case float64:
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				return node{kind: kindNumber, text: string(appendFloat(nil, v, 64))}, nil
			}
		}
		return node{}, c.fail(n, "not a finite number")
	case "!!str", "!!timestamp", "!!binary", "!!merge":
		if !utf8.ValidString(n.Value) {
			return node{}, c.fail(n, "not UTF-8")
		}
		return node{kind: kindString, text: n.Value}, nil
	default:
		return node{}, c.fail(n, "unknown tag "+tag)
	}
}
