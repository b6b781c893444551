package server

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/meridian-mesh/meridian/common/store"
)

const detailsPrecondition = "Precondition Failed"

// etag renders the entity tag of what was made from records of the given versions: "<store id>-<version>", with each
// further version after another dash, 0 where there is no record. The bytes of an answer depend on the records and the
// URL alone, so the tag is a strong one. Versions of another store say nothing here, hence its id.
func (s *Server) etag(versions ...store.Revision) string {
	b := make([]byte, 0, len(s.store.ID())+2+21*len(versions))
	b = append(append(b, '"'), s.store.ID()...)
	for _, v := range versions {
		b = strconv.AppendUint(append(b, '-'), uint64(v), 10)
	}
	return string(append(b, '"'))
}

// listTag is the tag of a list of the given types, by their last changes. It is a weak one: lists are sent compressed
// or not, which a strong tag would have to tell apart.
func (s *Server) listTag(snap *store.Snapshot, types ...string) string {
	last := make([]store.Revision, len(types))
	for i, t := range types {
		last[i] = snap.LastChange(t)
	}
	return "W/" + s.etag(last...)
}

// condition is If-Match or If-None-Match.
type condition struct {
	set  bool
	any  bool     // "*"
	tags []string // as sent: in quotes, with W/ in front of weak ones
}

// preconditions are the conditions that a request makes on the state it meets (RFC 9110, section 13). The zero value
// makes none.
type preconditions struct {
	match, noneMatch condition
}

// preconditionsOf reads the conditions of a request that writes. There a condition that cannot be read is an error: a
// client that asked for one must not find its write done without.
func preconditionsOf(r *http.Request) (preconditions, error) {
	var p preconditions
	for _, h := range []struct {
		name string
		c    *condition
	}{{"If-Match", &p.match}, {"If-None-Match", &p.noneMatch}} {
		var ok bool
		if *h.c, ok = parseCondition(r.Header[h.name]); !ok {
			return p, &problem{
				status: http.StatusBadRequest, Title: titleProcess, Details: "Invalid header",
				Causes: []cause{{h.name, `must be * or a list of entity tags in double quotes`}},
			}
		}
	}
	return p, nil
}

// set reports whether there are any.
func (p preconditions) set() bool { return p.match.set || p.noneMatch.set }

// hold reports whether the conditions hold for a resource with the given tag, "" when there is none.
func (p preconditions) hold(tag string) bool {
	return (!p.match.set || p.match.matches(tag, false)) && (!p.noneMatch.set || !p.noneMatch.matches(tag, true))
}

// matches compares c with a tag. Only a weak comparison lets weak tags match.
func (c condition) matches(tag string, weak bool) bool {
	switch {
	case tag == "":
		return false
	case c.any:
		return true
	case weak:
		tag = strings.TrimPrefix(tag, "W/")
		return slices.ContainsFunc(c.tags, func(t string) bool { return strings.TrimPrefix(t, "W/") == tag })
	default:
		return !strings.HasPrefix(tag, "W/") && slices.Contains(c.tags, tag)
	}
}

// parseCondition reads the values of a header; false when they are neither "*" nor a list of entity tags.
func parseCondition(values []string) (condition, bool) {
	if len(values) == 0 {
		return condition{}, true
	}
	c := condition{set: true}
	rest := strings.Join(values, ",")
	if strings.TrimSpace(rest) == "*" {
		c.any = true
		return c, true
	}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			return c, len(c.tags) > 0
		}
		start := len("W/")
		if !strings.HasPrefix(rest, "W/") {
			start = 0
		}
		if !strings.HasPrefix(rest[start:], `"`) {
			return c, false
		}
		end := strings.IndexByte(rest[start+1:], '"')
		if end < 0 {
			return c, false
		}
		end += start + 2
		c.tags = append(c.tags, rest[:end])
		rest = strings.TrimLeft(rest[end:], " \t")
		if rest != "" && rest[0] != ',' {
			return c, false
		}
	}
}

// unchanged reports whether a client that reads already has what tag names; it has then been answered with 304. A
// condition that cannot be read is ignored: the worst that follows is a whole answer. An If-Match that does not hold
// is the error.
func (s *Server) unchanged(w http.ResponseWriter, r *http.Request, tag, title string) (bool, error) {
	if len(r.Header["If-Match"]) > 0 {
		if c, ok := parseCondition(r.Header["If-Match"]); ok && !c.matches(tag, false) {
			return false, preconditionFailed(title)
		}
	}
	if len(r.Header["If-None-Match"]) == 0 {
		return false, nil
	}
	if c, ok := parseCondition(r.Header["If-None-Match"]); !ok || !c.matches(tag, true) {
		return false, nil
	}
	h := w.Header()
	h.Set("ETag", tag)
	if strings.HasPrefix(tag, "W/") {
		h.Add("Vary", "Accept-Encoding") // as the whole answer would
	}
	w.WriteHeader(http.StatusNotModified)
	return true, nil
}

func preconditionFailed(title string) *problem {
	return &problem{status: http.StatusPreconditionFailed, Title: title, Details: detailsPrecondition}
}
