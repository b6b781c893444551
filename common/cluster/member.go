package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
)

// Member is a replica of the plane that is there, as far as this one knows.
type Member struct {
	Name string // its instance id
	Self bool   // it is this process
	// Address is where it is heard by the other replicas; empty where membership is off. API is where it serves the API.
	Address, API string
	Calls        string // where it takes the calls of the other replicas (common/peers); empty: it does not
	Version      string // of the program
	Started      time.Time
	// Lists are what it holds, by kind. Shared between readers.
	Lists map[string]List
}

// List is the names of one kind that a member holds, in order. Those that gossip has no room for are counted only.
type List struct {
	Total int      `json:"total"`
	Names []string `json:"names"`
}

// The kinds of lists that planes tell.
const (
	Leases  = "leases"  // that it leads under
	Zones   = "zones"   // that have their session with it
	Proxies = "proxies" // that have their stream with it
)

// Holds says whether a name is in the list of a kind, as far as it was told.
func (m *Member) Holds(kind, name string) bool {
	_, found := slices.BinarySearch(m.Lists[kind].Names, name)
	return found
}

// meta is what a member tells of itself wherever it is heard of: 512 bytes at most. Fields are added, never changed.
type meta struct {
	Plane   string    `json:"plane"`
	Version string    `json:"version"`
	Started time.Time `json:"started"` // tells the runs of one instance id apart
	APIPort int       `json:"apiPort,omitempty"`
	// CallPort is where it takes calls.
	CallPort int `json:"callPort,omitempty"`
}

func (m meta) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err == nil && len(b) > memberlist.MetaMaxSize {
		err = fmt.Errorf("what is told of this replica takes %d bytes, of which %d are allowed: its version is too long", len(b), memberlist.MetaMaxSize)
	}
	return b, err
}

func decodeMeta(b []byte) (m meta, err error) {
	if err := json.Unmarshal(b, &m); err != nil {
		return meta{}, fmt.Errorf("what it tells of itself is no JSON: %w", err)
	}
	if m.Plane == "" {
		return meta{}, errors.New("it does not say of which plane it is")
	}
	return m, nil
}

func memberOf(n *memberlist.Node, m meta) Member {
	out := Member{Name: n.Name, Address: n.Address(), Version: m.Version, Started: m.Started}
	if m.APIPort > 0 {
		out.API = net.JoinHostPort(n.Addr.String(), strconv.Itoa(m.APIPort))
	}
	if m.CallPort > 0 {
		out.Calls = net.JoinHostPort(n.Addr.String(), strconv.Itoa(m.CallPort))
	}
	return out
}
