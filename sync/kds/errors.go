package kds

import "errors"

var (
	// ErrProtocol reports a peer that broke the rules of the stream. It maps to InvalidArgument.
	ErrProtocol = errors.New("kds protocol violation")
	// ErrAckTimeout reports a peer that left a response unacknowledged for too long; the stream is reset.
	ErrAckTimeout = errors.New("no acknowledgement in time")
	// ErrForeignGlobal reports a global with another cluster id than the one this zone belongs to. Nothing was applied.
	ErrForeignGlobal = errors.New("the global has another cluster id")
	// ErrOversize reports a change that does not fit one message to a peer without paging; the stream is reset.
	ErrOversize = errors.New("too large for one message")
	// ErrStreamEnded reports that the peer ended a stream that this side did not ask to end.
	ErrStreamEnded = errors.New("the peer ended the stream")
)
