package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkPutVisible is the time from a PUT on the global until every zone serves it over HTTP.
func BenchmarkPutVisible(b *testing.B) {
	for _, zones := range []int{1, 10} {
		b.Run(fmt.Sprintf("zones=%d", zones), func(b *testing.B) {
			var names []string
			for i := range zones {
				names = append(names, fmt.Sprint("zone-", i))
			}
			s := newSystem(b, bin, names...)
			var took []time.Duration
			i := 0
			for b.Loop() {
				i++
				name, value := fmt.Sprint("p", i%50), fmt.Sprint("v", i)
				began := time.Now()
				s.Global.Must("PUT", "/meshes/default/traffic-permissions/"+name, fmt.Sprintf(permissionBody, name, value), 200, 201)
				var wg sync.WaitGroup
				for _, z := range s.Zones {
					wg.Go(func() {
						for {
							_, body, err := z.Call(http.MethodGet, "/meshes/default/traffic-permissions/"+name, "")
							if err == nil && strings.Contains(string(body), `"`+value+`"`) {
								return
							}
							time.Sleep(200 * time.Microsecond)
						}
					})
				}
				wg.Wait()
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// BenchmarkFreshZone20000 is the time from starting a zone with an empty store until it serves 20,000 policies.
func BenchmarkFreshZone20000(b *testing.B) {
	s := newSystem(b, bin)
	const policies = 20_000
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < policies; i += 16 {
				name := fmt.Sprint("p", i)
				s.Global.Must("PUT", "/meshes/default/traffic-permissions/"+name, fmt.Sprintf(permissionBody, name, "v"), 200, 201)
			}
		})
	}
	wg.Wait()
	want := fmt.Sprintf(`"total": %d`, policies+1) // and the one that comes with the mesh
	i := 0
	for b.Loop() {
		i++
		z := s.newZone(bin, fmt.Sprint("zone-", i))
		z.Start()
		z.eventually(30*time.Second, "serving all policies", func() error {
			_, body, err := z.Call(http.MethodGet, "/traffic-permissions?size=1", "")
			if err == nil && !strings.Contains(string(body), want) {
				err = fmt.Errorf("not yet")
			}
			return err
		})
		b.StopTimer()
		s.waitActive(z.Name, true, 5*time.Second)
		before := s.Global.metric("meridian_kds_sent_resources_total")
		z.Stop()
		s.waitActive(z.Name, false, 5*time.Second)
		z.Start()
		s.waitActive(z.Name, true, 10*time.Second)
		time.Sleep(time.Second)
		b.ReportMetric(s.Global.metric("meridian_kds_sent_resources_total")-before, "resources/reconnect")
		z.Kill()
		b.StartTimer()
	}
}

// BenchmarkIdle is the processor time of the global with ten idle zones, as a share of one core.
func BenchmarkIdle(b *testing.B) {
	var names []string
	for i := range 10 {
		names = append(names, fmt.Sprint("zone-", i))
	}
	s := newSystem(b, bin, names...)
	time.Sleep(2 * time.Second)
	for b.Loop() {
		const window = 10 * time.Second
		before := cpu(b, s.Global)
		time.Sleep(window)
		b.ReportMetric(100*(cpu(b, s.Global)-before).Seconds()/window.Seconds(), "%core")
	}
}

// cpu reads what a process has used, in user and system mode.
func cpu(t testing.TB, p *Plane) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		t.Skipf("no /proc here: %v", err)
	}
	field := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var user, system int64
	_, _ = fmt.Sscan(field[11], &user)
	_, _ = fmt.Sscan(field[12], &system)
	return time.Duration(user+system) * time.Second / 100 // clock ticks, of which Linux counts 100 a second
}
