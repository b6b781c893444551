package policy

// Ref is the specification of a targetRef policy.
type Ref struct{}

// Set holds the policies of one mesh.
type Set struct{}
