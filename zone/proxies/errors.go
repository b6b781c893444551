package proxies

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// refusal is why a stream may not be opened, or go on. It is a status error, and tells nothing secret.
type refusal struct {
	reason string // one of the constants below: the label of a metric
	code   codes.Code
	text   string
}

// The reasons for which streams are refused or ended.
const (
	noToken       = "no_token"
	manyTokens    = "many_tokens"
	malformed     = "malformed_token"
	badSignature  = "wrong_signature"
	noKey         = "no_signing_key"
	expired       = "expired"
	notYetValid   = "not_yet_valid"
	revoked       = "revoked"
	wrongKind     = "wrong_kind"
	wrongName     = "wrong_name"
	wrongMesh     = "wrong_mesh"
	tagMissing    = "tag_missing"
	tagNotAllowed = "tag_not_allowed"
	wrongZone     = "wrong_zone"
	outOfScope    = "out_of_scope"

	badNode         = "bad_node"
	badResource     = "bad_resource"
	noMesh          = "no_mesh"
	meshRefuses     = "mesh_refuses"
	foreignResource = "owned_by_other_plane"
	noResource      = "no_resource"
	resourceDeleted = "resource_deleted"
	storeFailed     = "store_failed"
	shuttingDown    = "shutting_down"
)

func (r *refusal) Error() string { return r.text }

// GRPCStatus lets the status package find the code.
func (r *refusal) GRPCStatus() *status.Status { return status.New(r.code, r.text) }

func refuse(reason string, code codes.Code, format string, args ...any) *refusal {
	return &refusal{reason: reason, code: code, text: fmt.Sprintf(format, args...)}
}

// unauthenticated is a refusal in the form that data plane programs know.
func unauthenticated(reason, format string, args ...any) *refusal {
	return refuse(reason, codes.Unknown, "authentication failed: "+format, args...)
}
