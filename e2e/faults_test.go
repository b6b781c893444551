package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
	"github.com/meridian-mesh/meridian/e2e/internal/history"
)

// Three replicas of a global, written and watched at all of them, while they are killed and frozen, their database is stopped and
// killed, its disk slow, and their ways to it cut, closed and slow. What is judged, and what of it is promised across replicas, is
// in package history.
func TestReplicasUnderFaults(t *testing.T) {
	for round := range rounds(1) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			duration := 12 * time.Second
			if os.Getenv("MERIDIAN_STRESS_ROUNDS") != "" {
				duration = 20 * time.Second
			}
			underFaults(t, duration)
		})
	}
}

func underFaults(t *testing.T, duration time.Duration) {
	server := pgtest.Start(t)
	slowDisk := true
	if err := server.SlowDisk(); errors.Is(err, pgtest.ErrNoCompiler) {
		slowDisk = false
		t.Log("NOT RUN: the slow disk: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	globals := newReplicas(t, server, "global", "", 3, "MERIDIAN_STORE_POSTGRES_TIMEOUT=1s")
	globals.start()
	globals.leader()
	if slowDisk {
		diskIsSlow(t, server, globals.planes[0])
	}

	seed := rand.Uint64()
	r := history.Recorder{Seed: seed, Clients: 6, Keys: 4, Epoch: time.Second, Patience: 30 * time.Second}
	for _, p := range globals.planes {
		r.Replicas = append(r.Replicas, p.url(""))
	}
	f := &faults{globals: globals, server: server, slowDisk: slowDisk, rng: rand.New(rand.NewPCG(seed, 1<<32)), done: map[string]int{}}
	h, err := r.Run(t.Context(), func() { f.run(duration) })
	t.Logf("seed %d: %s; faults: %v", seed, h, f.done)
	if err == nil {
		err = h.Check()
	}
	if err != nil {
		kept := filepath.Join(t.ArtifactDir(), "history.json")
		b, _ := json.Marshal(h)
		t.Errorf("%v\n(the history is kept in %s with -artifacts: %v)", err, kept, os.WriteFile(kept, b, 0o600))
	}
	holdTheSame(t, globals)
	globals.leader()
}

// diskIsSlow fails unless a write takes as long as its disk.
func diskIsSlow(t *testing.T, server *pgtest.Server, p *Plane) {
	t.Helper()
	const delay = 200 * time.Millisecond
	if err := server.DelayDisk(delay); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.Must(http.MethodPut, "/meshes/slow", `{"type":"Mesh","name":"slow"}`, 201)
	if took := time.Since(began); took < delay {
		t.Errorf("on a disk that takes %s a write took %s", delay, took)
	}
	if err := server.DelayDisk(0); err != nil {
		t.Fatal(err)
	}
}

// holdTheSame waits until replicas show one state: they may have written about themselves since.
func holdTheSame(t *testing.T, r *replicas) {
	t.Helper()
	for _, path := range []string{"/traffic-logs", "/meshes", "/traffic-permissions", "/global-secrets", "/secrets", "/mesh-insights"} {
		r.planes[0].eventually(10*time.Second, "like the other replicas", func() error {
			want, err := r.planes[0].Items(path)
			for _, p := range r.planes[1:] {
				got, otherErr := p.Items(path)
				if err = errors.Join(err, otherErr); err == nil && !cmp.Equal(want, got) {
					err = fmt.Errorf("%s at %s (-%s +%s):\n%s", path, p.Name, r.planes[0].Name, p.Name, cmp.Diff(want, got))
				}
			}
			return err
		})
	}
}

// faults are done to replicas and their database, one after the other.
type faults struct {
	globals  *replicas
	server   *pgtest.Server
	slowDisk bool
	rng      *rand.Rand
	done     map[string]int
}

// run does faults at random for a while, each kind at least once, and leaves all in order.
func (f *faults) run(duration time.Duration) {
	kinds := map[string]func(i int) error{
		"replica killed": func(i int) error {
			f.globals.planes[i].Kill()
			f.pause(300)
			f.globals.start()
			return nil
		},
		"replica frozen": func(i int) error {
			f.globals.planes[i].signal(syscall.SIGSTOP)
			f.pause(1500)
			f.globals.planes[i].signal(syscall.SIGCONT)
			return nil
		},
		"database killed": func(int) error {
			err := f.server.Kill()
			f.pause(300)
			return errors.Join(err, f.server.Start())
		},
		"database stopped": func(int) error {
			err := f.server.Stop()
			f.pause(300)
			return errors.Join(err, f.server.Start())
		},
		"connections cut": func(i int) error { f.globals.links[i].Cut(); return nil },
		"connections refused": func(i int) error {
			f.globals.links[i].Refuse(true)
			f.pause(1500)
			f.globals.links[i].Refuse(false)
			return nil
		},
		"connections slow": func(i int) error {
			f.globals.links[i].Slow(time.Duration(1+f.rng.IntN(100)) * time.Millisecond)
			f.pause(1000)
			f.globals.links[i].Slow(0)
			return nil
		},
	}
	if f.slowDisk {
		kinds["disk slow"] = func(int) error {
			err := f.server.DelayDisk(time.Duration(1+f.rng.IntN(300)) * time.Millisecond)
			f.pause(1000)
			return errors.Join(err, f.server.DelayDisk(0))
		}
	}
	names := slices.Sorted(maps.Keys(kinds))
	next := f.rng.Perm(len(names))
	for began := time.Now(); time.Since(began) < duration || len(next) > 0; {
		kind := f.rng.IntN(len(names))
		if len(next) > 0 {
			kind, next = next[0], next[1:]
		}
		f.done[names[kind]]++
		if err := kinds[names[kind]](f.rng.IntN(len(f.globals.planes))); err != nil {
			f.globals.t.Fatal(err)
		}
		f.pause(400)
	}
}

// pause is for as many milliseconds at most.
func (f *faults) pause(most int) { time.Sleep(time.Duration(f.rng.IntN(most)) * time.Millisecond) }
