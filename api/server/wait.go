package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Replication tells what became of a batch at the zones.
type Replication interface {
	// Await blocks until no connected zone is left that has not answered for the batch at revision rev, of which deltas
	// are all records, or until ctx ends; then it says how the zones stand. It must be cheap to have many of them.
	Await(ctx context.Context, rev store.Revision, deltas []store.Delta) Delivery
}

// Delivery is how the zones stand to a write, by name. A nil list is an empty one.
type Delivery struct {
	Revision store.Revision
	// Acknowledged have committed what the write made of its resource, or what later writes made of it.
	Acknowledged []string
	// Rejected have answered and left it out.
	Rejected []Reason
	// Pending are connected and have not answered; Offline are not connected, and had not answered before.
	Pending, Offline []string
	// PendingReasons is about those of Pending that may well have answered: the instance that knows does not tell.
	PendingReasons []Reason
	// NotApplicable are connected and get nothing of it: the type, or this resource, does not travel to them.
	NotApplicable []string
}

// Reason is why a zone stands as it does.
type Reason struct {
	Zone   string `json:"zone"`
	Reason string `json:"reason"`
}

// everywhere reports whether every connected zone has what it should have, and there is one.
func (d Delivery) everywhere() bool {
	return len(d.Pending)+len(d.Rejected) == 0 && len(d.Acknowledged)+len(d.NotApplicable) > 0
}

// body renders d.
func (d Delivery) body() ([]byte, error) {
	return marshal(struct {
		Revision       store.Revision `json:"revision"`
		Acknowledged   []string       `json:"acknowledged"`
		Rejected       []Reason       `json:"rejected"`
		Pending        []string       `json:"pending"`
		Offline        []string       `json:"offline"`
		NotApplicable  []string       `json:"notApplicable"`
		PendingReasons []Reason       `json:"pendingReasons,omitempty"`
	}{
		d.Revision, orEmpty(d.Acknowledged), orEmpty(d.Rejected), orEmpty(d.Pending), orEmpty(d.Offline), orEmpty(d.NotApplicable),
		d.PendingReasons,
	})
}

// orEmpty makes a list that is shown as [] when there is nothing in it.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// waitOf reads for how long a write waits for the zones; false: it does not.
func (s *Server) waitOf(query url.Values, dryRun bool) (time.Duration, bool, error) {
	v := query.Get("wait")
	if v == "" {
		return 0, false, nil
	}
	bad := func(message string) (time.Duration, bool, error) {
		return 0, false, invalidQuery(titleProcess, "wait", message)
	}
	d, err := time.ParseDuration(v)
	switch {
	case s.plane != resource.Global:
		return bad("is for the global control plane: a zone has no zones to wait for")
	case err != nil || d < 0 || d > s.opts.MaxWait:
		return bad(fmt.Sprintf("must be a duration between 0s and %s, such as 5s", s.opts.MaxWait))
	case dryRun:
		return bad("has nothing to wait for with dryRun")
	}
	return d, true, nil
}

// deltasOf is what ops do to head.
func deltasOf(head view, ops []store.Op) []store.Delta {
	deltas := make([]store.Delta, len(ops))
	for i, op := range ops {
		old, _ := head.Get(op.Key)
		deltas[i] = store.Delta{Key: op.Key, Old: old, New: op.Record}
	}
	return deltas
}

// await waits for the zones after a write that is done, whatever comes of the waiting, and turns its answer into one
// that says how they stand. It is ended by the client that goes and by a server that stops.
func (s *Server) await(w http.ResponseWriter, r *http.Request, done *written) error {
	conn := http.NewResponseController(w)
	// Where deadlines cannot be set there are none. The one for reading would end the request's context.
	_ = conn.SetReadDeadline(time.Time{})
	_ = conn.SetWriteDeadline(time.Now().Add(done.wait + s.opts.WriteTimeout))
	ctx, cancel := context.WithTimeout(r.Context(), done.wait)
	defer cancel()
	var stopper sync.WaitGroup
	stopper.Go(func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	})
	d := Delivery{}
	if s.opts.Replication != nil {
		d = s.opts.Replication.Await(ctx, done.revision, done.deltas)
	}
	cancel()
	stopper.Wait()
	d.Revision = done.revision
	body, err := d.body()
	if err != nil {
		return internal(titleProcess, err)
	}
	done.body = body
	if !d.everywhere() {
		done.status = http.StatusAccepted
	}
	return nil
}
