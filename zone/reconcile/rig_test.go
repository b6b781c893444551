package reconcile

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

type (
	tags    = map[string]string
	inbound = meshv1.Dataplane_Networking_Inbound
)

// modelSidecar is a sidecar whose configuration says in words what it was made from: one cluster for each outbound, and one for
// what belongs to the proxy as a whole. Every part of the input that configuration may depend on is in it, in the way in which
// the real one depends on it.
func modelSidecar(in *Input) (*envoy.Output, error) {
	out := &envoy.Output{}
	var failure error
	say := func(name, text string) {
		res, err := xds.NewResource(xds.Cluster, name, &clusterv3.Cluster{Name: name, AltStatName: text})
		if err != nil {
			failure = err
			return
		}
		out.Resources = append(out.Resources, res)
	}
	m, dp := in.Mesh, in.Dataplane
	if dp.GetNetworking().GetAdmin().GetPort() == 666 {
		panic("an accident")
	}
	if dp.GetNetworking().GetAdmin().GetPort() == 13 {
		return nil, errors.New("thirteen")
	}
	var outbounds []tags
	for _, o := range dp.GetNetworking().GetOutbound() {
		outbounds = append(outbounds, o.GetTags())
	}
	matched := m.Policies.Match(dp, policy.Options{})
	own := []string{"mesh " + m.Spec.String()}
	for i, in := range matched.Inbounds {
		own = append(own, fmt.Sprintf("in %d allowed by %s", i, nameOf(in.TrafficPermission)))
	}
	own = append(own, "dataplane "+dp.String())
	for _, direct := range dp.GetNetworking().GetTransparentProxying().GetDirectAccessServices() {
		for _, name := range slices.Sorted(maps.Keys(m.Dataplanes)) {
			for _, in := range m.Dataplanes[name].GetNetworking().GetInbound() {
				if s := dataplane.Service(in.GetTags()); s == direct || direct == "*" {
					own = append(own, fmt.Sprintf("direct %s:%d", m.Dataplanes[name].GetNetworking().GetAddress(), in.GetPort()))
				}
			}
		}
	}
	if dp.GetNetworking().GetTransparentProxying() != nil {
		own = append(own, fmt.Sprintf("addresses %v", m.VIPs))
	}
	say("own", strings.Join(own, "; "))
	for i, o := range outbounds {
		service := dataplane.Service(o)
		s := m.Services[service]
		timeout := nameOf(in.Mesh.Policies.Client(tagsOf(dp)...).To(policy.Timeout, service))
		name := fmt.Sprintf("%s-%d", service, i)
		text := fmt.Sprintf("timeout %s", timeout)
		switch {
		case s == nil:
			text += " missing"
		case s.External() && !m.Egress:
			out.Services = append(out.Services, service)
			for _, e := range s.Endpoints {
				text += fmt.Sprintf(" external %s %s:%d %s", e.ExternalName, e.Address, e.Port, e.External)
			}
			say(name, text)
			continue
		default:
			text += fmt.Sprintf(" protocol %q tls %t external %t", s.Protocol, s.TLSReady, s.External())
		}
		say(name, text)
		out.Endpoints = append(out.Endpoints, envoy.EndpointRef{Cluster: name, Mesh: m.Name, Service: service})
	}
	if m.Spec.GetMtls().GetEnabledBackend() != "" {
		out.Secrets = []string{mtls.IdentityName(m.Name), mtls.RootsName(m.Name)}
	}
	return out, failure
}

func nameOf(p *policy.Policy) string {
	if p == nil {
		return "nobody"
	}
	return p.Name + " " + fmt.Sprint(p.Spec)
}

func modelAssignment(m *topology.Mesh, ref envoy.EndpointRef) (*endpointv3.ClusterLoadAssignment, error) {
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: ref.Cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	s := m.Services[ref.Service]
	if s == nil {
		return cla, nil
	}
	for _, e := range s.Endpoints {
		priority := ""
		if m.Spec.GetRouting().GetLocalityAwareLoadBalancing() && e.Remote {
			priority = "far"
		}
		cla.Endpoints[0].LbEndpoints = append(cla.Endpoints[0].LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Hostname: priority, Address: &corev3.Address{
				Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address: e.Address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: e.Port},
				}},
			}}},
			LoadBalancingWeight: wrapperspb.UInt32(e.Weight),
		})
	}
	return cla, nil
}

var modelBuilders = Builders{Sidecar: modelSidecar, LoadAssignment: modelAssignment}

// published is a Publisher and a Status that remembers.
type published struct {
	mu           sync.Mutex // guards what follows
	configs      map[string]*xds.Config
	count        map[string]int // publications
	errors       map[string]string
	certificates map[string]*Certificate
	then         func(nodeID string, c *xds.Config)
}

func newPublished() *published {
	return &published{
		configs: make(map[string]*xds.Config), count: make(map[string]int), errors: make(map[string]string), certificates: make(map[string]*Certificate),
	}
}

func (p *published) Publish(nodeID string, c *xds.Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configs[nodeID] = c
	p.count[nodeID]++
	if p.then != nil {
		p.then(nodeID, c)
	}
}

func (p *published) Forget(nodeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.configs, nodeID)
}

func (p *published) Certificate(nodeID string, c *Certificate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.certificates[nodeID] = c
}

func (p *published) ConfigError(nodeID, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.errors[nodeID] = text; text == "" {
		delete(p.errors, nodeID)
	}
}

func (p *published) get(nodeID string) (*xds.Config, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.configs[nodeID], p.count[nodeID]
}

func (p *published) failure(nodeID string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.errors[nodeID]
}

// authorityPEM makes a certificate authority of a mesh.
func authorityPEM(tb testing.TB, mesh string) (cert, key []byte) {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: mesh}, NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: mesh}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		tb.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// rig is a store with a Reconciler that follows it.
type rig struct {
	tb   testing.TB
	st   *store.Store
	pub  *published
	r    *Reconciler
	opts Options
	stop func()
}

func newAuthority(tb testing.TB) *mtls.Authority {
	tb.Helper()
	a, err := mtls.New(mtls.Options{Config: mtls.DefaultConfig(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func newRig(tb testing.TB, change func(*Options)) *rig {
	tb.Helper()
	st, err := store.Open(tb.Context(), memory.New(), store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	r := &rig{tb: tb, st: st, pub: newPublished()}
	r.opts = Options{
		Store: st, Zone: "zone-1", Publisher: r.pub, Status: r.pub, Builders: modelBuilders, Authority: newAuthority(tb),
		Resolve: func(context.Context, string) ([]string, error) { return nil, errors.New("no names here") },
		Log:     slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&r.opts)
	}
	r.st = r.opts.Store
	if r.r, err = New(r.opts); err != nil {
		tb.Fatal(err)
	}
	return r
}

func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.r.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			r.tb.Errorf("Run: %v", err)
		}
		if err := r.st.Close(); err != nil {
			r.tb.Error(err)
		}
	}
}

func put(typ resource.Type, mesh, name string, spec proto.Message) store.Op {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		panic(err)
	}
	return store.Put(&store.Record{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}, Spec: b})
}

func del(typ resource.Type, mesh, name string) store.Op {
	return store.Delete(store.Key{Type: string(typ), Mesh: mesh, Name: name})
}

func (r *rig) write(ops ...store.Op) {
	r.tb.Helper()
	if _, err := r.st.Update(r.tb.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		r.tb.Fatal(err)
	}
}

func sidecar(mesh, name string) Connected {
	return Connected{NodeID: mesh + "." + name, Kind: Sidecar, Mesh: mesh, Name: name}
}

func in(port uint32, t tags) *inbound { return &inbound{Port: port, Tags: t} }

func workload(address string, outbounds []string, inbounds ...*inbound) *meshv1.Dataplane {
	dp := &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Address: address, Inbound: inbounds}}
	for i, o := range outbounds {
		dp.Networking.Outbound = append(dp.Networking.Outbound, &meshv1.Dataplane_Networking_Outbound{Port: uint32(10000 + i), Tags: tags{"kuma.io/service": o}})
	}
	return dp
}

func secretOf(data []byte) *systemv1.Secret { return &systemv1.Secret{Data: wrapperspb.Bytes(data)} }

// secured is a mesh with mutual TLS and its secrets.
func secured(tb testing.TB, name string) []store.Op {
	tb.Helper()
	cert, key := authorityPEM(tb, name)
	return []store.Op{
		put(resource.Mesh, "", name, withBackends("ca-1", "ca-1")),
		put(resource.Secret, name, name+".ca-builtin-cert-ca-1", secretOf(cert)),
		put(resource.Secret, name, name+".ca-builtin-key-ca-1", secretOf(key)),
	}
}

func withBackends(enabled string, backends ...string) *meshv1.Mesh {
	m := &meshv1.Mesh{Mtls: &meshv1.Mesh_Mtls{EnabledBackend: enabled}}
	for _, b := range backends {
		m.Mtls.Backends = append(m.Mtls.Backends, &meshv1.CertificateAuthorityBackend{Name: b, Type: "builtin"})
	}
	return m
}

func tagsOf(dp *meshv1.Dataplane) []map[string]string {
	var out []map[string]string
	for _, in := range dp.GetNetworking().GetInbound() {
		out = append(out, in.GetTags())
	}
	return out
}
