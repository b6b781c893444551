package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/cluster"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what involves sockets, whatever else the machine does.
const patience = 30 * time.Second

// plane is what replicas share.
type plane struct {
	store *store.Store

	mu      sync.Mutex // guards what follows
	members map[string]cluster.Member
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	s, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &plane{store: s, members: map[string]cluster.Member{}}
}

func (p *plane) member(instance string) (cluster.Member, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.members[instance]
	return m, ok
}

func (p *plane) put(m cluster.Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members[m.Name] = m
}

// replica is one process of a plane.
type replica struct {
	*Peers
	stop func() error // what Run returned
}

// waitingCall is one that waits for something to happen.
const waitingCall = "test/waiting"

func (p *plane) start(t *testing.T, name string, change func(*Options), handlers map[string]Handler) *replica {
	t.Helper()
	o := Options{
		Config: cluster.Config{BindAddress: "127.0.0.1"}, Name: name, Store: p.store,
		Member: func(instance string) (cluster.Member, bool) {
			m, ok := p.member(instance)
			m.Self = instance == name
			return m, ok
		},
		Registerer: prometheus.NewRegistry(),
	}
	if change != nil {
		change(&o)
	}
	r := &replica{}
	var err error
	if r.Peers, err = New(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for call, h := range handlers {
		if call == waitingCall {
			r.HandleWaiting(call, h)
		} else {
			r.Handle(call, h)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("%s ended: %v", name, err)
		}
		_ = r.Close()
	})
	p.put(cluster.Member{Name: name, Calls: fmt.Sprint("127.0.0.1:", r.Port()), Started: time.Now()})
	p.wantsAuthority(t)
	return r
}

func (p *plane) wantsAuthority(t *testing.T) {
	t.Helper()
	for {
		changed := p.store.Changed(authorityKey.Type)
		if _, ok := p.store.Snapshot().Get(authorityKey); ok {
			return
		}
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("nobody made an authority")
		}
	}
}

// remote fails unless err is an answered error with such a code and such words in its text.
func remote(t *testing.T, err error, code, text string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != code || !strings.Contains(e.Text, text) || errors.Is(err, ErrUnreachable) {
		t.Errorf("%#v is not %q, %q", err, code, text)
	}
}

func unreachable(t *testing.T, err error, text string) {
	t.Helper()
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v does not say that it is unreachable: %s", err, text)
	}
}

func echo(_ context.Context, body []byte) ([]byte, error) { return body, nil }

func TestReplicasCallEachOther(t *testing.T) {
	p := newPlane(t)
	names := []string{"global-1", "Ein Name mit Ä, / und %2F", strings.Repeat("long.", 50)}
	var all []*replica
	for _, name := range names {
		all = append(all, p.start(t, name, nil, map[string]Handler{
			"test/echo": func(_ context.Context, body []byte) ([]byte, error) {
				return append([]byte(name+" heard "), body...), nil
			},
		}))
	}
	for i, from := range all {
		for j, to := range names {
			got, err := from.Call(t.Context(), to, "test/echo", []byte(names[i]))
			if i == j {
				unreachable(t, err, "it is this one")
			} else if want := to + " heard " + names[i]; err != nil || string(got) != want {
				t.Errorf("%q, %v is not %q", got, err, want)
			}
		}
	}
}

func TestCallsShareAConnection(t *testing.T) {
	p := newPlane(t)
	p.start(t, "b", nil, map[string]Handler{"test/echo": echo})
	a := p.start(t, "a", nil, nil)
	dials := 0
	dial := a.transport.DialTLSContext
	a.transport.DialTLSContext = func(ctx context.Context, network, host string) (net.Conn, error) {
		dials++ // one at a time: the first call is answered before others are made
		return dial(ctx, network, host)
	}
	if _, err := a.Call(t.Context(), "b", "test/echo", nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := a.Call(t.Context(), "b", "test/echo", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if dials != 1 {
		t.Errorf("%d connections", dials)
	}
}

func TestErrorsOfHandlersReachTheCaller(t *testing.T) {
	p := newPlane(t)
	p.start(t, "b", nil, map[string]Handler{
		"test/plain": func(context.Context, []byte) ([]byte, error) { return nil, errors.New("no luck: \"x\"") },
		"test/coded": func(context.Context, []byte) ([]byte, error) { return nil, &Error{Code: "tooMany", Text: "wait"} },
		"test/wrapped": func(context.Context, []byte) ([]byte, error) {
			return nil, fmt.Errorf("ask: %w", &Error{Code: "gone", Text: "it left"})
		},
		"test/panic": func(context.Context, []byte) ([]byte, error) { panic("secret detail") },
		"test/echo":  echo,
	})
	a := p.start(t, "a", nil, nil)
	call := func(name string) error { _, err := a.Call(t.Context(), "b", name, nil); return err }
	remote(t, call("test/plain"), "", `no luck: "x"`)
	remote(t, call("test/coded"), "tooMany", "wait")
	remote(t, call("test/wrapped"), "gone", "ask: it left")
	err := call("test/panic")
	remote(t, err, CodeInternal, "the call failed")
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("told the caller: %v", err)
	}
	if err := call("test/none"); !errors.Is(err, ErrUnknownCall) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), `call test/none of instance "b"`) {
		t.Errorf("unknown call: %v", err)
	}
	if err := call("test/echo"); err != nil {
		t.Errorf("after all of that: %v", err)
	}
	a.Handle("test/echo", nil) // to be counted at all
	for outcome, want := range map[string]float64{outcomeOK: 1, outcomeUnreachable: 0} {
		if got := testutil.ToFloat64(a.metrics.calls.WithLabelValues("test/echo", outcome)); got != want {
			t.Errorf("%g calls are %s", got, outcome)
		}
	}
	if got := testutil.ToFloat64(a.metrics.calls.WithLabelValues("test/none", outcomeUnknown)); got != 1 {
		t.Errorf("%g unknown calls", got)
	}
}

func TestWhoIsNotThereIsUnreachable(t *testing.T) {
	p := newPlane(t)
	a := p.start(t, "a", nil, nil)
	call := func(instance string) error {
		_, err := a.Call(t.Context(), instance, "test/echo", nil)
		return err
	}
	unreachable(t, call("nobody"), `instance "nobody": the instance cannot be reached: no such member is there`)
	p.put(cluster.Member{Name: "old"}) // of a version without calls
	unreachable(t, call("old"), "it takes no calls")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.put(cluster.Member{Name: "dead", Calls: l.Addr().String()})
	_ = l.Close()
	unreachable(t, call("dead"), "connection refused")
}

func TestWithoutMembershipNobodyIsReached(t *testing.T) {
	p := newPlane(t)
	alone := p.start(t, "z", nil, nil) // another process makes the authority that start waits for
	a, err := New(t.Context(), Options{Config: cluster.Default(), Name: "a", Store: p.store, Member: p.member})
	if err != nil {
		t.Fatal(err)
	}
	a.Handle("test/echo", echo)
	if err := a.Run(t.Context()); err != nil || a.Port() != 0 {
		t.Errorf("port %d, %v", a.Port(), err)
	}
	_, err = a.Call(t.Context(), "b", "test/echo", nil)
	unreachable(t, err, "no such member is there")
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	_ = alone.stop()
}

// The plane of another store has another authority: neither end takes the other for one of its own.
func TestAReplicaOfAnotherPlaneIsRefused(t *testing.T) {
	p, other := newPlane(t), newPlane(t)
	called := false
	handlers := map[string]Handler{"test/echo": func(context.Context, []byte) ([]byte, error) { called = true; return nil, nil }}
	a, b := p.start(t, "a", nil, handlers), other.start(t, "b", nil, handlers)
	m, _ := other.member("b")
	p.put(m)
	_, err := a.Call(t.Context(), "b", "test/echo", nil)
	unreachable(t, err, "it is no replica of this plane")
	// Who does not look whom it calls is refused as well.
	stranger, err := b.identity.certificate()
	if err != nil {
		t.Fatal(err)
	}
	if err := knock(t, a, *stranger); err == nil || called {
		t.Errorf("let in: %v", err)
	}
}

// knock calls a replica with certificates of the caller's choice, whoever that replica is.
func knock(t *testing.T, r *replica, certs ...tls.Certificate) error {
	t.Helper()
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("https://127.0.0.1:%d/test/echo", r.Port()), strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
		return fmt.Errorf("%s %s", resp.Proto, resp.Status)
	}
	return nil
}

func TestStrangersAreRefused(t *testing.T) {
	p := newPlane(t)
	a := p.start(t, "a", nil, map[string]Handler{"test/echo": echo})
	ca, _, err := a.identity.authority()
	if err != nil {
		t.Fatal(err)
	}
	issued := func(at time.Time) tls.Certificate {
		c, err := ca.issue("b", at)
		if err != nil {
			t.Fatal(err)
		}
		return *c
	}
	if err := knock(t, a, issued(time.Now())); err != nil {
		t.Fatalf("a good one is refused: %v", err)
	}
	for name, certs := range map[string][]tls.Certificate{ // what the stranger gets to know of it depends on who is faster
		"no certificate": nil,
		"expired":        {issued(time.Now().Add(-leafLife - time.Minute))},
		"not yet valid":  {issued(time.Now().Add(backdate + time.Minute))},
	} {
		if err := knock(t, a, certs...); err == nil {
			t.Errorf("%s: let in", name)
		}
	}
}

func TestAnExpiredCalleeIsRefused(t *testing.T) {
	p := newPlane(t)
	a := p.start(t, "a", nil, nil)
	late := p.start(t, "late", nil, map[string]Handler{"test/echo": echo})
	late.identity.mu.Lock()
	ca, spec, err := a.identity.authority()
	if err != nil {
		t.Fatal(err)
	}
	if late.identity.leaf, err = ca.issue("late", time.Now().Add(-2*leafLife)); err != nil {
		t.Fatal(err)
	}
	late.identity.ca = spec
	late.identity.now = func() time.Time { return time.Now().Add(-2 * leafLife) } // its clock stands
	late.identity.mu.Unlock()
	_, err = a.Call(t.Context(), "late", "test/echo", nil)
	unreachable(t, err, "expired")
}

// An address that another instance has by now does not make it the one that is meant.
func TestAnInstanceIsNotTakenForAnother(t *testing.T) {
	p := newPlane(t)
	called := false
	p.start(t, "b", nil, map[string]Handler{"test/echo": func(context.Context, []byte) ([]byte, error) { called = true; return nil, nil }})
	a := p.start(t, "a", nil, nil)
	m, _ := p.member("b")
	m.Name = "c"
	p.put(m)
	_, err := a.Call(t.Context(), "c", "test/echo", nil)
	unreachable(t, err, "another instance answers at its address: meridian:///instances/b")
	if called {
		t.Error("and was asked")
	}
}

func TestCertificatesAreRenewedInTime(t *testing.T) {
	p := newPlane(t)
	now := time.Now()
	i := &identity{name: "a", store: p.store, now: func() time.Time { return now }}
	if err := i.ensureAuthority(t.Context()); err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		c, err := i.certificate()
		if err != nil {
			t.Fatal(err)
		}
		if left := c.Leaf.NotAfter.Sub(now); left < renewBefore-time.Second {
			t.Errorf("%s are left of it", left)
		}
		return c.Leaf.SerialNumber.String()
	}
	first := serial()
	now = now.Add(leafLife - renewBefore - time.Minute)
	if serial() != first {
		t.Error("renewed too early")
	}
	now = now.Add(2 * time.Minute)
	if second := serial(); second == first {
		t.Error("not renewed")
	}
	now = now.Add(50 * 365 * 24 * time.Hour)
	_ = serial() // the authority does not expire
	state := tls.ConnectionState{}
	c, _ := i.certificate()
	state.PeerCertificates = append(state.PeerCertificates, c.Leaf)
	if err := i.verify(state, 2, "a"); err != nil {
		t.Errorf("in fifty years: %v", err)
	}
}

// Of replicas that start at once on an empty store, one makes the authority.
func TestTheAuthorityIsMadeOnce(t *testing.T) {
	p := newPlane(t)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			i := &identity{name: fmt.Sprint(n), store: p.store, now: time.Now}
			if err := i.ensureAuthority(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if rec, _ := p.store.Snapshot().Get(authorityKey); rec.Version != rec.CreateRevision || p.store.Snapshot().Revision() != 1 {
		t.Errorf("made %d times", p.store.Snapshot().Revision())
	}
}

// A database that was replaced has another authority, or none.
func TestAnotherAuthorityIsTakenAtOnce(t *testing.T) {
	p := newPlane(t)
	p.start(t, "b", nil, map[string]Handler{"test/echo": echo})
	a := p.start(t, "a", nil, nil)
	if _, err := a.Call(t.Context(), "b", "test/echo", nil); err != nil {
		t.Fatal(err)
	}
	before, _ := a.identity.certificate()
	for _, op := range []func() store.Op{
		func() store.Op { return store.Delete(authorityKey) },
		func() store.Op {
			spec, err := newAuthority()
			if err != nil {
				t.Fatal(err)
			}
			return store.Put(&store.Record{Key: authorityKey, Spec: spec})
		},
	} {
		if _, err := p.store.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return []store.Op{op()}, nil }); err != nil {
			t.Fatal(err)
		}
		p.wantsAuthority(t)
		a.transport.CloseIdleConnections() // so that they have to know each other anew
		if _, err := a.Call(t.Context(), "b", "test/echo", nil); err != nil {
			t.Error(err)
		}
		after, err := a.identity.certificate()
		if err != nil || bytes.Equal(before.Certificate[0], after.Certificate[0]) {
			t.Errorf("still who it was: %v", err)
		}
		before = after
	}
}

func TestWhatIsTooLargeIsAClearError(t *testing.T) {
	p := newPlane(t)
	p.start(t, "b", nil, map[string]Handler{
		"test/echo": echo,
		"test/fits": func(context.Context, []byte) ([]byte, error) { return bytes.Repeat([]byte{'x'}, maxAnswerBytes), nil },
		"test/over": func(context.Context, []byte) ([]byte, error) { return make([]byte, maxAnswerBytes+1), nil },
	})
	a := p.start(t, "a", nil, nil)
	if got, err := a.Call(t.Context(), "b", "test/echo", make([]byte, maxBodyBytes)); err != nil || len(got) != maxBodyBytes {
		t.Errorf("the largest body: %d, %v", len(got), err)
	}
	if got, err := a.Call(t.Context(), "b", "test/fits", nil); err != nil || len(got) != maxAnswerBytes || got[maxAnswerBytes-1] != 'x' {
		t.Errorf("the largest answer: %d, %v", len(got), err)
	}
	_, err := a.Call(t.Context(), "b", "test/echo", make([]byte, maxBodyBytes+1))
	remote(t, err, CodeTooLarge, fmt.Sprint(maxBodyBytes+1))
	_, err = a.Call(t.Context(), "b", "test/over", nil)
	remote(t, err, CodeTooLarge, fmt.Sprint(maxAnswerBytes+1))
	// Another version may send more than this one would.
	m, _ := p.member("b")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+hostOf(m)+"/test/echo", bytes.NewReader(make([]byte, maxBodyBytes+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := a.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Code != CodeTooLarge {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestMoreCallsThanThereIsRoomForAreRefused(t *testing.T) {
	p := newPlane(t)
	begun, release := make(chan struct{}, maxServed), make(chan struct{})
	p.start(t, "b", nil, map[string]Handler{
		"test/wait": func(ctx context.Context, _ []byte) ([]byte, error) {
			begun <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, ctx.Err()
		},
	})
	a := p.start(t, "a", nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for range maxServed {
		wg.Go(func() {
			if _, err := a.Call(ctx, "b", "test/wait", nil); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxServed {
		<-begun
	}
	_, err := a.Call(ctx, "b", "test/wait", nil)
	remote(t, err, CodeBusy, "64 calls already")
	close(release)
	wg.Wait()
	if _, err := a.Call(ctx, "b", "test/wait", nil); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
}

func TestCallsThatWaitKeepNobodyFromBeingAnswered(t *testing.T) {
	p := newPlane(t)
	begun, release := make(chan struct{}, maxWaiting), make(chan struct{})
	p.start(t, "b", nil, map[string]Handler{
		"test/echo": echo,
		waitingCall: func(ctx context.Context, _ []byte) ([]byte, error) {
			begun <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, ctx.Err()
		},
	})
	a := p.start(t, "a", nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for range maxWaiting {
		wg.Go(func() {
			if _, err := a.Call(ctx, "b", waitingCall, nil); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxWaiting {
		select {
		case <-begun:
		case <-ctx.Done():
			t.Fatal("not all wait")
		}
	}
	if _, err := a.Call(ctx, "b", "test/echo", nil); err != nil {
		t.Errorf("while others wait: %v", err)
	}
	_, err := a.Call(ctx, "b", waitingCall, nil)
	remote(t, err, CodeBusy, "1024 calls already")
	close(release)
	wg.Wait()
}

func TestTheCalleeStopsWhenTheCallerDoes(t *testing.T) {
	p := newPlane(t)
	begun, deadline, ended := make(chan struct{}, 1), make(chan time.Duration, 1), make(chan error, 1)
	p.start(t, "b", nil, map[string]Handler{
		"test/wait": func(ctx context.Context, _ []byte) ([]byte, error) {
			at, _ := ctx.Deadline()
			deadline <- time.Until(at)
			begun <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		},
	})
	a := p.start(t, "a", nil, nil)
	call := func(ctx context.Context, cancel func(), want error, within time.Duration) {
		t.Helper()
		failed := make(chan error, 1)
		go func() {
			_, err := a.Call(ctx, "b", "test/wait", nil)
			failed <- err
		}()
		<-begun
		cancel()
		if err := <-failed; !errors.Is(err, want) || errors.Is(err, ErrUnreachable) {
			t.Errorf("the caller has %v", err)
		}
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("the callee goes on")
		}
		if d := <-deadline; d > within || d < within-patience/2 {
			t.Errorf("the callee has %s", d)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	call(ctx, cancel, context.Canceled, defaultTimeout)
	ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
	call(ctx, cancel, context.Canceled, maxTimeout)
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	call(ctx, func() {}, context.DeadlineExceeded, time.Second)
	cancel()
	if got := testutil.ToFloat64(a.metrics.calls.WithLabelValues("test/wait", outcomeGivenUp)); got != 3 {
		t.Errorf("%g calls were given up", got)
	}
}

// A replica that is killed ends the calls it was answering, and one that comes back under its name is reached at its new address.
func TestARestartIsReachedAgain(t *testing.T) {
	p := newPlane(t)
	begun := make(chan struct{}, 1)
	handlers := map[string]Handler{
		"test/echo": echo,
		"test/wait": func(ctx context.Context, _ []byte) ([]byte, error) {
			begun <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
	b := p.start(t, "b", nil, handlers)
	a := p.start(t, "a", nil, nil)
	if _, err := a.Call(t.Context(), "b", "test/echo", nil); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := a.Call(t.Context(), "b", "test/wait", nil)
		failed <- err
	}()
	<-begun
	stopping := time.Now()
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(stopping); d > drainTimeout+patience/10 {
		t.Errorf("stopped after %s", d)
	}
	if err := <-failed; err == nil {
		t.Error("a call of a dead instance was answered")
	}
	_, err := a.Call(t.Context(), "b", "test/echo", nil)
	unreachable(t, err, "")
	for range 2 { // the second is restarted at the address of the first
		again := p.start(t, "b", func(o *Options) { o.Config.PeerPort = b.Port() }, handlers)
		if got, err := a.Call(t.Context(), "b", "test/echo", []byte("again")); err != nil || string(got) != "again" {
			t.Errorf("%q, %v", got, err)
		}
		b = again
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// What waits when a replica stops is answered if it takes no longer than the others can wait for the stop.
func TestAStopLetsCallsEnd(t *testing.T) {
	p := newPlane(t)
	begun, release := make(chan struct{}), make(chan struct{})
	b := p.start(t, "b", nil, map[string]Handler{
		"test/short": func(context.Context, []byte) ([]byte, error) { close(begun); <-release; return []byte("done"), nil },
	})
	a := p.start(t, "a", nil, nil)
	answer := make(chan string, 1)
	go func() {
		got, err := a.Call(t.Context(), "b", "test/short", nil)
		answer <- fmt.Sprint(string(got), err)
	}()
	<-begun
	stopped := make(chan error, 1)
	go func() { stopped <- b.stop() }()
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	if got := <-answer; got != "done<nil>" {
		t.Error(got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestConfigAndOptionsAreChecked(t *testing.T) {
	p := newPlane(t)
	for name, o := range map[string]Options{
		"no name":    {Store: p.store, Member: p.member},
		"no store":   {Name: "a", Member: p.member},
		"no members": {Name: "a", Store: p.store},
	} {
		if _, err := New(t.Context(), o); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	b := p.start(t, "b", nil, nil)
	_, err := New(t.Context(), Options{Config: cluster.Config{BindAddress: "127.0.0.1", PeerPort: b.Port()}, Name: "a", Store: p.store, Member: p.member})
	if err == nil || !strings.Contains(err.Error(), "peerPort") {
		t.Errorf("a port that is taken: %v", err)
	}
	if types := slices.Collect(p.store.Snapshot().Types()); !slices.Equal(types, []string{authorityKey.Type}) {
		t.Errorf("stored: %q", types)
	}
}
