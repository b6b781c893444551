package kds

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

func signingKey(t testing.TB) (private string, public *rsa.PublicKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})), &key.PublicKey
}

// globalSecrets are the ones of decision 40, and some that must never leave.
func globalSecrets(t testing.TB, private string) []store.Op {
	t.Helper()
	var ops []store.Op
	for _, name := range []string{
		"envoy-admin-ca", "admin-user-token", "inter-cp-ca", "user-token-revocations", "user-token-signing-key-1", "operators-own",
		"zone-ingress-token-signing-key", "zone-token-revocations", "zone-ingress-token-revocations",
	} {
		ops = append(ops, store.Put(newRecord(t, resource.GlobalSecret, "", name, newSecret("x"))))
	}
	ops = append(ops, store.Put(newRecord(t, resource.GlobalSecret, "", "zone-token-signing-key-1", newSecret(private))))
	shared := newRecord(t, resource.GlobalSecret, "", "shared", newSecret("y"))
	shared.Labels = map[string]string{"kuma.io/kds-sync": "enabled"}
	hidden := newRecord(t, resource.GlobalSecret, "", "zone-token-revocations-2", newSecret("z"))
	hidden.Labels = map[string]string{"kuma.io/kds-sync": "disabled"}
	return append(ops, store.Put(shared), store.Put(hidden))
}

func TestDecision40_OnlyTheSecretsThatZonesNeedTravel(t *testing.T) {
	private, public := signingKey(t)
	for name, features := range map[string][]string{"to a Meridian zone": {FeatureResume}, "to a Kuma zone": {FeatureHashSuffix}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := openStore(t, store.Options{})
				commit(t, st, globalSecrets(t, private)...)
				end, _, _ := publish(t, publisherConfig(t, Down, st), 10)
				end.requests <- request(resource.GlobalSecret, "", features...)
				resp := next(t, end.responses)
				got := summarize(resp).Names
				slices.Sort(got)
				want := []string{"shared.", "zone-ingress-token-revocations.", "zone-ingress-token-signing-key.", "zone-token-revocations.", "zone-token-signing-public-key-1."}
				if !slices.Equal(want, got) {
					t.Errorf("sent %v, want %v", got, want)
				}
				for _, res := range resp.GetResources() {
					var kr meshv1.KumaResource
					var secret systemv1.Secret
					if err := proto.Unmarshal(res.GetResource().GetValue(), &kr); err != nil {
						t.Fatal(err)
					}
					if err := proto.Unmarshal(kr.GetSpec().GetValue(), &secret); err != nil {
						t.Fatal(err)
					}
					if res.GetName() != "zone-token-signing-public-key-1." {
						continue
					}
					if got := kr.GetMeta().GetLabels()["kuma.io/display-name"]; got != "zone-token-signing-key-1" {
						t.Errorf("display name %q", got)
					}
					block, rest := pem.Decode(secret.GetData().GetValue())
					if block == nil || len(rest) != 0 || block.Type != "RSA PUBLIC KEY" {
						t.Fatalf("the key is sent as %q", secret.GetData().GetValue())
					}
					if key, err := x509.ParsePKCS1PublicKey(block.Bytes); err != nil || !key.Equal(public) {
						t.Errorf("the key that is sent is not the public half: %v", err)
					}
				}
			})
		})
	}
}

// A zone that goes on verifying with a key that was withdrawn accepts tokens that nobody may use any more.
func TestDecision40_AWithdrawnZoneTokenKeyLeavesAZoneThatResumes(t *testing.T) {
	for name, offline := range map[string]bool{"while the zone is away": true, "after the zone resumed": false} {
		t.Run(name, func(t *testing.T) {
			private, _ := signingKey(t)
			synctest.Test(t, func(t *testing.T) {
				global, zone := openStore(t, store.Options{}), openStore(t, store.Options{})
				commit(t, global, store.Put(newRecord(t, resource.GlobalSecret, "", "zone-token-signing-key-1", newSecret(private))))
				withdraw := func() {
					commit(t, global, store.Delete(store.Key{Type: string(resource.GlobalSecret), Name: "zone-token-signing-key-1"}))
				}
				_, stop := join(t, publisherConfig(t, Down, global), subscriberConfig(t, Down, zone))
				synctest.Wait()
				if got := namesOf(zone, resource.GlobalSecret); !slices.Equal(got, []string{"/zone-token-signing-public-key-1"}) {
					t.Fatalf("the zone has %v", got)
				}
				_, _ = stop()
				if offline {
					withdraw()
				}
				_, stop = join(t, publisherConfig(t, Down, global), subscriberConfig(t, Down, zone))
				synctest.Wait()
				if !offline {
					withdraw()
					synctest.Wait()
				}
				if got := namesOf(zone, resource.GlobalSecret); len(got) != 0 {
					t.Errorf("the zone still has %v", got)
				}
				_, _ = stop()
			})
		})
	}
}
