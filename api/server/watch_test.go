package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// sseEvent is what a client sees of an event.
type sseEvent struct{ Kind, ID, Data string }

// watcher is a client of a watch.
type watcher struct {
	res  *http.Response
	scan *bufio.Reader
}

// watch opens a watch; a status other than 200 is in the error.
func watch(ctx context.Context, client *http.Client, url, lastID string) (*watcher, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		return nil, &statusError{res.StatusCode, string(body)}
	}
	return &watcher{res, bufio.NewReader(res.Body)}, nil
}

type statusError struct {
	status int
	body   string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

func (w *watcher) next() (sseEvent, error) {
	var ev sseEvent
	for {
		line, err := w.scan.ReadString('\n')
		if err != nil {
			return ev, err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			return ev, nil
		}
		field, value, _ := strings.Cut(line, ": ")
		switch field {
		case "event":
			ev.Kind = value
		case "id":
			ev.ID = value
		case "data":
			ev.Data = value
		default:
			return ev, fmt.Errorf("line %q", line)
		}
	}
}

func (w *watcher) close() { _ = w.res.Body.Close() }

// wants reads events, each given as "kind name revision" with the revision of its id where it has one.
func (w *watcher) wants(t *testing.T, want ...string) {
	t.Helper()
	for _, expected := range want {
		ev, err := w.next()
		if err != nil {
			t.Fatalf("waiting for %q: %v", expected, err)
		}
		var data struct {
			Name     string
			Revision int
		}
		if err := json.Unmarshal([]byte(ev.Data), &data); err != nil {
			t.Fatalf("%v in %q", err, ev.Data)
		}
		name := data.Name
		if ev.Kind == eventBookmark {
			name = strconv.Itoa(data.Revision)
		}
		got := strings.TrimSpace(ev.Kind + " " + name + " " + ev.ID[strings.LastIndexByte(ev.ID, '-')+1:])
		if got != expected {
			t.Fatalf("got %q, want %q", got, expected)
		}
	}
}

// serving is a plane behind a real listener.
func serving(t testing.TB, changes ...func(*Options)) (*plane, *http.Client, string) {
	t.Helper()
	p := newPlane(t, resource.Global, changes...)
	ts := httptest.NewServer(p.srv.Handler())
	t.Cleanup(ts.Close)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	t.Cleanup(client.CloseIdleConnections)
	return p, client, ts.URL
}

func mustWatch(t *testing.T, client *http.Client, url, lastID string) *watcher {
	t.Helper()
	w, err := watch(t.Context(), client, url, lastID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func TestAWatchTellsWhatIsThereAndThenWhatHappens(t *testing.T) {
	p, client, url := serving(t)
	p.want(201, "PUT", "/meshes/a", `{"type":"Mesh","name":"a"}`)
	p.want(201, "PUT", "/meshes/b", `{"type":"Mesh","name":"b"}`)
	w := mustWatch(t, client, url+"/meshes?watch=true", "")
	w.wants(t, "added a", "added b", "bookmark 2 2")
	p.want(201, "PUT", "/meshes/c", `{"type":"Mesh","name":"c"}`)
	w.wants(t, "added c 3")
	p.want(201, "PUT", "/global-secrets/s", `{"type":"GlobalSecret","name":"s","data":"eA=="}`)
	p.want(200, "PUT", "/meshes/a", `{"type":"Mesh","name":"a","labels":{"x":"y"}}`)
	ev, err := w.next()
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(p.want(200, "GET", "/meshes/a", "").Body)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sseEvent{"modified", p.store.ID() + "-5", compact.String()}, ev); diff != "" {
		t.Error(diff)
	}
	p.want(200, "DELETE", "/meshes/b", "")
	if ev, err = w.next(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sseEvent{"deleted", p.store.ID() + "-6", `{"type":"Mesh","name":"b"}`}, ev); diff != "" {
		t.Error(diff)
	}
}

func TestAWatchOfOneMeshTellsNothingOfOthers(t *testing.T) {
	p, client, url := serving(t)
	p.seed(record(t, resource.Mesh, "", "a", "", nil))
	p.seed(record(t, resource.Mesh, "", "b", "", nil))
	timeout := func(mesh, name string) {
		p.want(201, "PUT", "/meshes/"+mesh+"/timeouts/"+name, bodyOf(t, lookup(t, "Timeout"), mesh, name))
	}
	timeout("b", "t1")
	w := mustWatch(t, client, url+"/meshes/a/timeouts?watch=1", "")
	w.wants(t, "bookmark 3 3")
	timeout("b", "t2")
	timeout("a", "t3")
	w.wants(t, "added t3 5")
	p.want(200, "DELETE", "/meshes/b/timeouts/t1", "")
	p.want(200, "DELETE", "/meshes/a/timeouts/t3", "")
	w.wants(t, "deleted t3 7")
}

func TestAWatchFiltersByAPartOfTheName(t *testing.T) {
	p, client, url := serving(t)
	p.seed(record(t, resource.Mesh, "", "blue-1", "", nil), record(t, resource.Mesh, "", "red-1", "", nil))
	w := mustWatch(t, client, url+"/meshes?watch=true&name=blue", "")
	w.wants(t, "added blue-1", "bookmark 1 1")
	p.seed(record(t, resource.Mesh, "", "red-2", "", nil))
	p.seed(record(t, resource.Mesh, "", "blue-2", "", nil), record(t, resource.Mesh, "", "red-3", "", nil))
	w.wants(t, "added blue-2 3")
	insight := &meshv1.ServiceInsight{Services: map[string]*meshv1.ServiceInsight_Service{"web": {}, "api": {}}}
	p.seed(record(t, resource.ServiceInsight, "blue-1", "all-services-blue-1", "", insight))
	mustWatch(t, client, url+"/service-insights?watch=true&name=we", "").wants(t, "added web", "bookmark 4 4")
}

func TestOnlyTheLastEventOfABatchCarriesAnID(t *testing.T) {
	p, client, url := serving(t)
	w := mustWatch(t, client, url+"/meshes?watch=true", "")
	w.wants(t, "bookmark 0 0")
	p.seed(record(t, resource.Mesh, "", "a", "", nil), record(t, resource.Mesh, "", "b", "", nil), record(t, resource.Mesh, "", "c", "", nil))
	w.wants(t, "added a", "added b", "added c 1")
}

func TestAWatchGoesOnWhereItWasLeft(t *testing.T) {
	p, client, url := serving(t)
	p.want(201, "PUT", "/meshes/a", `{"type":"Mesh","name":"a"}`)
	p.want(201, "PUT", "/meshes/b", `{"type":"Mesh","name":"b"}`)
	p.want(200, "DELETE", "/meshes/a", "")
	p.want(201, "PUT", "/meshes/c", `{"type":"Mesh","name":"c"}`)
	p.want(200, "PUT", "/meshes/b", `{"type":"Mesh","name":"b","labels":{"x":"y"}}`)
	id := p.store.ID()
	mustWatch(t, client, url+"/meshes?watch=true", id+"-2").wants(t, "deleted a", "added c", "modified b 5")
	mustWatch(t, client, url+"/meshes?watch=true&lastEventId="+id+"-4", "").wants(t, "modified b 5")
	mustWatch(t, client, url+"/meshes?watch=true&lastEventId="+id+"-1", id+"-4").wants(t, "modified b 5") // the header is newer
	w := mustWatch(t, client, url+"/meshes?watch=true", id+"-5")
	p.want(200, "DELETE", "/meshes/b", "")
	w.wants(t, "deleted b 6")
}

func TestAWatchThatCannotGoOnIsGone(t *testing.T) {
	st, err := store.Open(t.Context(), memory.New(), store.Options{MaxTombstones: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	p, client, url := serving(t, func(o *Options) { o.Store = st })
	p.want(201, "PUT", "/meshes/a", `{"type":"Mesh","name":"a"}`)
	p.want(200, "DELETE", "/meshes/a", "")
	p.want(201, "PUT", "/meshes/b", `{"type":"Mesh","name":"b"}`)
	p.want(201, "PUT", "/meshes/c", `{"type":"Mesh","name":"c"}`)
	id := st.ID()
	for _, tc := range []struct {
		name, id string
		want     int
	}{
		{"a deletion since then was forgotten", id + "-1", 410},
		{"a revision that is still to come", id + "-99", 410},
		{"another store", store.NewID() + "-3", 410},
		{"no id", "x", 400},
		{"no revision", id + "-x", 400},
		{"no store", "-3", 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := watch(t.Context(), client, url+"/meshes?watch=true", tc.id)
			failure, ok := errors.AsType[*statusError](err)
			if !ok || failure.status != tc.want {
				t.Fatalf("got %v, want status %d", err, tc.want)
			}
			causes, _ := object(t, failure.body)["causes"].([]any)
			if len(causes) != 1 || causes[0].(map[string]any)["field"] != "Last-Event-ID" {
				t.Errorf("%s", failure.body)
			}
		})
	}
	mustWatch(t, client, url+"/meshes?watch=true", id+"-3").wants(t, "added c 4")
}

func TestAnIdleWatchSendsBookmarks(t *testing.T) {
	p, client, url := serving(t, func(o *Options) { o.WatchHeartbeat = 10 * time.Millisecond })
	w := mustWatch(t, client, url+"/traffic-logs?watch=true", "")
	w.wants(t, "bookmark 0 0", "bookmark 0 0")
	p.want(201, "PUT", "/meshes/a", `{"type":"Mesh","name":"a"}`)
	for { // it moves on although nothing it tells of happened
		ev, err := w.next()
		if err != nil || ev.Kind != eventBookmark {
			t.Fatal(ev, err)
		}
		if ev.ID == p.store.ID()+"-1" {
			return
		}
	}
}

func TestAWatchOfServicesTellsOfEachService(t *testing.T) {
	p, client, url := serving(t)
	put := func(mesh string, online map[string]uint32) {
		all := map[string]*meshv1.ServiceInsight_Service{}
		for name, n := range online {
			all[name] = &meshv1.ServiceInsight_Service{Dataplanes: &meshv1.ServiceInsight_Service_DataplaneStat{Online: n}}
		}
		p.seed(record(t, resource.ServiceInsight, mesh, "all-services-"+mesh, "", &meshv1.ServiceInsight{Services: all}))
	}
	put("demo", map[string]uint32{"web": 1, "api": 1})
	put("other", map[string]uint32{"web": 1})
	w := mustWatch(t, client, url+"/service-insights?watch=true", "")
	w.wants(t, "added api", "added web", "added web", "bookmark 2 2")
	put("demo", map[string]uint32{"web": 2, "api": 1})
	w.wants(t, "modified web 3")
	put("demo", map[string]uint32{"web": 2, "db": 1})
	w.wants(t, "deleted api", "added db 4")
	p.seed(record(t, resource.ServiceInsight, "demo", "all-services-demo", "", &meshv1.ServiceInsight{}))
	w.wants(t, "deleted db", "deleted web 5")

	id := p.store.ID()
	resumed := mustWatch(t, client, url+"/meshes/other/service-insights?watch=true", id+"-2")
	_, err := watch(t.Context(), client, url+"/service-insights?watch=true", id+"-2")
	if failure, ok := errors.AsType[*statusError](err); !ok || failure.status != http.StatusGone {
		t.Errorf("services changed since: %v", err)
	}
	put("other", map[string]uint32{"web": 1, "db": 1})
	resumed.wants(t, "added db 6")
}

func TestAnswersToAWatchThatIsNotGiven(t *testing.T) {
	p := newPlane(t, resource.Global, func(o *Options) { o.MaxWatches = 0 })
	for _, tc := range []struct {
		name, target string
		want         int
		headers      []string
	}{
		{"a value that means nothing", "/meshes?watch=maybe", 400, nil},
		{"no watch after all", "/meshes?watch=false", 200, nil},
		{"neither events nor JSON accepted", "/meshes?watch=true", 406, []string{"Accept: text/html"}},
		{"events accepted, but no watch", "/meshes", 406, []string{"Accept: text/event-stream"}},
		{"too many", "/meshes?watch=true", 503, []string{"Accept: text/event-stream"}},
		{"no rights", "/global-secrets?watch=true", 403, []string{"Remote: 10.0.0.9:1"}},
		{"an overview, too many", "/zones+insights?watch=true", 503, nil},
		{"an overview, and a value that means nothing", "/zones+insights?watch=maybe", 400, nil},
		{"an overview, and a filter that means nothing", "/dataplanes+insights?watch=true&gateway=maybe", 400, nil},
		{"an overview, and neither events nor JSON accepted", "/zones+insights?watch=true", 406, []string{"Accept: text/html"}},
		{"events accepted, but no watch of an overview", "/zones+insights", 406, []string{"Accept: text/event-stream"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := p.want(tc.want, "GET", tc.target, "", tc.headers...)
			if tc.want == 503 && a.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
	}
}

func TestHeadOfAWatchEnds(t *testing.T) {
	p := newPlane(t, resource.Global)
	a := p.want(200, "HEAD", "/meshes?watch=true", "")
	if a.Header.Get("Content-Type") != "text/event-stream" || a.Body != "" {
		t.Errorf("%+v", a)
	}
}

func TestWithdrawnRightsEndAWatch(t *testing.T) {
	p, client, url := serving(t)
	p.want(201, "PUT", "/global-secrets/a", `{"type":"GlobalSecret","name":"a","data":"eA=="}`)
	w := mustWatch(t, client, url+"/global-secrets?watch=true", "")
	w.wants(t, "added a", "bookmark 1 1")
	p.want(201, "PUT", "/global-secrets/b", `{"type":"GlobalSecret","name":"b","data":"eA=="}`)
	w.wants(t, "added b 2")
	p.srv.opts.LocalhostIsAdmin = false // stands in for a token that is revoked; ordered before the watch reads it by the write that follows
	p.seed(record(t, resource.GlobalSecret, "", "c", "", nil))
	if ev, err := w.next(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, %v", ev, err)
	}
}

func TestAClientThatDoesNotReadIsDropped(t *testing.T) {
	p, client, url := serving(t, func(o *Options) { o.WriteTimeout = 100 * time.Millisecond })
	mustWatch(t, client, url+"/meshes?watch=true", "").wants(t, "bookmark 0 0")
	fat := strings.Repeat("x", 1<<20)
	deadline := time.Now().Add(20 * time.Second)
	for i := 0; p.srv.watches.Load() > 0; i++ {
		if time.Now().After(deadline) {
			t.Fatal("the watch is still open")
		}
		p.do("PUT", "/meshes/a", fmt.Sprintf(`{"type":"Mesh","name":"a","labels":{"n":"%d","x":%q}}`, i, fat))
	}
}

func TestStoppingEndsWatchesAtOnce(t *testing.T) {
	p := newPlane(t, resource.Global, func(o *Options) { o.ShutdownTimeout = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.srv.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	w := mustWatch(t, client, "http://"+p.srv.HTTPAddr().String()+"/meshes?watch=true", "")
	w.wants(t, "bookmark 0 0")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := w.next(); !errors.Is(err, io.EOF) {
		t.Errorf("the watch ended with %v, not cleanly", err)
	}
}

func TestAWatchOutlivesTheTimeoutsOfRequests(t *testing.T) {
	p := newPlane(t, resource.Global, func(o *Options) {
		o.ReadTimeout, o.WriteTimeout, o.WatchHeartbeat = 50*time.Millisecond, 50*time.Millisecond, time.Minute
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.srv.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	w := mustWatch(t, client, "http://"+p.srv.HTTPAddr().String()+"/meshes?watch=true", "")
	w.wants(t, "bookmark 0 0")
	time.Sleep(200 * time.Millisecond)
	p.want(201, "PUT", "/meshes/a", `{"type":"Mesh","name":"a"}`)
	w.wants(t, "added a 1")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchesAreCountedApart(t *testing.T) {
	reg := prometheus.NewRegistry()
	p, client, url := serving(t, func(o *Options) { o.Registerer = reg })
	w := mustWatch(t, client, url+"/meshes?watch=true", "")
	w.wants(t, "bookmark 0 0")
	if got := gauge(t, reg, "meridian_http_watches"); got != 1 {
		t.Errorf("%v watches", got)
	}
	if got := gauge(t, reg, "meridian_http_requests_in_flight"); got != 0 {
		t.Errorf("%v requests in flight", got)
	}
	w.close()
	for p.srv.watches.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	if n := gauge(t, reg, "meridian_http_request_duration_seconds"); n != 0 {
		t.Errorf("the duration of a watch was observed: %v", n)
	}
}

// gauge returns the sum of the values of a family, of a histogram its count.
func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// follower rebuilds the state of a list from a watch that breaks off again and again.
type follower struct {
	urls   []string // of replicas of a plane: each connection is to one of them
	client *http.Client
	rng    *rand.Rand

	state    map[string]string         // by name: the resource
	versions map[string]store.Revision // by name: of the last event, for the order
	atID     map[string]store.Revision // the same at lastID
	lastID   string
	relists  int
	resumes  int
	// check compares the state with the server's at a revision.
	check func(state map[string]string, id string) error
}

// run follows until the state at a revision of at least *until has been checked.
func (f *follower) run(ctx context.Context, until func(id string) bool) error {
	for {
		done, err := f.once(ctx, until)
		if failure, ok := errors.AsType[*statusError](err); ok && failure.status == http.StatusGone {
			f.lastID = ""
			f.relists++
			f.atID = nil
			continue
		}
		if done || err != nil {
			return err
		}
	}
}

// once follows one connection until it is cut by choice.
func (f *follower) once(ctx context.Context, until func(id string) bool) (bool, error) {
	w, err := watch(ctx, f.client, f.urls[f.rng.IntN(len(f.urls))], f.lastID)
	if err != nil {
		return false, err
	}
	defer w.close()
	if len(f.urls) > 1 { // another replica may be behind what this client has seen: an id tells it how far that was
		f.versions = map[string]store.Revision{}
		maps.Copy(f.versions, f.atID)
	}
	pending := maps.Clone(f.state) // what was applied since the last id counts only with the next
	if f.lastID == "" {
		pending = map[string]string{}
	} else {
		f.resumes++
	}
	for {
		if f.rng.IntN(40) == 0 {
			if f.rng.IntN(3) == 0 { // long enough to be too late
				time.Sleep(time.Duration(f.rng.IntN(40)) * time.Millisecond)
			}
			return false, nil
		}
		ev, err := w.next()
		if errors.Is(err, io.EOF) {
			return false, nil // too slow: what came next was forgotten meanwhile
		}
		if err != nil {
			return false, fmt.Errorf("read event: %w", err)
		}
		if err := f.apply(pending, ev); err != nil {
			return false, err
		}
		if ev.ID == "" {
			continue
		}
		f.state, f.lastID, f.atID = maps.Clone(pending), ev.ID, maps.Clone(f.versions)
		if err := f.check(f.state, ev.ID); err != nil {
			return false, err
		}
		if until(ev.ID) {
			return true, nil
		}
	}
}

func (f *follower) apply(state map[string]string, ev sseEvent) error {
	var data struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	}
	if err := json.Unmarshal([]byte(ev.Data), &data); err != nil {
		return fmt.Errorf("%w in %q", err, ev.Data)
	}
	switch ev.Kind {
	case eventAdded, eventModified:
		n, _ := strconv.ParseUint(data.Labels["n"], 10, 64)
		if v := store.Revision(n); v < f.versions[data.Name] {
			return fmt.Errorf("%s went back from %d to %d", data.Name, f.versions[data.Name], v)
		}
		f.versions[data.Name] = store.Revision(n)
		if _, known := state[data.Name]; ev.Kind == eventModified && !known {
			return fmt.Errorf("%s was modified before it was added", data.Name)
		}
		state[data.Name] = data.Labels["n"]
	case eventDeleted:
		delete(state, data.Name)
	case eventBookmark:
	default:
		return fmt.Errorf("event %q", ev.Kind)
	}
	return nil
}

// history knows the state of the meshes at each revision, as the store itself has it.
type history struct {
	mu   sync.Mutex
	byID map[string]map[string]string
}

// record follows the store's snapshots; each must be seen, so that every id of an event is known.
func (h *history) record(st *store.Store, stop <-chan struct{}) {
	for {
		snap := st.Snapshot()
		state := map[string]string{}
		for rec := range snap.List(string(resource.Mesh), "") {
			state[rec.Key.Name] = rec.Labels["n"]
		}
		h.mu.Lock()
		h.byID[fmt.Sprintf("%s-%d", st.ID(), snap.Revision())] = state
		h.mu.Unlock()
		select {
		case <-snap.Next():
		case <-stop:
			return
		}
	}
}

// check compares a state with the history, where the history has seen that revision.
func (h *history) check(state map[string]string, id string) error {
	h.mu.Lock()
	want, ok := h.byID[id]
	h.mu.Unlock()
	if !ok {
		return nil
	}
	if diff := cmp.Diff(want, state); diff != "" {
		return fmt.Errorf("at %s: %s", id, diff)
	}
	return nil
}

// Writers change, delete and make meshes at random; watchers lose their connection at random and go on from the last
// id they were given. Deletions are soon forgotten, so that some of them come too late and have to start over. At every
// id the state a watcher has rebuilt must be the store's at that revision.
func TestWatchersMissNothing(t *testing.T) {
	followWriters(t, nil, memory.New())
}

// Nor do those who are led to another replica with each connection, while others write on all of them.
func TestWatchersOfReplicasMissNothing(t *testing.T) {
	db := storetest.NewDatabase()
	followWriters(t, nil, db.Replica(), db.Replica())
}

// The test above finds these faults of a watch, each a way to get it wrong.
func TestTheWatchTestFindsFaults(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault func(ev sseEvent, n int) (sseEvent, bool) // false: the event is lost
	}{
		{"a lost change", func(ev sseEvent, n int) (sseEvent, bool) {
			return ev, n%50 != 49 || ev.Kind == eventBookmark
		}},
		{"a deletion that is not told", func(ev sseEvent, n int) (sseEvent, bool) {
			return ev, ev.Kind != eventDeleted || n%5 != 0
		}},
		{"an id that runs ahead of its events", func(ev sseEvent, _ int) (sseEvent, bool) {
			if i := strings.LastIndexByte(ev.ID, '-'); i > 0 {
				rev, _ := strconv.Atoi(ev.ID[i+1:])
				ev.ID = fmt.Sprintf("%s-%d", ev.ID[:i], rev+2)
			}
			return ev, true
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// One run may end before the fault has shown, on a machine that is busy.
			for range 5 {
				if err := followWriters(t, tc.fault, memory.New()); err != nil {
					t.Log(err)
					return
				}
			}
			t.Error("the fault went unnoticed")
		})
	}
}

// followWriters runs writers and watchers on planes that share what the backends lead to. With a fault, which each watch shows
// its client, it returns what was found; without one it fails the test.
func followWriters(t *testing.T, fault func(sseEvent, int) (sseEvent, bool), backends ...store.Backend) error {
	t.Helper()
	const writers, watchers, writes, names = 4, 6, 400, 12
	var planes []*plane
	var urls []string
	var client *http.Client
	for _, b := range backends {
		st, err := store.Open(t.Context(), b, store.Options{MaxTombstones: 4})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = st.Close() }()
		p, c, url := serving(t, func(o *Options) { o.Store = st; o.WatchHeartbeat = 20 * time.Millisecond })
		if fault != nil {
			ts := httptest.NewServer(faulty(p.srv.Handler(), fault))
			defer ts.Close()
			url = ts.URL
		}
		planes, urls, client = append(planes, p), append(urls, url+"/meshes?watch=true"), c
	}
	st := planes[0].store
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	h := &history{byID: map[string]map[string]string{}}
	stop := make(chan struct{})
	var recording sync.WaitGroup
	for _, p := range planes {
		recording.Go(func() { h.record(p.store, stop) })
	}

	var writing, following sync.WaitGroup
	for i := range writers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		writing.Go(func() {
			for n := range writes {
				p := planes[rng.IntN(len(planes))]
				name := fmt.Sprintf("m%d-%d", i, rng.IntN(names)) // each writer has its own, so that n grows per name
				if rng.IntN(4) == 0 {
					p.do("DELETE", "/meshes/"+name, "")
				} else {
					p.do("PUT", "/meshes/"+name, fmt.Sprintf(`{"type":"Mesh","name":%q,"labels":{"n":"%d"}}`, name, n+1))
				}
				time.Sleep(time.Duration(rng.IntN(400)) * time.Microsecond)
			}
		})
	}
	var ended sync.Mutex // guards final
	final := ""
	until := func(id string) bool {
		ended.Lock()
		defer ended.Unlock()
		return final != "" && (id == final || fault != nil)
	}
	failures := make(chan error, watchers)
	all := make([]*follower, watchers)
	for i := range all {
		all[i] = &follower{
			urls: urls, client: client, rng: rand.New(rand.NewPCG(seed, uint64(100+i))),
			state: map[string]string{}, versions: map[string]store.Revision{}, check: h.check,
		}
		following.Go(func() { failures <- all[i].run(t.Context(), until) })
	}
	writing.Wait()
	ended.Lock()
	latest, err := st.Latest(t.Context())
	if err != nil {
		t.Error(err)
	}
	final = fmt.Sprintf("%s-%d", st.ID(), latest.Revision())
	ended.Unlock()
	following.Wait()
	close(stop)
	recording.Wait()
	close(failures)
	relists, resumes := 0, 0
	for err := range failures {
		if err != nil && fault != nil {
			return err
		}
		if err != nil {
			t.Error(err)
		}
	}
	if fault != nil {
		return nil
	}
	want := map[string]string{}
	for rec := range st.Snapshot().List(string(resource.Mesh), "") {
		want[rec.Key.Name] = rec.Labels["n"]
	}
	for _, f := range all {
		relists, resumes = relists+f.relists, resumes+f.resumes
		if diff := cmp.Diff(want, f.state); diff != "" {
			t.Errorf("in the end: %s", diff)
		}
	}
	t.Logf("%d revisions, %d resumed watches, %d found that they were too late", st.Snapshot().Revision(), resumes, relists)
	if relists == 0 || resumes == 0 {
		t.Error("the test has not seen a watch resume and one that was too late")
	}
	return nil
}

// faulty serves watches with a fault.
func faulty(h http.Handler, fault func(sseEvent, int) (sseEvent, bool)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&faultyWriter{ResponseWriter: w, fault: fault}, r)
	})
}

type faultyWriter struct {
	http.ResponseWriter
	fault func(sseEvent, int) (sseEvent, bool)
	n     int
}

func (w *faultyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *faultyWriter) Write(p []byte) (int, error) {
	in := &watcher{scan: bufio.NewReader(bytes.NewReader(p))}
	for {
		ev, err := in.next()
		if err != nil {
			return len(p), nil //nolint:nilerr // the end
		}
		w.n++
		ev, keep := w.fault(ev, w.n)
		if !keep {
			continue
		}
		if ev.ID != "" {
			ev.ID = "\nid: " + ev.ID
		}
		if _, err := fmt.Fprintf(w.ResponseWriter, "event: %s%s\ndata: %s\n\n", ev.Kind, ev.ID, ev.Data); err != nil {
			return 0, err
		}
	}
}
