package validate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/common/store"
)

// maxReported bounds how many violations of one resource are reported.
const maxReported = 100

// report collects what is wrong with one resource.
type report struct {
	key        store.Key
	violations []codec.Violation
}

func (r *report) add(at path, message string) {
	if len(r.violations) < maxReported {
		r.violations = append(r.violations, codec.Violation{Field: at.String(), Message: message})
	}
}

func (r *report) addf(at path, format string, args ...any) {
	if len(r.violations) < maxReported {
		r.add(at, fmt.Sprintf(format, args...))
	}
}

// check adds the message unless ok. It returns ok.
func (r *report) check(ok bool, at path, message string) bool {
	if !ok {
		r.add(at, message)
	}
	return ok
}

// path is where in a specification a value stands: a link to what it stands in. Links live on the stack of the function
// that walks there, and text is made only when there is something to report: a valid resource costs no strings.
type path struct {
	parent *path
	name   string
	index  int
	kind   pathKind
}

type pathKind uint8

const (
	pathRoot pathKind = iota
	pathField
	pathIndex
	pathKey
)

// field is a member; name may be several joined by dots.
func (p *path) field(name string) path { return path{parent: p, name: name, kind: pathField} }

// at is an element of a list.
func (p *path) at(i int) path { return path{parent: p, index: i, kind: pathIndex} }

// entry is a value of a map.
func (p *path) entry(key string) path { return path{parent: p, name: key, kind: pathKey} }

// String writes networking.inbound[1].tags["version"].
func (p *path) String() string {
	var parts []string
	for ; p != nil && p.kind != pathRoot; p = p.parent {
		switch p.kind {
		case pathField:
			parts = append(parts, "."+p.name)
		case pathIndex:
			parts = append(parts, "["+strconv.Itoa(p.index)+"]")
		case pathKey:
			parts = append(parts, "["+strconv.Quote(clip(p.name))+"]")
		case pathRoot:
		}
	}
	var b strings.Builder
	for _, part := range slices.Backward(parts) {
		b.WriteString(part)
	}
	return strings.TrimPrefix(b.String(), ".")
}

// maxQuoted bounds, in bytes, how much of a value or a name is repeated in an answer.
const maxQuoted = 128

func clip(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	return strings.ToValidUTF8(s[:maxQuoted], "") + "…"
}
