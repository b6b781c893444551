// Package defaults knows the resources that nobody asks for: the policies and the signing key that come with a mesh, the
// authorities of its builtin mTLS backends, and the keys, the administrator's token and the mesh that a control plane
// starts with. docs/DEFAULTS.md lists them.
//
// Each is made only where it is absent, once, and in the batch that makes it necessary: no client ever sees a mesh
// without its policies, and of two planes that start on one store only one makes a key. So what is made is decided
// where the store decides, on the head of [store.Store.Update]. RSA keys and certificates take too long for that
// place. A plan therefore only says which of them it lacks ([Need]); they are made elsewhere ([Material]), and the plan
// is made again. [Commit] is that loop.
package defaults
