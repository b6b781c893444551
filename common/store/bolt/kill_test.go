package bolt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
)

// writerFileEnv, when set, makes this test program a writer on that store file instead.
const writerFileEnv = "MERIDIAN_TEST_STORE_WRITER"

const killWriters = 8

// writeUntilKilled writes to the store from several goroutines and prints "<revision> <name>" for each write it was
// answered. Each batch makes a record that stays, so that every revision leaves a trace, and in turn makes and deletes a
// second one, so that half a batch can be told.
func writeUntilKilled(path string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	b, err := bolt.Open(path, bolt.Options{LockTimeout: 10 * time.Second})
	if err != nil {
		fail(err)
	}
	s, err := store.Open(context.Background(), b, store.Options{})
	if err != nil {
		fail(err)
	}
	round := s.Snapshot().Revision()
	for w := range killWriters {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", round, w, i)
				second := key(fmt.Sprintf("second-%d-%d", round, w))
				rev, err := s.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) {
					ops := []store.Op{store.Put(&store.Record{Key: key(name), Spec: []byte(name)}), store.Delete(second)}
					if i%2 == 0 {
						ops[1] = store.Put(&store.Record{Key: second})
					}
					return ops, nil
				})
				if err != nil {
					fail(err)
				}
				fmt.Fprintf(os.Stdout, "%d %s\n", rev, name) // one write to the pipe
			}
		}()
	}
	select {}
}

func key(name string) store.Key { return store.Key{Type: "T", Mesh: "m", Name: name} }

func TestNothingAcknowledgedIsLostWhenTheProcessIsKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "store.db")
	acknowledged := map[store.Revision]string{}
	rounds, killed := 20, 0
	if s := os.Getenv("MERIDIAN_TEST_KILL_ROUNDS"); s != "" {
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for round := range rounds {
		before := len(acknowledged)
		wait := time.Duration(rand.Int64N(int64(30 * time.Millisecond)))
		runAndKill(t, self, path, wait, acknowledged)
		if len(acknowledged) > before {
			killed++
		}
		checkAcknowledged(t, path, acknowledged)
		if t.Failed() {
			t.Fatalf("after round %d, killed %v after its first answer", round, wait)
		}
	}
	if killed < rounds {
		t.Errorf("only %d of %d rounds were killed while writing", killed, rounds)
	}
	t.Logf("%d acknowledged writes in %d rounds", len(acknowledged), rounds)
}

// runAndKill starts a writer, kills it a while after its first answer, and adds what it was answered.
func runAndKill(t *testing.T, self, path string, after time.Duration, acknowledged map[store.Revision]string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), writerFileEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var kill *time.Timer
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n') // a last line without an end was cut off by the kill
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			break
		}
		if kill == nil {
			kill = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
		var rev store.Revision
		var name string
		if _, err := fmt.Sscan(line, &rev, &name); err != nil {
			t.Fatalf("writer said %q: %v", line, err)
		}
		if other, ok := acknowledged[rev]; ok {
			t.Errorf("revision %d was answered to %s and %s", rev, other, name)
		}
		acknowledged[rev] = name
	}
	_ = cmd.Wait() // killed
}

func checkAcknowledged(t *testing.T, path string, acknowledged map[store.Revision]string) {
	t.Helper()
	s := openStore(t, path)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	head := s.Snapshot()
	versions := map[store.Revision]bool{}
	written := map[string]int{} // records by what stands before the last dash: round and writer
	for r := range head.List("T", "m") {
		if !strings.HasPrefix(r.Key.Name, "second-") {
			versions[r.Version] = true
			written[r.Key.Name[:strings.LastIndexByte(r.Key.Name, '-')]]++
		}
	}
	for rev := store.Revision(1); rev <= head.Revision(); rev++ {
		if !versions[rev] {
			t.Errorf("revision %d left no trace, the head is %d", rev, head.Revision())
		}
	}
	for rev, name := range acknowledged {
		r, ok := head.Get(key(name))
		if !ok {
			t.Errorf("%s was acknowledged at revision %d and is lost, the head is %d", name, rev, head.Revision())
		} else if r.Version != rev || r.CreateRevision != rev || string(r.Spec) != name {
			t.Errorf("%s is at version %d (created at %d) with %q, %d was acknowledged", name, r.Version, r.CreateRevision, r.Spec, rev)
		}
	}
	for writer, n := range written {
		if _, ok := head.Get(key("second-" + writer)); ok != (n%2 == 1) {
			t.Errorf("writer %s made %d batches, and its second record's presence is %v: half a batch", writer, n, ok)
		}
	}
}
