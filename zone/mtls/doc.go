// Package mtls gives proxies their identities: it reads the certificate authorities of meshes, signs a certificate for each
// proxy, and decides which authorities a proxy trusts. It also makes the certificates of the administration port that a
// control plane asks proxies through.
//
// An authority is changed without a failed request because trust and signing are apart: every proxy trusts the authorities of
// all backends that its mesh lists, and only the enabled one signs. Whoever adds a backend, then enables it, then removes the
// old one, never leaves two proxies that cannot verify each other, as long as every proxy has seen a step before the next.
//
// Keys of proxies exist in memory only, here and at the proxy. Nothing prints them.
package mtls
