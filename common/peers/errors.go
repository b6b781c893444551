package peers

import (
	"errors"
	"fmt"
)

var (
	// ErrUnreachable says that an instance was not reached, or not to the end of the call: it is no member, does not answer, or is not
	// who it should be. Whether a call that was on its way has run is not known.
	ErrUnreachable = errors.New("the instance cannot be reached")
	// ErrUnknownCall says that an instance was reached and has no such call: it is of another version.
	ErrUnknownCall = errors.New("the instance does not know this call")
)

// Error is what a handler answered instead of a body. Handlers return one to tell their caller more than a text.
type Error struct {
	Code string `json:"code,omitempty"` // what callers branch on; empty: nothing in particular
	Text string `json:"text"`
}

func (e *Error) Error() string { return e.Text }

// The codes of what goes wrong between a caller and a handler, at the callee.
const (
	CodeBusy     = "peers.busy"     // it answers as many calls as it may: later it has room
	CodeTooLarge = "peers.tooLarge" // the body or the answer is larger than may travel
	CodeInternal = "peers.internal" // the handler panicked
	CodeDeadline = "peers.deadline" // the handler's time was over before it had an answer
)

func errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// asError returns err as it travels.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: e.Code, Text: err.Error()}
	}
	return &Error{Text: err.Error()}
}
