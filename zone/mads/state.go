package mads

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	madsv1 "github.com/meridian-mesh/meridian/api/kuma/observability/v1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// meshGateway is the type of policy that names gateways.
const meshGateway = policy.MeshGateway

// inputs are the types that assignments are made from.
func inputs() [3]resource.Type {
	return [...]resource.Type{resource.Mesh, resource.Dataplane, meshGateway}
}

// Assignments are what there is to scrape at one time. They never change.
type Assignments struct {
	// Version is the hash of the content: equal content has an equal version, also in another process.
	Version string
	// Resources are MonitoringAssignments, by mesh and name of the proxy.
	Resources []*anypb.Any
}

// cache keeps the assignments of the newest snapshot it was asked for, and of every proxy.
type cache struct {
	store *store.Store
	log   *slog.Logger

	mu     sync.Mutex // guards what follows
	at     [3]store.Revision
	last   *Assignments
	meshes map[string]meshInput
	proxy  map[store.Key]entry
}

// meshInput is what a mesh's assignments depend on beside the proxy itself.
type meshInput struct {
	rec      *store.Record
	gateways []*store.Record
}

func (m meshInput) same(o meshInput) bool {
	return m.rec == o.rec && slices.Equal(m.gateways, o.gateways)
}

type entry struct {
	rec  *store.Record
	any  *anypb.Any // nil: nothing to scrape
	hash [sha256.Size]byte
}

func newCache(st *store.Store, log *slog.Logger) *cache {
	return &cache{store: st, log: log, meshes: make(map[string]meshInput), proxy: make(map[store.Key]entry)}
}

// current returns the assignments of the newest snapshot. It costs nothing when none of the inputs has changed, and work for
// what did change otherwise.
func (c *cache) current() *Assignments {
	c.mu.Lock()
	defer c.mu.Unlock()
	snap := c.store.Snapshot()
	var at [3]store.Revision
	for i, t := range inputs() {
		at[i] = snap.LastChange(string(t))
	}
	if c.last != nil && at == c.at {
		return c.last
	}
	c.last, c.at = c.rebuildLocked(snap), at
	return c.last
}

func (c *cache) rebuildLocked(snap *store.Snapshot) *Assignments {
	out := &Assignments{}
	sum := sha256.New()
	meshes, proxies := make(map[string]meshInput), make(map[store.Key]entry, len(c.proxy))
	for rec := range snap.List(string(resource.Mesh), "") {
		name := rec.Key.Name
		in := meshInput{rec: rec, gateways: slices.Collect(snap.List(string(meshGateway), name))}
		meshes[name] = in
		same := c.meshes[name].same(in)
		var mesh *meshv1.Mesh
		var gateways *policy.Set
		for dp := range snap.List(string(resource.Dataplane), name) {
			e, ok := c.proxy[dp.Key]
			if !ok || !same || e.rec != dp {
				if mesh == nil {
					mesh, gateways = c.decodeMesh(in)
				}
				e = c.assign(mesh, gateways, dp)
			}
			proxies[dp.Key] = e
			if e.any != nil {
				out.Resources = append(out.Resources, e.any)
				sum.Write(e.hash[:])
			}
		}
	}
	c.meshes, c.proxy = meshes, proxies
	out.Version = hex.EncodeToString(sum.Sum(nil)[:16])
	return out
}

func (c *cache) decodeMesh(in meshInput) (*meshv1.Mesh, *policy.Set) {
	mesh, err := codec.SpecOf[*meshv1.Mesh](in.rec)
	if err != nil {
		c.log.Warn("mesh cannot be read: its proxies are not told to monitoring systems", "err", err)
		return &meshv1.Mesh{}, nil // of which no proxy is told
	}
	gateways, errs := policy.NewSet(in.rec.Key.Name, slices.Values(in.gateways))
	for _, err := range errs {
		c.log.Warn("gateway cannot be read", "err", err)
	}
	return mesh, gateways
}

func (c *cache) assign(mesh *meshv1.Mesh, gateways *policy.Set, rec *store.Record) entry {
	e := entry{rec: rec}
	dp, err := codec.SpecOf[*meshv1.Dataplane](rec)
	if err != nil {
		c.log.Warn("dataplane cannot be read", "err", err)
		return e
	}
	a, err := assignment(mesh, gateways, rec.Key, dp)
	if err != nil {
		c.log.Warn("dataplane cannot be told to monitoring systems", "mesh", rec.Key.Mesh, "name", rec.Key.Name, "err", err)
		return e
	}
	if a == nil {
		return e
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		c.log.Warn("dataplane cannot be told to monitoring systems", "mesh", rec.Key.Mesh, "name", rec.Key.Name, "err", err)
		return e
	}
	e.any, e.hash = &anypb.Any{TypeUrl: TypeURL, Value: value}, sha256.Sum256(value)
	return e
}

// assignment says what there is to scrape of a proxy; nil: nothing.
func assignment(mesh *meshv1.Mesh, gateways *policy.Set, key store.Key, dp *meshv1.Dataplane) (*madsv1.MonitoringAssignment, error) {
	prom, err := dataplane.Prometheus(mesh, dp)
	if err != nil || prom == nil {
		return nil, err //nolint:wrapcheck // it says whose configuration it is
	}
	return &madsv1.MonitoringAssignment{
		Mesh:    key.Mesh,
		Service: dataplane.IdentifyingService(dp),
		Targets: []*madsv1.MonitoringAssignment_Target{{
			Name: key.Name, Scheme: "http",
			Address:     net.JoinHostPort(dp.GetNetworking().GetAddress(), strconv.FormatUint(uint64(prom.GetPort()), 10)),
			MetricsPath: prom.GetPath(),
			Labels:      labels(dp, gateways),
		}},
	}, nil
}

// gatewayLabel names the MeshGateway that a proxy is part of.
const gatewayLabel = "kuma_io_mesh_gateway"

// labels are the tags of a proxy in the form that labels must have: each under its name with its first value, and under
// the plural with all, e.g. version="1" and versions=",1,2,".
func labels(dp *meshv1.Dataplane, gateways *policy.Set) map[string]string {
	out := make(map[string]string)
	tags := dataplane.Tags(dp)
	for _, key := range slices.Sorted(maps.Keys(tags)) { // of two that become one label, the later one stays
		values := tags[key]
		out[label(key)] = values[0]
		out[label(key+"s")] = "," + strings.Join(values, ",") + ","
	}
	if g := dp.GetNetworking().GetGateway(); g != nil && g.GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN {
		if p := gateways.Match(dp, policy.Options{}).Gateway; p != nil {
			out[gatewayLabel] = p.Name
		}
	}
	return out
}

// label makes a name of letters, digits and underscores.
func label(key string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, key)
}
