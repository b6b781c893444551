package server

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// replication says what a test wants, once release is closed or the wait is over.
type replication struct {
	delivery Delivery
	release  chan struct{}
	asked    chan []store.Delta
}

func (f replication) Await(ctx context.Context, _ store.Revision, deltas []store.Delta) Delivery {
	f.asked <- deltas
	select {
	case <-f.release:
	case <-ctx.Done():
	}
	return f.delivery
}

func TestAWaitIsAnsweredByHowTheZonesStand(t *testing.T) {
	released := make(chan struct{})
	close(released)
	for _, tc := range []struct {
		name     string
		delivery Delivery
		want     int
	}{
		{"all have it", Delivery{Acknowledged: []string{"a"}, Offline: []string{"b"}}, 201},
		{"it is for none of those connected", Delivery{NotApplicable: []string{"a"}}, 201},
		{"nobody is there", Delivery{}, 202},
		{"nobody is connected", Delivery{Offline: []string{"b"}}, 202},
		{"one has not answered", Delivery{Acknowledged: []string{"a"}, Pending: []string{"b"}}, 202},
		{"one refuses", Delivery{Acknowledged: []string{"a"}, Rejected: []Reason{{"b", "no"}}}, 202},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := replication{tc.delivery, released, make(chan []store.Delta, 1)}
			p := newPlane(t, resource.Global, func(o *Options) { o.Replication = f })
			p.want(tc.want, "PUT", "/meshes/demo?wait=1s", demoMesh)
		})
	}
}

func TestTheBodyOfAWait(t *testing.T) {
	released := make(chan struct{})
	close(released)
	f := replication{
		Delivery{Acknowledged: []string{"a", "b"}, Rejected: []Reason{{"c", "it is bad"}}, NotApplicable: []string{"d"}},
		released, make(chan []store.Delta, 1),
	}
	p := newPlane(t, resource.Global, func(o *Options) { o.Replication = f })
	p.seed(record(t, resource.Mesh, "", "demo", "", nil), record(t, "Timeout", "demo", "t", "", nil))
	a := p.want(202, "DELETE", "/meshes/demo?wait=1s", "")
	const want = "{\n \"revision\": 2,\n \"acknowledged\": [\n  \"a\",\n  \"b\"\n ],\n \"rejected\": [\n" +
		"  {\n   \"zone\": \"c\",\n   \"reason\": \"it is bad\"\n  }\n ],\n" +
		" \"pending\": [],\n \"offline\": [],\n \"notApplicable\": [\n  \"d\"\n ]\n}\n"
	if diff := cmp.Diff(want, a.Body); diff != "" {
		t.Error(diff)
	}
	deltas := <-f.asked
	if len(deltas) != 2 || deltas[0].Old == nil || deltas[0].New != nil || deltas[1].Key.Type != "Timeout" {
		t.Errorf("waited for %+v", deltas)
	}
	a = p.want(404, "DELETE", "/meshes/demo?wait=1s", "")
	if len(f.asked) > 0 {
		t.Error("a write that was refused waited")
	}
}

func TestAWaitSaysOfWhichZonesNothingIsKnown(t *testing.T) {
	released := make(chan struct{})
	close(released)
	f := replication{
		Delivery{Acknowledged: []string{"a"}, Pending: []string{"b"}, PendingReasons: []Reason{{"b", "nobody tells"}}},
		released, make(chan []store.Delta, 1),
	}
	p := newPlane(t, resource.Global, func(o *Options) { o.Replication = f })
	const want = `"pendingReasons": [` + "\n  {\n   \"zone\": \"b\",\n   \"reason\": \"nobody tells\"\n  }\n ]\n}\n"
	if a := p.want(202, "PUT", "/meshes/demo?wait=1s", demoMesh); !strings.HasSuffix(a.Body, want) {
		t.Error(a.Body)
	}
}

func TestValuesOfWait(t *testing.T) {
	for _, tc := range []struct {
		name  string
		plane resource.Plane
		query string
		want  int
	}{
		{"no time at all", resource.Global, "wait=0s", 202},
		{"empty", resource.Global, "wait=", 200},
		{"no duration", resource.Global, "wait=5", 400},
		{"negative", resource.Global, "wait=-1s", 400},
		{"longer than allowed", resource.Global, "wait=61s", 400},
		{"with a dry run", resource.Global, "wait=1s&dryRun=true", 400},
		{"on a zone", resource.Zone, "wait=1s", 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlane(t, tc.plane)
			target, body := "/meshes/demo", demoMesh
			if tc.plane == resource.Zone {
				p.seed(record(t, resource.Mesh, "", "demo", "", nil))
				target, body = "/meshes/demo/dataplanes/d", bodyOf(t, lookup(t, resource.Dataplane), "demo", "d")
			} else {
				p.want(201, "PUT", target, body)
			}
			before := p.store.Snapshot().Revision()
			a := p.want(tc.want, "PUT", target+"?"+tc.query, body)
			if tc.want == 400 && (!strings.Contains(a.Body, `"field": "wait"`) || p.store.Snapshot().Revision() != before) {
				t.Errorf("%s", a.Body)
			}
		})
	}
}

func TestAWaitOutlivesTheTimeoutsOfRequestsAndEndsWhenTheServerStops(t *testing.T) {
	f := replication{Delivery{Pending: []string{"a"}}, make(chan struct{}), make(chan []store.Delta, 4)}
	p := newPlane(t, resource.Global, func(o *Options) {
		// Long enough for a busy machine to read a request in, shorter than the waits.
		o.ReadTimeout, o.WriteTimeout, o.ShutdownTimeout = time.Second, time.Second, time.Minute
		o.Replication = f
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.srv.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	put := func(wait string) (int, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut,
			"http://"+p.srv.HTTPAddr().String()+"/meshes/demo?wait="+wait, strings.NewReader(demoMesh))
		if err != nil {
			return 0, "", err
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		return res.StatusCode, string(body), err
	}
	if code, body, err := put("1500ms"); err != nil || code != 202 || !strings.Contains(body, `"pending": [`) {
		t.Fatalf("%d %s %v", code, body, err)
	}
	<-f.asked
	type answer struct {
		code int
		err  error
	}
	answered := make(chan answer, 1)
	go func() { code, _, err := put("60s"); answered <- answer{code, err} }()
	select {
	case <-f.asked: // the second waits
		cancel()
		if a := <-answered; a.err != nil || a.code != 202 {
			t.Errorf("the wait that was ended: %d %v", a.code, a.err)
		}
	case a := <-answered:
		cancel()
		t.Errorf("answered without a wait: %d %v", a.code, a.err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
