package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// patience is for real sockets, whatever else the machine does.
const patience = time.Minute

func newKey(bytes int) string {
	key := make([]byte, bytes)
	_, _ = rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}

func keyFile(t *testing.T, keys ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// journal is a log that tests read.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) has(parts ...string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.buf.String()) {
		found := 0
		for _, part := range parts {
			if strings.Contains(line, part) {
				found++
			}
		}
		if found == len(parts) {
			return true
		}
	}
	return false
}

// peer is one member on a loopback port.
type peer struct {
	*Cluster
	log  *journal
	stop func()
}

func start(t *testing.T, name, plane, keyFile string, join ...string) *peer {
	t.Helper()
	return startAt(t, 0, name, plane, keyFile, join...)
}

func startAt(t *testing.T, port int, name, plane, keyFile string, join ...string) *peer {
	t.Helper()
	p := &peer{log: &journal{}}
	c, err := New(Options{
		Config: Config{BindAddress: "127.0.0.1", BindPort: port, KeyFile: keyFile, Join: join},
		Name:   name, Plane: func() string { return plane }, Version: "1.0.0",
		Held: func() map[string][]string { return map[string][]string{Zones: {"of-" + name}} },
		Log:  slog.New(slog.NewTextHandler(p.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Cluster = c
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

func TestThreeMembersOnSockets(t *testing.T) {
	keys := keyFile(t, newKey(32))
	a := start(t, "a", "plane-1", keys)
	b := start(t, "b", "plane-1", keys, a.self.Address)
	c := start(t, "c", "plane-1", keys, a.self.Address, b.self.Address)
	for _, p := range []*peer{a, b, c} {
		wants(t, p.Cluster, patience, "joined", names("a", "b", "c"))
		for _, other := range []string{"a", "b", "c"} {
			wants(t, p.Cluster, patience, "told", holds(other, Zones, "of-"+other))
		}
	}
	c.stop()
	wants(t, a.Cluster, patience, "left", names("a", "b"))
	again := start(t, "c", "plane-1", keys, a.self.Address) // at another port
	for _, p := range []*peer{a, b, again} {
		wants(t, p.Cluster, patience, "back", names("a", "b", "c"))
	}
	if err := b.Close(); err != nil { // killed: it says nothing
		t.Fatal(err)
	}
	for _, p := range []*peer{a, again} {
		t.Logf("%s noticed after %s", p.o.Name, wants(t, p.Cluster, patience, "noticed", names("a", "c")))
	}
}

// Replicas that are started before those they are to join find them when they come.
func TestJoiningGoesOnUntilThereIsSomebody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	first := start(t, "first", "plane-1", "", fmt.Sprintf("localhost:%d", port), "no-such-host.invalid:1")
	wants(t, first.Cluster, patience, "alone", names("first"))
	_ = l.Close()
	late := startAt(t, port, "late", "plane-1", "")
	for _, p := range []*peer{first, late} {
		wants(t, p.Cluster, patience, "joined", names("first", "late"))
	}
}

func TestStrangersAreRefused(t *testing.T) {
	key := keyFile(t, newKey(16))
	a := start(t, "a", "plane-1", key)
	for name, tt := range map[string]struct {
		plane, key string
		loud       []string // what both say
	}{
		"another plane": {"plane-2", key, []string{"level=ERROR", "member refused", "plane-1", "plane-2"}},
		"another key":   {"plane-1", keyFile(t, newKey(16)), nil},
		"no key":        {"plane-1", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, "stranger", tt.plane, tt.key)
			if _, err := s.list.Join([]string{a.self.Address}); err == nil {
				t.Error("joined")
			}
			if _, err := a.list.Join([]string{s.self.Address}); err == nil {
				t.Error("joined by the other")
			}
			for _, p := range []*peer{a, s} {
				if all := p.Members(); len(all) != 1 {
					t.Errorf("%s knows %+v", p.o.Name, all)
				}
				if !p.log.has(tt.loud...) {
					t.Errorf("%s does not say %q: %s", p.o.Name, tt.loud, p.log.buf.String())
				}
			}
		})
	}
}

func TestKeysAreReplacedWithoutAGap(t *testing.T) {
	old, next := newKey(16), newKey(32)
	files := []string{keyFile(t, old), keyFile(t, old)}
	a := start(t, "a", "plane-1", files[0])
	b := start(t, "b", "plane-1", files[1], a.self.Address)
	peers := []*peer{a, b}
	wants(t, a.Cluster, patience, "joined", names("a", "b"))
	for _, step := range [][]string{{old, next}, {next, old}, {next}} {
		for i, p := range peers { // one after the other: each state meets the one before
			if err := os.WriteFile(files[i], []byte(strings.Join(step, "\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			p.reloadKeys(t.Context())
			if _, err := p.list.Join([]string{peers[1-i].self.Address}); err != nil {
				t.Fatalf("at %d keys: %v", len(step), err)
			}
		}
	}
	if got := base64.StdEncoding.EncodeToString(b.ring.GetPrimaryKey()); got != next || len(b.ring.GetKeys()) != 1 {
		t.Errorf("%d keys", len(b.ring.GetKeys()))
	}
	if err := os.WriteFile(files[0], []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.reloadKeys(t.Context())
	if !a.log.has("level=ERROR", "keys not replaced") || len(a.ring.GetKeys()) != 1 {
		t.Error("a broken file is taken, or nobody told")
	}
	stale := start(t, "stale", "plane-1", keyFile(t, old))
	if _, err := stale.list.Join([]string{a.self.Address}); err == nil {
		t.Error("the old key still lets in")
	}
}

// The version that comes next tells more of itself, and holds lists of kinds that are unknown here.
func TestTheNextVersionIsUnderstood(t *testing.T) {
	var doc map[string]any
	b, err := meta{Plane: "p", Version: "1", Started: time.Now(), APIPort: 5681, CallPort: 7947}.encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	doc["new"] = map[string]any{"a": []int{1}}
	b, err = json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := decodeMeta(b); err != nil || m.Plane != "p" || m.APIPort != 5681 || m.CallPort != 7947 || m.Version != "1" {
		t.Errorf("%+v, %v", m, err)
	}
	a := start(t, "a", "plane-1", "")
	started := time.Now().UTC()
	node := &memberlist.Node{
		Name: "next", Addr: net.IPv4(127, 0, 0, 1), Port: 1,
		Meta: fmt.Appendf(nil, `{"plane":"plane-1","version":"2.0","started":%q,"region":{"name":"eu"}}`, started.Format(time.RFC3339Nano)),
	}
	if err := (delegate{a.Cluster}).NotifyAlive(node); err != nil {
		t.Fatal(err)
	}
	(delegate{a.Cluster}).NotifyJoin(node)
	state := `[{"name":"next","started":%q,"version":%d,"since":1,"lists":{"zones":{"total":1,"names":[%q],"more":true},"gateways":{"total":1,"names":["g"]}}}, 7]`
	tell := func(version int, zone string) {
		(delegate{a.Cluster}).MergeRemoteState(fmt.Appendf(nil, state, started.Format(time.RFC3339Nano), version, zone), true)
	}
	tell(2, "zone-2")
	tell(1, "zone-1") // late
	tell(2, "zone-1") // again
	all := a.Members()
	if len(all) != 2 || !all[1].Holds(Zones, "zone-2") || !all[1].Holds("gateways", "g") || all[1].Version != "2.0" {
		t.Errorf("%+v", all)
	}
	for _, bad := range []string{``, `{`, `{}`, `{"plane":""}`, `[]`} {
		if err := (delegate{a.Cluster}).NotifyAlive(&memberlist.Node{Name: "bad", Meta: []byte(bad)}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestWithoutMembershipThereIsOneMember(t *testing.T) {
	c, err := New(Options{
		Config: Default(), Name: "only", Plane: func() string { return "p" }, Version: "1.0.0",
		Held: func() map[string][]string { return map[string][]string{Zones: {"b", "a"}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := c.Members()
	if len(all) != 1 || !all[0].Self || all[0].Address != "" || !all[0].Holds(Zones, "a") || !all[0].Holds(Zones, "b") {
		t.Errorf("%+v", all)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	for name, tt := range map[string]struct {
		config Config
		want   []string
	}{
		"the default":             {Default(), nil},
		"loopback without key":    {Config{BindAddress: "127.0.0.1", Join: []string{"host", "host:1", "[::1]:1", "::1", "10.0.0.1"}}, nil},
		"everywhere with key":     {Config{BindPort: 7946, KeyFile: "f"}, nil},
		"everywhere without key":  {Config{BindPort: 7946}, []string{"keyFile: must be set"}},
		"an address without key":  {Config{BindAddress: "10.0.0.1", BindPort: 7946}, []string{"keyFile: must be set"}},
		"join without membership": {Config{BindPort: -1, Join: []string{"a"}}, []string{"join: there is nobody"}},
		"all of it": {
			Config{BindAddress: "x", BindPort: 70000, PeerPort: -1, AdvertiseAddress: "y", Join: []string{"ok", "a:b", ":1", "a b"}},
			[]string{"bindPort: 70000", "peerPort: -1", "bindAddress: \"x\"", "advertiseAddress: \"y\"", "join[0]", "join[1]: \"a:b\"", "join[2]", "join[3]", "keyFile"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			errs := tt.config.Validate()
			if len(errs) != len(tt.want) {
				t.Fatalf("%v", errs)
			}
			for i, err := range errs {
				if !strings.Contains(err.Error(), tt.want[i]) {
					t.Errorf("%v is not %s", err, tt.want[i])
				}
			}
		})
	}
	secret := newKey(16)[:20]
	for content, want := range map[string]string{"": "no key", "\n \n": "no key", newKey(16) + "\n" + secret: "line 2", newKey(17): "line 1"} {
		_, err := readKeys(keyFile(t, content))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%v is not %s", err, want)
		}
	}
}

// Whoever reaches the port may send what cannot be read, as often as they like.
func TestTheLogDoesNotGrowWithWhatStrangersSend(t *testing.T) {
	var out bytes.Buffer
	w := &logWriter{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	for range 1000 {
		fmt.Fprintln(w, "[ERR] memberlist: Decrypt packet failed")
		fmt.Fprintln(w, "[DEBUG] memberlist: a detail")
	}
	if lines := strings.Count(out.String(), "\n"); lines != maxLines || !strings.Contains(out.String(), `level=WARN msg=memberlist text="Decrypt packet failed"`) {
		t.Errorf("%d lines: %.300s", lines, out.String())
	}
	w.since = time.Now().Add(-lineWindow)
	fmt.Fprintln(w, "[INFO] memberlist: later")
	if want := fmt.Sprintf("lines=%d", 1000-maxLines); !strings.Contains(out.String(), want) {
		t.Errorf("what was left out is not counted: %s", out.String()[len(out.String())-300:])
	}
}
