package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/proxies"
)

// answering answers every path with what was asked for.
var answering = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, "%q", r.Method+" "+r.URL.String()) })

func saying(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
}

func TestAProxyIsAskedOverTLS(t *testing.T) {
	r := newRig(t)
	address, port := r.listener(r.ca, "127.0.0.2", answering)
	q := r.dataplane(address, port)
	for want, change := range map[string]func(*server.ProxyQuestion){
		"/config_dump":                func(*server.ProxyQuestion) {},
		"/config_dump?include_eds":    func(q *server.ProxyQuestion) { q.IncludeEndpoints = true },
		"/stats":                      func(q *server.ProxyQuestion) { q.View = server.ViewStats },
		"/stats?usedonly":             func(q *server.ProxyQuestion) { q.View, q.UsedOnly = server.ViewStats, true },
		"/stats?format=json":          func(q *server.ProxyQuestion) { q.View, q.JSON = server.ViewStats, true },
		"/stats?format=json&usedonly": func(q *server.ProxyQuestion) { q.View, q.JSON, q.UsedOnly = server.ViewStats, true, true },
		"/clusters":                   func(q *server.ProxyQuestion) { q.View = server.ViewClusters },
		"/clusters?format=json":       func(q *server.ProxyQuestion) { q.View, q.JSON = server.ViewClusters, true },
	} {
		ask := q
		change(&ask)
		got, err := r.Ask(t.Context(), ask)
		if text := strings.TrimSpace(string(got)); err != nil || text != fmt.Sprintf("%q", "GET "+want) {
			t.Errorf("got %s, %v; want %s", text, err, want)
		}
	}
	if n := testutil.ToFloat64(r.metrics.questions.WithLabelValues("stats", "ok")); n != 4 {
		t.Errorf("%v questions for stats are counted", n)
	}

	for _, p := range []struct {
		typ  resource.Type
		node string
	}{{resource.ZoneIngress, ".edge"}, {resource.ZoneEgress, "egress/.edge"}} {
		key := store.Key{Type: string(p.typ), Name: "edge"}
		if p.typ == resource.ZoneIngress {
			r.put(key, "", &meshv1.ZoneIngress{Networking: &meshv1.ZoneIngress_Networking{Address: address}})
		} else {
			r.put(key, "", &meshv1.ZoneEgress{Networking: &meshv1.ZoneEgress_Networking{Address: address}})
		}
		ask := server.ProxyQuestion{Type: p.typ, Name: "edge", View: server.ViewStats}
		r.fails(ask, server.AskUnreachable)
		r.online[p.node] = r.online["default.web"]
		if got, err := r.Ask(t.Context(), ask); err != nil || string(got) != `"GET /stats"` {
			t.Errorf("%s: got %s, %v", p.typ, got, err)
		}
	}
}

func TestADumpOfAProxyIsMasked(t *testing.T) {
	r := newRig(t)
	address, port := r.listener(r.ca, "127.0.0.2", saying(`{"configs":[{"private_key":{"inline_string":"SECRET"}}]}`))
	got, err := r.Ask(t.Context(), r.dataplane(address, port))
	if err != nil {
		t.Fatal(err)
	}
	want := "{\n \"configs\": [\n  {\n   \"private_key\": {\n    \"inline_string\": \"[redacted]\"\n   }\n  }\n ]\n}\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestWhoIsNotTheProxyIsAskedNothing(t *testing.T) {
	asked := func(w http.ResponseWriter, _ *http.Request) { t.Error("asked"); w.WriteHeader(http.StatusOK) }
	t.Run("of another authority", func(t *testing.T) {
		r := newRig(t)
		address, port := r.listener(newCA(t), "127.0.0.2", http.HandlerFunc(asked))
		if text := r.fails(r.dataplane(address, port), server.AskFailed); !strings.Contains(text, "certificate") {
			t.Error(text)
		}
	})
	t.Run("with the certificate of another address", func(t *testing.T) {
		r := newRig(t)
		address, port := r.listener(r.ca, "127.0.0.3", http.HandlerFunc(asked))
		if text := r.fails(r.dataplane(address, port), server.AskFailed); !strings.Contains(text, "127.0.0.3") {
			t.Error(text)
		}
	})
	t.Run("without TLS", func(t *testing.T) {
		r := newRig(t)
		srv := httptest.NewServer(http.HandlerFunc(asked))
		defer srv.Close()
		port := portOf(t, srv.Listener.Addr().String())
		q := r.dataplane("127.0.0.1", port, func(l *proxies.Look) { l.Metadata.AdminAddress = "0.0.0.0" })
		r.fails(q, server.AskFailed)
	})
	t.Run("on the loopback of another host", func(t *testing.T) {
		r := newRig(t)
		srv := httptest.NewServer(http.HandlerFunc(asked))
		defer srv.Close()
		port := portOf(t, srv.Listener.Addr().String())
		for _, peer := range []string{"", "unix", "10.0.0.7:1000", "[fd00::7]:1000"} {
			q := r.dataplane("127.0.0.1", port, func(l *proxies.Look) { l.Peer = peer })
			if text := r.fails(q, server.AskUnreachable); !strings.Contains(text, "its own host") {
				t.Error(text)
			}
		}
	})
	t.Run("where no host is", func(t *testing.T) {
		r := newRig(t)
		for _, address := range []string{"0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1"} {
			q := r.dataplane(address, 80, func(l *proxies.Look) { l.Metadata.AdminAddress = address })
			if text := r.fails(q, server.AskUnreachable); !strings.Contains(text, "not that of a host") {
				t.Error(text)
			}
		}
	})
	t.Run("when there is no authority", func(t *testing.T) {
		r := newRig(t)
		address, port := r.listener(r.ca, "127.0.0.2", http.HandlerFunc(asked))
		if _, err := r.store.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Delete(store.Key{Type: string(resource.GlobalSecret), Name: mtls.AdminSecret})}, nil
		}); err != nil {
			t.Fatal(err)
		}
		if text := r.fails(r.dataplane(address, port), server.AskUnreachable); !strings.Contains(text, mtls.AdminSecret) {
			t.Error(text)
		}
	})
}

func TestAnAdministrationOnThisHostsLoopbackIsAskedInPlainText(t *testing.T) {
	srv := httptest.NewServer(answering)
	defer srv.Close()
	port := portOf(t, srv.Listener.Addr().String())
	r := newRig(t, func(o *Options) { o.Local = func(a netip.Addr) bool { return a.String() == "10.0.0.7" } })
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	for _, peer := range []string{"127.0.0.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5", "10.0.0.7:5"} {
		q := r.dataplane("127.0.0.1", port, func(l *proxies.Look) { l.Peer = peer })
		q.View = server.ViewClusters
		if got, err := r.Ask(t.Context(), q); err != nil || string(got) != `"GET /clusters"` {
			t.Errorf("got %s, %v", got, err)
		}
	}
}

func TestAProxyAtAHostNameIsAskedAtTheAddressOfItsCertificate(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			if host != "web.internal" {
				return nil, errors.New("unknown")
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.3"), netip.MustParseAddr("127.0.0.2")}, nil
		}
	})
	_, port := r.listener(r.ca, "127.0.0.2", answering)
	if _, err := r.Ask(t.Context(), r.dataplane("web.internal", port)); err != nil {
		t.Error(err)
	}
	r.fails(r.dataplane("other.internal", port), server.AskUnreachable)
}

func TestAProxyThatCannotBeAsked(t *testing.T) {
	r := newRig(t)
	q := r.dataplane("127.0.0.2", 9901, func(l *proxies.Look) { l.Metadata.AdminPort = 0 })
	if text := r.fails(q, server.AskUnreachable); !strings.Contains(text, "no administration port") {
		t.Error(text)
	}
	q = r.dataplane("127.0.0.2", 9901, func(l *proxies.Look) { l.Proxyless = true })
	if text := r.fails(q, server.AskUnreachable); !strings.Contains(text, "gRPC") {
		t.Error(text)
	}
	delete(r.online, "default.web")
	if text := r.fails(q, server.AskUnreachable); !strings.Contains(text, "not connected") {
		t.Error(text)
	}
	q.Name = "none"
	r.fails(q, server.AskNotFound)
	q.View = server.ViewExplain
	r.fails(q, server.AskNotFound)
	r.put(store.Key{Type: string(resource.ZoneIngress), Name: "zone-2.in"}, "global", &meshv1.ZoneIngress{})
	r.fails(server.ProxyQuestion{Type: resource.ZoneIngress, Name: "zone-2.in", View: server.ViewStats}, server.AskInvalid)
	r.put(store.Key{Type: string(resource.Mesh), Name: "default"}, "", &meshv1.Mesh{})
	r.fails(server.ProxyQuestion{Type: resource.Mesh, Name: "default", View: server.ViewStats}, server.AskInvalid)
	r.fails(func() server.ProxyQuestion {
		q := r.dataplane("127.0.0.2", 9901)
		q.View = server.ViewExplain
		return q
	}(), server.AskInvalid)
}

func TestAnAnswerThatIsNone(t *testing.T) {
	r := newRig(t)
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		text    string
	}{
		"an error":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "answered 404"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/quitquitquit", http.StatusFound) }, "answered 302"},
		"no JSON":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "not JSON"},
		"an end too early": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"configs":`)
		}, "broke off"},
		"too large": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `["`+strings.Repeat("x", maxAnswerBytes)+`"]`)
		}, fmt.Sprint(maxAnswerBytes)},
		"too large when it is indented": {func(w http.ResponseWriter, _ *http.Request) {
			const deep = 500 // so that each element becomes a line of that many spaces
			_, _ = io.WriteString(w, strings.Repeat("[", deep)+strings.Repeat("1,", maxAnswerBytes/deep)+"1"+strings.Repeat("]", deep))
		}, fmt.Sprint(maxAnswerBytes)},
		"an end without an answer": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "no answer that can be understood"},
		"headers without end": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 128<<10))
		}, "no answer that can be understood"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			address, port := r.listener(r.ca, "127.0.0.2", tc.handler)
			if text := r.fails(r.dataplane(address, port), server.AskFailed); !strings.Contains(text, tc.text) {
				t.Error(text)
			}
		})
	}
	t.Run("statistics without end", func(t *testing.T) {
		r.t = t
		address, port := r.listener(r.ca, "127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}))
		q := r.dataplane(address, port)
		q.View = server.ViewStats
		if text := r.fails(q, server.AskFailed); !strings.Contains(text, fmt.Sprint(maxAnswerBytes)) {
			t.Error(text)
		}
	})
	t.Run("a closed port", func(t *testing.T) {
		r.t = t
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.2:0")
		if err != nil {
			t.Fatal(err)
		}
		port := portOf(t, ln.Addr().String())
		_ = ln.Close()
		if text := r.fails(r.dataplane("127.0.0.2", port), server.AskUnreachable); !strings.Contains(text, "does not take connections") {
			t.Error(text)
		}
	})
}

// silent accepts connections and never says anything on them.
func silent(t *testing.T) (port int, accepted <-chan struct{}) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan struct{}, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		var conns []net.Conn
		for {
			c, err := ln.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
			came <- struct{}{}
		}
		for _, c := range conns {
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return portOf(t, ln.Addr().String()), came
}

func TestAProxyThatNeverAnswers(t *testing.T) {
	t.Run("in the handshake", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		port, _ := silent(t)
		if text := r.fails(r.dataplane("127.0.0.2", port), server.AskTimeout); !strings.Contains(text, "within 5s") {
			t.Error(text)
		}
	})
	t.Run("in the middle of the answer", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		address, port := r.listener(r.ca, "127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"configs":[`)
			w.(http.Flusher).Flush() //nolint:forcetypeassert // a test
			<-r.Context().Done()
		}))
		r.fails(r.dataplane(address, port), server.AskTimeout)
	})
	t.Run("and the client leaves", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		port, accepted := silent(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { <-accepted; cancel() }()
		if _, err := r.Ask(ctx, r.dataplane("127.0.0.2", port)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestQuestionsAreBounded(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxConcurrent, o.MaxWait = 2, time.Minute })
	port, accepted := silent(t)
	q := r.dataplane("127.0.0.2", port)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { _, _ = r.Ask(ctx, q) })
		<-accepted
	}
	for range 2 * maxWaiting { // those who wait
		wg.Go(func() { _, _ = r.Ask(ctx, q) })
	}
	for r.waiting.Load() < 2*maxWaiting {
		time.Sleep(time.Millisecond) // until the last one waits
	}
	r.fails(q, server.AskBusy)
	if len(accepted) != 0 {
		t.Error("more proxies are asked than may be at a time")
	}
	cancel()
	wg.Wait()
	if r.waiting.Load() != 0 || len(r.slots) != 0 {
		t.Errorf("%d wait and %d are on their way when all is over", r.waiting.Load(), len(r.slots))
	}

	r.o.MaxWait = 0
	r.slots <- struct{}{}
	r.slots <- struct{}{}
	r.fails(q, server.AskBusy)
	<-r.slots
	<-r.slots
}
