package tokens

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/token"
)

// testKeys are signing keys that all tests share: making one takes longer than most of them.
var testKeys = sync.OnceValue(func() (keys [6][]byte) {
	for i := range keys {
		var err error
		if keys[i], err = token.NewSigningKey(); err != nil {
			panic(err)
		}
	}
	return keys
})

// secrets is a store with the secrets of a test.
type secrets struct {
	t  testing.TB
	st *store.Store
}

// newSecrets returns a store with key number 1 of every kind, each another one, in the meshes default and other.
func newSecrets(t testing.TB) secrets {
	t.Helper()
	st, err := store.Open(context.Background(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	s := secrets{t, st}
	for i, key := range []store.Key{
		SigningKey(Dataplane, "default", 1), SigningKey(Dataplane, "other", 1),
		SigningKey(ZoneIngress, "", 1), SigningKey(Zone, "", 1), SigningKey(User, "", 1),
	} {
		s.put(key, testKeys()[i])
	}
	return s
}

func (s secrets) commit(op store.Op) {
	s.t.Helper()
	if _, err := s.st.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) { return []store.Op{op}, nil }); err != nil {
		s.t.Fatal(err)
	}
}

func (s secrets) put(key store.Key, data []byte) {
	s.t.Helper()
	spec, err := proto.Marshal(&systemv1.Secret{Data: wrapperspb.Bytes(data)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.commit(store.Put(&store.Record{Key: key, Spec: spec}))
}

func (s secrets) remove(key store.Key) {
	s.t.Helper()
	s.commit(store.Delete(key))
}

func (s secrets) issue(a *Authority, kind Kind, c Claims, validFor time.Duration) (string, Claims) {
	s.t.Helper()
	raw, issued, err := a.Issue(s.st.Snapshot(), kind, c, validFor)
	if err != nil {
		s.t.Fatal(err)
	}
	return raw, issued
}

func (s secrets) verify(a *Authority, kind Kind, mesh, raw string) error {
	_, err := a.Verify(s.st.Snapshot(), kind, mesh, raw)
	if err != nil && raw != "" && strings.Contains(err.Error(), raw) {
		s.t.Errorf("the error repeats the token: %v", err)
	}
	return err
}

// examples are a token of each kind.
var examples = []struct {
	kind   Kind
	claims Claims
	json   string // the claims without the registered ones
}{
	{
		Dataplane,
		Claims{Name: "dp-1", Mesh: "default", Type: "dataplane", Tags: map[string][]string{"kuma.io/service": {"backend", "backend-admin"}}},
		`{"Name":"dp-1","Mesh":"default","Tags":{"kuma.io/service":["backend","backend-admin"]},"Type":"dataplane"`,
	},
	{ZoneIngress, Claims{Zone: "us-east"}, `{"Zone":"us-east"`},
	{Zone, Claims{Zone: "zone-1", Scope: []string{"cp", "egress"}}, `{"Zone":"zone-1","Scope":["cp","egress"]`},
	{User, Claims{Name: "jane", Groups: []string{"mesh-system:admin"}}, `{"Name":"jane","Groups":["mesh-system:admin"]`},
	{User, Claims{Name: "joe"}, `{"Name":"joe","Groups":null`},
}

func meshOf(kind Kind) string {
	if kind == Dataplane {
		return "default"
	}
	return ""
}

func TestTokensLookLikeThoseOfTheReference(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	for _, e := range examples {
		t.Run(e.kind.String()+" of "+e.claims.Name+e.claims.Zone, func(t *testing.T) {
			raw, issued := s.issue(a, e.kind, e.claims, 10*time.Minute)
			parts := strings.Split(raw, ".")
			header, _ := base64.RawURLEncoding.DecodeString(parts[0])
			payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
			if diff := cmp.Diff(`{"alg":"RS256","kid":"1","typ":"JWT"}`, string(header)); diff != "" {
				t.Error(diff)
			}
			iat := issued.Issued.Unix()
			want := fmt.Sprintf(`%s,"exp":%d,"nbf":%d,"iat":%d,"jti":"%s"}`, e.json, iat+600, iat-300, iat, issued.ID)
			if diff := cmp.Diff(want, string(payload)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestVerifyReturnsWhatIssueWasGiven holds for all claims.
func TestVerifyReturnsWhatIssueWasGiven(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	words := rapid.SliceOfN(rapid.String(), 0, 4)
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]Kind{Dataplane, ZoneIngress, Zone, User}).Draw(t, "kind")
		var c Claims
		mesh := ""
		switch kind {
		case Dataplane:
			mesh = rapid.SampledFrom([]string{"default", "other"}).Draw(t, "mesh")
			c = Claims{
				Name: rapid.String().Draw(t, "name"), Mesh: mesh, Type: rapid.String().Draw(t, "type"),
				Tags: rapid.MapOfN(rapid.String(), words, 0, 4).Draw(t, "tags"),
			}
		case ZoneIngress:
			c.Zone = rapid.String().Draw(t, "zone")
		case Zone:
			c.Zone, c.Scope = rapid.String().Draw(t, "zone"), words.Draw(t, "scope")
		case User:
			c.Name, c.Groups = rapid.StringN(1, 20, -1).Draw(t, "name"), words.Draw(t, "groups")
		}
		validFor := time.Duration(rapid.Int64Range(int64(time.Minute), int64(100*365*24*time.Hour)).Draw(t, "validFor"))
		raw, issued, err := a.Issue(s.st.Snapshot(), kind, c, validFor)
		if err != nil {
			t.Fatal(err)
		}
		for _, pass := range []string{"first", "again"} {
			got, err := a.Verify(s.st.Snapshot(), kind, mesh, raw)
			if err != nil {
				t.Fatalf("%s: %v", pass, err)
			}
			if diff := cmp.Diff(issued, got); diff != "" {
				t.Fatalf("%s: %s", pass, diff)
			}
			got.ID, got.KeyID, got.Issued, got.Expires = "", "", time.Time{}, time.Time{}
			if diff := cmp.Diff(c, got); diff != "" {
				t.Fatalf("%s: %s", pass, diff)
			}
		}
		for other := Dataplane; other <= User; other++ {
			for _, m := range []string{"", "default", "other"} {
				if other == kind && (kind != Dataplane || m == mesh) {
					continue
				}
				if _, err := a.Verify(s.st.Snapshot(), other, m, raw); err == nil {
					t.Fatalf("the %s token was accepted as %s of mesh %q", kind, other, m)
				}
			}
		}
	})
}

func TestRotation(t *testing.T) {
	for _, e := range examples {
		t.Run(e.kind.String()+" of "+e.claims.Name+e.claims.Zone, func(t *testing.T) {
			s := newSecrets(t)
			a := NewAuthority()
			mesh := meshOf(e.kind)
			old, issued := s.issue(a, e.kind, e.claims, time.Hour)
			if issued.KeyID != "1" {
				t.Errorf("key %s signed, want 1", issued.KeyID)
			}

			s.put(SigningKey(e.kind, mesh, 2), testKeys()[5])
			fresh, issued := s.issue(a, e.kind, e.claims, time.Hour)
			if issued.KeyID != "2" {
				t.Errorf("key %s signed after key 2 was added", issued.KeyID)
			}
			if err := s.verify(a, e.kind, mesh, old); err != nil {
				t.Errorf("the token of the old key: %v", err)
			}
			if err := s.verify(a, e.kind, mesh, fresh); err != nil {
				t.Errorf("the token of the new key: %v", err)
			}

			s.remove(SigningKey(e.kind, mesh, 1))
			err := s.verify(a, e.kind, mesh, old)
			if !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), SigningKey(e.kind, mesh, 1).Name) {
				t.Errorf("the token of a key that was removed: %v", err)
			}
			if err := s.verify(a, e.kind, mesh, fresh); err != nil {
				t.Errorf("the token of the key that stayed: %v", err)
			}

			s.put(SigningKey(e.kind, mesh, 2), testKeys()[0])
			if e.kind == Dataplane {
				s.put(SigningKey(e.kind, mesh, 2), testKeys()[1])
			}
			if err := s.verify(a, e.kind, mesh, fresh); !errors.Is(err, ErrInvalid) {
				t.Errorf("the token of a key that was replaced: %v", err)
			}
		})
	}
}

func TestTheHighestNumberSigns(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	for _, step := range []struct {
		name, want string
	}{
		{"user-token-signing-key", "1"}, // no number counts as 0
		{"user-token-signing-key-9", "9"},
		{"user-token-signing-key-10", "10"},
		{"user-token-signing-key-011", "10"}, // no number
		{"user-token-signing-key--12", "10"},
		{"user-token-signing-key-x", "10"},
		{"user-token-signing-keys-13", "10"},
		{"user-token-signing-key-99999999999999999999", "10"},
	} {
		s.put(store.Key{Type: "GlobalSecret", Name: step.name}, testKeys()[0])
		raw, issued := s.issue(a, User, Claims{Name: "jane"}, time.Hour)
		if issued.KeyID != step.want {
			t.Errorf("with %s, key %s signed, want %s", step.name, issued.KeyID, step.want)
		}
		if err := s.verify(a, User, "", raw); err != nil {
			t.Errorf("with %s: %v", step.name, err)
		}
	}
	for _, n := range []int{1, 9, 10} {
		s.remove(SigningKey(User, "", n))
	}
	raw, issued := s.issue(a, User, Claims{Name: "jane"}, time.Hour)
	if err := s.verify(a, User, "", raw); err != nil || issued.KeyID != "0" {
		t.Errorf("the key without a number: id %s, %v", issued.KeyID, err)
	}
}

func TestExpiry(t *testing.T) {
	for _, e := range examples {
		t.Run(e.kind.String()+" of "+e.claims.Name+e.claims.Zone, func(t *testing.T) {
			testKeys()
			synctest.Test(t, func(t *testing.T) {
				s := newSecrets(t)
				a := NewAuthority()
				raw, _ := s.issue(a, e.kind, e.claims, time.Hour)
				time.Sleep(time.Hour - time.Nanosecond)
				if err := s.verify(a, e.kind, meshOf(e.kind), raw); err != nil {
					t.Errorf("just before: %v", err)
				}
				time.Sleep(time.Nanosecond)
				if err := s.verify(a, e.kind, meshOf(e.kind), raw); !errors.Is(err, ErrExpired) {
					t.Errorf("then, remembered: %v", err)
				}
				if err := s.verify(NewAuthority(), e.kind, meshOf(e.kind), raw); !errors.Is(err, ErrExpired) {
					t.Errorf("then, afresh: %v", err)
				}
			})
		})
	}
}

func TestRevocationIsInEffectWithItsCommit(t *testing.T) {
	for _, e := range examples {
		t.Run(e.kind.String()+" of "+e.claims.Name+e.claims.Zone, func(t *testing.T) {
			s := newSecrets(t)
			a := NewAuthority()
			mesh := meshOf(e.kind)
			raw, issued := s.issue(a, e.kind, e.claims, time.Hour)
			kept, _ := s.issue(a, e.kind, e.claims, time.Hour)
			check := func(when string, want error) {
				t.Helper()
				if err := s.verify(a, e.kind, mesh, raw); !errors.Is(err, want) {
					t.Errorf("%s: got %v, want %v", when, err, want)
				}
				if err := s.verify(a, e.kind, mesh, kept); err != nil {
					t.Errorf("%s, another token: %v", when, err)
				}
			}
			check("before", nil)
			for _, list := range []string{
				issued.ID, issued.ID + "\n", "a," + issued.ID, issued.ID + ",b", " a , " + issued.ID + " \n", "a\r\n" + issued.ID + "\r\nb\r\n",
			} {
				s.put(Revocations(e.kind, mesh), []byte(list))
				check(fmt.Sprintf("listed as %q", list), ErrRevoked)
				s.put(Revocations(e.kind, mesh), []byte("x"+issued.ID+","+issued.ID[1:]))
				check("no longer listed", nil)
			}
			s.put(Revocations(e.kind, mesh), []byte(issued.ID))
			before := s.st.Snapshot()
			s.remove(Revocations(e.kind, mesh))
			check("the list is gone", nil)
			if _, err := a.Verify(before, e.kind, mesh, raw); !errors.Is(err, ErrRevoked) {
				t.Errorf("at the snapshot that has the list: %v", err)
			}
			s.put(Revocations(e.kind, mesh), nil)
			check("the list is empty", nil)
		})
	}
}

func TestAKeyThatCannotBeUsedIsNamed(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	raw, _ := s.issue(a, User, Claims{Name: "jane"}, time.Hour)
	const garbage = "very secret garbage"
	s.put(SigningKey(User, "", 1), []byte(garbage))
	_, _, issueErr := a.Issue(s.st.Snapshot(), User, Claims{Name: "jane"}, time.Hour)
	for what, err := range map[string]error{"Issue": issueErr, "Verify": s.verify(a, User, "", raw)} {
		if !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "user-token-signing-key-1") || strings.Contains(err.Error(), garbage) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestIssueWithoutAKeyNamesTheSecretThatIsMissing(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	for kind, want := range map[Kind]string{
		ZoneIngress: "GlobalSecret/zone-ingress-token-signing-key-1", Zone: "GlobalSecret/zone-token-signing-key-1", User: "GlobalSecret/user-token-signing-key-1",
	} {
		s.remove(SigningKey(kind, "", 1))
		_, _, err := a.Issue(s.st.Snapshot(), kind, Claims{Name: "x"}, time.Hour)
		if !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	_, _, err := a.Issue(s.st.Snapshot(), Dataplane, Claims{Mesh: "nowhere"}, time.Hour)
	if !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "Secret/nowhere/dataplane-token-signing-key-nowhere-1") {
		t.Errorf("%v", err)
	}
	if _, _, err := a.Issue(s.st.Snapshot(), Dataplane, Claims{}, time.Hour); !errors.Is(err, ErrNoKey) {
		t.Errorf("no mesh: %v", err)
	}
}

// On a zone, only the public half of the zone token's key is there.
func TestAZoneVerifiesZoneTokensAndCannotMakeThem(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	raw, issued := s.issue(a, Zone, Claims{Zone: "zone-1", Scope: []string{"cp"}}, time.Hour)
	public, err := token.PublicHalf(testKeys()[3])
	if err != nil {
		t.Fatal(err)
	}
	s.remove(SigningKey(Zone, "", 1))
	s.put(store.Key{Type: "GlobalSecret", Name: "zone-token-signing-public-key-1"}, public)
	got, err := a.Verify(s.st.Snapshot(), Zone, "", raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(issued, got); diff != "" {
		t.Error(diff)
	}
	if _, _, err := a.Issue(s.st.Snapshot(), Zone, Claims{Scope: []string{}}, time.Hour); !errors.Is(err, ErrNoKey) {
		t.Errorf("Issue: %v", err)
	}
	s.put(SigningKey(Zone, "", 1), public)
	if _, _, err := a.Issue(s.st.Snapshot(), Zone, Claims{Scope: []string{}}, time.Hour); !errors.Is(err, ErrNoKey) {
		t.Errorf("Issue with a public key under the name of a private one: %v", err)
	}
}

// An operator may store one key under several names; the claims still tell the kinds apart.
func TestKindsAreToldApartThoughTheyShareAKey(t *testing.T) {
	s := newSecrets(t)
	for kind := Dataplane; kind <= User; kind++ {
		for _, mesh := range []string{"default", "other"} {
			s.put(SigningKey(kind, mesh, 1), testKeys()[0])
		}
	}
	a := NewAuthority()
	for _, e := range examples {
		raw, _ := s.issue(a, e.kind, e.claims, time.Hour)
		for kind := Dataplane; kind <= User; kind++ {
			for _, mesh := range []string{"default", "other"} {
				want := ErrInvalid
				if kind == e.kind && (kind != Dataplane || mesh == "default") {
					want = nil
				}
				if err := s.verify(a, kind, mesh, raw); !errors.Is(err, want) {
					t.Errorf("a %s token as %s of mesh %s: got %v, want %v", e.kind, kind, mesh, err, want)
				}
			}
		}
	}
}

func TestClaimsThatMakeNoToken(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	for name, tc := range map[string]struct {
		kind   Kind
		claims Claims
	}{
		"a user without a name": {User, Claims{}},
		"no kind":               {0, Claims{Name: "x"}},
		"an unknown kind":       {User + 1, Claims{Name: "x"}},
		"a token too large":     {User, Claims{Name: strings.Repeat("x", token.MaxBytes)}},
	} {
		if _, _, err := a.Issue(s.st.Snapshot(), tc.kind, tc.claims, time.Hour); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, kind := range []Kind{0, User + 1} {
		if err := s.verify(a, kind, "", "x"); !errors.Is(err, ErrInvalid) {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
}

func TestClaimsThatNewerPlanesAddAreIgnored(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	raw, _, err := Sign(testKeys()[0], 1, Dataplane, examples[0].claims, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.verify(a, Dataplane, "default", raw); err != nil {
		t.Errorf("signed before its key was stored: %v", err)
	}
	var w wire
	if err := json.Unmarshal([]byte(`{"Name":"","Mesh":"default","Tags":null,"Type":"","Workload":"w","jti":"x"}`), &w); err != nil {
		t.Fatal(err)
	}
	if err := w.check(Dataplane, "default"); err != nil {
		t.Error(err)
	}
}

func TestWithoutAnIDATokenIsRefused(t *testing.T) {
	name := "jane"
	w := wire{Name: &name}
	if err := w.check(User, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestSignUsesAKeyThatIsNotStoredYet(t *testing.T) {
	s := newSecrets(t)
	raw, issued, err := Sign(testKeys()[5], 7, User, Claims{Name: "mesh-system:admin"}, time.Hour)
	if err != nil || issued.KeyID != "7" {
		t.Fatalf("key %q: %v", issued.KeyID, err)
	}
	a := NewAuthority()
	if err := s.verify(a, User, "", raw); !errors.Is(err, ErrNoKey) {
		t.Errorf("before: %v", err)
	}
	s.put(SigningKey(User, "", 7), testKeys()[5])
	if err := s.verify(a, User, "", raw); err != nil {
		t.Errorf("after: %v", err)
	}
	if _, _, err := Sign([]byte("x"), 1, User, Claims{Name: "x"}, time.Hour); !errors.Is(err, ErrNoKey) {
		t.Errorf("no key: %v", err)
	}
}

func TestHasSigningKey(t *testing.T) {
	s := newSecrets(t)
	for _, tc := range []struct {
		kind Kind
		mesh string
		want bool
	}{
		{User, "", true}, {Zone, "", true}, {Dataplane, "default", true}, {Dataplane, "third", false},
	} {
		if got := HasSigningKey(s.st.Snapshot(), tc.kind, tc.mesh); got != tc.want {
			t.Errorf("%s %q: %v", tc.kind, tc.mesh, got)
		}
	}
	s.remove(SigningKey(User, "", 1))
	if HasSigningKey(s.st.Snapshot(), User, "") {
		t.Error("the key that was removed")
	}
	s.put(store.Key{Type: "GlobalSecret", Name: "user-token-signing-key-old"}, nil)
	if !HasSigningKey(s.st.Snapshot(), User, "") {
		t.Error("any name with the prefix counts")
	}
}

// FuzzVerify looks for panics and for tokens that are accepted without having been issued.
func FuzzVerify(f *testing.F) {
	s := newSecrets(f)
	a := NewAuthority()
	good := map[string]bool{}
	for _, e := range examples {
		raw, _ := s.issue(a, e.kind, e.claims, 24*time.Hour)
		good[raw] = true
		f.Add(uint8(e.kind), raw)
		f.Add(uint8(e.kind), strings.ToUpper(raw))
	}
	snap := s.st.Snapshot()
	f.Fuzz(func(t *testing.T, kind uint8, raw string) {
		if _, err := a.Verify(snap, Kind(kind), "default", raw); err == nil && !good[raw] {
			t.Errorf("accepted %q", raw)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := newSecrets(b)
	a := NewAuthority()
	raw, _ := s.issue(a, User, Claims{Name: "jane", Groups: []string{"team-a", "team-b"}}, time.Hour)
	snap := s.st.Snapshot()
	b.Run("first time", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.verify(snap, User, "", raw); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Verify(snap, User, "", raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	s := newSecrets(b)
	a := NewAuthority()
	snap := s.st.Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := a.Issue(snap, User, Claims{Name: "jane"}, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}

// Whoever sees the snapshot of a revocation must be refused, and whoever sees an earlier one must not be, whatever others
// verify at the same time.
func TestVerifyingAtOnceWithRevocations(t *testing.T) {
	s := newSecrets(t)
	a := NewAuthority()
	raw, issued := s.issue(a, User, Claims{Name: "jane", Groups: []string{"a", "b", "c"}}, time.Hour)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				snap := s.st.Snapshot()
				_, revoked := snap.Get(Revocations(User, ""))
				if _, err := a.Verify(snap, User, "", raw); errors.Is(err, ErrRevoked) != revoked || err != nil && !revoked {
					t.Errorf("revoked %v: %v", revoked, err)
					return
				}
			}
		})
	}
	for range 200 {
		s.put(Revocations(User, ""), []byte(issued.ID))
		s.remove(Revocations(User, ""))
	}
	close(stop)
	wg.Wait()
}
