package kds

import (
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// What a replica says of a record that another may not have any more decides as the record would.
func TestTheOutlineOfARecordTravelsWhereTheRecordDoes(t *testing.T) {
	st := openStore(t, store.Options{})
	commit(t, st, store.Put(newRecord(t, resource.ZoneType, "", "off", &systemv1.Zone{Enabled: wrapperspb.Bool(false)})))
	snap := st.Snapshot()

	labelled := func(rec *store.Record, sync string) *store.Record {
		rec.Labels = map[string]string{labelSync: sync, "k8s.kuma.io/namespace": "ns"}
		return rec
	}
	from := func(rec *store.Record, zone string) *store.Record {
		rec.Origin = zone
		return rec
	}
	ingress := func(zone string) *store.Record {
		return newRecord(t, resource.ZoneIngress, "", "i", &meshv1.ZoneIngress{Zone: zone})
	}
	secret := func(name string) *store.Record {
		return newRecord(t, resource.GlobalSecret, "", name, newSecret("x"))
	}
	for name, tc := range map[string]struct {
		rec  *store.Record
		want bool // it travels to zone-1
	}{
		"a policy":                             {newRecord(t, permissionType, "default", "tp", newPermission("web")), true},
		"one that is not to travel":            {labelled(newRecord(t, permissionType, "default", "tp", newPermission("web")), "disabled"), false},
		"a proxy of another zone":              {from(newRecord(t, resource.Dataplane, "default", "zone-2.d", newDataplane("1.1.1.1")), "zone-2"), false},
		"an ingress of another zone":           {from(ingress("zone-2"), "zone-2"), true},
		"an ingress of a zone that is off":     {from(ingress("off"), "off"), false},
		"an ingress of that zone":              {from(ingress("zone-1"), "zone-1"), false},
		"an ingress made here for another":     {ingress("zone-2"), true},
		"an ingress made here for that zone":   {ingress("zone-1"), false},
		"an ingress made here for one off":     {ingress("off"), false},
		"a secret of the global":               {secret("mine"), false},
		"a secret that is made to travel":      {labelled(secret("mine"), "enabled"), true},
		"a secret that travels":                {secret("zone-token-revocations"), true},
		"the cluster id":                       {newRecord(t, resource.Config, "", resource.ClusterIDName, &systemv1.Config{Config: "c"}), true},
		"another piece of configuration":       {newRecord(t, resource.Config, "", "other", &systemv1.Config{Config: "c"}), false},
		"a policy with a namespace of its own": {labelled(newRecord(t, permissionType, "default", "tp", newPermission("web")), "enabled"), true},
	} {
		t.Run(name, func(t *testing.T) {
			desc, _ := resource.Lookup(resource.Type(tc.rec.Key.Type))
			outline := Outline(tc.rec)
			for _, features := range [][]string{nil, {FeatureHashSuffix}, {FeatureResume}} {
				o := NewPublisher(publisherConfig(t, Down, st)).offerTo(Node{ID: "zone-1", Features: features})
				if whole, got := o.selects(snap, desc, tc.rec), o.selects(snap, desc, outline); whole != tc.want || got != whole {
					t.Errorf("it travels: %v, its outline: %v, want %v", whole, got, tc.want)
				}
				whole, got := o.encode(desc, tc.rec), o.encode(desc, outline)
				if whole.err == nil && got.err == nil && whole.res.GetName() != got.res.GetName() {
					t.Errorf("under the name %q, its outline under %q", whole.res.GetName(), got.res.GetName())
				}
			}
		})
	}
	if Outline(nil) != nil {
		t.Error("the outline of nothing is something")
	}
	if o := Outline(secret("mine")); o.Spec != nil {
		t.Error("the outline of a secret has the secret")
	}
}
