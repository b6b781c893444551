package tokens

import (
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
	"google.golang.org/protobuf/proto"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/token"
)

// Authority issues and verifies tokens by the secrets of a snapshot. It holds nothing but memory of work done: keys and
// lists it has parsed, and tokens it has verified, each kept under the immutable records they depend on, so that nothing
// has to be invalidated. Safe for concurrent use. One is enough for a plane.
type Authority struct {
	keys     *otter.Cache[*store.Record, token.Key]
	revoked  *otter.Cache[*store.Record, map[string]struct{}]
	verified *otter.Cache[digest, *verification]
}

// digest is the SHA-256 of a token with what it was presented as.
type digest [sha256.Size]byte

// verification is a token found good, and the records that say so: it stands while a snapshot has the same ones.
type verification struct {
	claims           Claims
	key, revocations *store.Record // revocations is nil when there was no list
	bytes            int
}

const (
	maxKeys          = 1024    // parsed, about 2 KB each
	maxRevokedBytes  = 8 << 20 // of parsed revocation lists
	maxVerifiedBytes = 8 << 20
	// entryBytes is charged for an entry beside its content.
	entryBytes = 512
)

// NewAuthority returns an Authority that remembers nothing yet.
func NewAuthority() *Authority {
	// Upkeep runs on the caller: no goroutine outlives a call.
	inline := func(fn func()) { fn() }
	return &Authority{
		keys: otter.Must(&otter.Options[*store.Record, token.Key]{MaximumSize: maxKeys, Executor: inline}),
		revoked: otter.Must(&otter.Options[*store.Record, map[string]struct{}]{
			MaximumWeight: maxRevokedBytes, Executor: inline,
			Weigher: func(rec *store.Record, ids map[string]struct{}) uint32 {
				return uint32(entryBytes + 2*len(rec.Spec) + 48*len(ids))
			},
		}),
		verified: otter.Must(&otter.Options[digest, *verification]{
			MaximumWeight: maxVerifiedBytes, Executor: inline,
			Weigher: func(_ digest, v *verification) uint32 { return uint32(entryBytes + v.bytes) },
		}),
	}
}

// Issue makes a token with the newest signing key of the kind; for Dataplane, of the mesh c.Mesh. See [Sign] for what it
// returns. ErrNoKey names the secret that is missing or unusable.
func (a *Authority) Issue(snap *store.Snapshot, kind Kind, c Claims, validFor time.Duration) (string, Claims, error) {
	if kind < Dataplane || kind > User {
		return "", Claims{}, fmt.Errorf("%w: no such kind", ErrInvalid)
	}
	mesh := ""
	if kind == Dataplane {
		mesh = c.Mesh
	}
	newest, n, ok := NewestSigningKey(snap, kind, mesh)
	if !ok || kind == Dataplane && mesh == "" { // mesh "" lists every mesh
		return "", Claims{}, fmt.Errorf("%w: there is no %s", ErrNoKey, SigningKey(kind, mesh, 1))
	}
	key, err := a.parsed(newest)
	if err != nil {
		return "", Claims{}, err
	}
	return sign(key, n, kind, c, validFor)
}

// Verify returns what a token of the kind says, for Dataplane of the given mesh, which other kinds ignore. It returns
// ErrExpired, ErrRevoked, ErrNoKey when the key that the token names is not there, and ErrInvalid for all else. The
// claims are shared and must not be changed.
//
// What was verified before costs no signature check, as long as the key and the revocation list are the same.
func (a *Authority) Verify(snap *store.Snapshot, kind Kind, mesh, raw string) (Claims, error) {
	if kind < Dataplane || kind > User || len(raw) > token.MaxBytes {
		return Claims{}, ErrInvalid
	}
	if kind != Dataplane {
		mesh = ""
	}
	revocations, _ := snap.Get(Revocations(kind, mesh))
	id := digestOf(kind, mesh, raw)
	if v, ok := a.verified.GetIfPresent(id); ok && v.revocations == revocations {
		if key, err := findKey(snap, kind, mesh, v.claims.KeyID); err == nil && key == v.key {
			if !time.Now().Before(v.claims.Expires) {
				a.verified.Invalidate(id)
				return Claims{}, ErrExpired
			}
			return v.claims, nil
		}
	}
	v, err := a.verify(snap, kind, mesh, raw)
	if err != nil {
		return Claims{}, err
	}
	if revocations != nil {
		ids, err := a.revocations(revocations)
		if err != nil {
			return Claims{}, err
		}
		if _, ok := ids[v.claims.ID]; ok {
			return Claims{}, ErrRevoked
		}
	}
	v.revocations = revocations
	a.verified.Set(id, v)
	return v.claims, nil
}

func digestOf(kind Kind, mesh, raw string) digest {
	b := make([]byte, 0, 2+len(mesh)+len(raw))
	b = append(b, byte(kind))
	b = append(b, mesh...)
	b = append(b, 0) // no name contains it
	return sha256.Sum256(append(b, raw...))
}

// verify checks all but the revocation list.
func (a *Authority) verify(snap *store.Snapshot, kind Kind, mesh, raw string) (*verification, error) {
	var w wire
	var rec *store.Record
	keyID, err := token.Parse(raw, &w, func(keyID string) (*rsa.PublicKey, error) {
		var err error
		if rec, err = findKey(snap, kind, mesh, keyID); err != nil {
			return nil, err
		}
		key, err := a.parsed(rec)
		return key.Public, err
	})
	switch {
	case err == nil:
	case errors.Is(err, token.ErrExpired):
		// Its signature is good, so that this can be said of it.
		return nil, ErrExpired
	case errors.Is(err, ErrNoKey), errors.Is(err, ErrInvalid):
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := w.check(kind, mesh); err != nil {
		return nil, err
	}
	return &verification{claims: w.claims(keyID), key: rec, bytes: 2 * len(raw)}, nil
}

// findKey returns the record of the signing key with an id. On a zone, the public half of a zone token's key will do.
func findKey(snap *store.Snapshot, kind Kind, mesh, keyID string) (*store.Record, error) {
	n, err := strconv.Atoi(keyID)
	if err != nil || n < 0 || strconv.Itoa(n) != keyID {
		return nil, fmt.Errorf("%w: its key is not named by a number", ErrInvalid)
	}
	at := SigningKey(kind, mesh, n)
	if rec, ok := snap.Get(at); ok {
		return rec, nil
	}
	if public := kinds[kind].publicKeys; public != "" {
		if rec, ok := snap.Get(numbered(kind.secret(mesh, public), n)); ok {
			return rec, nil
		}
	}
	return nil, fmt.Errorf("%w: there is no %s", ErrNoKey, at)
}

// parsed returns the key that a secret holds.
func (a *Authority) parsed(rec *store.Record) (token.Key, error) {
	if k, ok := a.keys.GetIfPresent(rec); ok {
		return k, nil
	}
	data, err := secretData(rec)
	if err != nil {
		return token.Key{}, err
	}
	k, err := token.ParseKey(data)
	if err != nil {
		return token.Key{}, fmt.Errorf("%w: %s cannot be used: %w", ErrNoKey, rec.Key, err)
	}
	a.keys.Set(rec, k)
	return k, nil
}

// revocations returns the ids that a secret lists.
func (a *Authority) revocations(rec *store.Record) (map[string]struct{}, error) {
	if ids, ok := a.revoked.GetIfPresent(rec); ok {
		return ids, nil
	}
	data, err := secretData(rec)
	if err != nil {
		return nil, err
	}
	ids := map[string]struct{}{}
	for id := range strings.FieldsFuncSeq(string(data), func(r rune) bool {
		return r == ',' || r == ' ' || r == '\t' || r == '\r' || r == '\n'
	}) {
		ids[id] = struct{}{}
	}
	a.revoked.Set(rec, ids)
	return ids, nil
}

func secretData(rec *store.Record) ([]byte, error) {
	var s systemv1.Secret
	if err := proto.Unmarshal(rec.Spec, &s); err != nil {
		return nil, fmt.Errorf("read secret %s: it is not one", rec.Key)
	}
	return s.GetData().GetValue(), nil
}
