// Package token signs and verifies JSON Web Tokens in the one form that the control planes use: compact, RS256, with the
// id of the signing key in the header and an end in the claims. It knows keys and bytes; what the claims mean, and where
// keys are kept, is for api/tokens.
//
// Its errors never contain the token or a part of it.
package token

import (
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/golang-jwt/jwt/v5"
)

// MaxBytes bounds a token. It leaves room for generous tags, and still fits a header of the smallest common proxies.
const MaxBytes = 8 << 10

// What can be wrong with a token.
var (
	// ErrMalformed: it is no JSON Web Token, is too long, has another algorithm than RS256, or lacks kid or exp.
	ErrMalformed = errors.New("malformed token")
	// ErrSignature: it was not signed by the key it names, or was changed since.
	ErrSignature = errors.New("signature does not match")
	// ErrExpired: its time is over.
	ErrExpired = errors.New("token is expired")
	// ErrNotYetValid: its time has not begun.
	ErrNotYetValid = errors.New("token is not valid yet")
	// ErrTooLarge: signing the claims would make a token longer than MaxBytes.
	ErrTooLarge = fmt.Errorf("token would be longer than %d bytes", MaxBytes)
)

// algorithm is the only one that is issued or accepted. The header of a token does not choose.
var algorithm = jwt.SigningMethodRS256

// Sign returns the token that makes these claims. They are rendered as JSON as they are; keyID stands in the header, for
// the verifier to find the key.
func Sign(key *rsa.PrivateKey, keyID string, claims jwt.Claims) (string, error) {
	t := jwt.NewWithClaims(algorithm, claims)
	t.Header["kid"] = keyID
	raw, err := t.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	if len(raw) > MaxBytes {
		return "", ErrTooLarge
	}
	return raw, nil
}

// parser is stateless.
var parser = jwt.NewParser(
	jwt.WithValidMethods([]string{algorithm.Alg()}),
	jwt.WithStrictDecoding(),
	jwt.WithExpirationRequired(),
)

// Parse reads a token into claims, a pointer, and returns the id of the key that signed it. key is asked for the public
// half of the key of that id; its error is returned as it is. Before Parse has returned
// without error, nothing in claims can be trusted.
func Parse(raw string, claims jwt.Claims, key func(keyID string) (*rsa.PublicKey, error)) (keyID string, err error) {
	if len(raw) > MaxBytes {
		return "", fmt.Errorf("%w: longer than %d bytes", ErrMalformed, MaxBytes)
	}
	var keyErr error
	_, err = parser.ParseWithClaims(raw, claims, func(t *jwt.Token) (any, error) {
		var k *rsa.PublicKey
		keyID, k, keyErr = lookup(t.Header, key)
		return k, keyErr
	})
	switch {
	case err == nil:
		return keyID, nil
	case keyErr != nil:
		return "", keyErr
	case errors.Is(err, jwt.ErrTokenMalformed), errors.Is(err, jwt.ErrTokenUnverifiable), errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "", ErrMalformed
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return "", ErrSignature // also: signed by another algorithm
	case errors.Is(err, jwt.ErrTokenExpired):
		return "", ErrExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return "", ErrNotYetValid
	default:
		return "", ErrMalformed
	}
}

// lookup asks for the key that a header names. A header with extensions that must be understood (RFC 7515, 4.1.11) is
// refused, because none is.
func lookup(header map[string]any, key func(string) (*rsa.PublicKey, error)) (string, *rsa.PublicKey, error) {
	id, ok := header["kid"].(string)
	if _, extended := header["crit"]; extended || !ok {
		return "", nil, ErrMalformed
	}
	k, err := key(id)
	return id, k, err
}
