// Package policy decides which policies reach which proxies. Configuration of proxies and the inspect API both ask it, so
// that what is shown is what is done.
package policy

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/resource"
)

// Policy is a stored policy, decoded. It never changes.
type Policy struct {
	Type       resource.Type
	Mesh, Name string
	Created    time.Time // zero when its owner did not say
	// Spec is the message of a policy with selectors; nil for a targetRef policy, which has Ref.
	Spec proto.Message
	// Ref is the decoded specification of a targetRef policy.
	Ref *Ref
}
