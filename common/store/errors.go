package store

import "errors"

var (
	// ErrConflict reports that a precondition of a batch did not hold; nothing of the batch was applied.
	ErrConflict = errors.New("version conflict")
	// ErrCompacted reports that changes since the wanted revision are no longer known: read a snapshot and go on from it.
	ErrCompacted = errors.New("revision compacted")
	// ErrClosed reports that the store is closed or closing; the batch was not applied.
	ErrClosed = errors.New("store closed")
	// ErrUnavailable reports that the backend could not make a batch durable. The batch was not applied, unless the
	// error is ErrUnknown as well. Where the error is not ErrFailed as well, the store recovers by itself.
	ErrUnavailable = errors.New("store unavailable")
	// ErrUnknown reports that the connection to the storage was lost while the batch was being committed: it may be
	// stored or not, and if it is, it will show.
	ErrUnknown = errors.New("outcome unknown")
	// ErrFailed reports that the store refuses writes until it is opened again, because what reached the disk is
	// not known. Such an error is ErrUnavailable as well.
	ErrFailed = errors.New("store failed")
	// ErrBehind reports, from a [Shared] backend to the store, that a group was not stored and can be tried again.
	ErrBehind = errors.New("group not stored")
	// ErrLeaseHeld reports that another holder has the lease.
	ErrLeaseHeld = errors.New("lease is held by another")
	// ErrLeaseLost reports that a lease has expired, was released, or was taken over; nothing of the batch was applied.
	ErrLeaseLost = errors.New("lease lost")
	// ErrInvalid reports a batch that no state would accept: a key without type or name, with a NUL in it or
	// longer than 4096 bytes, two ops on one key, a record that does not carry its op's key. It is a mistake of the caller's code.
	ErrInvalid = errors.New("invalid batch")
)
