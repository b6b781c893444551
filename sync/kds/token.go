package kds

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Token says up to where a subscriber is current with one type of one publisher. Between two Meridian planes it
// travels in system_version_info of every response (empty in Kuma) and comes back in the node metadata of the first
// request of the next stream. Its text is
//
//	<store id>/<revision>/<more|end>[/<from>]
//
// "more" means that further pages of the same state follow; deletion by absence and storing the token wait for
// "end". A fourth part says that the response is not a full state but what changed since that revision.
type Token struct {
	Store    string
	Revision store.Revision
	More     bool
	// From is the revision a delta builds on; meaningful only when Delta is set.
	Delta bool
	From  store.Revision
}

// String renders the token as it travels.
func (t Token) String() string {
	end := "end"
	if t.More {
		end = "more"
	}
	s := t.Store + "/" + strconv.FormatUint(uint64(t.Revision), 10) + "/" + end
	if t.Delta {
		s += "/" + strconv.FormatUint(uint64(t.From), 10)
	}
	return s
}

// ParseToken reads what String wrote.
func ParseToken(s string) (Token, error) {
	part := strings.Split(s, "/")
	if len(part) < 3 || len(part) > 4 || part[0] == "" || (part[2] != "more" && part[2] != "end") {
		return Token{}, fmt.Errorf("malformed token %q", s)
	}
	rev, err := strconv.ParseUint(part[1], 10, 64)
	if err != nil {
		return Token{}, fmt.Errorf("malformed revision in token %q", s)
	}
	t := Token{Store: part[0], Revision: store.Revision(rev), More: part[2] == "more"}
	if len(part) == 4 {
		from, err := strconv.ParseUint(part[3], 10, 64)
		if err != nil {
			return Token{}, fmt.Errorf("malformed base revision in token %q", s)
		}
		t.Delta, t.From = true, store.Revision(from)
	}
	return t, nil
}

// TokenType is the store's type of the records in which a subscriber keeps its tokens. They are bookkeeping: not in
// the registry, never served, never sent. Mesh holds the peer (a zone's name, or "global"), Name the resource type.
const TokenType = "SyncToken"

func tokenKey(peer string, t resource.Type) store.Key {
	return store.Key{Type: TokenType, Mesh: peer, Name: string(t)}
}

// storedToken returns the last complete token that was committed for a type of peer, and "" when there is none.
func storedToken(snap *store.Snapshot, peer string, t resource.Type) string {
	rec, ok := snap.Get(tokenKey(peer, t))
	if !ok {
		return ""
	}
	return string(rec.Spec)
}
