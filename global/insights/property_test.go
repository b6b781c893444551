package insights

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// TestInsightsAreThoseOfACountFromScratch makes random histories of meshes, dataplanes, their insights, external
// services and policies, in one replica of a plane while others lead in turn, and asks that what is stored a second after
// each step is what a plain count over the whole store gives, and that a quiet store stays as it is.
func TestInsightsAreThoseOfACountFromScratch(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(stepGenerator(), 30, 60).Draw(rt, "script")
		// A bubble per case; what went wrong is reported outside it, so that rapid can shrink the script.
		if wrong := play(t, script, nil); wrong != "" {
			rt.Fatalf("after %v:\n%s", script, wrong)
		}
	})
}

// TestTheCountFromScratchFindsBugs breaks the code in ways that are easily made, and asks that histories of the kind
// above show each.
func TestTheCountFromScratchFindsBugs(t *testing.T) {
	notFollowing := func(typ resource.Type) func(*Insights) {
		return func(in *Insights) {
			in.types = slices.DeleteFunc(in.types, func(s string) bool { return s == string(typ) })
		}
	}
	for name, bug := range map[string]func(*Insights){
		"insights of proxies are not followed":  notFollowing(resource.DataplaneInsight),
		"external services are not followed":    notFollowing(externalService),
		"meshes made and deleted are not seen":  notFollowing(resource.Mesh),
		"services are reached at another place": func(in *Insights) { in.address = ".mesh:8080" },
	} {
		t.Run(name, func(t *testing.T) {
			scripts := rapid.SliceOfN(stepGenerator(), 40, 60)
			for seed := range 50 {
				if play(t, scripts.Example(seed), bug) != "" {
					return
				}
			}
			t.Error("fifty histories do not show it")
		})
	}
}

type step struct {
	Do         string
	Mesh, Name int
	Shape      int // of what is put
	Pause      time.Duration
}

func (s step) String() string {
	return fmt.Sprintf("%s(m%d n%d s%d +%s)", s.Do, s.Mesh, s.Name, s.Shape, s.Pause)
}

func stepGenerator() *rapid.Generator[step] {
	return rapid.Custom(func(t *rapid.T) step {
		return step{
			Do: rapid.SampledFrom([]string{
				"mesh", "mesh", "unmesh", "cascade", "dp", "dp", "dp", "dp", "undp", "insight", "insight", "insight", "uninsight",
				"external", "unexternal", "policy", "unpolicy", "many", "restart",
			}).Draw(t, "do"),
			Mesh:  rapid.IntRange(0, 1).Draw(t, "mesh"),
			Name:  rapid.IntRange(0, 4).Draw(t, "name"),
			Shape: rapid.IntRange(0, 11).Draw(t, "shape"),
			Pause: rapid.SampledFrom([]time.Duration{0, 0, 10 * time.Millisecond, 700 * time.Millisecond, 3 * time.Second}).Draw(t, "pause"),
		}
	})
}

// shapes of dataplanes, over few services so that they meet.
func shapeOfDataplane(n int) *meshv1.Dataplane {
	service := []string{"web", "api", "db"}
	a, b := service[n%3], service[(n/3)%3]
	switch n % 6 {
	case 0:
		return workload(good(a))
	case 1:
		return workload(good(a), bad(b))
	case 2:
		return workload(bad(a))
	case 3:
		return gateway(delegated, a)
	case 4:
		g := gateway(builtin, a)
		g.Networking.Inbound = []*inbound{good(b)}
		return g
	default:
		return workload(good(a), &inbound{Tags: tags{"service": b}}, &inbound{})
	}
}

func shapeOfInsight(n int) *meshv1.DataplaneInsight {
	i := told{gone: n%3 == 0}
	if n%2 == 0 {
		i.kumaDP, i.envoy = fmt.Sprint("2.0.", n%3), "1.22"
	}
	switch n % 4 {
	case 1:
		i.mtls = mtls("ca-1", "ca-1", "ca-2")
	case 2:
		i.mtls = mtls("", "ca-2", "ca-2")
	}
	return i.message()
}

func play(t *testing.T, script []step, bug func(*Insights)) (wrong string) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplicas(t)
		r.bug = bug
		r.start()
		defer func() { r.close() }()
		for i, s := range script {
			perform(r, s)
			if s.Pause == 0 {
				continue
			}
			r.pass(s.Pause)
			if s.Pause > time.Second {
				if wrong = differs(t, r.st.Snapshot()); wrong != "" {
					wrong = fmt.Sprintf("step %d: %s", i, wrong)
					return
				}
			}
		}
		r.pass(2 * time.Second)
		if wrong = differs(t, r.st.Snapshot()); wrong != "" {
			return
		}
		rev := r.st.Snapshot().Revision()
		r.pass(time.Hour)
		if now := r.st.Snapshot().Revision(); now != rev {
			wrong = fmt.Sprintf("a quiet store went from revision %d to %d", rev, now)
		}
	})
	return wrong
}

func perform(r *rig, s step) {
	t := r.t
	mesh, name := fmt.Sprint("m", s.Mesh), fmt.Sprint("n", s.Name)
	switch s.Do {
	case "mesh":
		r.update(putMesh(t, mesh))
	case "unmesh": // alone: with nothing that takes its insights away
		r.update(store.Delete(key(resource.Mesh, "", mesh)))
	case "cascade":
		ops := []store.Op{store.Delete(key(resource.Mesh, "", mesh)), store.Delete(key(resource.MeshInsight, "", mesh))}
		for _, d := range resource.All() {
			if d.Scope == resource.ScopeMesh && d.Name != resource.Dataplane && d.Name != resource.DataplaneInsight {
				for rec := range r.st.Snapshot().List(string(d.Name), mesh) {
					ops = append(ops, store.Delete(rec.Key))
				}
			}
		}
		r.update(ops...)
	case "dp":
		r.update(put(t, resource.Dataplane, mesh, name, shapeOfDataplane(s.Shape)))
	case "undp":
		r.update(store.Delete(key(resource.Dataplane, mesh, name)))
	case "insight":
		r.update(put(t, resource.DataplaneInsight, mesh, name, shapeOfInsight(s.Shape)))
	case "uninsight":
		r.update(store.Delete(key(resource.DataplaneInsight, mesh, name)))
	case "external":
		r.update(put(t, externalService, mesh, name, external([]string{"web", "out", ""}[s.Shape%3], fmt.Sprint("out:", s.Shape))))
	case "unexternal":
		r.update(store.Delete(key(externalService, mesh, name)))
	case "policy":
		r.update(raw([]resource.Type{"TrafficRoute", "MeshTrace", resource.Secret}[s.Shape%3], mesh, name)(t))
	case "unpolicy":
		r.update(store.Delete(key([]resource.Type{"TrafficRoute", "MeshTrace", resource.Secret}[s.Shape%3], mesh, name)))
	case "many": // of one zone, in one batch, as synchronisation does it
		var ops []store.Op
		for i := range s.Shape {
			n := fmt.Sprint("z.", i)
			ops = append(ops, put(t, resource.Dataplane, mesh, n, shapeOfDataplane(i+s.Name)), put(t, resource.DataplaneInsight, mesh, n, shapeOfInsight(i)))
		}
		r.update(ops...)
	case "restart":
		r.stop()
		r.start()
	}
}

// differs compares what is stored with a plain count. It returns "" when they are the same.
func differs(t *testing.T, snap *store.Snapshot) string {
	var out strings.Builder
	for _, mesh := range []string{"m0", "m1"} {
		var wantMesh *meshv1.MeshInsight
		var wantServices *meshv1.ServiceInsight
		if _, ok := snap.Get(key(resource.Mesh, "", mesh)); ok {
			wantMesh, wantServices = fromScratch(snap, mesh)
		}
		if diff := cmp.Diff(wantMesh, meshInsight(t, snap, mesh), protocmp.Transform()); diff != "" {
			fmt.Fprintf(&out, "MeshInsight of %s (-want +got):\n%s", mesh, diff)
		}
		got := services(t, snap, mesh)
		if diff := cmp.Diff(wantServices, got, protocmp.Transform()); diff != "" {
			fmt.Fprintf(&out, "ServiceInsight of %s (-want +got):\n%s", mesh, diff)
		}
		if got == nil {
			continue
		}
		// The bytes are put together from parts; they must be those of the whole.
		whole, _ := proto.MarshalOptions{Deterministic: true}.Marshal(got)
		if rec, _ := snap.Get(key(resource.ServiceInsight, mesh, "all-services-"+mesh)); string(rec.Spec) != string(whole) {
			fmt.Fprintf(&out, "ServiceInsight of %s is stored as %x, its encoding is %x\n", mesh, rec.Spec, whole)
		}
	}
	return out.String()
}

// fromScratch counts a mesh by the rules of the contract, written down here once more and independently of the code
// that is tested.
func fromScratch(snap *store.Snapshot, mesh string) (*meshv1.MeshInsight, *meshv1.ServiceInsight) {
	m := &meshv1.MeshInsight{
		Dataplanes: &dpStat{}, DataplanesByType: &meshv1.MeshInsight_DataplanesByType{Standard: &dpStat{}, Gateway: &dpStat{}},
		Policies: policies{}, DpVersions: &meshv1.MeshInsight_DpVersions{KumaDp: stats{}, Envoy: stats{}},
		MTLS:     &meshv1.MeshInsight_MTLS{IssuedBackends: stats{}, SupportedBackends: stats{}},
		Services: &meshv1.MeshInsight_ServiceStat{},
	}
	s := &meshv1.ServiceInsight{Services: map[string]*serviceStat{}}
	internal := map[string]bool{}

	at := func(in stats, name string) *dpStat {
		if in[name] == nil {
			in[name] = &dpStat{}
		}
		return in[name]
	}
	offer := func(service, status, issued, address string, kind meshv1.ServiceInsight_Service_Type) {
		if service == "" {
			return
		}
		svc := s.Services[service]
		if svc == nil {
			svc = &serviceStat{Dataplanes: &serviceCount{}, IssuedBackends: map[string]uint32{}, ServiceType: kind, AddressPort: address}
			s.Services[service] = svc
		}
		svc.Dataplanes.Total++
		if kind == meshv1.ServiceInsight_Service_external {
			return
		}
		internal[service] = true
		if status == "online" {
			svc.Dataplanes.Online++
		} else {
			svc.Dataplanes.Offline++
		}
		if issued != "" {
			svc.IssuedBackends[issued]++
		}
	}
	serviceOf := func(t map[string]string) string {
		if v := t["kuma.io/service"]; v != "" {
			return v
		}
		return t["service"]
	}

	for rec := range snap.List("Dataplane", mesh) {
		var dp meshv1.Dataplane
		var in meshv1.DataplaneInsight
		_ = proto.Unmarshal(rec.Spec, &dp)
		if i, ok := snap.Get(key(resource.DataplaneInsight, mesh, rec.Key.Name)); ok {
			_ = proto.Unmarshal(i.Spec, &in)
		}
		net := dp.GetNetworking()
		live, badOnes := false, 0
		kumaDP, envoy := "unknown", "unknown"
		for _, sub := range in.GetSubscriptions() {
			live = live || sub.GetConnectTime() != nil && sub.GetDisconnectTime() == nil
			kumaDP, envoy = "unknown", "unknown"
			if v := sub.GetVersion().GetKumaDp().GetVersion(); v != "" {
				kumaDP = v
			}
			if v := sub.GetVersion().GetEnvoy().GetVersion(); v != "" {
				envoy = v
			}
		}
		for _, i := range net.GetInbound() {
			if i.GetHealth() != nil && !i.GetHealth().GetReady() {
				badOnes++
			}
		}
		status := "partial"
		switch {
		case !live, net.GetGateway() == nil && badOnes == len(net.GetInbound()):
			status = "offline"
		case net.GetGateway() != nil, badOnes == 0:
			status = "online"
		}

		counters := []*dpStat{m.GetDataplanes(), at(m.GetDpVersions().GetKumaDp(), kumaDP), at(m.GetDpVersions().GetEnvoy(), envoy)}
		if net.GetGateway() != nil {
			counters = append(counters, m.GetDataplanesByType().GetGateway())
		} else {
			counters = append(counters, m.GetDataplanesByType().GetStandard())
		}
		issued := in.GetMTLS().GetIssuedBackend()
		if in.GetMTLS() != nil {
			name := issued
			if name == "" {
				name = "unknown"
			}
			counters = append(counters, at(m.GetMTLS().GetIssuedBackends(), name))
			seen := map[string]bool{}
			for _, b := range in.GetMTLS().GetSupportedBackends() {
				if !seen[b] {
					counters = append(counters, at(m.GetMTLS().GetSupportedBackends(), b))
				}
				seen[b] = true
			}
		}
		for _, c := range counters {
			c.Total++
			switch status {
			case "online":
				c.Online++
			case "offline":
				c.Offline++
			default:
				c.PartiallyDegraded++
			}
		}

		if g := net.GetGateway(); g != nil {
			kind := meshv1.ServiceInsight_Service_gateway_delegated
			if g.GetType() == builtin {
				kind = meshv1.ServiceInsight_Service_gateway_builtin
			}
			offer(serviceOf(g.GetTags()), status, issued, "", kind)
		}
		for _, i := range net.GetInbound() {
			service := serviceOf(i.GetTags())
			offer(service, status, issued, service+".mesh:80", meshv1.ServiceInsight_Service_internal)
		}
	}
	for rec := range snap.List("ExternalService", mesh) {
		var es meshv1.ExternalService
		_ = proto.Unmarshal(rec.Spec, &es)
		offer(serviceOf(es.GetTags()), "", "", es.GetNetworking().GetAddress(), meshv1.ServiceInsight_Service_external)
		m.Services.External++
	}
	m.Services.Internal = uint32(len(internal))
	m.Services.Total = m.GetServices().GetInternal() + m.GetServices().GetExternal()

	for _, d := range resource.All() {
		n := 0
		for range snap.List(string(d.Name), mesh) {
			n++
		}
		if d.Scope == resource.ScopeMesh && !strings.HasPrefix(string(d.Name), "Dataplane") && n > 0 {
			m.Policies[string(d.Name)] = &meshv1.MeshInsight_PolicyStat{Total: uint32(n)}
		}
	}
	for _, svc := range s.GetServices() {
		d := svc.GetDataplanes()
		switch {
		case svc.GetServiceType() == meshv1.ServiceInsight_Service_external:
			svc.Status = meshv1.ServiceInsight_Service_not_available
		case d.GetOnline() == 0:
			svc.Status = meshv1.ServiceInsight_Service_offline
		case d.GetOnline() == d.GetTotal():
			svc.Status = meshv1.ServiceInsight_Service_online
		default:
			svc.Status = meshv1.ServiceInsight_Service_partially_degraded
		}
	}
	return m, s
}
