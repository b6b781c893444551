package cluster

import (
	"encoding/json"
	"slices"
	"time"
)

const (
	// maxListBytes bounds the names of one list: some thousand proxies. A state with the lists of every member
	// must stay below what memberlist takes, 20 MiB.
	maxListBytes = 64 << 10
	// maxKinds bounds the lists of a member.
	maxKinds = 8
	// maxStateBytes bounds what is taken from another member as its lists.
	maxStateBytes = 2 * maxKinds * maxListBytes
)

// held is the lists of one member as they travel. Of one run of a member the higher version wins.
type held struct {
	Name    string          `json:"name"`
	Started time.Time       `json:"started"`
	Version uint64          `json:"version"`
	Lists   map[string]List `json:"lists"`
}

// bounded returns the lists of names as they may travel.
func bounded(names map[string][]string) map[string]List {
	lists := make(map[string]List, len(names))
	for kind, all := range names {
		all = slices.Sorted(slices.Values(all))
		size, n := 0, 0
		for n < len(all) && size+len(all[n]) <= maxListBytes {
			size += len(all[n]) + 3 // quotes and a comma
			n++
		}
		lists[kind] = List{Total: len(all), Names: all[:n:n]}
	}
	return lists
}

func equalLists(a, b map[string]List) bool {
	if len(a) != len(b) {
		return false
	}
	for kind, l := range a {
		other, ok := b[kind]
		if !ok || l.Total != other.Total || !slices.Equal(l.Names, other.Names) {
			return false
		}
	}
	return true
}

// encodeHeld renders the lists of members for another.
func encodeHeld(all []held) ([]byte, error) {
	docs := make([]json.RawMessage, 0, len(all))
	for _, h := range all {
		doc, err := json.Marshal(h)
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
	return json.Marshal(docs)
}

// decodeHeld reads what another member sent. What is larger than this package sends is left out, and counted.
func decodeHeld(b []byte) (all []held, refused int, err error) {
	var docs []json.RawMessage
	if err := json.Unmarshal(b, &docs); err != nil {
		return nil, 0, err
	}
	for _, doc := range docs {
		var h held
		if len(doc) > maxStateBytes || json.Unmarshal(doc, &h) != nil || len(h.Lists) > maxKinds {
			refused++
			continue
		}
		for kind, l := range h.Lists {
			slices.Sort(l.Names)
			h.Lists[kind] = l
		}
		all = append(all, h)
	}
	return all, refused, nil
}
