package validate

import (
	"net"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
)

func externalService(r *report, at path, m *meshv1.ExternalService) {
	networking, n := at.field("networking"), m.GetNetworking()
	if r.check(n != nil, networking, "should have networking") {
		r.externalAddress(networking.field("address"), n.GetAddress())
		if tls := n.GetTls(); tls != nil {
			where := networking.field("tls")
			r.dataSource(where.field("caCert"), tls.GetCaCert())
			r.dataSource(where.field("clientCert"), tls.GetClientCert())
			r.dataSource(where.field("clientKey"), tls.GetClientKey())
			r.check(tls.GetServerName() == nil || tls.GetServerName().GetValue() != "", where.field("serverName"), msgEmpty)
		}
	}
	tags := at.field("tags")
	_, ok := m.GetTags()[tagService]
	r.check(ok, tags, msgNoService)
	r.tagCharacters(tags, m.GetTags(), ownTags)
	r.protocolTag(tags, m.GetTags())
}

func (r *report) externalAddress(at path, s string) {
	if !r.check(s != "", at, "address can't be empty") {
		return
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		r.add(at, "unable to parse address")
		return
	}
	r.check(isHost(host), at, "address has to be a valid IP address or a domain name")
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		r.add(at, "unable to parse port in address")
		return
	}
	r.port(at, uint32(n))
}

// A proxy limits requests to an external service by the service's name alone: a RateLimit that would select it by more
// tags would limit all of it. Whichever of the two is written second is refused.

func externalServiceState(r *report, view View, rec, _ *store.Record) {
	m, ok := decode[*meshv1.ExternalService](rec)
	if !ok {
		return
	}
	for other := range view.List("RateLimit", rec.Key.Mesh) {
		if !mayLimitByMore(other.Spec) {
			continue
		}
		limit, ok := decode[*meshv1.RateLimit](other)
		if ok && limitsByMore(limit, m) {
			r.addf(path{kind: pathField, name: "externalservice"}, "ExternalService would match RateLimit '%s' "+
				"whose destination has more tags than kuma.io/service, which is not supported", other.Key.Name)
		}
	}
}

func rateLimitState(r *report, view View, rec, _ *store.Record) {
	m, ok := decode[*meshv1.RateLimit](rec)
	if !ok || !selectsByMore(m) {
		return
	}
	for other := range view.List("ExternalService", rec.Key.Mesh) {
		service, ok := decode[*meshv1.ExternalService](other)
		if ok && limitsByMore(m, service) {
			r.addf(path{kind: pathField, name: "ratelimit"}, "RateLimit applied to external service only supports kuma.io/service "+
				"as destination tag; it would match ExternalService '%s'", other.Key.Name)
		}
	}
}

// mayLimitByMore reports whether a stored RateLimit could have a destination with more than the name of a service. Most
// have none, and a mesh may have thousands: this reads two levels of the encoding instead of decoding all of it.
func mayLimitByMore(spec []byte) bool {
	const destinations, match, key = 2, 1, 1 // numbers of fields: of RateLimit, of Selector, of the entry of a map
	more := false
	ok := fields(spec, destinations, func(selector []byte) {
		tags, service := 0, false
		valid := fields(selector, match, func(entry []byte) {
			tags++
			valid := fields(entry, key, func(name []byte) { service = string(name) == tagService })
			more = more || !valid
		})
		more = more || !valid || tags > 1 || tags == 1 && !service
	})
	return more || !ok
}

// fields calls each with the content of every field of a message that has the number and is made of bytes. It reports
// whether the encoding could be followed to its end.
func fields(message []byte, number protowire.Number, each func([]byte)) bool {
	for len(message) > 0 {
		n, typ, head := protowire.ConsumeTag(message)
		if head < 0 {
			return false
		}
		size := protowire.ConsumeFieldValue(n, typ, message[head:])
		if size < 0 {
			return false
		}
		if n == number && typ == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(message[head:])
			each(content)
		}
		message = message[head+size:]
	}
	return true
}

// selectsByMore reports whether any destination has more than the name of a service.
func selectsByMore(limit *meshv1.RateLimit) bool {
	for _, s := range limit.GetDestinations() {
		if beyondService(s.GetMatch()) {
			return true
		}
	}
	return false
}

func limitsByMore(limit *meshv1.RateLimit, service *meshv1.ExternalService) bool {
	for _, s := range limit.GetDestinations() {
		if beyondService(s.GetMatch()) && matches(s.GetMatch(), service.GetTags()) {
			return true
		}
	}
	return false
}

func beyondService(tags map[string]string) bool {
	_, ok := tags[tagService]
	return len(tags) > 1 || len(tags) == 1 && !ok
}
