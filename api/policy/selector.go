package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// Tags with a meaning in selectors. Resources that old clients write have the protocol under its older name.
const (
	serviceTag     = dataplane.ServiceTag
	protocolTag    = "kuma.io/protocol"
	oldProtocolTag = "protocol"
)

// anyValue matches every value of a tag that is present.
const anyValue = "*"

// rank says how specific a selector is: how many tags it wants to have an exact value, and how many any value.
type rank struct{ exact, wildcard int }

// compare is positive when r is more specific than o: it wants more tags, or as many and more of them exactly.
func (r rank) compare(o rank) int {
	return cmp.Or(cmp.Compare(r.exact+r.wildcard, o.exact+o.wildcard), cmp.Compare(r.exact, o.exact))
}

func (r rank) plus(o rank) rank { return rank{r.exact + o.exact, r.wildcard + o.wildcard} }

// selector is a Selector made ready for matching. The zero value matches everything.
type selector struct {
	// service is the exact value wanted of kuma.io/service, "" when any will do. Most selectors fail here.
	service string
	// rest are the other conditions, sorted; kuma.io/service is among them only when it must be present with any value.
	rest []condition
	rank rank
}

type condition struct{ key, value string }

func selectors(list []*meshv1.Selector, drop ...string) []selector {
	if len(list) == 0 {
		return nil
	}
	out := make([]selector, len(list))
	for i, s := range list {
		out[i] = newSelector(s.GetMatch(), drop...)
	}
	return out
}

// newSelector makes a selector of tags, without those named in drop.
func newSelector(match map[string]string, drop ...string) selector {
	var s selector
	for k, v := range match {
		if slices.Contains(drop, k) {
			continue
		}
		if v == anyValue {
			s.rank.wildcard++
		} else {
			s.rank.exact++
		}
		if k == serviceTag && v != anyValue && v != "" {
			s.service = v
		} else {
			s.rest = append(s.rest, condition{k, v})
		}
	}
	slices.SortFunc(s.rest, func(a, b condition) int { return cmp.Compare(a.key, b.key) })
	return s
}

// matches reports whether tags, in the form that normalize gives them, have all that the selector wants. The tag
// "protocol" of a selector is an older spelling of "kuma.io/protocol", except for tags that have one of their own.
func (s *selector) matches(tags map[string]string) bool {
	if s.service != "" && tags[serviceTag] != s.service {
		return false
	}
	for _, c := range s.rest {
		v, ok := tags[c.key]
		if !ok && c.key == oldProtocolTag {
			v, ok = tags[protocolTag]
		}
		if !ok || v != c.value && c.value != anyValue {
			return false
		}
	}
	return true
}

// serviceOnly reports whether the selector wants no other tag than kuma.io/service.
func (s *selector) serviceOnly() bool {
	return len(s.rest) == 0 || len(s.rest) == 1 && s.rest[0].key == serviceTag && s.rest[0].value == anyValue
}

// bestRank is the highest rank of the selectors that match any of the given sets of tags; false when none does.
func bestRank(list []selector, tags ...map[string]string) (best rank, ok bool) {
	for i := range list {
		s := &list[i]
		if ok && s.rank.compare(best) <= 0 {
			continue
		}
		if slices.ContainsFunc(tags, s.matches) {
			best, ok = s.rank, true
		}
	}
	return best, ok
}

// normalize returns tags in which the service is named by kuma.io/service, also where an old client named it otherwise.
// The result is tags itself when nothing is to be added.
func normalize(tags map[string]string) map[string]string {
	service := dataplane.Service(tags)
	if service == tags[serviceTag] {
		return tags
	}
	out := make(map[string]string, len(tags)+1)
	maps.Copy(out, tags)
	out[serviceTag] = service
	return out
}

// spellProtocol returns tags with the protocol under the name that proxies have it under, as it is said to Kuma too.
func spellProtocol(tags map[string]string) map[string]string {
	protocol, ok := tags[oldProtocolTag]
	if !ok {
		return tags
	}
	out := maps.Clone(tags)
	delete(out, oldProtocolTag)
	if _, ok := out[protocolTag]; !ok {
		out[protocolTag] = protocol
	}
	return out
}
