package defaults

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
)

// plane starts a plane of one kind on a store.
type plane struct {
	name string
	run  func(Start, context.Context) error
	want []string // what it starts with
	keys int32    // that takes to be generated
}

var planes = []plane{
	{
		name: "global", run: func(s Start, ctx context.Context) error { _, err := s.Global(ctx); return err }, keys: 4,
		want: []string{
			"CircuitBreaker/default/circuit-breaker-all-default", "Config/kuma-cluster-id",
			"GlobalSecret/admin-user-token", "GlobalSecret/user-token-signing-key-1", "GlobalSecret/zone-ingress-token-signing-key-1", "GlobalSecret/zone-token-signing-key-1",
			"Mesh/default", "Retry/default/retry-all-default", "Secret/default/dataplane-token-signing-key-default-1",
			"Timeout/default/timeout-all-default", "TrafficPermission/default/allow-all-default", "TrafficRoute/default/route-all-default",
		},
	},
	{
		name: "zone", run: Start.Zone, keys: 2,
		want: []string{"GlobalSecret/admin-user-token", "GlobalSecret/envoy-admin-ca", "GlobalSecret/user-token-signing-key-1"},
	},
}

func start(st *store.Store, keys Source) Start {
	return Start{Store: st, Keys: keys, Log: slog.New(slog.DiscardHandler)}
}

// adminOf verifies the administrator's token against the keys in the store.
func adminOf(t *testing.T, st *store.Store) tokens.Claims {
	t.Helper()
	raw := string(secret(t, st.Snapshot(), resource.GlobalSecret, "", "admin-user-token"))
	c, err := tokens.NewAuthority().Verify(st.Snapshot(), tokens.User, "", raw)
	if err != nil {
		t.Fatalf("the administrator's token is not good: %v", err)
	}
	return c
}

func TestANewPlaneStartsWithWhatItNeedsInOneBatch(t *testing.T) {
	for _, p := range planes {
		t.Run(p.name, func(t *testing.T) {
			st := openStore(t)
			var keys generated
			if err := p.run(start(st, keys.source), t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p.want, names(st.Snapshot())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if rev, n := st.Snapshot().Revision(), keys.keys.Load(); rev != 1 || n != p.keys {
				t.Errorf("%d batches, %d keys", rev, n)
			}
			admin := adminOf(t, st)
			if admin.Name != "mesh-system:admin" || !slices.Equal(admin.Groups, []string{"mesh-system:admin"}) || admin.KeyID != "1" {
				t.Errorf("the token says %+v", admin)
			}
			if life := time.Until(admin.Expires); life < adminTokenLife-time.Minute || life > adminTokenLife {
				t.Errorf("it lives for %s", life)
			}
			seen := map[string]bool{}
			for rec := range st.Snapshot().List(string(resource.GlobalSecret), "") {
				if !strings.Contains(rec.Key.Name, "-signing-key-") {
					continue
				}
				key := privateKey(t, secret(t, st.Snapshot(), resource.GlobalSecret, "", rec.Key.Name))
				if key.N.BitLen() != 2048 || seen[key.N.String()] {
					t.Errorf("%s has %d bits, or is another's too", rec.Key, key.N.BitLen())
				}
				seen[key.N.String()] = true
			}
		})
	}
}

func TestThePlaneThatStartsAgainMakesNothing(t *testing.T) {
	for _, p := range planes {
		t.Run(p.name, func(t *testing.T) {
			st := openStore(t)
			if err := p.run(start(st, (&generated{}).source), t.Context()); err != nil {
				t.Fatal(err)
			}
			var keys generated
			if err := p.run(start(st, keys.source), t.Context()); err != nil {
				t.Fatal(err)
			}
			if rev, n := st.Snapshot().Revision(), keys.keys.Load(); rev != 1 || n != 0 {
				t.Errorf("%d batches, %d keys", rev, n)
			}
		})
	}
}

// Replicas share a store. Each has its own keys ready; those of one of them are stored, all or none.
func TestOfManyPlanesThatStartTogetherOneMakesAll(t *testing.T) {
	for _, p := range planes {
		t.Run(p.name, func(t *testing.T) {
			st := openStore(t)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if err := p.run(start(st, (&generated{}).source), t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if diff := cmp.Diff(p.want, names(st.Snapshot())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if rev := st.Snapshot().Revision(); rev != 1 {
				t.Errorf("%d batches", rev)
			}
			adminOf(t, st)
		})
	}
}

func TestGlobalsThatStartTogetherAgreeOnTheClusterID(t *testing.T) {
	st := openStore(t)
	ids := make([]string, 4)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i], _ = start(st, sameKey).Global(t.Context()) })
	}
	wg.Wait()
	if slices.Sort(ids); ids[0] == "" || len(slices.Compact(ids)) != 1 {
		t.Errorf("ids %q", ids)
	}
}

func TestWhatIsSwitchedOffIsNotMade(t *testing.T) {
	for _, p := range planes {
		t.Run(p.name, func(t *testing.T) {
			st := openStore(t)
			s := start(st, sameKey)
			s.SkipMesh, s.SkipAdminToken = true, true
			if err := p.run(s, t.Context()); err != nil {
				t.Fatal(err)
			}
			want := slices.DeleteFunc(slices.Clone(p.want), func(name string) bool {
				return strings.Contains(name, "default") || strings.Contains(name, "admin-user-token")
			})
			if diff := cmp.Diff(want, names(st.Snapshot())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestADeletedDefaultMeshIsBackAfterTheNextStartAndADeletedPolicyIsNot(t *testing.T) {
	st := openStore(t)
	if _, err := start(st, sameKey).Global(t.Context()); err != nil {
		t.Fatal(err)
	}
	policy := store.Key{Type: "TrafficPermission", Mesh: "default", Name: "allow-all-default"}
	key := tokens.SigningKey(tokens.Dataplane, "default", 1)
	commit(t, st, store.Delete(policy), store.Delete(key))
	if _, err := start(st, sameKey).Global(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := names(st.Snapshot()); len(got) != len(planes[0].want)-2 || slices.Contains(got, policy.String()) {
		t.Errorf("after a start with the mesh: %v", got)
	}
	var ops []store.Op
	for _, d := range resource.All() {
		for rec := range st.Snapshot().List(string(d.Name), "") {
			if rec.Key.Mesh == "default" || d.Name == resource.Mesh {
				ops = append(ops, store.Delete(rec.Key))
			}
		}
	}
	commit(t, st, ops...)
	if _, err := start(st, sameKey).Global(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(planes[0].want, names(st.Snapshot())); diff != "" {
		t.Errorf("after a start without the mesh (-want +got):\n%s", diff)
	}
}

func TestTheAdministratorsTokenIsSignedWithTheNewestKey(t *testing.T) {
	st := openStore(t)
	key, err := Need{bits: keyBits}.make(t.Context(), sameKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"user-token-signing-key", "user-token-signing-key-9", "user-token-signing-key-10"} {
		content := key.key
		if name != "user-token-signing-key-10" {
			content = []byte("not used")
		}
		commit(t, st, store.Put(record(t, resource.GlobalSecret, "", name, &systemv1.Secret{Data: wrapperspb.Bytes(content)})))
	}
	if err := start(st, sameKey).Zone(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id := adminOf(t, st).KeyID; id != "10" {
		t.Errorf("signed with key %s", id)
	}
	if _, ok := st.Snapshot().Get(tokens.SigningKey(tokens.User, "", 1)); ok {
		t.Error("a key was made though there were some")
	}
}

func TestAnAdministratorsTokenThatIsThereIsKept(t *testing.T) {
	st := openStore(t)
	commit(t, st, store.Put(record(t, resource.GlobalSecret, "", "admin-user-token", &systemv1.Secret{Data: wrapperspb.Bytes([]byte("mine"))})))
	if _, err := start(st, sameKey).Global(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := string(secret(t, st.Snapshot(), resource.GlobalSecret, "", "admin-user-token")); got != "mine" {
		t.Errorf("it is now %q", got)
	}
}

func TestTheEnvoyAdminAuthorityIsACertificateFollowedByItsKey(t *testing.T) {
	st := openStore(t)
	if err := start(st, (&generated{}).source).Zone(t.Context()); err != nil {
		t.Fatal(err)
	}
	cert, rest := certificate(t, secret(t, st.Snapshot(), resource.GlobalSecret, "", "envoy-admin-ca"))
	if key := privateKey(t, rest); !key.PublicKey.Equal(cert.PublicKey) || key.N.BitLen() != 2048 {
		t.Errorf("not a pair, or %d bits", key.N.BitLen())
	}
	if got := cert.Subject.String(); got != "CN=Envoy Admin CA,OU=Mesh,O=Kuma" || len(cert.URIs) > 0 {
		t.Errorf("subject %s, names %v", got, cert.URIs)
	}
	if !cert.IsCA || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("CA %v, usage %b", cert.IsCA, cert.KeyUsage)
	}
	if got := time.Until(cert.NotAfter) - 10*365*24*time.Hour; got < -time.Minute || got > 0 {
		t.Errorf("it lives until %s", cert.NotAfter)
	}
}

func TestAStartThatFailsSaysWhyAndStoresNothing(t *testing.T) {
	noEntropy := errors.New("no entropy")
	for name, tc := range map[string]struct {
		before *store.Record
		keys   Source
		want   string
		is     error
	}{
		"no keys can be made": {
			keys: func(context.Context, int) (*rsa.PrivateKey, error) { return nil, noEntropy },
			want: "make what a new control plane needs: make ", is: noEntropy,
		},
		"the key for users is none": {
			before: record(t, resource.GlobalSecret, "", "user-token-signing-key-3", &systemv1.Secret{Data: wrapperspb.Bytes([]byte("junk"))}), keys: sameKey,
			want: "make what a new control plane needs: make GlobalSecret/admin-user-token: sign with key number 3: ", is: tokens.ErrNoKey,
		},
		"the key for users has no number": {
			before: record(t, resource.GlobalSecret, "", "user-token-signing-key-old", &systemv1.Secret{}), keys: sameKey,
			want: "make what a new control plane needs: GlobalSecret/admin-user-token: ", is: tokens.ErrNoKey,
		},
	} {
		for _, p := range planes {
			t.Run(name+" on a "+p.name, func(t *testing.T) {
				st := openStore(t)
				if tc.before != nil {
					commit(t, st, store.Put(tc.before))
				}
				before := st.Snapshot().Revision()
				err := p.run(start(st, tc.keys), t.Context())
				if !errors.Is(err, tc.is) || !strings.HasPrefix(err.Error(), tc.want) || strings.Contains(err.Error(), "junk") {
					t.Errorf("got %v, want %s...", err, tc.want)
				}
				if now := st.Snapshot().Revision(); now != before {
					t.Errorf("stored %v", names(st.Snapshot()))
				}
			})
		}
	}
}

func TestTheLogNamesWhatWasMadeAndShowsNoneOfIt(t *testing.T) {
	st := openStore(t)
	var log bytes.Buffer
	s := start(st, sameKey)
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	if _, err := s.Global(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Global(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "GlobalSecret/admin-user-token") {
		t.Errorf("logged %s", got)
	}
	token := string(secret(t, st.Snapshot(), resource.GlobalSecret, "", "admin-user-token"))
	for _, part := range []string{"BEGIN", token[:20]} {
		if strings.Contains(log.String(), part) {
			t.Errorf("%q is in the log", part)
		}
	}
	if text := (&missing{[]Need{{secret: store.Key{Type: "GlobalSecret", Name: "x"}, signer: signer{pem: "BEGIN"}}}}).Error(); strings.Contains(text, "BEGIN") {
		t.Errorf("a key is in an error: %s", text)
	}
}

func TestTwoBackendsOfOneNameAskForOneAuthority(t *testing.T) {
	st := openStore(t)
	w := mesh(t, [3]string{"ca-1", "builtin", ""}, [3]string{"ca-1", "builtin", ""})
	if err := write(t, st, sameKey, w); err != nil {
		t.Errorf("whether that is allowed is not decided here: %v", err)
	}
}
