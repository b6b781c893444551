package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
)

// call is a request on one resource.
type call struct {
	Method, Key, Value string
	Match, NoneMatch   string // headers; "" is none
	match, noneMatch   condition
}

// result is its answer; Status 0: none came, so that it may have been done or not, or be done later.
type result struct {
	Status     int
	Tag, Value string
}

// held is the state of one resource. Tag is "" of one that was written without an answer, and is not yet known.
type held struct {
	Exists     bool
	Tag, Value string
}

// linearizable is what clients may see of one resource. A resource that nobody knows the tag of matches no tag: who has
// one has it from an answer, and the state would be known by it.
func linearizable() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, op := range history {
				key := op.Input.(call).Key
				byKey[key] = append(byKey[key], op)
			}
			parts := make([][]porcupine.Operation, 0, len(byKey))
			for _, part := range byKey {
				parts = append(parts, part)
			}
			return parts
		},
		Init: func() []any { return []any{held{}} },
		Step: func(state, input, output any) []any { return step(state.(held), input.(call), output.(result)) },
	}
	return model.ToModel()
}

// step yields the states that may follow.
func step(s held, c call, r result) []any {
	same, never := []any{s}, []any(nil)
	tag := s.Tag
	if s.Exists && tag == "" {
		tag = `"unknown"`
	}
	holds := preconditions{c.match, c.noneMatch}.hold(tag)
	switch {
	case r.Status == 0: // an answer that does not come says nothing
		switch {
		case c.Method == http.MethodGet || !holds:
		case c.Method == http.MethodDelete && s.Exists:
			return []any{s, held{}}
		case c.Method == http.MethodPut && (!s.Exists || s.Value != c.Value):
			return []any{s, held{Exists: true, Value: c.Value}}
		}
		return same
	case r.Status == http.StatusPreconditionFailed:
		if holds || c.Method == http.MethodDelete && !s.Exists {
			return never
		}
		return same
	case r.Status == http.StatusNotFound:
		if s.Exists {
			return never
		}
		return same
	case c.Method == http.MethodGet:
		if !s.Exists || s.Tag != "" && s.Tag != r.Tag || r.Status == http.StatusOK && s.Value != r.Value {
			return never
		}
		if c.noneMatch.matches(r.Tag, true) != (r.Status == http.StatusNotModified) {
			return never
		}
		return []any{held{true, r.Tag, s.Value}}
	case !holds:
		return never
	case c.Method == http.MethodDelete:
		if !s.Exists {
			return never
		}
		return []any{held{}}
	case s.Exists != (r.Status == http.StatusOK):
		return never
	case s.Exists && s.Value == c.Value: // nothing changes, so the tag stays
		if s.Tag != "" && s.Tag != r.Tag {
			return never
		}
	case s.Tag == r.Tag:
		return never
	}
	return []any{held{true, r.Tag, c.Value}}
}

// recordHistory runs clients that read and write three resources over HTTP, on a store on disk, and records what they see.
// wrap stands between them and the API. Some requests are given up before their answer.
func recordHistory(t *testing.T, seed uint64, wrap func(http.Handler) http.Handler) []porcupine.Operation {
	t.Helper()
	const clients, calls, keys = 6, 120, 3
	backend, err := bolt.Open(filepath.Join(t.TempDir(), "store"), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), backend, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	p := newPlane(t, resource.Global, func(o *Options) { o.Store = st })
	p.seed(record(t, resource.Mesh, "", "demo", "", nil))
	ts := httptest.NewServer(wrap(p.srv.Handler()))
	defer ts.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()

	start := time.Now()
	histories := make([][]porcupine.Operation, clients)
	var wg sync.WaitGroup
	for id := range clients {
		rng := rand.New(rand.NewPCG(seed, uint64(id)))
		wg.Go(func() {
			seen := map[string]string{} // the newest tag this client knows, by key
			for n := range calls {
				c := randomCall(rng, fmt.Sprint("k", rng.IntN(keys)), fmt.Sprintf("%d-%d", id, n), seen)
				patience := time.Minute
				if rng.IntN(40) == 0 {
					patience = time.Duration(rng.IntN(3000)) * time.Microsecond
				}
				op := porcupine.Operation{ClientId: id, Input: c, Call: int64(time.Since(start))}
				r := c.do(t, client, ts.URL, patience)
				op.Output, op.Return = r, int64(time.Since(start))
				if r.Status == 0 {
					op.Return = math.MaxInt64
				}
				if r.Tag != "" {
					seen[c.Key] = r.Tag
				}
				histories[id] = append(histories[id], op)
			}
		})
	}
	wg.Wait()
	var all []porcupine.Operation
	for _, h := range histories {
		all = append(all, h...)
	}
	return all
}

func randomCall(rng *rand.Rand, key, value string, seen map[string]string) call {
	c := call{Method: []string{"GET", "GET", "PUT", "PUT", "PUT", "DELETE"}[rng.IntN(6)], Key: key, Value: value}
	if rng.IntN(5) == 0 {
		c.Value = "common" // so that some writes change nothing
	}
	tag := seen[key]
	switch kind := rng.IntN(6); {
	case c.Method == http.MethodGet && kind < 3 && tag != "":
		c.NoneMatch = tag
	case c.Method == http.MethodGet:
	case kind < 3 && tag != "":
		c.Match = tag
	case kind == 3:
		c.NoneMatch = "*"
	case kind == 4:
		c.Match = "*"
	}
	if c.Match != "" {
		c.match, _ = parseCondition([]string{c.Match})
	}
	if c.NoneMatch != "" {
		c.noneMatch, _ = parseCondition([]string{c.NoneMatch})
	}
	return c
}

// do sends the request; an answer that says nothing about the resource counts as none.
func (c call) do(t *testing.T, client *http.Client, base string, patience time.Duration) result {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	body := ""
	if c.Method == http.MethodPut {
		body = fmt.Sprintf(`{"type":"TrafficLog","mesh":"demo","name":%q,"labels":{"n":%q},
			"sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":"*"}}]}`, c.Key, c.Value)
	}
	req, err := http.NewRequestWithContext(ctx, c.Method, base+"/meshes/demo/traffic-logs/"+c.Key, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return result{}
	}
	req.Header.Set("Content-Type", "application/json")
	if c.Match != "" {
		req.Header.Set("If-Match", c.Match)
	}
	if c.NoneMatch != "" {
		req.Header.Set("If-None-Match", c.NoneMatch)
	}
	res, err := client.Do(req)
	if err != nil {
		return result{}
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode == http.StatusServiceUnavailable {
		return result{}
	}
	r := result{Status: res.StatusCode, Tag: res.Header.Get("ETag")}
	switch res.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNotModified, http.StatusNotFound, http.StatusPreconditionFailed:
	default:
		t.Errorf("%s %s: %d %s", c.Method, c.Key, res.StatusCode, raw)
	}
	if c.Method == http.MethodGet && r.Status == http.StatusOK {
		var doc struct{ Labels map[string]string }
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Error(err)
		}
		r.Value = doc.Labels["n"]
	}
	return r
}

func judge(t *testing.T, history []porcupine.Operation) porcupine.CheckResult {
	t.Helper()
	unanswered, failed := 0, 0
	for _, op := range history {
		switch op.Output.(result).Status {
		case 0:
			unanswered++
		case http.StatusPreconditionFailed:
			failed++
		}
	}
	t.Logf("%d requests, %d without an answer, %d conditions that did not hold", len(history), unanswered, failed)
	return porcupine.CheckOperationsTimeout(linearizable(), history, time.Minute)
}

// What concurrent clients see of reads, writes and conditions is what they would see if the requests had been carried
// out one by one, each at some instant between its beginning and its answer.
func TestRequestsAreLinearizable(t *testing.T) {
	for range 5 {
		seed := rand.Uint64()
		history := recordHistory(t, seed, func(h http.Handler) http.Handler { return h })
		if got := judge(t, history); got != porcupine.Ok {
			t.Fatalf("seed %d: %s", seed, got)
		}
	}
}

// The test above finds these faults.
func TestTheLinearizabilityTestFindsFaults(t *testing.T) {
	for _, tc := range []struct {
		name string
		wrap func(http.Handler) http.Handler
	}{
		{"a condition that is checked before the commit only", checkedBefore},
		{"a read that is stale", staleReads},
		{"a write that a slower one undoes", lostUpdates},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 10 {
				if judge(t, recordHistory(t, rand.Uint64(), tc.wrap)) == porcupine.Illegal {
					return
				}
			}
			t.Error("the fault went unnoticed")
		})
	}
}

// within answers a request of the wrapper's own.
func within(h http.Handler, r *http.Request, method string, body []byte) *httptest.ResponseRecorder {
	inner := r.Clone(context.WithoutCancel(r.Context()))
	inner.Method, inner.Body, inner.ContentLength = method, io.NopCloser(bytes.NewReader(body)), int64(len(body))
	inner.Header = http.Header{"Content-Type": {"application/json"}}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, inner)
	return w
}

func checkedBefore(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if pre, err := preconditionsOf(r); err == nil && r.Method != http.MethodGet && pre.set() {
			now := within(h, r, http.MethodGet, nil)
			if now.Code == http.StatusOK || r.Method == http.MethodPut {
				if !pre.hold(now.Header().Get("ETag")) {
					w.WriteHeader(http.StatusPreconditionFailed)
					return
				}
				r.Header.Del("If-Match")
				r.Header.Del("If-None-Match")
			}
		}
		h.ServeHTTP(w, r)
	})
}

func staleReads(h http.Handler) http.Handler {
	var mu sync.Mutex
	kept := map[string]*httptest.ResponseRecorder{}
	n := 0
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Header.Get("If-None-Match") != "" {
			h.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		if n++; kept[r.URL.Path] == nil || n%4 == 0 {
			kept[r.URL.Path] = within(h, r, http.MethodGet, nil)
		}
		answer := kept[r.URL.Path]
		mu.Unlock()
		if tag := answer.Header().Get("ETag"); tag != "" {
			w.Header().Set("ETag", tag)
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})
}

func lostUpdates(h http.Handler) http.Handler {
	var mu sync.Mutex
	n := 0
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		faulty := r.Method == http.MethodPut && n%20 == 0
		mu.Unlock()
		before := within(h, r, http.MethodGet, nil)
		h.ServeHTTP(w, r)
		if faulty && before.Code == http.StatusOK {
			within(h, r, http.MethodPut, before.Body.Bytes())
		}
	})
}
