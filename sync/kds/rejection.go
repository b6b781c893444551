package kds

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// rejection is one resource that was left out of a response, and why.
type rejection struct {
	key    string // on the wire
	reason error
}

func (r rejection) String() string { return r.key + ": " + r.reason.Error() }

// maxRejectionDetails bounds what a NACK names one by one; beyond, the whole response counts as rejected.
const maxRejectionDetails = 1000

// rejectionDetails says in a NACK which resources were left out, so that the publisher does not take the others for
// rejected too. The text beside it is for people; a Kuma publisher reads only that.
func rejectionDetails(bad []rejection) []*anypb.Any {
	if len(bad) == 0 || len(bad) > maxRejectionDetails {
		return nil
	}
	details := &errdetails.BadRequest{}
	for _, b := range bad {
		details.FieldViolations = append(details.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: b.key})
	}
	packed, err := anypb.New(details)
	if err != nil { // a key that is not UTF-8; none passes the wire
		return nil
	}
	return []*anypb.Any{packed}
}

// rejectedKeys reads what rejectionDetails wrote; empty when the peer does not say.
func rejectedKeys(s *status.Status) map[string]bool {
	keys := map[string]bool{}
	for _, d := range s.GetDetails() {
		var details errdetails.BadRequest
		if d.MessageIs(&details) && d.UnmarshalTo(&details) == nil {
			for _, v := range details.GetFieldViolations() {
				keys[v.GetField()] = true
			}
		}
	}
	return keys
}
