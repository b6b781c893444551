// Package tokens issues and verifies the tokens of users, data plane proxies, zone ingresses and zones.
//
// Everything it goes by lies in the store, as secrets: the signing keys, of which each kind of token has its own and
// dataplane tokens one set per mesh, and the lists of revoked tokens. A new key or a revocation is therefore in effect
// with the commit that stores it, and reaches other planes as secrets do. Several keys live side by side: the one with the
// highest number signs, and a token names the one that verifies it, so keys are rotated by adding number N+1 and removing
// N when its tokens have been replaced.
//
//	kind         signing keys                                      revocations
//	Dataplane    Secret dataplane-token-signing-key-MESH-N         Secret dataplane-token-revocations-MESH
//	ZoneIngress  GlobalSecret zone-ingress-token-signing-key-N     GlobalSecret zone-ingress-token-revocations
//	Zone         GlobalSecret zone-token-signing-key-N, and on a   GlobalSecret zone-token-revocations
//	             zone zone-token-signing-public-key-N, which
//	             only verifies
//	User         GlobalSecret user-token-signing-key-N             GlobalSecret user-token-revocations
//
// A name without -N is key number 0. A revocation list is made of token ids (the claim jti), separated by commas or white
// space.
//
// A token of one kind is never taken for another: the keys differ, and should an operator have stored one key under two
// names, the claims do.
package tokens

import (
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/token"
)

// What callers branch on. No error of this package contains a token, key material or a part of either.
var (
	// ErrNoKey: the signing key is not there or cannot be used; the error names its secret.
	ErrNoKey = errors.New("no signing key")
	// ErrExpired: the token's time is over.
	ErrExpired = errors.New("token is expired")
	// ErrRevoked: the token's id is on the revocation list of its kind.
	ErrRevoked = errors.New("token is revoked")
	// ErrInvalid: not a token of this kind, or not signed by the key it names. Issue: the claims do not make one.
	ErrInvalid = errors.New("invalid token")
)

// Admin is the name of the administrator, and of the group of those who have the same rights, as user tokens say it.
const Admin = "mesh-system:admin"

// Kind is what a token is for. The zero Kind is none.
type Kind uint8

// The kinds of tokens.
const (
	Dataplane Kind = iota + 1
	ZoneIngress
	Zone
	User
)

// kinds says where the secrets of each kind are. The names of Dataplane's end in the name of the mesh that holds them.
var kinds = [...]struct{ name, keys, publicKeys, revocations string }{
	Dataplane:   {"dataplane", "dataplane-token-signing-key", "", "dataplane-token-revocations"},
	ZoneIngress: {"zone-ingress", "zone-ingress-token-signing-key", "", "zone-ingress-token-revocations"},
	Zone:        {"zone", "zone-token-signing-key", "zone-token-signing-public-key", "zone-token-revocations"},
	User:        {"user", "user-token-signing-key", "", "user-token-revocations"},
}

// String returns the name of the kind as it stands in paths: dataplane, zone-ingress, zone or user.
func (k Kind) String() string {
	if k < Dataplane || k > User {
		return "unknown"
	}
	return kinds[k].name
}

// secret returns the key of a secret of the kind; mesh matters to Dataplane only.
func (k Kind) secret(mesh, name string) store.Key {
	if k == Dataplane {
		return store.Key{Type: string(resource.Secret), Mesh: mesh, Name: name + "-" + mesh}
	}
	return store.Key{Type: string(resource.GlobalSecret), Name: name}
}

// SigningKey names the secret that holds signing key number n of a kind. mesh matters to Dataplane only. The first key is
// number 1; number 0 is a name without a number, as old installations have it.
func SigningKey(kind Kind, mesh string, n int) store.Key {
	return numbered(kind.secret(mesh, kinds[kind].keys), n)
}

// Revocations names the secret that lists the revoked tokens of a kind. mesh matters to Dataplane only.
func Revocations(kind Kind, mesh string) store.Key {
	return kind.secret(mesh, kinds[kind].revocations)
}

// View is a state to look for keys in, such as a [store.Snapshot].
type View interface {
	List(typ, mesh string) iter.Seq[*store.Record]
}

// NewestSigningKey returns the signing key with the highest number, which signs the tokens that are issued, and that
// number.
func NewestSigningKey(v View, kind Kind, mesh string) (newest *store.Record, n int, ok bool) {
	zero := SigningKey(kind, mesh, 0)
	for rec := range v.List(zero.Type, zero.Mesh) {
		if i, isKey := number(rec.Key.Name, zero.Name); isKey && (newest == nil || i > n) {
			newest, n = rec, i
		}
	}
	return newest, n, newest != nil
}

// HasSigningKey reports whether there is any secret whose name begins like that of a signing key of the kind.
func HasSigningKey(v View, kind Kind, mesh string) bool {
	prefix := SigningKey(kind, mesh, 0)
	for rec := range v.List(prefix.Type, prefix.Mesh) {
		if strings.HasPrefix(rec.Key.Name, prefix.Name) {
			return true
		}
	}
	return false
}

func numbered(key store.Key, n int) store.Key {
	if n > 0 {
		key.Name += "-" + strconv.Itoa(n)
	}
	return key
}

// number returns the number of the signing key called name, where prefix is the name of key 0.
func number(name, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok || rest == "" {
		return 0, ok
	}
	digits, ok := strings.CutPrefix(rest, "-")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n > 0 && strconv.Itoa(n) == digits
}

// Claims is what a token says. Which of the first group a kind has is said beside them; the others stay empty.
type Claims struct {
	Name   string              // of the user, or of the one proxy that a dataplane token is bound to
	Mesh   string              // Dataplane
	Tags   map[string][]string // Dataplane: values that the proxy may have for each tag
	Type   string              // Dataplane: dataplane, ingress or egress; empty means dataplane
	Zone   string              // ZoneIngress, Zone
	Scope  []string            // Zone: what it may be used for, such as cp, ingress and egress
	Groups []string            // User

	// ID, KeyID, Issued and Expires are set by Issue. The times are whole seconds, UTC.
	ID              string
	KeyID           string // number of the signing key
	Issued, Expires time.Time
}

// backdated is how long before its issue a token is valid, for clocks that differ.
const backdated = 5 * time.Minute

// wire is the JSON of the claims of every kind. A pointer is nil where a kind does not have the claim.
type wire struct {
	Name   *string              `json:",omitempty"`
	Mesh   *string              `json:",omitempty"`
	Tags   *map[string][]string `json:",omitempty"`
	Type   *string              `json:",omitempty"`
	Zone   *string              `json:",omitempty"`
	Scope  *[]string            `json:",omitempty"`
	Groups *[]string            `json:",omitempty"`
	jwt.RegisteredClaims
}

func newWire(kind Kind, c Claims) (*wire, error) {
	var w wire
	switch kind {
	case Dataplane:
		if c.Tags == nil {
			c.Tags = map[string][]string{}
		}
		w.Name, w.Mesh, w.Tags, w.Type = &c.Name, &c.Mesh, &c.Tags, &c.Type
	case ZoneIngress:
		w.Zone = &c.Zone
	case Zone:
		if c.Scope == nil {
			c.Scope = []string{}
		}
		w.Zone, w.Scope = &c.Zone, &c.Scope
	case User:
		w.Name, w.Groups = &c.Name, &c.Groups
	default:
		return nil, fmt.Errorf("%w: no such kind", ErrInvalid)
	}
	w.ID = c.ID
	w.IssuedAt, w.NotBefore = jwt.NewNumericDate(c.Issued), jwt.NewNumericDate(c.Issued.Add(-backdated))
	w.ExpiresAt = jwt.NewNumericDate(c.Expires)
	return &w, w.check(kind, c.Mesh)
}

// check reports whether the claims are those of a kind and, for Dataplane, of the mesh. A claim that only other kinds
// have gives a token of theirs away; those that no kind has are left alone, because newer planes may know them.
func (w *wire) check(kind Kind, mesh string) error {
	dataplane, user, zone := w.Mesh != nil || w.Tags != nil || w.Type != nil, w.Groups != nil, w.Zone != nil
	switch kind {
	case Dataplane:
		if user || zone || w.Scope != nil || w.Mesh == nil {
			return fmt.Errorf("%w: not of the kind dataplane", ErrInvalid)
		}
		if *w.Mesh != mesh || mesh == "" {
			return fmt.Errorf("%w: for another mesh", ErrInvalid)
		}
	case ZoneIngress:
		if dataplane || user || w.Name != nil || w.Scope != nil || !zone {
			return fmt.Errorf("%w: not of the kind zone-ingress", ErrInvalid)
		}
	case Zone:
		if dataplane || user || w.Name != nil || w.Scope == nil {
			return fmt.Errorf("%w: not of the kind zone", ErrInvalid)
		}
	case User:
		if dataplane || zone || w.Scope != nil || w.Name == nil || *w.Name == "" {
			return fmt.Errorf("%w: not of the kind user", ErrInvalid)
		}
	default:
		return fmt.Errorf("%w: no such kind", ErrInvalid)
	}
	if w.ID == "" {
		return fmt.Errorf("%w: it has no id to be revoked by", ErrInvalid)
	}
	return nil
}

func (w *wire) claims(keyID string) Claims {
	return Claims{
		Name: value(w.Name), Mesh: value(w.Mesh), Tags: value(w.Tags), Type: value(w.Type),
		Zone: value(w.Zone), Scope: value(w.Scope), Groups: value(w.Groups),
		ID: w.ID, KeyID: keyID, Issued: date(w.IssuedAt), Expires: date(w.ExpiresAt),
	}
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func date(d *jwt.NumericDate) time.Time {
	if d == nil {
		return time.Time{}
	}
	return d.UTC()
}

// Sign makes a token with a signing key in PEM, of which n is the number, whether it is stored or not yet. The token is
// valid from five minutes ago until validFor from now; a negative validFor makes one that has expired. It returns the
// token and the claims it makes. ErrInvalid says that the claims are none of the kind.
func Sign(key []byte, n int, kind Kind, c Claims, validFor time.Duration) (string, Claims, error) {
	k, err := token.ParseKey(key)
	if err != nil {
		return "", Claims{}, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	return sign(k, n, kind, c, validFor)
}

func sign(key token.Key, n int, kind Kind, c Claims, validFor time.Duration) (string, Claims, error) {
	if key.Private == nil {
		return "", Claims{}, fmt.Errorf("%w: only its public half is here", ErrNoKey)
	}
	now := time.Now()
	c.ID, c.KeyID, c.Issued, c.Expires = uuid.NewString(), strconv.Itoa(n), now, now.Add(validFor)
	w, err := newWire(kind, c)
	if err != nil {
		return "", Claims{}, err
	}
	raw, err := token.Sign(key.Private, c.KeyID, w)
	if errors.Is(err, token.ErrTooLarge) {
		return "", Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	} else if err != nil {
		return "", Claims{}, fmt.Errorf("issue %s token: %w", kind, err)
	}
	return raw, w.claims(c.KeyID), nil
}
