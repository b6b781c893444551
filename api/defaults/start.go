package defaults

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	// defaultMesh is the mesh that a global starts with.
	defaultMesh = "default"

	adminTokenName = "admin-user-token"
	adminTokenLife = 10 * 365 * 24 * time.Hour

	envoyAdminCAName = "envoy-admin-ca"
)

// Start is a control plane that is about to serve.
type Start struct {
	Store *store.Store
	Keys  Source
	// SkipMesh: no mesh "default" on a global. SkipAdminToken: no token for the administrator.
	SkipMesh, SkipAdminToken bool
	Log                      *slog.Logger
}

// Global stores, in one batch, what a global starts with and does not have, and returns the id of the cluster. An error
// says what could not be made; then nothing was.
func (s Start) Global(ctx context.Context) (clusterID string, err error) {
	fresh := uuid.NewString()
	err = s.commit(ctx, func(b *batch) {
		b.put(clusterIDKey, &systemv1.Config{Config: fresh})
		for _, kind := range []tokens.Kind{tokens.User, tokens.ZoneIngress, tokens.Zone} {
			b.signingKey(kind, "")
		}
		if !s.SkipAdminToken {
			b.adminToken()
		}
		if mesh := (store.Key{Type: string(resource.Mesh), Name: defaultMesh}); !s.SkipMesh && !b.has(mesh) {
			spec := &meshv1.Mesh{}
			b.put(mesh, spec)
			b.mesh(MeshWrite{Name: defaultMesh, Spec: spec, Policies: true, Key: true})
		}
	})
	if err != nil {
		return "", err
	}
	rec, ok := s.Store.Snapshot().Get(clusterIDKey)
	if !ok {
		return "", fmt.Errorf("%s is gone", clusterIDKey)
	}
	var c systemv1.Config
	if err := proto.Unmarshal(rec.Spec, &c); err != nil {
		return "", fmt.Errorf("read %s: %w", clusterIDKey, err)
	}
	return c.GetConfig(), nil
}

var clusterIDKey = store.Key{Type: string(resource.Config), Name: resource.ClusterIDName}

// Zone does the same for a zone: its own users and the authority of its proxies' admin ports. The rest comes from the
// global.
func (s Start) Zone(ctx context.Context) error {
	return s.commit(ctx, func(b *batch) {
		b.signingKey(tokens.User, "")
		if !s.SkipAdminToken {
			b.adminToken()
		}
		b.envoyAdminCA()
	})
}

func (s Start) commit(ctx context.Context, collect func(*batch)) error {
	m := Material{}
	// made is written by the update's function, which may still run when Commit returned early with the context's error:
	// read only after success.
	var made []string
	_, err := Commit(ctx, s.Store, s.Keys, m, nil, func(head *store.Snapshot) ([]store.Op, []Need, error) {
		b := batch{view: head, material: m, now: time.Now().UTC()}
		collect(&b)
		made = nil
		for _, op := range b.ops {
			made = append(made, op.Key.String())
		}
		return b.ops, b.needs, b.err
	})
	if err != nil {
		return fmt.Errorf("make what a new control plane needs: %w", err)
	}
	if len(made) > 0 {
		s.Log.InfoContext(ctx, "made what was missing", "resources", made)
	}
	return nil
}

// adminToken adds the token of the administrator, signed with the newest key for users, which may be one of this batch.
func (b *batch) adminToken() {
	at := store.Key{Type: string(resource.GlobalSecret), Name: adminTokenName}
	if b.has(at) {
		return
	}
	rec, n, ok := tokens.NewestSigningKey(b, tokens.User, "")
	if !ok {
		if len(b.needs) == 0 { // otherwise the key is still to be made, and this is asked again
			b.fail(fmt.Errorf("%s: %w: there is no %s", at, tokens.ErrNoKey, tokens.SigningKey(tokens.User, "", 1)))
		}
		return
	}
	var key systemv1.Secret
	if err := proto.Unmarshal(rec.Spec, &key); err != nil {
		b.fail(fmt.Errorf("read %s: %w", rec.Key, err))
		return
	}
	if m, ok := b.made(Need{secret: at, signer: signer{pem: string(key.GetData().GetValue()), n: n}}); ok {
		b.putSecret(at, m.token)
	}
}

func adminToken(s signer) ([]byte, error) {
	raw, _, err := tokens.Sign([]byte(s.pem), s.n, tokens.User, tokens.Claims{Name: tokens.Admin, Groups: []string{tokens.Admin}}, adminTokenLife)
	if err != nil {
		return nil, fmt.Errorf("sign with key number %d: %w", s.n, err)
	}
	return []byte(raw), nil
}

// envoyAdminCA adds the authority that proxies trust on their admin port: a certificate followed by its key.
func (b *batch) envoyAdminCA() {
	at := store.Key{Type: string(resource.GlobalSecret), Name: envoyAdminCAName}
	if b.has(at) {
		return
	}
	if m, ok := b.made(Need{secret: at, bits: keyBits, ca: authority{commonName: "Envoy Admin CA", life: caLife}}); ok {
		b.putSecret(at, bytes.Join([][]byte{m.cert, m.key}, nil))
	}
}
