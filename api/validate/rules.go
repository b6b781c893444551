package validate

import (
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
)

// Tags that rules speak of. The two older spellings stand in resources that old clients write.
const (
	tagService     = "kuma.io/service"
	tagProtocol    = "kuma.io/protocol"
	tagZone        = "kuma.io/zone"
	tagExternal    = "kuma.io/external-service-name"
	tagOldService  = "service"
	tagOldProtocol = "protocol"
)

// Texts that several rules share.
const (
	msgEmpty         = "cannot be empty"
	msgDefined       = "has to be defined"
	msgPositive      = "must have a positive value"
	msgNotNegative   = "must not be negative"
	msgPercent       = "has to be in [0.0 - 100.0] range"
	msgPort          = "port must be in the range [1, 65535]"
	msgNoElement     = "must have at least one element"
	msgNoTag         = "must have at least one tag"
	msgNoService     = `mandatory tag "kuma.io/service" is missing`
	msgTagName       = "tag name must consist of alphanumeric characters, dots, dashes, slashes, colons and underscores"
	msgTagValue      = "tag value must consist of alphanumeric characters, dots, dashes, colons and underscores"
	msgSelectorValue = `tag value must consist of alphanumeric characters, dots, dashes, slashes, colons and underscores or be "*"`
	msgUsedName      = `%q name is already used for another backend`
	msgNoBackend     = "has to be set to one of the backends in the mesh"
	msgProtocol      = `tag "kuma.io/protocol" has an invalid value %q. Allowed values: grpc, http, http2, kafka, tcp`
)

func (r *report) notEmpty(at path, s string) bool { return r.check(s != "", at, msgEmpty) }

func (r *report) port(at path, port uint32) { r.check(port >= 1 && port <= 65535, at, msgPort) }

// portIfSet is for ports whose zero means that there is none.
func (r *report) portIfSet(at path, port uint32) {
	if port != 0 {
		r.port(at, port)
	}
}

func (r *report) percent(at path, v float64) { r.check(v >= 0 && v <= 100, at, msgPercent) }

// sign is -1, 0 or 1 for a duration, which peers may send in any form.
func sign(d *durationpb.Duration) int {
	switch s, n := d.GetSeconds(), d.GetNanos(); {
	case s > 0 || s == 0 && n > 0:
		return 1
	case s < 0 || n < 0:
		return -1
	default:
		return 0
	}
}

// positive wants a duration above zero when there is one. Whether there must be one is for the caller.
func (r *report) positive(at path, d *durationpb.Duration, message string) bool {
	return r.check(d == nil || sign(d) > 0, at, message)
}

// notNegative is for durations where zero has a meaning.
func (r *report) notNegative(at path, d *durationpb.Duration) {
	r.check(sign(d) >= 0, at, msgNotNegative)
}

// maxRegex bounds regular expressions, in bytes: compiling one takes a hundred times its length in memory. Envoy takes
// only short ones by default.
const maxRegex = 4096

// regex wants an expression that the proxy can compile. Envoy's are RE2, as Go's are.
func (r *report) regex(at path, expr, message string) {
	if len(expr) > maxRegex {
		r.addf(at, "%s of at most %d bytes", message, maxRegex)
	} else if _, err := regexp.Compile(expr); err != nil {
		r.add(at, message+": "+clip(err.Error()))
	}
}

// dataSource wants something in a source that is given.
func (r *report) dataSource(at path, s *systemv1.DataSource) {
	empty := s.GetSecret() == "" && s.GetFile() == "" && s.GetInlineString() == "" && len(s.GetInline().GetValue()) == 0
	r.check(s == nil || !empty, at, "data source cannot be empty")
}

// selectorRules says what a list of selectors must be like.
type selectorRules struct {
	optional bool // the list may be empty
	service  bool // each must have kuma.io/service
	single   bool // at most one
}

func (r *report) selectors(at path, list []*meshv1.Selector, want selectorRules) {
	r.check(want.optional || len(list) > 0, at, msgNoElement)
	for i, s := range list {
		item := at.at(i)
		match := item.field("match")
		r.match(match, s.GetMatch(), want.service)
		r.check(!want.single || i == 0, item, "there can be at most one selector")
	}
}

// match wants tags that select something: at least one, with values that tags can have, or "*".
func (r *report) match(at path, tags map[string]string, service bool) {
	r.check(len(tags) > 0, at, msgNoTag)
	r.tagCharacters(at, tags, selectorTags)
	if service {
		_, ok := tags[tagService]
		r.check(ok, at, msgNoService)
	}
}

// serviceOnly wants destinations that name a service and nothing else, apart from the tags in also.
func (r *report) serviceOnly(at path, list []*meshv1.Selector, also ...string) {
	r.check(len(list) > 0, at, msgNoElement)
	for i, s := range list {
		item := at.at(i)
		match := item.field("match")
		tags := s.GetMatch()
		allowed := 0
		for _, k := range also {
			if _, ok := tags[k]; ok {
				allowed++
			}
		}
		_, named := tags[tagService]
		if !named || len(tags) != 1+allowed {
			r.add(match, `must consist of exactly one tag "kuma.io/service"`)
			for _, k := range sortedKeys(tags) {
				if k != tagService && !slices.Contains(also, k) {
					r.addf(match.entry(k), "tag %q is not allowed", clip(k))
				}
			}
		}
		r.tagCharacters(match, tags, selectorTags)
	}
}

// tagCharset says which characters values of tags may have.
type tagCharset struct {
	slash, wildcard bool
	message         string
}

var (
	selectorTags = tagCharset{slash: true, wildcard: true, message: msgSelectorValue}
	ownTags      = tagCharset{message: msgTagValue}
)

// tagCharacters checks the names and values of tags, in the order of their names.
func (r *report) tagCharacters(at path, tags map[string]string, set tagCharset) {
	if wellFormed(tags, set) {
		return // almost always: no need to sort
	}
	for _, k := range sortedKeys(tags) {
		entry := at.entry(k)
		switch v := tags[k]; {
		case k == "":
			r.add(at, "tag name must be non-empty")
		case !tagText(k, true):
			r.add(entry, msgTagName)
		case v == "":
			r.add(entry, "tag value must be non-empty")
		case !tagText(v, set.slash) && (!set.wildcard || v != "*"):
			r.add(entry, set.message)
		}
	}
}

func wellFormed(tags map[string]string, set tagCharset) bool {
	for k, v := range tags {
		if !tagText(k, true) || !tagText(v, set.slash) && (!set.wildcard || v != "*") {
			return false
		}
	}
	return true
}

func tagText(s string, slash bool) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_', c == ':':
		case c == '/' && slash:
		default:
			return false
		}
	}
	return s != ""
}

// protocolTag checks what a proxy or an external service says it speaks.
func (r *report) protocolTag(at path, tags map[string]string) {
	switch v := tags[tagProtocol]; v {
	case "", "grpc", "http", "http2", "kafka", "tcp":
	default:
		r.addf(at.entry(tagProtocol), msgProtocol, clip(v))
	}
}

// hasService reports whether tags name a service, in either spelling.
func hasService(tags map[string]string) bool {
	_, ok := tags[tagService]
	_, old := tags[tagOldService]
	return ok || old
}

// matches reports whether a selector selects something with these tags.
func matches(selector, tags map[string]string) bool {
	for k, want := range selector {
		if have, ok := tags[k]; !ok || want != "*" && want != have {
			return false
		}
	}
	return true
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func isIP(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Zone() == ""
}

// onLoopback reports whether listening on an address includes the loopback interface.
func onLoopback(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && (addr.IsLoopback() || addr.IsUnspecified())
}

func isUnspecified(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.IsUnspecified()
}

// isHost reports whether s is an IP address or a name that DNS could hold. Underscores are allowed: names of services
// have them.
func isHost(s string) bool {
	return isIP(s) || len(s) <= 253 && dnsName.MatchString(s) && !strings.Contains(s, "..")
}

var dnsName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$`)

// isHostPort reports whether s is HOST:PORT.
func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || !isHost(host) {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// isURLPath reports whether s is what may follow the host in a URL.
func isURLPath(s string) bool {
	if !strings.HasPrefix(s, "/") {
		return false
	}
	_, err := url.ParseRequestURI(s)
	return err == nil
}

// address checks an address that others connect to.
func (r *report) address(at path, s string) {
	if isUnspecified(s) {
		r.add(at, "must not be 0.0.0.0 or ::")
		return
	}
	r.check(isHost(s), at, "address has to be valid IP address or domain name")
}
