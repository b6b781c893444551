package history

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// list is where the resources are that clients write. Their label n is their value.
const list = "/meshes/default/traffic-logs"

// Recorder makes calls and follows watches at replicas, and records what it sees.
type Recorder struct {
	Replicas []string // where their APIs are
	Seed     uint64
	Clients  int
	Keys     int // written at a time
	// Epoch is after what time other keys take their place, so that the calls on each stay few enough to be judged.
	Epoch time.Duration
	// Patience bounds how long the replicas may take to agree at the end.
	Patience time.Duration

	http    *http.Client
	started time.Time
	storeID atomic.Pointer[string] // of all tags and ids

	mu         sync.Mutex // guards what follows
	calls      []*Call
	unexpected error // the first
}

// Run lets clients write and watches follow until disturb returns, which leaves all in order, and then until all replicas are of
// one mind. The history is what there is of it also when that fails.
func (r *Recorder) Run(ctx context.Context, disturb func()) (*History, error) {
	r.started = time.Now()
	r.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * r.Clients}}
	defer r.http.CloseIdleConnections()
	h := &History{}
	watching, unwatch := context.WithCancel(ctx)
	var watches sync.WaitGroup
	defer watches.Wait()
	defer unwatch()
	var revisions []*atomic.Uint64
	for i := range len(r.Replicas) + 1 {
		w := &Watch{Name: fmt.Sprint("watch of replica ", i)}
		if i == len(r.Replicas) {
			w.Name = "watch of any replica"
		}
		f := &follower{Recorder: r, watch: w, replica: i, rng: r.rng(uint64(i) + 1000)}
		h.Watches, revisions = append(h.Watches, w), append(revisions, &f.revision)
		watches.Go(func() { f.run(watching) })
	}
	writing, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for id := range r.Clients {
		clients.Go(func() { r.client(writing, id) })
	}
	disturb()
	stop()
	clients.Wait()

	patient, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	err := r.agree(patient, h, revisions)
	unwatch()
	watches.Wait()
	if err == nil {
		h.Final = r.readAll()
	}
	h.Calls = r.calls
	return h, errors.Join(r.unexpected, err)
}

func (r *Recorder) rng(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(r.Seed, stream)) }

// agree writes once more, and waits until every watch has that, and so every replica.
func (r *Recorder) agree(ctx context.Context, h *History, revisions []*atomic.Uint64) error {
	var last *Call
	for i := 0; last == nil || last.Outcome != Done; i++ {
		if i > 0 && !pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("no replica takes writes again: %s", last)
		}
		last = r.do(&Call{Client: -1, Replica: i % len(r.Replicas), Method: "PUT", Key: "last", Value: fmt.Sprint("last-", i)})
	}
	for i, revision := range revisions {
		for revision.Load() < last.Version {
			if !pause(ctx, 5*time.Millisecond) {
				return fmt.Errorf("%s has come to revision %d, not to %d", h.Watches[i].Name, revision.Load(), last.Version)
			}
		}
	}
	return nil
}

// pause returns false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// readAll reads every key at every replica.
func (r *Recorder) readAll() []*Call {
	var all []*Call
	for key := range byKey(r.calls) {
		for replica := range r.Replicas {
			all = append(all, r.request(&Call{Client: -1, Replica: replica, Method: "GET", Key: key}))
		}
	}
	return all
}

// client calls replicas at random until ctx ends.
func (r *Recorder) client(ctx context.Context, id int) {
	rng := r.rng(uint64(id))
	seen := map[string]uint64{}
	for n := 0; ctx.Err() == nil; n++ {
		epoch := int(time.Since(r.started) / r.Epoch)
		c := &Call{
			Client: id, Replica: rng.IntN(len(r.Replicas)), Method: []string{"GET", "PUT", "PUT", "PUT", "DELETE"}[rng.IntN(5)],
			Key: fmt.Sprintf("k%d-%d", epoch, rng.IntN(r.Keys)),
		}
		if c.Method == "PUT" {
			c.Value = fmt.Sprintf("%d-%d", id, n)
		}
		switch kind := rng.IntN(5); {
		case c.Method == "GET":
		case kind < 3:
			c.Match = seen[c.Key]
		case kind == 3 && c.Method == "PUT":
			c.IfAbsent = true
		}
		r.do(c)
		if c.Version != 0 {
			seen[c.Key] = c.Version
		}
		if c.Outcome == Refused || c.Outcome == Unknown {
			pause(ctx, 10*time.Millisecond)
		}
		pause(ctx, time.Duration(rng.IntN(4000))*time.Microsecond)
	}
}

// do makes a call and records it.
func (r *Recorder) do(c *Call) *Call {
	r.request(c)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, c)
	return c
}

// fail notes what no replica should answer.
func (r *Recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unexpected == nil {
		r.unexpected = err
	}
}

const body = `{"type":"TrafficLog","mesh":"default","name":%q,"labels":{"n":%q},` +
	`"sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":"*"}}]}`

// resource is what is read of one.
type resource struct {
	Name   string
	Labels struct{ N string }
}

// request makes a call. It waits longer than a replica may take that can answer at all.
func (r *Recorder) request(c *Call) *Call {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	send := ""
	if c.Method == "PUT" {
		send = fmt.Sprintf(body, c.Key, c.Value)
	}
	req, err := http.NewRequestWithContext(ctx, c.Method, r.Replicas[c.Replica]+list+"/"+c.Key, strings.NewReader(send))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.Match != 0 {
		req.Header.Set("If-Match", fmt.Sprintf(`"%s-%d"`, *r.storeID.Load(), c.Match))
	}
	if c.IfAbsent {
		req.Header.Set("If-None-Match", "*")
	}
	c.Began = time.Since(r.started)
	resp, err := r.http.Do(req)
	var answer []byte
	if err == nil {
		answer, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	c.Ended = time.Since(r.started)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		c.Outcome = Refused // it was not sent
	} else if err != nil {
		c.Outcome = Unknown
	} else if err := r.take(c, resp, answer); err != nil {
		r.fail(fmt.Errorf("%s: %s %s: %w", c, resp.Status, answer, err))
	}
	return c
}

// take reads an answer.
func (r *Recorder) take(c *Call, resp *http.Response, answer []byte) error {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
		if c.Method == "DELETE" {
			return nil
		}
		var err error
		if c.Version, err = r.version(strings.Trim(resp.Header.Get("ETag"), `"`)); err != nil || c.Method == "PUT" {
			return err
		}
		var got resource
		err = json.Unmarshal(answer, &got)
		c.Value = got.Labels.N
		return err
	case http.StatusNotFound:
		c.Outcome = Absent
	case http.StatusPreconditionFailed:
		c.Outcome = Mismatch
	case http.StatusServiceUnavailable:
		if resp.Header.Get("Retry-After") == "" {
			return errors.New("no Retry-After")
		}
		c.Outcome = Refused
		if strings.Contains(string(answer), "may have stored") {
			c.Outcome = Unknown
		}
	default:
		return errors.New("unexpected")
	}
	return nil
}

// version is the number of a tag or an id, which must be of the one store.
func (r *Recorder) version(text string) (uint64, error) {
	dash := max(strings.LastIndexByte(text, '-'), 0)
	id, number := text[:dash], strings.TrimPrefix(text[dash:], "-")
	r.storeID.CompareAndSwap(nil, &id)
	if *r.storeID.Load() != id {
		return 0, fmt.Errorf("%q is not of store %s", text, *r.storeID.Load())
	}
	return strconv.ParseUint(number, 10, 64)
}

// follower follows a watch over many connections.
type follower struct {
	*Recorder
	watch    *Watch
	replica  int // the number of replicas: another each time
	rng      *rand.Rand
	lastID   string
	revision atomic.Uint64
}

func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := f.once(ctx); err != nil {
			f.fail(fmt.Errorf("%s: %w", f.watch.Name, err))
			return
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// once follows one connection until it ends, by chance or by choice.
func (f *follower) once(ctx context.Context) error {
	replica := f.replica
	if replica == len(f.Replicas) {
		replica = f.rng.IntN(replica)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.Replicas[replica]+list+"?watch=true", http.NoBody)
	if err != nil {
		return err
	}
	if f.lastID != "" {
		req.Header.Set("Last-Event-ID", f.lastID)
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return nil //nolint:nilerr // the replica is down: the next attempt may succeed
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusGone:
		f.lastID = ""
		f.watch.Events = append(f.watch.Events, Event{Kind: "lost", At: time.Since(f.started)})
		return nil
	case resp.StatusCode == http.StatusServiceUnavailable:
		return nil
	case resp.StatusCode != http.StatusOK:
		return errors.New(resp.Status)
	case f.lastID != "":
		f.watch.Resumed++
	}
	lines := bufio.NewReader(resp.Body)
	for f.rng.IntN(300) > 0 {
		e, id, err := f.read(lines)
		if err != nil || e.Kind == "" {
			return err
		}
		f.watch.Events = append(f.watch.Events, e)
		if id != "" {
			f.lastID = id
			f.revision.Store(e.Revision)
		}
	}
	return nil
}

// read returns the next event; none when the connection ends.
func (f *follower) read(lines *bufio.Reader) (e Event, id string, err error) {
	var got resource
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return Event{}, "", nil //nolint:nilerr // half an event is none
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "event":
			e.Kind = value
		case "id":
			id = value
			if e.Revision, err = f.version(value); err != nil {
				return e, id, err
			}
		case "data":
			if err := json.Unmarshal([]byte(value), &got); err != nil {
				return e, id, fmt.Errorf("%w in %q", err, value)
			}
		case "":
			e.Key, e.Value, e.At = got.Name, got.Labels.N, time.Since(f.started)
			return e, id, nil
		}
	}
}
