package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// stalledDisk is a backend that makes nothing durable before it is released.
type stalledDisk struct {
	store.Backend
	released <-chan struct{}
}

func (d stalledDisk) Append(ctx context.Context, g store.Group) error {
	<-d.released
	return d.Backend.Append(ctx, g)
}

// stalledPlane is a plane whose disk does nothing until release is called.
func stalledPlane(t *testing.T, o store.Options, changes ...func(*Options)) (p *plane, release func()) {
	t.Helper()
	released := make(chan struct{})
	st, err := store.Open(t.Context(), stalledDisk{memory.New(), released}, o)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { close(released) })
	t.Cleanup(func() {
		release()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return newPlane(t, resource.Global, append(changes, func(o *Options) { o.Store = st })...), release
}

// TestWritersBeyondWhatTheDiskTakesAreTurnedAway: with a disk that stands still, as many writes wait as may, the others
// are told at once to come back; when the disk goes on, each that waited is stored, and no other is.
func TestWritersBeyondWhatTheDiskTakesAreTurnedAway(t *testing.T) {
	const writers, most = 500, 32
	p, release := stalledPlane(t, store.Options{QueueLength: 4, MaxGroupBatches: 4}, func(o *Options) { o.MaxWrites = most })
	ts := httptest.NewServer(p.srv.Handler())
	defer ts.Close()
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: writers, MaxIdleConnsPerHost: writers}}
	defer client.CloseIdleConnections()

	put := func(name string) (int, string, error) {
		body := `{"type":"Zone","name":"` + name + `"}`
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, ts.URL+"/zones/"+name, strings.NewReader(body))
		if err != nil {
			return 0, "", err
		}
		r.Header.Set("Content-Type", "application/json")
		res, err := client.Do(r)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return res.StatusCode, res.Header.Get("Retry-After"), err
	}
	var (
		all, away sync.WaitGroup
		mu        sync.Mutex // guards what follows
		stored    []string
		turned    int
	)
	away.Add(writers - most)
	for i := range writers {
		all.Go(func() {
			name := fmt.Sprintf("zone-%d", i)
			status, retryAfter, err := put(name)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && status == http.StatusCreated:
				stored = append(stored, name)
			case err == nil && status == http.StatusServiceUnavailable && retryAfter != "":
				if turned++; turned <= writers-most {
					away.Done()
				}
			default:
				t.Errorf("writer %d: %d, Retry-After %q, %v", i, status, retryAfter, err)
			}
		})
	}
	away.Wait()
	release()
	all.Wait()
	if len(stored) != most || turned != writers-most {
		t.Errorf("%d stored, %d turned away", len(stored), turned)
	}
	snap := p.store.Snapshot()
	for _, name := range stored {
		if _, ok := snap.Get(store.Key{Type: string(resource.ZoneType), Name: name}); !ok {
			t.Errorf("%s was acknowledged and is not there", name)
		}
	}
	if got := snap.Count(string(resource.ZoneType), ""); got != most {
		t.Errorf("%d zones are stored", got)
	}
	if status, _, err := put("later"); err != nil || status != http.StatusCreated {
		t.Errorf("a write after the rush: %d, %v", status, err)
	}
}

// TestAWriteIsAnsweredInTime: a disk that does not come back keeps no request waiting beyond the time for its answer.
func TestAWriteIsAnsweredInTime(t *testing.T) {
	p, release := stalledPlane(t, store.Options{}, func(o *Options) { o.WriteTimeout = 100 * time.Millisecond })
	for _, c := range []struct{ method, target, body string }{
		{http.MethodPut, "/zones/east", `{"type":"Zone","name":"east"}`},
		{http.MethodPost, "/import", `{"type":"Zone","name":"west"}`},
	} {
		a := p.want(http.StatusServiceUnavailable, c.method, c.target, c.body)
		if a.Header.Get("Retry-After") == "" || !strings.Contains(a.Body, "it may have stored this, or may still do so") {
			t.Errorf("%s %s: %v %s", c.method, c.target, a.Header, a.Body)
		}
		p.want(http.StatusOK, http.MethodGet, "/zones", "")
	}
	release()
	for snap := p.store.Snapshot(); snap.Count(string(resource.ZoneType), "") == 0; snap = p.store.Snapshot() {
		<-snap.Next() // what was on its way is stored after all
	}
}
