package server

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
)

// watchConns opens n watches on connections of their own and reads each up to its first bookmark.
func watchConns(b *testing.B, address, path string, n int) []*bufio.Reader {
	b.Helper()
	readers := make([]*bufio.Reader, n)
	for i := range readers {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		if _, err := fmt.Fprintf(c, "GET %s?watch=true HTTP/1.1\r\nHost: localhost\r\n\r\n", path); err != nil {
			b.Fatal(err)
		}
		readers[i] = bufio.NewReaderSize(c, 1024)
		if err := readTo(readers[i], "event: bookmark"); err != nil {
			b.Fatal(err)
		}
	}
	return readers
}

// readTo reads lines up to one that begins with prefix.
func readTo(r *bufio.Reader, prefix string) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil || strings.HasPrefix(line, prefix) {
			return err
		}
	}
}

// BenchmarkWatchFanOut is the time from one PUT to the last of 1,000 watchers having read of it, and the same write
// with 1,000 watchers of another type.
func BenchmarkWatchFanOut(b *testing.B) {
	const watchers = 1000
	for _, tc := range []struct {
		name, path string
		told       bool
	}{{"told", "/meshes", true}, {"watching-another-type", "/timeouts", false}} {
		b.Run(tc.name, func(b *testing.B) {
			p := newPlane(b, resource.Global, func(o *Options) { o.WatchHeartbeat = time.Hour })
			ts := httptest.NewServer(p.srv.Handler())
			b.Cleanup(ts.Close)
			readers := watchConns(b, ts.Listener.Addr().String(), tc.path, watchers)
			var told sync.WaitGroup
			next := make([]chan struct{}, watchers)
			for i, r := range readers {
				next[i] = make(chan struct{}, 1)
				go func() {
					for range next[i] {
						if err := readTo(r, "id: "); err != nil && !errors.Is(err, io.EOF) {
							b.Error(err)
						}
						told.Done()
					}
				}()
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				if tc.told {
					told.Add(watchers)
					for _, c := range next {
						c <- struct{}{}
					}
				}
				p.do("PUT", "/meshes/m", fmt.Sprintf(`{"type":"Mesh","name":"m","labels":{"n":"%d"}}`, i))
				told.Wait()
			}
			for _, c := range next {
				close(c)
			}
		})
	}
}

// BenchmarkWatchIdle holds 5,000 watches on a store that nobody writes to, for as long as the default
// heartbeat, so that each watch sends one. The clients' ends of the connections are in the figures.
func BenchmarkWatchIdle(b *testing.B) {
	const (
		watchers = 5000
		period   = 30 * time.Second
	)
	p := newPlane(b, resource.Global)
	ts := httptest.NewServer(p.srv.Handler())
	b.Cleanup(ts.Close)
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := memory()
	watchConns(b, ts.Listener.Addr().String(), "/meshes", watchers)
	held := memory() - before
	start, n := cpu(), 0
	for b.Loop() {
		time.Sleep(period)
		n++
	}
	b.ReportMetric(100*float64(cpu()-start)/float64(period)/float64(n), "%core")
	b.ReportMetric(float64(held)/watchers, "B/watch")
}
