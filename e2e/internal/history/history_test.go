package history_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/e2e/internal/history"
)

// fake is a plane of three replicas in memory. Each shows a prefix of one log, and writes at its end.
type fake struct {
	bug string

	mu    sync.Mutex // guards what follows
	n     int
	log   []change
	shown [3]int // how much of the log each replica shows
	wake  chan struct{}
}

type change struct {
	key, value string // no value: deleted
}

// has returns the version and value of a key in a prefix of the log.
func (f *fake) has(key string, prefix int) (version int, value string) {
	for i := prefix - 1; i >= 0; i-- {
		if f.log[i].key == key {
			return i + 1, f.log[i].value
		}
	}
	return 0, ""
}

// every is true each kth time it is asked with that bug.
func (f *fake) every(k int, bug string) bool {
	if f.bug != bug {
		return false
	}
	f.n++
	return f.n%k == 0
}

func (f *fake) ServeHTTP(replica int, w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") != "" {
		f.watch(replica, w, r)
		return
	}
	key := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	f.mu.Lock()
	defer f.mu.Unlock()
	if lag := rand.IntN(3); len(f.log)-lag > f.shown[replica] {
		f.shown[replica] = len(f.log) - lag
	}
	if r.Method == http.MethodGet {
		prefix := f.shown[replica]
		if f.every(20, "shows an older state now and then") {
			prefix = max(0, prefix-10)
		}
		if f.bug == "shows what is not committed yet" && len(f.log) > 20 && rand.IntN(10) == 0 {
			w.Header().Set("ETag", fmt.Sprintf(`"id-%d"`, len(f.log)+1))
			_, _ = fmt.Fprint(w, `{"labels":{"n":"0-1000000"}}`)
			return
		}
		version, value := f.has(key, prefix)
		if value == "" || replica == 1 && key == "k0-1" && f.bug == "lacks a resource" {
			http.Error(w, "", http.StatusNotFound)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"id-%d"`, version))
		_, _ = fmt.Fprintf(w, `{"labels":{"n":%q}}`, value)
		return
	}
	decisive := len(f.log)
	if f.bug == "decides on its own state" || r.Method == http.MethodDelete && f.bug == "says from its own state that there is nothing to delete" {
		decisive = f.shown[replica]
	}
	version, value := f.has(key, decisive)
	match := r.Header.Get("If-Match")
	switch {
	case value == "" && r.Method == http.MethodDelete:
		http.Error(w, "", http.StatusNotFound)
		return
	case match != "" && (value == "" || match != fmt.Sprintf(`"id-%d"`, version)), r.Header.Get("If-None-Match") != "" && value != "":
		http.Error(w, "", http.StatusPreconditionFailed)
		return
	}
	var doc struct{ Labels struct{ N string } }
	if r.Method == http.MethodPut {
		_ = json.NewDecoder(r.Body).Decode(&doc)
	}
	if !f.every(20, "loses a write that it acknowledged") {
		f.log = append(f.log, change{key, doc.Labels.N})
	}
	close(f.wake)
	f.wake = make(chan struct{})
	f.shown[replica] = len(f.log)
	version = len(f.log)
	if f.every(30, "answers with a version that another write has") {
		version--
	}
	if f.every(20, "stores what it refuses") || rand.IntN(100) == 0 {
		w.Header().Set("Retry-After", "1")
		answer := "it may have stored it"
		if f.bug == "stores what it refuses" {
			answer = "no"
		}
		http.Error(w, answer, http.StatusServiceUnavailable)
		return
	}
	if r.Method == http.MethodPut {
		w.Header().Set("ETag", fmt.Sprintf(`"id-%d"`, version))
	}
}

func (f *fake) watch(replica int, w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.Atoi(strings.TrimPrefix(r.Header.Get("Last-Event-ID"), "id-"))
	known := map[string]bool{}
	for {
		f.mu.Lock()
		if after > 0 && len(known) == 0 && f.bug == "goes on with a watch from where it is itself" {
			after = max(after, len(f.log))
		}
		known["resumed"] = true
		f.shown[replica] = len(f.log)
		news, wake := f.log[min(after, len(f.log)):], f.wake
		var out strings.Builder
		for i, c := range news {
			kind := "added"
			if known[c.key] {
				kind = "modified"
			}
			if c.value == "" {
				kind = "deleted"
			}
			known[c.key] = true
			if f.every(30, "leaves out an event of a watch") || kind == "deleted" && f.every(5, "leaves out a deletion in a watch") {
				continue
			}
			id := after + i + 1
			if f.bug == "gives an event the id of a later one" {
				id = len(f.log) + 1
			}
			_, _ = fmt.Fprintf(&out, "event: %s\nid: id-%d\ndata: {\"name\":%q,\"labels\":{\"n\":%q}}\n\n", kind, id, c.key, c.value)
		}
		after += len(news)
		f.mu.Unlock()
		if _, err := fmt.Fprint(w, out.String()); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

// record runs clients against a fake for a moment.
func record(t *testing.T, bug string) (*history.History, error) {
	t.Helper()
	f := &fake{bug: bug, wake: make(chan struct{})}
	r := history.Recorder{Seed: rand.Uint64(), Clients: 6, Keys: 3, Epoch: 200 * time.Millisecond, Patience: 2 * time.Second}
	for i := range f.shown {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.ServeHTTP(i, w, r) }))
		defer s.Close()
		r.Replicas = append(r.Replicas, s.URL)
	}
	h, err := r.Run(t.Context(), func() {
		select {
		case <-time.After(400 * time.Millisecond):
		case <-t.Context().Done():
		}
	})
	t.Logf("seed %d: %s", r.Seed, h)
	return h, err
}

func TestNothingIsFoundInOrder(t *testing.T) {
	h, err := record(t, "")
	if err := errors.Join(err, h.Check()); err != nil {
		t.Fatal(err)
	}
}

// What Check finds.
func TestFindsAReplicaThat(t *testing.T) {
	for bug, want := range map[string][]error{
		"loses a write that it acknowledged":                      {history.ErrNotLinearizable, history.ErrVersionTwice, history.ErrWatchGap},
		"decides on its own state":                                {history.ErrNotLinearizable},
		"says from its own state that there is nothing to delete": {history.ErrNotLinearizable},
		"answers with a version that another write has":           {history.ErrVersionTwice, history.ErrReadFromNowhere},
		"stores what it refuses":                                  {history.ErrRefusedYetStored, history.ErrNotLinearizable},
		"shows an older state now and then":                       {history.ErrReadWentBack},
		"shows what is not committed yet":                         {history.ErrReadFromNowhere},
		"lacks a resource":                                        {history.ErrReplicasDiffer, history.ErrReadWentBack},
		"leaves out an event of a watch":                          {history.ErrWatchGap},
		"leaves out a deletion in a watch":                        {history.ErrWatchGap},
		"goes on with a watch from where it is itself":            {history.ErrWatchGap},
		"gives an event the id of a later one":                    {history.ErrWatchGap},
	} {
		t.Run(bug, func(t *testing.T) {
			// One run may end before the bug has shown.
			for range 10 {
				h, err := record(t, bug)
				err = errors.Join(err, h.Check())
				for _, w := range want {
					if errors.Is(err, w) {
						t.Log(err)
						return
					}
				}
				if err != nil {
					t.Logf("something else: %v", err)
				}
			}
			t.Errorf("the bug went unnoticed: %v", want)
		})
	}
}
