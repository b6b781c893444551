package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// backends are the stores that planes of several replicas and of one have. The server of Postgres syncs its disk.
var backends = []string{"bolt", "postgres"}

// onBackend makes n replicas of a global on Postgres, or one on bolt, and starts them.
func onBackend(b *testing.B, backend string, n int, server func() *pgtest.Server) []*Plane {
	b.Helper()
	if backend == "postgres" {
		r := newReplicas(b, server(), "global", "", n)
		r.start()
		return r.planes
	}
	p := newPlane(b, bin, "global", "")
	p.KDS = freePort(b)
	p.env = append(p.env, fmt.Sprint("MERIDIAN_KDS_PORT=", p.KDS))
	p.Start()
	return []*Plane{p}
}

// postgresFor starts a server once for all cases of a benchmark.
func postgresFor(b *testing.B) func() *pgtest.Server {
	b.Helper()
	var s *pgtest.Server
	return func() *pgtest.Server {
		if s == nil {
			s = pgtest.Start(b)
		}
		return s
	}
}

// putter is an HTTP client with as many connections as there are writers.
type putter struct {
	http http.Client
}

func newPutter(b *testing.B, writers int) *putter {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: writers, MaxConnsPerHost: writers}
	b.Cleanup(transport.CloseIdleConnections)
	return &putter{http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// put changes a policy, and returns when it is answered: it is durable then.
func (c *putter) put(ctx context.Context, p *Plane, name, value, query string) error {
	body := strings.NewReader(fmt.Sprintf(permissionBody, name, value))
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, p.url("/meshes/default/traffic-permissions/"+name+query), body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT: %s", resp.Status)
	}
	return nil
}

// percentiles reports p50 and p99 in milliseconds, and that time is what counts.
func percentiles(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(took[(len(took)-1)*p/100].Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
	}
}

// BenchmarkWrites is how many policies writers change through the HTTP API of a global, each its next one when the last is answered.
func BenchmarkWrites(b *testing.B) {
	server := postgresFor(b)
	for _, backend := range backends {
		p := onBackend(b, backend, 1, server)[0]
		for _, writers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("store=%s/writers=%d", backend, writers), func(b *testing.B) {
				c := newPutter(b, writers)
				var next atomic.Int64
				b.ResetTimer()
				g, ctx := errgroup.WithContext(b.Context())
				for w := range writers {
					g.Go(func() error {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							if err := c.put(ctx, p, fmt.Sprintf("p%d-%d", w, i%50), fmt.Sprint(b.N, i), ""); err != nil {
								return err
							}
						}
						return nil
					})
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
			})
		}
	}
}

// BenchmarkReplicaVisible is the time from the beginning of a PUT on one replica until the other serves it.
func BenchmarkReplicaVisible(b *testing.B) {
	planes := onBackend(b, "postgres", 2, postgresFor(b))
	c := newPutter(b, 1)
	var took []time.Duration
	for b.Loop() {
		name, value := fmt.Sprint("p", len(took)%50), fmt.Sprint("v", len(took))
		began := time.Now()
		if err := c.put(b.Context(), planes[0], name, value, ""); err != nil {
			b.Fatal(err)
		}
		for {
			_, body, err := planes[1].Call(http.MethodGet, "/meshes/default/traffic-permissions/"+name, "")
			if err == nil && strings.Contains(string(body), strconv.Quote(value)) {
				break
			}
			if time.Since(began) > 10*time.Second {
				b.Fatalf("not visible within 10 s: %v", err)
			}
			time.Sleep(100 * time.Microsecond) // another process is awaited
		}
		took = append(took, time.Since(began))
	}
	percentiles(b, took)
}

// BenchmarkZoneAcknowledged is the time of a PUT that is answered once the zone has committed it, too. Both planes have the same kind
// of store; with Postgres, a database each on one server.
func BenchmarkZoneAcknowledged(b *testing.B) {
	server := postgresFor(b)
	for _, backend := range backends {
		b.Run("store="+backend, func(b *testing.B) {
			s := &System{Global: onBackend(b, backend, 1, server)[0]}
			z := s.newZone(bin, "east")
			if backend == "postgres" {
				z.env = append(z.env, "MERIDIAN_STORE_TYPE=postgres", "MERIDIAN_STORE_POSTGRES_URL="+server().NewSchema(b).URL())
			}
			z.Start()
			s.waitActive("east", true, 20*time.Second)
			c := newPutter(b, 1)
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				// Answered with 202, which put refuses, where the zone has not acknowledged within the wait.
				if err := c.put(b.Context(), s.Global, fmt.Sprint("p", len(took)%50), fmt.Sprint("v", len(took)), "?wait=10s"); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			percentiles(b, took)
		})
	}
}

// BenchmarkStart100000 starts a global that has 100,000 policies until it is ready, and looks at what it takes of the machine.
func BenchmarkStart100000(b *testing.B) {
	const policies, part = 100_000, 10_000
	server := postgresFor(b)
	for _, backend := range backends {
		b.Run("store="+backend, func(b *testing.B) {
			p := onBackend(b, backend, 1, server)[0]
			for from := 0; from < policies; from += part {
				var documents strings.Builder
				for i := from; i < from+part; i++ {
					name := fmt.Sprint("p", i)
					documents.WriteString(fmt.Sprintf(permissionBody, name, "s-"+name) + "\n")
				}
				ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url("/import"), strings.NewReader(documents.String()))
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				_ = resp.Body.Close()
				cancel()
				if resp.StatusCode != http.StatusOK {
					b.Fatalf("import: %s", resp.Status)
				}
			}
			for b.Loop() {
				b.StopTimer()
				p.Kill()
				b.StartTimer()
				p.Start()
			}
			const mb = 1 << 20
			b.ReportMetric(p.metric("go_memstats_heap_inuse_bytes")/mb, "MB-heap")
			b.ReportMetric(resident(b, p)/mb, "MB-resident")
		})
	}
}

// resident is the memory of a process that is in use, in bytes.
func resident(b *testing.B, p *Plane) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		b.Skipf("no /proc here: %v", err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(status))[1])
	if err != nil {
		b.Fatal(err)
	}
	return float64(pages * os.Getpagesize())
}
