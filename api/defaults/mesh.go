package defaults

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	capb "github.com/meridian-mesh/meridian/api/kuma/plugins/ca"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/rsakeys"
	"github.com/meridian-mesh/meridian/common/store"
)

// View is the state that is looked at.
type View interface {
	Get(key store.Key) (*store.Record, bool)
	List(typ, mesh string) iter.Seq[*store.Record]
}

const (
	keyBits = rsakeys.Bits
	caLife  = 10 * 365 * 24 * time.Hour
)

// MeshWrite is a mesh that is about to be stored.
type MeshWrite struct {
	Name string
	Spec *meshv1.Mesh
	// Policies and Key: the default policies, and a key for dataplane tokens, come with it. Both are for meshes that are
	// new; nothing brings back later what was deleted.
	Policies, Key bool
	Now           time.Time
}

// Ops returns what v lacks for the mesh, to be stored in the same batch, and what must be made for it first. The mesh must
// be one that package validate finds nothing wrong with. The error is a *[codec.Error] where the state v does not allow
// what the mesh asks for.
func (w MeshWrite) Ops(v View, m Material) ([]store.Op, []Need, error) {
	b := batch{view: v, material: m, now: w.Now}
	b.mesh(w)
	if b.err != nil {
		return nil, nil, b.err
	}
	return b.ops, b.needs, nil
}

func (b *batch) mesh(w MeshWrite) {
	if key := tokens.SigningKey(tokens.Dataplane, w.Name, 1); w.Key && len(key.Name) > resource.MaxName {
		// The longest name of what comes with a mesh. A plane would hold what no import takes back.
		b.fail(&codec.Error{Violations: []codec.Violation{{
			Field: "name", Message: fmt.Sprintf("cannot be longer than %d characters: names of what comes with a mesh are longer than its own",
				resource.MaxName-(len(key.Name)-len(w.Name))),
		}}})
		return
	}
	if w.Policies {
		for _, p := range policies() {
			b.put(store.Key{Type: string(p.typ), Mesh: w.Name, Name: p.prefix + w.Name}, p.spec)
		}
	}
	if w.Key {
		b.signingKey(tokens.Dataplane, w.Name)
	}
	var violations []codec.Violation
	for i, backend := range w.Spec.GetMtls().GetBackends() {
		if backend.GetType() != "builtin" {
			continue
		}
		if v := b.builtin(w.Name, backend); v != nil {
			v.Field = fmt.Sprintf("mtls.backends[%d].%s", i, v.Field)
			violations = append(violations, *v)
		}
	}
	if len(violations) > 0 {
		b.fail(&codec.Error{Violations: violations})
	}
}

// batch collects what is absent.
type batch struct {
	view     View
	material Material
	now      time.Time

	ops   []store.Op
	needs []Need
	err   error // the first
}

// List lists the state with the batch on top.
func (b *batch) List(typ, mesh string) iter.Seq[*store.Record] {
	return func(yield func(*store.Record) bool) {
		for rec := range b.view.List(typ, mesh) {
			if !yield(rec) {
				return
			}
		}
		for _, op := range b.ops {
			if op.Key.Type == typ && (mesh == "" || op.Key.Mesh == mesh) && !yield(op.Record) {
				return
			}
		}
	}
}

func (b *batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// has reports whether there is a resource, in the state or in the batch.
func (b *batch) has(key store.Key) bool {
	if _, ok := b.view.Get(key); ok {
		return true
	}
	return slices.ContainsFunc(b.ops, func(op store.Op) bool { return op.Key == key })
}

// put adds a resource unless it exists.
func (b *batch) put(key store.Key, spec proto.Message) {
	if b.has(key) {
		return
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		b.fail(fmt.Errorf("encode %s: %w", key, err))
		return
	}
	b.ops = append(b.ops, store.Put(&store.Record{Key: key, Spec: encoded, Created: b.now, Modified: b.now}))
}

func (b *batch) putSecret(key store.Key, content []byte) {
	b.put(key, &systemv1.Secret{Data: wrapperspb.Bytes(content)})
}

// made returns the material for a need, or notes that it is needed.
func (b *batch) made(n Need) (material, bool) {
	m, ok := b.material[n]
	if !ok {
		b.needs = append(b.needs, n)
	}
	return m, ok
}

// signingKey adds the first signing key of a kind unless there is any.
func (b *batch) signingKey(kind tokens.Kind, mesh string) {
	if tokens.HasSigningKey(b.view, kind, mesh) {
		return
	}
	key := tokens.SigningKey(kind, mesh, 1)
	if m, ok := b.made(Need{secret: key, bits: keyBits}); ok {
		b.putSecret(key, m.key)
	}
}

// BuiltinSecrets returns the names of the secrets that hold the authority of a builtin mTLS backend.
func BuiltinSecrets(mesh, backend string) (cert, key string) {
	return mesh + ".ca-builtin-cert-" + backend, mesh + ".ca-builtin-key-" + backend
}

// builtin adds the authority of a builtin backend unless it is there. It is never replaced, whatever the backend says:
// that would cut off every proxy that holds a certificate of it.
func (b *batch) builtin(mesh string, backend *meshv1.CertificateAuthorityBackend) *codec.Violation {
	certName, keyName := BuiltinSecrets(mesh, backend.GetName())
	cert := store.Key{Type: string(resource.Secret), Mesh: mesh, Name: certName}
	key := store.Key{Type: string(resource.Secret), Mesh: mesh, Name: keyName}
	switch hasCert, hasKey := b.has(cert), b.has(key); {
	case hasCert && hasKey:
		return nil
	case hasCert:
		return &codec.Violation{Field: "name", Message: fmt.Sprintf("secret %q exists, but its key %q does not: restore it, or delete the secret", certName, keyName)}
	case hasKey:
		return &codec.Violation{Field: "name", Message: fmt.Sprintf("secret %q exists, but its certificate %q does not: restore it, or delete the secret", keyName, certName)}
	}
	bits, life, err := builtinConf(backend.GetConf())
	if err != nil {
		b.fail(fmt.Errorf("mTLS backend %s: %w", backend.GetName(), err))
		return nil
	}
	if m, ok := b.made(Need{secret: cert, bits: bits, ca: authority{commonName: mesh, mesh: mesh, life: life}}); ok {
		b.putSecret(cert, m.cert)
		b.putSecret(key, m.key)
	}
	return nil
}

// builtinConf reads the size of the key and the life of a builtin authority. What they may be was judged before, by
// package validate.
func builtinConf(conf *structpb.Struct) (bits int, life time.Duration, err error) {
	encoded, err := conf.MarshalJSON()
	if err != nil {
		return 0, 0, fmt.Errorf("encode conf: %w", err)
	}
	var c capb.BuiltinCertificateAuthorityConfig
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(encoded, &c); err != nil {
		return 0, 0, fmt.Errorf("read conf: %w", err)
	}
	bits, life = keyBits, caLife
	if b := c.GetCaCert().GetRSAbits(); b != nil {
		bits = int(b.GetValue())
	}
	if e := c.GetCaCert().GetExpiration(); e != "" {
		d, err := model.ParseDuration(e)
		if err != nil {
			return 0, 0, fmt.Errorf("read caCert.expiration: %w", err)
		}
		life = time.Duration(d)
	}
	return bits, life, nil
}

// FillMesh writes into a mesh what its backends leave out, and reports whether it did: a prometheus backend says where
// its proxies expose metrics, and under which service.
func FillMesh(mesh *meshv1.Mesh) bool {
	changed := false
	for _, backend := range mesh.GetMetrics().GetBackends() {
		if backend.GetType() != "prometheus" {
			continue
		}
		if backend.GetConf().GetFields() == nil {
			backend.Conf = &structpb.Struct{Fields: map[string]*structpb.Value{}}
		}
		fields := backend.GetConf().GetFields()
		fill := func(name string, value *structpb.Value) {
			if absent(fields[name]) {
				fields[name], changed = value, true
			}
		}
		fill("port", structpb.NewNumberValue(5670))
		fill("path", structpb.NewStringValue("/metrics"))
		fill("tags", structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"kuma.io/service": structpb.NewStringValue("dataplane-metrics"),
		}}))
	}
	return changed
}

// absent reports whether a value of a backend's configuration says nothing. There is no other way to say it in the typed
// form, where a port is a number and absence is 0.
func absent(v *structpb.Value) bool {
	switch k := v.GetKind().(type) {
	case nil, *structpb.Value_NullValue:
		return true
	case *structpb.Value_NumberValue:
		return k.NumberValue == 0
	case *structpb.Value_StringValue:
		return k.StringValue == ""
	case *structpb.Value_StructValue:
		return len(k.StructValue.GetFields()) == 0
	default:
		return false
	}
}

// policy is a policy that comes with a mesh, under the mesh's name after a prefix.
type policy struct {
	typ    resource.Type
	prefix string
	spec   proto.Message
}

// policies are the ones of a new mesh: all traffic is allowed and routed, within bounds that suit most services.
func policies() []policy {
	every := []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": "*"}}}
	seconds := func(s float64) *durationpb.Duration { return durationpb.New(time.Duration(s * float64(time.Second))) }
	number := wrapperspb.UInt32
	backOff := &meshv1.Retry_Conf_BackOff{BaseInterval: seconds(0.025), MaxInterval: seconds(0.25)}
	return []policy{
		{"TrafficPermission", "allow-all-", &meshv1.TrafficPermission{Sources: every, Destinations: every}},
		{"TrafficRoute", "route-all-", &meshv1.TrafficRoute{Sources: every, Destinations: every, Conf: &meshv1.TrafficRoute_Conf{
			Destination:  map[string]string{"kuma.io/service": "*"},
			LoadBalancer: &meshv1.TrafficRoute_LoadBalancer{LbType: &meshv1.TrafficRoute_LoadBalancer_RoundRobin_{RoundRobin: &meshv1.TrafficRoute_LoadBalancer_RoundRobin{}}},
		}}},
		{"Timeout", "timeout-all-", &meshv1.Timeout{Sources: every, Destinations: every, Conf: &meshv1.Timeout_Conf{
			ConnectTimeout: seconds(5),
			Tcp:            &meshv1.Timeout_Conf_Tcp{IdleTimeout: seconds(3600)},
			Http: &meshv1.Timeout_Conf_Http{
				RequestTimeout: seconds(15), IdleTimeout: seconds(3600), StreamIdleTimeout: seconds(1800),
			},
		}}},
		{"CircuitBreaker", "circuit-breaker-all-", &meshv1.CircuitBreaker{Sources: every, Destinations: every, Conf: &meshv1.CircuitBreaker_Conf{
			Thresholds: &meshv1.CircuitBreaker_Conf_Thresholds{
				MaxConnections: number(1024), MaxPendingRequests: number(1024), MaxRequests: number(1024), MaxRetries: number(3),
			},
		}}},
		{"Retry", "retry-all-", &meshv1.Retry{Sources: every, Destinations: every, Conf: &meshv1.Retry_Conf{
			Http: &meshv1.Retry_Conf_Http{NumRetries: number(5), PerTryTimeout: seconds(16), BackOff: backOff},
			Tcp:  &meshv1.Retry_Conf_Tcp{MaxConnectAttempts: 5},
			Grpc: &meshv1.Retry_Conf_Grpc{NumRetries: number(5), PerTryTimeout: seconds(16), BackOff: backOff},
		}}},
	}
}
