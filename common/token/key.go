package token

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	privatePEM = "RSA PRIVATE KEY" // PKCS #1
	publicPEM  = "RSA PUBLIC KEY"  // PKCS #1

	// keyBits is the size of new keys, and the smallest that is accepted.
	keyBits = 2048
	// maxKeyBits bounds the work of one verification.
	maxKeyBits = 8192
)

// Key is one signing key, or the half of it that verifies.
type Key struct {
	Public *rsa.PublicKey
	// Private is nil where only the public half is known.
	Private *rsa.PrivateKey
}

// NewSigningKey makes an RSA key of 2048 bits and returns it as PEM of PKCS #1.
func NewSigningKey() ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("generate signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: privatePEM, Bytes: x509.MarshalPKCS1PrivateKey(key)}), nil
}

// PublicHalf returns the PEM (PKCS #1) of the public half of a key in PEM.
func PublicHalf(key []byte) ([]byte, error) {
	k, err := ParseKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: publicPEM, Bytes: x509.MarshalPKCS1PublicKey(k.Public)}), nil
}

// ParseKey reads one RSA key in PEM, private or public, of at least 2048 bits. The form is PKCS #1, as the control planes
// make it, or PKCS #8 and PKIX, as other tools do. Its errors never contain a part of the content.
func ParseKey(content []byte) (Key, error) {
	block, rest := pem.Decode(content)
	if block == nil {
		return Key{}, errors.New("parse key: not PEM")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return Key{}, errors.New("parse key: there is more after the first PEM block")
	}
	var parsed any
	var err error
	switch block.Type {
	case privatePEM:
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case publicPEM:
		parsed, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "PUBLIC KEY":
		parsed, err = x509.ParsePKIXPublicKey(block.Bytes)
	default:
		return Key{}, errors.New("parse key: the PEM block is not an RSA key")
	}
	if err != nil {
		return Key{}, errors.New("parse key: the PEM block does not hold what it is labelled with") // err may quote it
	}
	var k Key
	switch key := parsed.(type) {
	case *rsa.PrivateKey:
		k = Key{Public: &key.PublicKey, Private: key}
	case *rsa.PublicKey:
		k = Key{Public: key}
	default:
		return Key{}, errors.New("parse key: not an RSA key")
	}
	if bits := k.Public.N.BitLen(); bits < keyBits || bits > maxKeyBits {
		return Key{}, fmt.Errorf("parse key: %d bits are not in %d-%d", bits, keyBits, maxKeyBits)
	}
	return k, nil
}
