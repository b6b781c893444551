package zones

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/peers"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// How a zone stands is known to the replica that holds its session. The tables of a plane's replicas ask each other, in
// JSON whose fields are added to and never changed: two versions of a plane work side by side during an upgrade.

// Caller asks another replica of this plane, named by its instance.
type Caller interface {
	Call(ctx context.Context, instance, call string, body []byte) ([]byte, error)
}

// The calls that a table answers and makes.
const (
	AwaitCall    = "zones/await"    // answered by [Table.AnswerAwait]
	ProgressCall = "zones/progress" // answered by [Table.AnswerProgress]
)

const (
	// early is how much before the deadline of a wait another replica is to answer, so that its answer is there in time.
	early = 50 * time.Millisecond
	// hearing is how long after its deadline a wait hears out those who are about to answer.
	hearing = time.Second
	// maxChanges is how many changes one question is about; a larger batch is asked about in parts. They are a few hundred
	// bytes each, of the megabyte that a question may have.
	maxChanges = 2048
	// A replica that could not be asked is asked again, after a while that doubles.
	minRetry, maxRetry = 250 * time.Millisecond, 2 * time.Second
	// progressTimeout is how long the answer to who wants to see the zones may be late for the sake of another replica.
	progressTimeout = time.Second
)

// awaitQuestion asks a replica how the zones that it holds stand to a batch, once none of them has still to answer for
// it, or the time is up.
type awaitQuestion struct {
	Revision store.Revision `json:"revision"`
	// AsOf is the revision that the asker has. The holder is to know no less, so that both mean the same by who holds what.
	AsOf       store.Revision `json:"asOf"`
	WaitMillis int64          `json:"waitMillis"`
	Changes    []change       `json:"changes"`
}

// change is a delta without what takes space.
type change struct {
	Type string   `json:"type"`
	Mesh string   `json:"mesh,omitempty"`
	Name string   `json:"name"`
	Old  *outline `json:"old,omitempty"`
	New  *outline `json:"new,omitempty"`
}

// outline is a record as [kds.Outline] has it.
type outline struct {
	Labels map[string]string `json:"labels,omitempty"`
	Origin string            `json:"origin,omitempty"`
	Spec   []byte            `json:"spec,omitempty"`
}

// awaitAnswer has the zones that the replica held in the end.
type awaitAnswer struct {
	Zones map[string]zoneStanding `json:"zones"`
}

type zoneStanding struct {
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"`
}

// and is how a zone stands to the whole of a batch that stands like s to one part of it and like other to another.
func (s zoneStanding) and(other zoneStanding) zoneStanding {
	for _, o := range [...]kds.Outcome{kds.Pending, kds.Rejected, kds.Acknowledged} { // as [kds.Publisher.Outcome] weighs them
		for _, part := range [...]zoneStanding{s, other} {
			if outcomeOf(part.Outcome) == o {
				return part
			}
		}
	}
	return s
}

func wordFor(o kds.Outcome) string {
	switch o {
	case kds.Acknowledged:
		return "acknowledged"
	case kds.Rejected:
		return "rejected"
	case kds.NotApplicable:
		return "notApplicable"
	case kds.Pending:
	}
	return "pending"
}

// outcomeOf reads a word. One that is not known, of a later version, is no answer yet.
func outcomeOf(word string) kds.Outcome {
	for _, o := range [...]kds.Outcome{kds.Acknowledged, kds.Rejected, kds.NotApplicable} {
		if word == wordFor(o) {
			return o
		}
	}
	return kds.Pending
}

func outlineOf(rec *store.Record) *outline {
	if rec == nil {
		return nil
	}
	o := kds.Outline(rec)
	return &outline{o.Labels, o.Origin, o.Spec}
}

func (o *outline) record(key store.Key) *store.Record {
	if o == nil {
		return nil
	}
	return &store.Record{Key: key, Labels: o.Labels, Origin: o.Origin, Spec: o.Spec}
}

func changesOf(deltas []store.Delta) []change {
	changes := make([]change, len(deltas))
	for i, d := range deltas {
		changes[i] = change{d.Key.Type, d.Key.Mesh, d.Key.Name, outlineOf(d.Old), outlineOf(d.New)}
	}
	return changes
}

func deltasOf(changes []change) []store.Delta {
	deltas := make([]store.Delta, len(changes))
	for i, c := range changes {
		key := store.Key{Type: c.Type, Mesh: c.Mesh, Name: c.Name}
		deltas[i] = store.Delta{Key: key, Old: c.Old.record(key), New: c.New.record(key)}
	}
	return deltas
}

// AnswerAwait answers another replica that awaits the zones held here.
func (t *Table) AnswerAwait(ctx context.Context, body []byte) ([]byte, error) {
	var q awaitQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("read the question: %w", err)
	}
	wait := time.Duration(q.WaitMillis) * time.Millisecond
	until := time.Now().Add(wait)
	behind, cancel := context.WithTimeout(ctx, wait+hearing/2) // before it is no use to say so
	defer cancel()
	if err := t.catchUp(behind, max(q.Revision, q.AsOf)); err != nil {
		return nil, err
	}
	ctx, stop := context.WithDeadline(ctx, until)
	defer stop()
	a := t.await(ctx, q.Revision, deltasOf(q.Changes), true)
	answer := awaitAnswer{make(map[string]zoneStanding, len(a.zones))}
	for name, s := range a.zones {
		if !s.offline || s.outcome == kds.Acknowledged {
			answer.Zones[name] = zoneStanding{wordFor(s.outcome), s.reason}
		}
	}
	return json.Marshal(answer)
}

// catchUp waits until this replica has what another one has.
func (t *Table) catchUp(ctx context.Context, rev store.Revision) error {
	for {
		head := t.store.Snapshot()
		if head.Revision() >= rev {
			return nil
		}
		select {
		case <-head.Next():
		case <-ctx.Done():
			return fmt.Errorf("it is at revision %d, behind revision %d", head.Revision(), rev)
		}
	}
}

// others is what one wait asks the other replicas that hold zones, each of them one question at a time, and what they have
// answered. Owned by the wait.
type others struct {
	until   time.Time           // the wait's deadline; zero: none
	changes []change            // what is asked about; nil until somebody is
	by      map[string]*replica // by instance; nil while all zones are here
	asking  sync.WaitGroup
}

// replica is one of the others.
type replica struct {
	needed bool  // there is a zone of which it has still to tell
	call   *call // to it that is on its way, nil: none
	// asOf is what this replica had when the question was asked that was answered last. Who has come to that one since, it
	// was not asked about.
	asOf   store.Revision
	zones  map[string]zoneStanding
	reason string // why it does not tell; "": it has, or is about to
}

// call is a question to another replica, repeated while it cannot be asked.
type call struct {
	replica *replica
	cancel  context.CancelFunc
}

// answer is what came of a call.
type answer struct {
	of     *call
	asOf   store.Revision
	zones  map[string]zoneStanding
	reason string // there is none
	again  bool   // the replica is asked once more
}

// outcome is how a zone stands by what its holder has answered since version, which is when the zone's session came there.
func (o *others) outcome(instance string, version store.Revision, zone string) (outcome kds.Outcome, reason string) {
	r := o.by[instance]
	if r == nil {
		r = &replica{}
		if o.by == nil {
			o.by = make(map[string]*replica)
		}
		o.by[instance] = r
	}
	if s, ok := r.zones[zone]; ok {
		if outcome := outcomeOf(s.Outcome); outcome == kds.Acknowledged || version <= r.asOf {
			return outcome, s.Reason
		}
	}
	// One that has answered, and did not know the zone, had lost its session: the record is about to say so.
	if version > r.asOf {
		r.needed = true
	}
	return kds.Pending, r.reason
}

// nobody says that the zones are about to be looked at, and by that who has to be asked.
func (o *others) nobody() {
	for _, r := range o.by {
		r.needed = false
	}
}

// take notes what came of a call.
func (o *others) take(a answer) {
	r := a.of.replica
	if r.call != a.of {
		return // that nobody waits for any more
	}
	r.reason = a.reason
	if !a.again {
		r.call, r.asOf, r.zones = nil, a.asOf, a.zones
		a.of.cancel()
	}
}

// answering reports whether a replica is about to answer.
func (o *others) answering() bool {
	for _, r := range o.by {
		if r.call != nil && r.reason == "" {
			return true
		}
	}
	return false
}

// givenUp says of who still has to answer that it was asked in vain.
func (o *others) givenUp() {
	for _, r := range o.by {
		if r.call != nil && r.reason == "" {
			r.reason = "the instance that it is connected to has not answered"
		}
	}
}

// stop ends all calls.
func (o *others) stop() {
	for _, r := range o.by {
		if r.call != nil {
			r.call.cancel()
		}
	}
	o.asking.Wait()
}

// askOthers asks the replicas that have to be asked and are not, and lets go those that need not any more.
func (a *awaited) askOthers(ctx context.Context) {
	for instance, r := range a.others.by {
		switch {
		case r.needed && r.call == nil:
			if a.others.changes == nil {
				a.others.changes = changesOf(a.deltas)
			}
			// The calls outlive the deadline for as long as they are heard out. All of them end with the wait.
			ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
			c := &call{r, cancel}
			r.call = c
			a.others.asking.Go(func() { a.ask(ctx, c, instance) })
		case !r.needed && r.call != nil:
			r.call.cancel()
			r.call = nil
		}
	}
}

// ask asks one replica until it has answered. It owns nothing of a but what does not change.
func (a *awaited) ask(ctx context.Context, c *call, instance string) {
	for retry := minRetry; ; retry = min(2*retry, maxRetry) {
		told := answer{of: c, asOf: a.table.store.Snapshot().Revision()}
		zones, err := a.standingsAt(ctx, instance, told.asOf)
		if ctx.Err() != nil {
			return
		}
		told.zones = zones
		if err != nil {
			told.reason = fmt.Sprintf("the instance that it is connected to does not tell: %v", err)
			told.again = !errors.Is(err, peers.ErrUnknownCall)
		}
		a.wait.heard(told)
		if !told.again {
			return
		}
		timer := time.NewTimer(retry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// standingsAt asks a replica how the zones stand that it holds.
func (a *awaited) standingsAt(ctx context.Context, instance string, asOf store.Revision) (map[string]zoneStanding, error) {
	if !a.others.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, a.others.until.Add(hearing))
		defer cancel()
	}
	var whole map[string]zoneStanding
	for rest := a.others.changes; whole == nil || len(rest) > 0; {
		part := rest[:min(len(rest), maxChanges)]
		rest = rest[len(part):]
		q := awaitQuestion{
			Revision: a.rev, AsOf: asOf, WaitMillis: max(0, time.Until(a.others.until)-early).Milliseconds(), Changes: part,
		}
		var got awaitAnswer
		if err := a.table.call(ctx, instance, AwaitCall, q, &got); err != nil {
			return nil, err
		}
		if whole == nil {
			if whole = got.Zones; whole == nil {
				return nil, errors.New("its answer says nothing of zones")
			}
			continue
		}
		for zone, s := range whole {
			if other, ok := got.Zones[zone]; ok {
				whole[zone] = s.and(other)
			} else {
				delete(whole, zone) // it has gone meanwhile
			}
		}
	}
	return whole, nil
}

// hearOut lets those who are about to answer do so.
func (a *awaited) hearOut(ctx context.Context) {
	timer := time.NewTimer(hearing)
	defer timer.Stop()
	for a.pending() && a.others.answering() {
		select {
		case <-a.wait.wake:
			a.step(ctx)
		case <-timer.C:
			a.others.givenUp()
			a.look(ctx, true, nil)
			return
		}
	}
}

// call asks another replica one question.
func (t *Table) call(ctx context.Context, instance, call string, question, answer any) error {
	if t.cfg.Peers == nil {
		return peers.ErrUnreachable
	}
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("write the question: %w", err)
	}
	body, err = t.cfg.Peers.Call(ctx, instance, call, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// progressQuestion asks a replica how far zones have got that it holds, or held last.
type progressQuestion struct {
	AsOf  store.Revision `json:"asOf"`
	Zones []string       `json:"zones"`
}

// progressAnswer leaves out the zones of which the replica does not know.
type progressAnswer struct {
	Zones map[string]zoneProgress `json:"zones"`
}

type zoneProgress struct {
	Lag     int       `json:"lag"`
	LastAck time.Time `json:"lastAck,omitzero"`
}

// Progress implements [server.ZoneSessions]. Of a zone that another replica holds, or held last, only that one knows. Each
// is asked once, all at the same time.
func (t *Table) Progress(ctx context.Context, snap *store.Snapshot, zones []string) map[string]server.ZoneProgress {
	var here []string
	elsewhere := make(map[string][]string)
	for _, zone := range zones {
		if h, ok := HolderOf(snap, zone); ok && h.Instance != t.cfg.InstanceID {
			elsewhere[h.Instance] = append(elsewhere[h.Instance], zone)
		} else {
			here = append(here, zone)
		}
	}
	all := t.progress(snap, here)
	if len(elsewhere) == 0 {
		return all
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	var (
		mu    sync.Mutex // guards all
		asked sync.WaitGroup
	)
	for instance, zones := range elsewhere {
		asked.Go(func() {
			var got progressAnswer
			if err := t.call(ctx, instance, ProgressCall, progressQuestion{snap.Revision(), zones}, &got); err != nil {
				t.log.DebugContext(ctx, "how far zones have got is not known", "zones", zones, "holder", instance, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, zone := range zones {
				if p, ok := got.Zones[zone]; ok {
					all[zone] = server.ZoneProgress(p)
				}
			}
		})
	}
	asked.Wait()
	return all
}

// progress says how far zones have got, as far as this process knows.
func (t *Table) progress(snap *store.Snapshot, zones []string) map[string]server.ZoneProgress {
	publishers := make(map[string]Publisher, len(zones))
	all := make(map[string]server.ZoneProgress, len(zones))
	t.mu.Lock()
	for _, name := range zones {
		if z := t.zones[name]; z != nil && z.last != nil {
			publishers[name], all[name] = z.last, server.ZoneProgress{LastAck: z.lastAck}
		}
	}
	t.mu.Unlock()
	for name, publisher := range publishers { // which counts, without the lock
		all[name] = server.ZoneProgress{Lag: publisher.Lag(snap), LastAck: all[name].LastAck}
	}
	return all
}

// AnswerProgress answers another replica that wants to show the zones held here.
func (t *Table) AnswerProgress(ctx context.Context, body []byte) ([]byte, error) {
	var q progressQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("read the question: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	if err := t.catchUp(ctx, q.AsOf); err != nil {
		return nil, err
	}
	answer := progressAnswer{make(map[string]zoneProgress)}
	for name, p := range t.progress(t.store.Snapshot(), q.Zones) {
		answer.Zones[name] = zoneProgress(p)
	}
	return json.Marshal(answer)
}
