package mtls

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// EgressService is the service that zone egresses have in every mesh.
const EgressService = "zone-egress"

// IdentityRequest says whom a certificate is for.
type IdentityRequest struct {
	Mesh string
	// Tags are all values of all tags, kuma.io/service among them: [TagsOf] a Dataplane, or [EgressTags]. The order of
	// values does not matter.
	Tags map[string][]string
}

// Identity is a certificate of a proxy and its key. It never changes. It prints without the key.
type Identity struct {
	CertPEM, KeyPEM []byte
	// Backend signed it.
	Backend string
	// Supported are the backends that the mesh's proxies trusted when it was made, in the order of the mesh's list. What they
	// trust now is [Roots.Backends]: adding a backend does not make a new identity.
	Supported []string
	// RenewAt is when a new one should be made: after four fifths of its life.
	Issued, NotAfter, RenewAt time.Time

	made [sha256.Size]byte // of what it was made from
}

// Fits reports whether making the identity anew would make the same again but for the key and the times: mutual TLS is on,
// and neither the enabled backend nor its material nor the tags have changed. It does not ask for the time.
func (id *Identity) Fits(spec *meshv1.Mesh, secrets map[string][]byte, req IdentityRequest) bool {
	if id == nil {
		return false
	}
	b, err := enabledBackend(spec)
	if err != nil {
		return false
	}
	m, err := load(req.Mesh, b, secrets, sign)
	return err == nil && id.made == req.fingerprint(b, m)
}

// String tells of the identity without its key.
func (id Identity) String() string {
	return fmt.Sprintf("identity by %s until %s", id.Backend, id.NotAfter.UTC().Format(time.RFC3339))
}

// GoString is String: %#v prints no key either.
func (id Identity) GoString() string { return id.String() }

// Format is String for every verb.
func (id Identity) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(id.String())) }

// LogValue is String.
func (id Identity) LogValue() slog.Value { return slog.StringValue(id.String()) }

// MarshalJSON is String, so that a log in JSON has no key.
func (id Identity) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", id.String()), nil }

// fingerprint identifies everything that a certificate is made from.
func (r IdentityRequest) fingerprint(b *meshv1.CertificateAuthorityBackend, m material) [sha256.Size]byte {
	h := sha256.New()
	sum := m.hash()
	_, _ = fmt.Fprintf(h, "%q %q %q %x\n", r.Mesh, b.GetName(), b.GetDpCert().GetRotation().GetExpiration(), sum)
	for _, key := range slices.Sorted(maps.Keys(r.Tags)) {
		_, _ = fmt.Fprintf(h, "%q %q\n", key, sortedUnique(r.Tags[key]))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// uris returns the names in a certificate: of each service, then of each tag. odd are those of tags that cannot be part of it.
func (r IdentityRequest) uris() (uris []*url.URL, odd []string, err error) {
	for _, service := range sortedUnique(r.Tags[dataplane.ServiceTag]) {
		text := "spiffe://" + r.Mesh + "/" + service
		u, ok := uri(text)
		if !ok {
			return nil, nil, fmt.Errorf("%q cannot be part of a certificate", text)
		}
		uris = append(uris, u)
	}
	if len(uris) == 0 {
		return nil, nil, errors.New("there is no service that it could be for")
	}
	for _, key := range slices.Sorted(maps.Keys(r.Tags)) {
		for _, value := range sortedUnique(r.Tags[key]) {
			text := "kuma://" + key + "/" + value
			if u, ok := uri(text); ok {
				uris = append(uris, u)
			} else {
				odd = append(odd, text)
			}
		}
	}
	return uris, odd, nil
}

func sortedUnique(values []string) []string {
	if slices.IsSorted(values) && len(slices.Compact(slices.Clone(values))) == len(values) {
		return values
	}
	return slices.Compact(slices.Sorted(slices.Values(values)))
}

// TagsOf returns all values of all tags of a proxy, sorted. The service of tags that name it in the old way is a value of
// kuma.io/service.
func TagsOf(dp *meshv1.Dataplane) map[string][]string {
	tags := make(map[string][]string)
	add := func(set map[string]string) {
		service := dataplane.Service(set)
		for key, value := range set {
			if key == oldServiceTag && set[dataplane.ServiceTag] == "" {
				continue
			}
			if key != dataplane.ServiceTag {
				tags[key] = append(tags[key], value)
			}
		}
		if service != "" {
			tags[dataplane.ServiceTag] = append(tags[dataplane.ServiceTag], service)
		}
	}
	for _, in := range dp.GetNetworking().GetInbound() {
		add(in.GetTags())
	}
	add(dp.GetNetworking().GetGateway().GetTags())
	for key, values := range tags {
		tags[key] = sortedUnique(values)
	}
	return tags
}

// oldServiceTag is how the oldest dataplanes name their service.
const oldServiceTag = "service"

// EgressTags are the tags of a zone egress.
func EgressTags() map[string][]string {
	return map[string][]string{dataplane.ServiceTag: {EgressService}}
}
