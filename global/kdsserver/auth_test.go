package kdsserver

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/token"
	"github.com/meridian-mesh/meridian/global/zones"
)

// authority is a store with the signing keys of zone and user tokens.
func authority(t *testing.T) (*store.Store, *tokens.Authority) {
	t.Helper()
	st, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	for _, kind := range []tokens.Kind{tokens.Zone, tokens.User} {
		key, err := token.NewSigningKey()
		if err != nil {
			t.Fatal(err)
		}
		putSecret(t, st, tokens.SigningKey(kind, "", 1), key)
	}
	return st, tokens.NewAuthority()
}

func putSecret(t *testing.T, st *store.Store, key store.Key, data []byte) {
	t.Helper()
	spec, err := proto.Marshal(&systemv1.Secret{Data: wrapperspb.Bytes(data)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Put(&store.Record{Key: key, Spec: spec})}, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestACallerMustProveToBeTheZoneItClaimsToBe(t *testing.T) {
	st, authority := authority(t)
	issue := func(kind tokens.Kind, c tokens.Claims) (string, tokens.Claims) {
		raw, claims, err := authority.Issue(st.Snapshot(), kind, c, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return raw, claims
	}
	good, _ := issue(tokens.Zone, tokens.Claims{Zone: "zone-1", Scope: []string{"ingress", "cp"}})
	ingress, _ := issue(tokens.Zone, tokens.Claims{Zone: "zone-1", Scope: []string{"ingress"}})
	other, _ := issue(tokens.Zone, tokens.Claims{Zone: "zone-2", Scope: []string{"cp"}})
	user, _ := issue(tokens.User, tokens.Claims{Name: "zone-1", Groups: []string{"mesh-system:admin"}})
	revoked, claims := issue(tokens.Zone, tokens.Claims{Zone: "zone-1", Scope: []string{"cp"}})
	putSecret(t, st, tokens.Revocations(tokens.Zone, ""), []byte(claims.ID))

	token := Auth{Required: true, Exempt: []string{"kuma-1"}}
	for _, tt := range []struct {
		name          string
		auth          Auth
		zone          string
		authorization []string
		method, err   string
	}{
		{"a token of the zone", token, "zone-1", []string{"Bearer " + good}, zones.AuthToken, ""},
		{"the scheme in any case", token, "zone-1", []string{"bearer " + good}, zones.AuthToken, ""},
		{"no token", token, "zone-1", nil, "", "no zone token"},
		{"no scheme", token, "zone-1", []string{good}, "", "no bearer token"},
		{"two tokens", token, "zone-1", []string{"Bearer " + good, "Bearer " + good}, "", "more than one"},
		{"a token of another zone", token, "zone-1", []string{"Bearer " + other}, "", `is for zone "zone-2"`},
		{"a token of another scope", token, "zone-1", []string{"Bearer " + ingress}, "", `scope "cp"`},
		{"a token of another kind", token, "zone-1", []string{"Bearer " + user}, "", "invalid token"},
		{"a revoked token", token, "zone-1", []string{"Bearer " + revoked}, "", "revoked"},
		{"a token of which a letter differs", token, "zone-1", []string{"Bearer " + strings.Replace(good, ".", ".e", 1)}, "", "invalid token"},
		{"an exempt zone without a token", token, "kuma-1", nil, zones.AuthExempt, ""},
		{"an exempt zone with the token of another", token, "kuma-1", []string{"Bearer " + good}, "", `is for zone "zone-1"`},
		{"nobody needs a token", Auth{}, "zone-1", nil, zones.AuthNone, ""},
		{"nobody needs a token, and one is there", Auth{}, "zone-1", []string{"Bearer nonsense"}, zones.AuthNone, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(Options{Config: Config{Auth: tt.auth}, Store: st, Tokens: authority, Log: slog.New(slog.DiscardHandler)})
			got, err := s.credential(metadata.MD{"authorization": tt.authorization}, tt.zone)
			switch {
			case tt.err != "":
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				for _, a := range tt.authorization {
					if strings.Contains(err.Error(), strings.TrimPrefix(a, "Bearer ")) {
						t.Error("the error shows the token")
					}
				}
			case err != nil || got.Method != tt.method:
				t.Fatalf("method %q, error %v, want %q", got.Method, err, tt.method)
			case (tt.method == zones.AuthToken) != (got.Token != "" && time.Until(got.Expires) > 0):
				t.Errorf("credential %+v", got)
			}
		})
	}
}

// Between a look at the token and the stream that it opens, a revocation finds no stream to end.
func TestATokenRevokedWhileItsStreamOpensEndsTheStream(t *testing.T) {
	st, authority := authority(t)
	table, err := zones.New(t.Context(), zones.Config{SubscriptionLimit: 1}, st, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{
		Config: Config{Auth: Auth{Required: true}}, Store: st, Zones: table, Tokens: authority, Log: slog.New(slog.DiscardHandler),
	})
	raw, claims, err := authority.Issue(st.Snapshot(), tokens.Zone, tokens.Claims{Zone: "zone-1", Scope: []string{"cp"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := s.credential(metadata.MD{"authorization": {"Bearer " + raw}}, "zone-1")
	if err != nil {
		t.Fatal(err)
	}
	hello := zones.Hello{Zone: "zone-1", Credential: seen}
	open := func() error {
		_, stream, err := s.admit(t.Context(), zones.GlobalToZone, hello)
		if err == nil {
			stream.Close(nil)
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatalf("with a good token: %v", err)
	}
	putSecret(t, st, tokens.Revocations(tokens.Zone, ""), []byte(claims.ID))
	if err := open(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("with a token revoked meanwhile: %v", err)
	}
	if live, _ := table.Live(st.Snapshot(), "zone-1"); live.Online {
		t.Error("the zone is online")
	}
}
