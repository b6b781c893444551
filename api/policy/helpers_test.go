package policy_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

type tags = map[string]string

// service are the tags of a service, with others as "key=value".
func service(name string, others ...string) tags {
	t := tags{"kuma.io/service": name}
	for _, o := range others {
		k, v, _ := strings.Cut(o, "=")
		t[k] = v
	}
	return t
}

// at is a time, in seconds after some first one.
func at(seconds int) time.Time { return time.Unix(1_700_000_000+int64(seconds), 0).UTC() }

// record is a stored policy. body are the fields of its specification as JSON, created the time in the sense of at; 0: not
// known.
func record(typ resource.Type, name, body string, created int) *store.Record {
	d, ok := resource.Lookup(typ)
	if !ok {
		panic("no type " + typ)
	}
	rec := &store.Record{Key: store.Key{Type: string(typ), Mesh: "default", Name: name}}
	if created != 0 {
		rec.Created = at(created)
	}
	if d.IsJSON() {
		if !json.Valid([]byte(body)) {
			panic(name + ": not JSON: " + body)
		}
		rec.Spec = []byte(body)
		return rec
	}
	doc, err := codec.Decode(d, "application/json", []byte(body))
	if err != nil || len(doc.Unknown) > 0 {
		panic(fmt.Sprintf("%s: %v, unknown fields %v", name, err, doc))
	}
	rec.Spec = doc.Spec
	return rec
}

// connection is the specification of a policy about connections.
func connection(sources, destinations []tags, more string) string {
	list := func(list []tags) string {
		selectors := make([]map[string]tags, len(list))
		for i, t := range list {
			selectors[i] = map[string]tags{"match": t}
		}
		b, err := json.Marshal(selectors)
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	return `{"sources":` + list(sources) + `,"destinations":` + list(destinations) + more + `}`
}

func newSet(tb testing.TB, records ...*store.Record) *policy.Set {
	tb.Helper()
	set, errs := policy.NewSet("default", slices.Values(records))
	for _, err := range errs {
		tb.Error(err)
	}
	return set
}

// sidecar is a proxy with an inbound for each set of tags.
func sidecar(inbounds ...tags) *meshv1.Dataplane {
	dp := &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Address: "10.0.0.1"}}
	for i, t := range inbounds {
		dp.Networking.Inbound = append(dp.Networking.Inbound, &meshv1.Dataplane_Networking_Inbound{Port: uint32(8000 + i), Tags: t})
	}
	return dp
}

func name(p *policy.Policy) string {
	if p == nil {
		return "-"
	}
	return p.Name
}
