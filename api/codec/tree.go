package codec

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
)

// maxDepth bounds how deep objects and arrays may nest in a body.
const maxDepth = 100

// kind is what a JSON value can be.
type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindObject
	kindArray
)

// String names the kind with its article, for "got a string".
func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "an object", "an array"}[k]
}

// node is a value of a body, whatever format it was written in.
type node struct {
	kind kind
	// name is the member name of a value inside an object; repeated marks the second and later values of one name.
	name     string
	repeated bool
	// text is "true" or "false", the number as JSON writes it, or the decoded string.
	text string
	// children are the members of an object or the elements of an array, in the order of the body.
	children []node
	// start and end delimit the value in a JSON body.
	start, end int
}

// body is a parsed body.
type body struct {
	root node
	// source is the JSON text that start and end of nodes refer to; empty when the body was YAML.
	source string
	// repeats says that some member name stands twice in its object.
	repeats bool
}

// raw returns compact JSON of n: exactly as it was sent when it was sent as JSON, apart from white space.
func (b *body) raw(n *node) []byte {
	if b.source == "" {
		return appendCompact(nil, n)
	}
	var out bytes.Buffer
	// The text was parsed before, so it cannot fail.
	_ = json.Compact(&out, []byte(b.source[n.start:n.end]))
	return out.Bytes()
}

func appendCompact(dst []byte, n *node) []byte {
	switch n.kind {
	case kindNull:
		return append(dst, "null"...)
	case kindBool, kindNumber:
		return append(dst, n.text...)
	case kindString:
		return appendString(dst, n.text)
	case kindArray:
		dst = append(dst, '[')
		for i := range n.children {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendCompact(dst, &n.children[i])
		}
		return append(dst, ']')
	case kindObject:
		dst = append(dst, '{')
		for i := range n.children {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, n.children[i].name)
			dst = append(dst, ':')
			dst = appendCompact(dst, &n.children[i])
		}
		return append(dst, '}')
	}
	return dst
}

// markRepeats sets repeated on every child of an object whose name an earlier one has. It reports whether there is any.
func markRepeats(children []node) bool {
	found := false
	if len(children) <= 8 { // comparing is cheaper than a map
		for i := range children {
			for j := range i {
				if children[i].name == children[j].name {
					children[i].repeated, found = true, true
					break
				}
			}
		}
		return found
	}
	seen := make(map[string]struct{}, len(children))
	for i := range children {
		if _, ok := seen[children[i].name]; ok {
			children[i].repeated, found = true, true
		}
		seen[children[i].name] = struct{}{}
	}
	return found
}

// path is where in a body a value stands: a chain from the value to the root, which is nil. Text is made from it only
// when there is something to report.
type path struct {
	parent *path
	name   string // of a member
	index  int    // of an element; negative for a member
	key    bool   // the member is an entry of a map: ["name"] rather than .name
}

func (p *path) field(name string) *path { return &path{parent: p, name: name, index: -1} }
func (p *path) entry(key string) *path  { return &path{parent: p, name: key, index: -1, key: true} }
func (p *path) element(i int) *path     { return &path{parent: p, index: i} }

// maxNameLength bounds, in bytes, how much of one name of the body is repeated in a path.
const maxNameLength = 128

// String writes the path as validation does: networking.inbound[1].tags["version"].
func (p *path) String() string {
	if p == nil {
		return ""
	}
	prefix := p.parent.String()
	switch {
	case p.index >= 0:
		return prefix + "[" + strconv.Itoa(p.index) + "]"
	case p.key || !plainName(p.name):
		return prefix + "[" + string(appendString(nil, shorten(p.name))) + "]"
	case prefix == "":
		return p.name
	default:
		return prefix + "." + p.name
	}
}

func plainName(s string) bool {
	return s != "" && len(s) <= maxNameLength && strings.IndexFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '_' && r != '-'
	}) < 0
}

func shorten(s string) string {
	if len(s) <= maxNameLength {
		return s
	}
	return strings.ToValidUTF8(s[:maxNameLength], "") + "…"
}
