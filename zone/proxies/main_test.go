package proxies

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/zone/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keys are signing keys: making one is slow.
var keys = sync.OnceValue(func() [][]byte {
	var list [][]byte
	for range 5 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		list = append(list, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}))
	}
	return list
})

// rig is a registry over a store in memory.
type rig struct {
	*testing.T
	backend  store.Backend
	store    *store.Store
	registry *Registry
	events   *events
	instance string
	members  Members
	cfg      Config
	stop     func()
	dead     bool
}

// events are what the watcher was told.
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) Connected(c Connected)      { e.add("connected " + c.NodeID) }
func (e *events) Disconnected(nodeID string) { e.add("disconnected " + nodeID) }
func (e *events) add(s string)               { e.mu.Lock(); defer e.mu.Unlock(); e.list = append(e.list, s) }

func (e *events) all() string { e.mu.Lock(); defer e.mu.Unlock(); return strings.Join(e.list, "; ") }

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{T: t, backend: memory.New(), events: &events{}, instance: "cp-1", cfg: DefaultConfig()}
	if change != nil {
		change(&r.cfg)
	}
	r.openStore()
	r.furnish()
	r.start()
	return r
}

// furnish stores what there is before any proxy.
func (r *rig) furnish() {
	r.Helper()
	r.put(string(resource.Mesh), "", "default", &meshv1.Mesh{})
	r.put(string(resource.Mesh), "", "other", &meshv1.Mesh{})
	r.secret(tokens.SigningKey(tokens.Dataplane, "default", 1), keys()[0])
	r.secret(tokens.SigningKey(tokens.Dataplane, "other", 1), keys()[1])
	r.secret(tokens.SigningKey(tokens.Zone, "", 1), keys()[2])
	r.secret(tokens.SigningKey(tokens.ZoneIngress, "", 1), keys()[3])
	r.secret(tokens.SigningKey(tokens.User, "", 1), keys()[4])
}

func (r *rig) openStore() {
	r.Helper()
	s, err := store.Open(context.Background(), r.backend, store.Options{})
	if err != nil {
		r.Fatal(err)
	}
	r.store = s
	r.Cleanup(func() { _ = s.Close() })
}

// start runs a registry until the test ends or stop is called.
func (r *rig) start() {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	reg, err := New(ctx, Options{
		Config: r.cfg, Zone: "zone-1", InstanceID: r.instance, Store: r.store, Authority: tokens.NewAuthority(), Members: r.members, Watcher: r.events,
		Log: slog.New(slog.NewTextHandler(r.Output(), nil)),
	})
	if err != nil {
		cancel()
		r.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := reg.Run(ctx); err != nil {
			r.Errorf("run: %v", err)
		}
	}()
	r.registry = reg
	r.stop = func() { cancel(); <-done }
	r.Cleanup(r.stop)
}

func (r *rig) update(ops ...store.Op) {
	r.Helper()
	if _, err := r.store.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) put(typ, mesh, name string, m proto.Message) {
	r.Helper()
	spec, err := proto.Marshal(m)
	if err != nil {
		r.Fatal(err)
	}
	now := time.Now()
	r.update(store.Put(&store.Record{Key: store.Key{Type: typ, Mesh: mesh, Name: name}, Spec: spec, Created: now, Modified: now}))
}

func (r *rig) secret(k store.Key, data []byte) {
	r.Helper()
	r.put(k.Type, k.Mesh, k.Name, &systemv1.Secret{Data: wrapperspb.Bytes(data)})
}

func (r *rig) token(kind tokens.Kind, key int, c tokens.Claims, validFor time.Duration) string {
	r.Helper()
	raw, _, err := tokens.Sign(keys()[key], 1, kind, c, validFor)
	if err != nil {
		r.Fatal(err)
	}
	return raw
}

// dpToken is a good token for the mesh default.
func (r *rig) dpToken() string {
	r.Helper()
	return r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default"}, time.Hour)
}

const backendResource = `{"type":"Dataplane","mesh":"default","name":"backend-1","creationTime":"0001-01-01T00:00:00Z",
"networking":{"address":"10.0.0.1","inbound":[{"port":8080,"servicePort":80,"tags":{"kuma.io/service":"backend","version":"1"}}]}}`

// aNode makes a node with metadata of text.
func aNode(id string, metadata map[string]any) *corev3.Node {
	m, err := structpb.NewStruct(metadata)
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: id, Metadata: m}
}

func backendNode() *corev3.Node {
	return aNode("default.backend-1", map[string]any{"dataplane.resource": backendResource, "dataplane.proxyType": "dataplane"})
}

func (r *rig) open(n *corev3.Node, auth ...string) (*Session, error) {
	s, err := r.registry.Open(context.Background(), xds.Opening{Node: n, Authorization: auth, Peer: "10.0.0.1:5000"})
	if err != nil {
		return nil, err
	}
	return s.(*Session), nil
}

func (r *rig) mustOpen(n *corev3.Node, auth ...string) *Session {
	r.Helper()
	s, err := r.open(n, auth...)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func (r *rig) exists(typ resource.Type, mesh, name string) bool {
	_, ok := r.store.Snapshot().Get(store.Key{Type: string(typ), Mesh: mesh, Name: name})
	return ok
}

func (r *rig) dataplane() *meshv1.Dataplane {
	r.Helper()
	rec, ok := r.store.Snapshot().Get(store.Key{Type: "Dataplane", Mesh: "default", Name: "backend-1"})
	if !ok {
		r.Fatal("there is no dataplane")
	}
	dp := &meshv1.Dataplane{}
	if err := proto.Unmarshal(rec.Spec, dp); err != nil {
		r.Fatal(err)
	}
	return dp
}

func (r *rig) insight() *meshv1.DataplaneInsight {
	r.Helper()
	return r.insightOf("backend-1")
}

func (r *rig) insightOf(name string) *meshv1.DataplaneInsight {
	r.Helper()
	i := &meshv1.DataplaneInsight{}
	if rec, ok := r.store.Snapshot().Get(store.Key{Type: "DataplaneInsight", Mesh: "default", Name: name}); ok {
		if err := proto.Unmarshal(rec.Spec, i); err != nil {
			r.Fatal(err)
		}
	}
	return i
}

func now() *timestamppb.Timestamp { return timestamppb.Now() }
