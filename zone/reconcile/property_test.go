package reconcile

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// TestConfigurationsAreThoseMadeFromScratch makes random histories of meshes, dataplanes, policies, external services, ingresses,
// egresses and secrets, with proxies that come and go, and asks that what is published for each is, once things are quiet, what
// is made for it from the state alone. Certificates of proxies are compared by whether there is one that fits.
func TestConfigurationsAreThoseMadeFromScratch(t *testing.T) {
	everyday.areMadeFromScratch(t, modelBuilders)
}

// TestSidecarsAreThoseMadeFromScratch is the same with the generator that real proxies get. The one above depends on more.
func TestSidecarsAreThoseMadeFromScratch(t *testing.T) {
	everyday.areMadeFromScratch(t, Builders{Sidecar: SidecarBuilder(newAuthority(t)), LoadAssignment: envoy.LoadAssignment})
}

// TestGRPCProgramsAreThoseMadeFromScratch is the same with gRPC programs in the place of the sidecars of one mesh.
func TestGRPCProgramsAreThoseMadeFromScratch(t *testing.T) {
	everyday.areMadeFromScratch(t, Builders{
		Sidecar: SidecarBuilder(newAuthority(t)), Proxyless: ProxylessBuilder, LoadAssignment: envoy.LoadAssignment,
	})
}

// TestFromScratchFindsBugs breaks the code in ways that are easily made, and asks that histories of the kind above show each.
func TestFromScratchFindsBugs(t *testing.T) {
	everyday.findBugs(t, modelBuilders, map[string]bug{
		"other endpoints mark nobody":              lost(causeEndpoints),
		"a service's other form marks nobody":      lost(causeService),
		"policies mark nobody":                     lost(causePolicy),
		"a dataplane marks nobody":                 lost(causeDataplane),
		"a mesh marks nobody":                      lost(causeMesh),
		"secrets mark nobody":                      lost(causeSecret),
		"ingresses are not followed":               notFollowing(resource.ZoneIngress),
		"virtual addresses mark nobody":            lost(causeVIPs),
		"secrets are not followed":                 notFollowing(resource.Secret),
		"endpoints once made are current for ever": func(r *Reconciler) { r.assignments.load = onlyOnce(r.assignments.load) },
	})
}

// histories are all that begin alike and go on with steps of one kind.
type histories struct {
	begin []step
	steps *rapid.Generator[step]
}

// everyday histories are of all kinds of resources.
var everyday = histories{steps: stepGenerator()}

func (h histories) areMadeFromScratch(t *testing.T, builders Builders) {
	t.Helper()
	cas := newCAs(t)
	rapid.Check(t, func(rt *rapid.T) {
		script := slices.Concat(h.begin, rapid.SliceOfN(h.steps, 10, 40).Draw(rt, "script"))
		// A bubble per case; what went wrong is reported outside it, so that rapid can shrink the script.
		if wrong := play(t, cas, script, builders, nil); wrong != "" {
			rt.Fatalf("after %v:\n%s", script, wrong)
		}
	})
}

// findBugs is the test of that test: a few hundred histories must show each bug.
func (h histories) findBugs(t *testing.T, builders Builders, bugs map[string]bug) {
	t.Helper()
	cas := newCAs(t)
	scripts := rapid.SliceOfN(h.steps, 30, 60)
	for name, b := range bugs {
		t.Run(name, func(t *testing.T) {
			for seed := range 200 {
				if play(t, cas, slices.Concat(h.begin, scripts.Example(seed)), builders, b) != "" {
					return
				}
			}
			t.Error("two hundred histories do not show it")
		})
	}
}

// bug breaks a Reconciler.
type bug = func(*Reconciler)

// lost is that nothing is done about a cause.
func lost(c cause) bug {
	return func(r *Reconciler) { r.skip = func(got cause) bool { return got == c } }
}

// notFollowing is that changes of a type are not seen.
func notFollowing(typ resource.Type) bug {
	return func(r *Reconciler) {
		r.types = slices.DeleteFunc(r.types, func(s string) bool { return s == string(typ) })
	}
}

type step struct {
	Do         string
	Mesh, Name int
	Shape      int // of what is put
	Pause      bool
}

func (s step) String() string {
	return fmt.Sprintf("%s(m%d n%d s%d %t)", s.Do, s.Mesh, s.Name, s.Shape, s.Pause)
}

func stepGenerator() *rapid.Generator[step] {
	return rapid.Custom(func(t *rapid.T) step {
		return step{
			Do: rapid.SampledFrom([]string{
				"mesh", "mesh", "unmesh", "dp", "dp", "dp", "dp", "undp", "permission", "timeout", "route", "unpolicy", "external", "unexternal",
				"ingress", "uningress", "egress", "unegress", "insight", "secret", "unsecret", "connect", "connect", "connect", "disconnect", "fault",
				"injection",
			}).Draw(t, "do"),
			Mesh:  rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "mesh"),
			Name:  rapid.IntRange(0, 3).Draw(t, "name"),
			Shape: rapid.IntRange(0, 23).Draw(t, "shape"),
			Pause: rapid.Bool().Draw(t, "pause"),
		}
	})
}

// cas are certificate authorities, made once.
type cas [2]struct{ cert, key []byte }

func newCAs(t *testing.T) *cas {
	t.Helper()
	var c cas
	for i := range c {
		c[i].cert, c[i].key = authorityPEM(t, "m")
	}
	return &c
}

func shapeOfMesh(n int) *meshv1.Mesh {
	m := &meshv1.Mesh{}
	if n%6 > 1 {
		m = withBackends([]string{"ca-1", "ca-1", "ca-2"}[n%3], "ca-1", "ca-2")
	}
	if n%6 == 3 {
		m.Mtls.Backends[0].Mode = meshv1.CertificateAuthorityBackend_PERMISSIVE
	}
	if n%6 > 3 {
		m.Routing = &meshv1.Routing{ZoneEgress: true, LocalityAwareLoadBalancing: n%5 == 0}
	}
	return m
}

func shapeOfDataplane(name, n int) *meshv1.Dataplane {
	services := []string{"web", "api", "db", "ext"}
	tagged := tags{"kuma.io/service": services[n%3], "kuma.io/protocol": []string{"http", "grpc"}[n%2]}
	if n%8 < 4 {
		tagged[topology.ProxylessTag] = "true"
	}
	outbounds := [][]string{{"web", "api"}, {"db", "ext"}, {"ext"}, {"web"}, nil}[n%5]
	dp := workload(fmt.Sprintf("10.0.0.%d", 1+name+4*(n%2)), outbounds, in(80, tagged))
	if n%7 == 0 {
		dp.Networking.Inbound[0].Health = &meshv1.Dataplane_Networking_Inbound_Health{}
	}
	if n%4 == 0 {
		dp.Networking.Inbound = append(dp.Networking.Inbound, in(81, tags{"kuma.io/service": services[(n/4)%3]}))
	}
	if n%11 == 0 {
		dp.Networking.TransparentProxying = &meshv1.Dataplane_Networking_TransparentProxying{DirectAccessServices: []string{[]string{"*", "api"}[n%2]}}
	}
	return dp
}

func operation(c *cas, s step) (store.Op, bool) {
	mesh, name := []string{"m", "o"}[s.Mesh], []string{"a", "b", "c", "d"}[s.Name]
	services := []string{"web", "api", "db", "ext"}
	selector := func(i int) []*meshv1.Selector {
		return []*meshv1.Selector{{Match: tags{"kuma.io/service": append(services, "*")[i%5]}}}
	}
	switch s.Do {
	case "mesh":
		return put(resource.Mesh, "", mesh, shapeOfMesh(s.Shape)), true
	case "unmesh":
		if s.Shape > 5 {
			return store.Op{}, false
		}
		return del(resource.Mesh, "", mesh), true
	case "dp":
		return put(resource.Dataplane, mesh, name, shapeOfDataplane(s.Name, s.Shape)), true
	case "fault": // what cannot be made
		dp := shapeOfDataplane(s.Name, s.Shape)
		dp.Networking.Admin = &meshv1.EnvoyAdmin{Port: []uint32{13, 666}[s.Shape%2]}
		return put(resource.Dataplane, mesh, name, dp), true
	case "undp":
		return del(resource.Dataplane, mesh, name), true
	case "permission":
		return put(policy.TrafficPermission, mesh, name, &meshv1.TrafficPermission{Sources: selector(s.Shape), Destinations: selector(s.Shape / 5)}), true
	case "timeout":
		return put(policy.Timeout, mesh, name, &meshv1.Timeout{Sources: selector(s.Shape), Destinations: selector(s.Shape / 5)}), true
	case "route":
		return put(policy.TrafficRoute, mesh, name, &meshv1.TrafficRoute{
			Sources: selector(s.Shape), Destinations: selector(s.Shape / 5),
			Conf: &meshv1.TrafficRoute_Conf{Destination: tags{"kuma.io/service": services[s.Shape%4]}},
		}), true
	case "injection":
		destination := tags{"kuma.io/service": services[s.Shape/5%3], topology.ProxylessTag: "true", "kuma.io/protocol": "*"}
		return put(policy.FaultInjection, mesh, name, &meshv1.FaultInjection{
			Sources: selector(s.Shape), Destinations: []*meshv1.Selector{{Match: destination}},
			Conf: &meshv1.FaultInjection_Conf{Delay: &meshv1.FaultInjection_Conf_Delay{
				Percentage: wrapperspb.Double(10), Value: durationpb.New(time.Second),
			}},
		}), true
	case "unpolicy":
		return del([]resource.Type{
			policy.TrafficPermission, policy.Timeout, policy.TrafficRoute, policy.FaultInjection,
		}[s.Shape%4], mesh, name), true
	case "external":
		t := tags{"kuma.io/service": services[2+s.Shape%2]}
		if s.Shape%5 == 0 {
			t["kuma.io/zone"] = []string{"zone-1", "zone-2"}[s.Shape%2]
		}
		return put("ExternalService", mesh, name, &meshv1.ExternalService{
			Tags: t, Networking: &meshv1.ExternalService_Networking{Address: fmt.Sprintf("1.2.3.%d:443", s.Shape%3)},
		}), true
	case "unexternal":
		return del("ExternalService", mesh, name), true
	case "ingress":
		return put(resource.ZoneIngress, "", name, &meshv1.ZoneIngress{
			Zone: []string{"zone-2", "zone-3", ""}[s.Shape%3],
			Networking: &meshv1.ZoneIngress_Networking{
				Address: "10.8.0.1", Port: 10001, AdvertisedAddress: fmt.Sprintf("1.1.1.%d", 1+s.Shape%2), AdvertisedPort: 10001,
			},
			AvailableServices: []*meshv1.ZoneIngress_AvailableService{
				{Mesh: mesh, Instances: uint32(1 + s.Shape%4), Tags: tags{"kuma.io/service": services[s.Shape%3], "kuma.io/protocol": "http"}},
				{Mesh: mesh, Instances: 1, Tags: tags{"kuma.io/service": services[2+s.Shape/3%2]}, ExternalService: s.Shape/6%2 == 0},
			},
		}), true
	case "uningress":
		return del(resource.ZoneIngress, "", name), true
	case "egress":
		return put(resource.ZoneEgress, "", name, &meshv1.ZoneEgress{
			Networking: &meshv1.ZoneEgress_Networking{Address: fmt.Sprintf("10.9.0.%d", 1+s.Shape%2), Port: 10002},
		}), true
	case "unegress":
		return del(resource.ZoneEgress, "", name), true
	case "insight":
		insight := &meshv1.ServiceInsight{Services: map[string]*meshv1.ServiceInsight_Service{}}
		for i, service := range services[:3] {
			insight.Services[service] = &meshv1.ServiceInsight_Service{
				Dataplanes: &meshv1.ServiceInsight_Service_DataplaneStat{Total: 1}, IssuedBackends: map[string]uint32{"ca-1": uint32((s.Shape >> i) & 1)},
			}
		}
		return put(resource.ServiceInsight, mesh, resource.ServiceInsightName(mesh), insight), true
	case "secret", "unsecret":
		kind, data := "cert", c[s.Shape%2].cert
		if s.Shape%4 > 1 {
			kind, data = "key", c[s.Shape%2].key
		}
		name := fmt.Sprintf("%s.ca-builtin-%s-ca-%d", mesh, kind, 1+s.Name%2)
		if s.Do == "unsecret" {
			return del(resource.Secret, mesh, name), true
		}
		return put(resource.Secret, mesh, name, secretOf(data)), true
	}
	return zonalOperation(c, s)
}

func play(t *testing.T, c *cas, script []step, builders Builders, bug func(*Reconciler)) (wrong string) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Builders, o.Workers = builders, 2 })
		if bug != nil {
			bug(r.r)
		}
		r.start()
		defer func() { r.stop() }()
		var first []store.Op
		for i, mesh := range []string{"m", "o"} {
			first = append(first, put(resource.Mesh, "", mesh, shapeOfMesh(5)))
			for _, ca := range []string{"ca-1", "ca-2"} {
				first = append(first, put(resource.Secret, mesh, mesh+".ca-builtin-cert-"+ca, secretOf(c[i].cert)),
					put(resource.Secret, mesh, mesh+".ca-builtin-key-"+ca, secretOf(c[i].key)))
			}
			for n := range 4 {
				first = append(first, put(resource.Dataplane, mesh, []string{"a", "b", "c", "d"}[n], shapeOfDataplane(n, n)))
			}
		}
		r.write(first...)
		connected := make(map[string]Connected)
		for i, s := range script {
			who := s.who()
			who.Proxyless = builders.Proxyless != nil && who.Mesh == "m"
			_, here := connected[who.NodeID]
			switch {
			case strings.HasPrefix(s.Do, "connect") && !here:
				connected[who.NodeID] = who
				r.r.Connected(who)
			case strings.HasPrefix(s.Do, "disconnect") && here:
				delete(connected, who.NodeID)
				r.r.Disconnected(who.NodeID)
			default:
				if op, ok := operation(c, s); ok {
					r.write(op)
				}
			}
			if s.Pause || i == len(script)-1 {
				time.Sleep(time.Second)
				synctest.Wait()
				if wrong = differs(t, r, connected); wrong != "" {
					wrong = fmt.Sprintf("step %d %s: %s", i, s, wrong)
					return
				}
			}
		}
	})
	return wrong
}

// differs compares what is published with what is made from scratch.
func differs(t *testing.T, r *rig, connected map[string]Connected) string {
	t.Helper()
	pub := newPublished()
	o := r.opts
	o.Publisher, o.Status, o.Log = pub, pub, slog.New(slog.DiscardHandler)
	scratch, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	head := r.st.Snapshot()
	scratch.load(head)
	for _, c := range connected {
		scratch.connect(c, time.Now())
	}
	for len(scratch.fresh)+len(scratch.queue) > 0 {
		if err := scratch.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for nodeID := range connected {
		want, _ := pub.get(nodeID)
		got, _ := r.pub.get(nodeID)
		if w, g := pub.failure(nodeID), r.pub.failure(nodeID); w != g && scratch.world.Mesh(connected[nodeID].Mesh) != nil {
			if w != "" || want != nil {
				return fmt.Sprintf("%s: failure %q, from scratch %q", nodeID, g, w)
			}
		}
		if want == nil {
			continue // it keeps what it had
		}
		// Of a mesh whose secrets cannot be made an egress keeps those it had.
		if diff := compare(got, want, pub.failure(nodeID) != ""); diff != "" {
			return nodeID + ": " + diff
		}
	}
	for nodeID := range r.pub.configs {
		if _, ok := connected[nodeID]; !ok {
			return nodeID + " has gone and has a configuration"
		}
	}
	return ""
}

// compare says how two configurations differ, apart from the certificates of proxies.
func compare(got, want *xds.Config, anySecrets bool) string {
	if got == nil {
		return "nothing is published"
	}
	for _, k := range allKinds {
		if k == xds.Secret && anySecrets {
			continue
		}
		a, b := got.Resources(k), want.Resources(k)
		names := func(list []*xds.Resource) []string {
			var out []string
			for _, r := range list {
				out = append(out, r.Name)
			}
			return out
		}
		if !slices.Equal(names(a), names(b)) {
			return fmt.Sprintf("%s: %v, from scratch %v", k.TypeURL(), names(a), names(b))
		}
		for i := range a {
			if mesh, ok := strings.CutPrefix(a[i].Name, mtls.IdentityName("")); ok {
				if wrong := sameIdentity(a[i], b[i], got.Get(xds.Secret, mtls.RootsName(mesh))); wrong != "" {
					return wrong
				}
				continue
			}
			if !proto.Equal(a[i].Message, b[i].Message) || a[i].Version != b[i].Version {
				return fmt.Sprintf("%s %q:\n%v\nfrom scratch:\n%v", k.TypeURL(), a[i].Name, a[i].Message, b[i].Message)
			}
		}
	}
	return ""
}

// onlyOnce is a load that answers for a cluster what it answered first.
func onlyOnce(load assignmentLoader) assignmentLoader {
	var mu sync.Mutex
	first := make(map[string]*endpointv3.ClusterLoadAssignment)
	return func(m *topology.Mesh, ref envoy.EndpointRef) (*endpointv3.ClusterLoadAssignment, error) {
		mu.Lock()
		defer mu.Unlock()
		if first[refKey(&ref)] == nil {
			cla, err := load(m, ref)
			if err != nil {
				return nil, err
			}
			first[refKey(&ref)] = cla
		}
		return first[refKey(&ref)], nil
	}
}

type assignmentLoader = func(*topology.Mesh, envoy.EndpointRef) (*endpointv3.ClusterLoadAssignment, error)

// sameIdentity says what is wrong with a proxy's certificate: it must be for the same names as the one made from scratch, and
// verify against what the proxies of the mesh trust.
func sameIdentity(got, want *xds.Resource, roots *xds.Resource) string {
	parse := func(r *xds.Resource) *x509.Certificate {
		block, _ := pem.Decode(r.Message.(*tlsv3.Secret).GetTlsCertificate().GetCertificateChain().GetInlineBytes())
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			panic(err)
		}
		return cert
	}
	a, b := parse(got), parse(want)
	if x, y := fmt.Sprint(a.URIs), fmt.Sprint(b.URIs); x != y {
		return fmt.Sprintf("the certificate is for %s, from scratch for %s", x, y)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots.Message.(*tlsv3.Secret).GetValidationContext().GetTrustedCa().GetInlineBytes())
	if _, err := a.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: a.NotBefore.Add(time.Minute), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		if _, err := b.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: b.NotBefore.Add(time.Minute), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
			return fmt.Sprintf("the certificate does not verify: %v", err)
		}
	}
	return ""
}
