// Package envoy is a stand-in for kuma-dp and the Envoy it runs, for tests that have neither binary. It knows nothing of the
// control plane but the wire: it asks for a bootstrap over HTTPS as kuma-dp 2.0.8 does, follows what that bootstrap says and no
// other source, subscribes over ADS in Envoy's order, warms clusters and listeners, acknowledges what is valid and rejects what
// is not, answers the admin endpoint, does health checks, and carries real bytes through its listeners where asked to.
//
// Where it is stricter than Envoy, it says so instead of hiding it: what Envoy would tolerate but a sound control plane does not
// do is kept in Config.Findings, and a filter or field that would change what happens to traffic but is not implemented makes
// Wait fail with ErrUnsupported. Where Envoy gives up waiting (initial_fetch_timeout), this stand-in goes on waiting, so a
// resource that never comes shows as such. A response is applied as a whole or not at all, where Envoy may take the sound
// part of a CDS or LDS response whose rest it rejects. Answers are never compressed, which no client may rely on, and a stream
// may be idle for as long as its request may take.
package envoy
