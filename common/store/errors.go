package store

import "errors"

var (
	// ErrConflict reports that a precondition of a batch did not hold; nothing of the batch was applied.
	ErrConflict = errors.New("version conflict")
	// ErrCompacted reports that changes since the wanted revision are no longer known: read a snapshot and go on from it.
	ErrCompacted = errors.New("revision compacted")
	// ErrClosed reports that the store is closed or closing; the batch was not applied.
	ErrClosed = errors.New("store closed")
	// ErrUnavailable reports that the backend failed to make a batch durable. The batch was not applied; the store
	// refuses further writes until it is opened again, because what reached the disk is not known.
	ErrUnavailable = errors.New("store unavailable")
	// ErrInvalid reports a batch that no state would accept: a key without type or name, with a NUL in it or
	// longer than 4096 bytes, two ops on one key, a record that does not carry its op's key. It is a mistake of the caller's code.
	ErrInvalid = errors.New("invalid batch")
)
