package token

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
)

// testPEM is a signing key that all tests share: making one takes longer than most of them.
var testPEM = sync.OnceValue(func() []byte {
	key, err := NewSigningKey()
	if err != nil {
		panic(err)
	}
	return key
})

func testKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := ParseKey(testPEM())
	if err != nil {
		t.Fatal(err)
	}
	return k.Private
}

func claims(validFor time.Duration) *jwt.RegisteredClaims {
	now := time.Now()
	return &jwt.RegisteredClaims{
		ID: "id-1", IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-time.Minute)),
		ExpiresAt: jwt.NewNumericDate(now.Add(validFor)),
	}
}

// forge signs any header and payload, as an attacker or another tool could.
func forge(t testing.TB, header, payload string, sign func(text string) []byte) string {
	t.Helper()
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(payload))
	return text + "." + enc(sign(text))
}

func withRSA(t testing.TB, method jwt.SigningMethod) func(string) []byte {
	t.Helper()
	return func(text string) []byte {
		sig, err := method.Sign(text, testKey(t))
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
}

func TestATokenIsReadAsItWasSigned(t *testing.T) {
	want := claims(time.Hour)
	raw, err := Sign(testKey(t), "3", want)
	if err != nil {
		t.Fatal(err)
	}
	header, _ := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[0])
	if diff := cmp.Diff(`{"alg":"RS256","kid":"3","typ":"JWT"}`, string(header)); diff != "" {
		t.Error(diff)
	}
	var got jwt.RegisteredClaims
	asked := ""
	id, err := Parse(raw, &got, func(id string) (*rsa.PublicKey, error) {
		asked = id
		return &testKey(t).PublicKey, nil
	})
	if err != nil || id != "3" || asked != "3" {
		t.Fatalf("key id %q, asked for %q: %v", id, asked, err)
	}
	if diff := cmp.Diff(want, &got); diff != "" {
		t.Error(diff)
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	good, err := Sign(testKey(t), "1", claims(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	public, err := PublicHalf(testPEM())
	if err != nil {
		t.Fatal(err)
	}
	const payload = `{"exp":99999999999,"jti":"x"}`
	rs256 := withRSA(t, jwt.SigningMethodRS256)
	hmacWith := func(key []byte) func(string) []byte {
		return func(text string) []byte {
			sig, err := jwt.SigningMethodHS256.Sign(text, key)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := Sign(other, "1", claims(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(s string, i int) string {
		b := []byte(s)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return string(b)
	}
	for _, tc := range []struct {
		name, raw string
		want      error
	}{
		{"empty", "", ErrMalformed},
		{"not a token", "hello", ErrMalformed},
		{"two parts", parts[0] + "." + parts[1], ErrMalformed},
		{"four parts", good + ".x", ErrMalformed},
		{"padded base64", parts[0] + "=." + parts[1] + "." + parts[2], ErrMalformed},
		{"header is no JSON", "eA." + parts[1] + "." + parts[2], ErrMalformed},
		{"white space around", " " + good, ErrMalformed},
		{"oversize", good + strings.Repeat("A", MaxBytes), ErrMalformed},
		{"no key id", forge(t, `{"alg":"RS256"}`, payload, rs256), ErrMalformed},
		{"key id is a number", forge(t, `{"alg":"RS256","kid":1}`, payload, rs256), ErrMalformed},
		{"an extension that must be understood", forge(t, `{"alg":"RS256","kid":"1","crit":["b64"],"b64":false}`, payload, rs256), ErrMalformed},
		{"no end", forge(t, `{"alg":"RS256","kid":"1"}`, `{"jti":"x"}`, rs256), ErrMalformed},
		{"end is a string", forge(t, `{"alg":"RS256","kid":"1"}`, `{"exp":"never"}`, rs256), ErrMalformed},
		{"claims are a list", forge(t, `{"alg":"RS256","kid":"1"}`, `[]`, rs256), ErrMalformed},
		{"not valid yet", forge(t, `{"alg":"RS256","kid":"1"}`, `{"exp":99999999999,"nbf":99999999998}`, rs256), ErrNotYetValid},
		{"expired", forge(t, `{"alg":"RS256","kid":"1"}`, `{"exp":1}`, rs256), ErrExpired},
		{"algorithm none", forge(t, `{"alg":"none","kid":"1"}`, payload, func(string) []byte { return nil }), ErrSignature},
		{"algorithm None", forge(t, `{"alg":"None","kid":"1"}`, payload, func(string) []byte { return nil }), ErrMalformed},
		{"HMAC with the public key", forge(t, `{"alg":"HS256","kid":"1"}`, payload, hmacWith(public)), ErrSignature},
		{"HMAC called RS256", forge(t, `{"alg":"RS256","kid":"1"}`, payload, hmacWith(public)), ErrSignature},
		{"another hash", forge(t, `{"alg":"RS512","kid":"1"}`, payload, withRSA(t, jwt.SigningMethodRS512)), ErrSignature},
		{"another padding", forge(t, `{"alg":"PS256","kid":"1"}`, payload, withRSA(t, jwt.SigningMethodPS256)), ErrSignature},
		{"another key", foreign, ErrSignature},
		{"no signature", parts[0] + "." + parts[1] + ".", ErrSignature},
		{"signature changed", parts[0] + "." + parts[1] + "." + flip(parts[2], 10), ErrSignature},
		{"claims of another token", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + "." + parts[2], ErrSignature},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, err := Parse(tc.raw, &jwt.RegisteredClaims{}, func(string) (*rsa.PublicKey, error) { return &testKey(t).PublicKey, nil })
			if !errors.Is(err, tc.want) || id != "" {
				t.Errorf("got key %q and error %v, want %v", id, err, tc.want)
			}
			for part := range strings.SplitSeq(tc.raw, ".") {
				if len(part) > 8 && err != nil && strings.Contains(err.Error(), part) {
					t.Errorf("the error repeats the token: %v", err)
				}
			}
		})
	}
	if _, err := Parse(good, &jwt.RegisteredClaims{}, func(string) (*rsa.PublicKey, error) { return &testKey(t).PublicKey, nil }); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestATokenEndsWithTheSecond(t *testing.T) {
	key := testKey(t)
	synctest.Test(t, func(t *testing.T) {
		raw, err := Sign(key, "1", claims(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		parse := func() error {
			_, err := Parse(raw, &jwt.RegisteredClaims{}, func(string) (*rsa.PublicKey, error) { return &key.PublicKey, nil })
			return err
		}
		time.Sleep(time.Minute - time.Nanosecond)
		if err := parse(); err != nil {
			t.Errorf("just before: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if err := parse(); !errors.Is(err, ErrExpired) {
			t.Errorf("then: %v", err)
		}
	})
}

func TestTheErrorOfTheKeyIsReturned(t *testing.T) {
	raw, err := Sign(testKey(t), "1", claims(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	want := errors.New("no such key")
	if _, err := Parse(raw, &jwt.RegisteredClaims{}, func(string) (*rsa.PublicKey, error) { return nil, want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

func TestSignRefusesClaimsThatMakeATooLongToken(t *testing.T) {
	c := claims(time.Hour)
	c.ID = strings.Repeat("x", MaxBytes)
	if _, err := Sign(testKey(t), "1", c); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestKeysAreReadInEveryForm(t *testing.T) {
	key := testKey(t)
	encode := func(typ string, der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
	}
	pkcs8, err8 := x509.MarshalPKCS8PrivateKey(key)
	pkix, errx := x509.MarshalPKIXPublicKey(&key.PublicKey)
	half, err := PublicHalf(testPEM())
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec8, errEC := x509.MarshalPKCS8PrivateKey(curve)
	for _, tc := range []struct {
		name    string
		content []byte
		private bool
		wantErr string // a part of it; empty: the key is read
	}{
		{"PKCS #1, as made here", testPEM(), true, ""},
		{"PKCS #8", encode("PRIVATE KEY", pkcs8, err8), true, ""},
		{"public PKCS #1, as made here", half, false, ""},
		{"public PKIX", encode("PUBLIC KEY", pkix, errx), false, ""},
		{"white space after", append(bytes.Clone(testPEM()), " \n\n"...), true, ""},
		{"nothing", nil, false, "not PEM"},
		{"text", []byte("secret"), false, "not PEM"},
		{"two keys", append(bytes.Clone(testPEM()), half...), false, "more after the first"},
		{"another algorithm", encode("PRIVATE KEY", ec8, errEC), false, "not an RSA key"},
		{"a certificate", encode("CERTIFICATE", []byte("x"), nil), false, "not an RSA key"},
		{"a wrong label", encode("RSA PRIVATE KEY", pkix, errx), false, "does not hold"},
		{"a short key", encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small), nil), false, "1024 bits"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, err := ParseKey(tc.content)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("got %v, want %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !k.Public.Equal(&key.PublicKey) || (k.Private != nil) != tc.private {
				t.Errorf("read another key, or private is %v", k.Private != nil)
			}
		})
	}
	if block, _ := pem.Decode(testPEM()); block.Type != "RSA PRIVATE KEY" {
		t.Errorf("a new key is labelled %q", block.Type)
	}
	if block, _ := pem.Decode(half); block.Type != "RSA PUBLIC KEY" {
		t.Errorf("its public half is labelled %q", block.Type)
	}
}

// FuzzParse looks for panics, for tokens that are accepted without having been signed here, and for errors that repeat
// what was sent.
func FuzzParse(f *testing.F) {
	good, err := Sign(testKey(f), "1", claims(24*time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good + ".")
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add(forge(f, `{"alg":"none","kid":"1"}`, `{"exp":99999999999}`, func(string) []byte { return nil }))
	f.Add(forge(f, `{"alg":"RS256","kid":"1","crit":[]}`, `{"exp":1e308,"nbf":-1e308,"aud":[1]}`, withRSA(f, jwt.SigningMethodRS256)))
	key := testKey(f)
	f.Fuzz(func(t *testing.T, raw string) {
		id, err := Parse(raw, &jwt.RegisteredClaims{}, func(string) (*rsa.PublicKey, error) { return &key.PublicKey, nil })
		if err == nil && (raw != good || id != "1") {
			t.Errorf("accepted %q with key %q", raw, id)
		}
		if err != nil && len(raw) > 40 && strings.Contains(err.Error(), raw[:20]) {
			t.Errorf("the error repeats the token: %v", err)
		}
	})
}
