package resource

import (
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
)

// Labels that are part of the identity of a resource between planes.
const (
	LabelZone      = "kuma.io/zone"
	LabelNamespace = "k8s.kuma.io/namespace"
)

// hashAlphabet has no vowels, so that no suffix spells a word, and neither 0, 1 nor 3, as Kuma has it.
const hashAlphabet = "bcdfghjklmnpqrstvwxz2456789"

// maxHashedStem leaves room for the suffix in a name of 253 bytes.
const maxHashedStem = 236

// HashedName returns the name under which a resource travels to a peer that hashes names (KDS contract §8): the display
// name, cut to 236 bytes, and a suffix of 16 characters made from mesh, display name, and the labels kuma.io/zone and
// k8s.kuma.io/namespace where present. It tells apart resources of one display name in different meshes and zones.
// mesh is empty for a type that lives outside meshes.
func HashedName(mesh, displayName string, labels map[string]string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(mesh)) // never fails
	_, _ = h.Write([]byte(displayName))
	for _, label := range []string{LabelZone, LabelNamespace} {
		_, _ = h.Write([]byte(labels[label]))
	}
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], h.Sum64())
	digits := hex.EncodeToString(sum[:])

	name := make([]byte, 0, MaxName)
	name = append(name, displayName[:min(len(displayName), maxHashedStem)]...)
	name = append(name, '-')
	for i := range len(digits) {
		name = append(name, hashAlphabet[int(digits[i])%len(hashAlphabet)]) // the digit's ASCII code, not its value
	}
	return string(name)
}
