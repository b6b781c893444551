package codec

import (
	"math"
	"strconv"
	"strings"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// EncodeYAML renders a record as a YAML document that says the same as Encode: the same members in the same order,
// block style, with a newline at the end. Decode reads it back to the same specification, except that escapes in strings
// of plain JSON become the characters they stand for.
func EncodeYAML(d *resource.Descriptor, rec *store.Record) ([]byte, error) {
	object, err := Encode(d, rec)
	if err != nil {
		return nil, err
	}
	b, err := parseJSON(string(object))
	if err != nil {
		return nil, err
	}
	return append(appendYAML(make([]byte, 0, len(object)+len(object)/4), &b.root, 0), '\n'), nil
}

// appendYAML appends n in block style. The first line continues the one that dst ends with; further lines are indented.
func appendYAML(dst []byte, n *node, indent int) []byte {
	if len(n.children) == 0 {
		return appendYAMLScalar(dst, n)
	}
	for i := range n.children {
		child := &n.children[i]
		if i > 0 {
			dst = appendLine(dst, indent)
		}
		if n.kind == kindArray {
			dst = appendYAML(append(dst, "- "...), child, indent+2)
			continue
		}
		dst = appendYAMLKey(dst, child.name, indent)
		switch {
		case len(child.children) == 0:
			dst = appendYAMLScalar(append(dst, ' '), child)
		case child.kind == kindArray: // its dashes set it off
			dst = appendYAML(appendLine(dst, indent), child, indent)
		default:
			dst = appendYAML(appendLine(dst, indent+2), child, indent+2)
		}
	}
	return dst
}

func appendLine(dst []byte, indent int) []byte {
	dst = append(dst, '\n')
	for range indent {
		dst = append(dst, ' ')
	}
	return dst
}

// maxImplicitKey is how long a key of a mapping may be, in bytes, that is not announced by a question mark. YAML allows
// 1,024 characters, quotes and escapes included.
const maxImplicitKey = 1000

func appendYAMLKey(dst []byte, name string, indent int) []byte {
	before := len(dst)
	dst = appendYAMLString(dst, name)
	if len(dst)-before > maxImplicitKey {
		dst = appendYAMLString(append(dst[:before], "? "...), name)
		dst = appendLine(dst, indent)
	}
	return append(dst, ':')
}

// appendYAMLScalar appends a scalar, or an empty object or array.
func appendYAMLScalar(dst []byte, n *node) []byte {
	switch n.kind {
	case kindString:
		return appendYAMLString(dst, n.text)
	case kindNumber:
		// A number beyond what a double holds would read as text.
		if v, err := strconv.ParseFloat(n.text, 64); err != nil || math.IsInf(v, 0) {
			dst = append(dst, "!!float "...)
		}
		return append(dst, n.text...)
	default:
		return appendCompact(dst, n)
	}
}

// appendYAMLString appends s plain where nothing could take it for something else, and otherwise as a JSON string,
// which YAML reads as it is.
func appendYAMLString(dst []byte, s string) []byte {
	if plainYAML(s) {
		return append(dst, s...)
	}
	// These are line breaks, or not allowed as they are, in some versions of YAML.
	if strings.ContainsAny(s, "\u007f\u0085\u2028\u2029\ufeff\ufffe\uffff") {
		return append(dst, strconv.QuoteToASCII(s)...)
	}
	return appendString(dst, s)
}

func plainYAML(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '_' && c != '-' && c != '.' && c != '/') {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "", "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		return false
	default:
		return true
	}
}
