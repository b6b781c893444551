package admin

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/global/zones"
)

// link is one stream of a zone, and the questions that are on their way over it.
type link struct {
	// Set at the start, read-only after.
	zone     string
	kind     zones.Kind
	inspects bool          // the zone understands meridian_query
	queue    chan question // to the one writer; never waited for
	over     chan struct{} // closed when the stream has ended

	mu      sync.Mutex
	waiting map[string]chan<- answer // by id, each with room for its one answer
}

type question struct {
	id  string
	msg proto.Message
}

// answer is what a zone has answered: a body, or the text and the kind of an error.
type answer struct {
	body         []byte
	failed       bool
	text, reason string
}

func newLink(hello zones.Hello, kind zones.Kind, room int) *link {
	return &link{
		zone: hello.Zone, kind: kind, inspects: hello.Inspects,
		queue: make(chan question, room), over: make(chan struct{}), waiting: make(map[string]chan<- answer),
	}
}

// expect registers a question, before it is sent: its answer may be as quick as it likes.
func (l *link) expect(id string) <-chan answer {
	c := make(chan answer, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting[id] = c
	return c
}

// forget says that nobody waits for an answer any more.
func (l *link) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, id)
}

func (l *link) expected(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.waiting[id]
	return ok
}

// deliver gives an answer to who waits for it. It is false for one that nobody waits for: it is late, a second one, or was never
// asked for.
func (l *link) deliver(id string, a answer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.waiting[id]
	if ok {
		delete(l.waiting, id)
		c <- a
	}
	return ok
}

// write sends what is asked, until the stream has ended. What nobody waits for any more is not sent.
func (l *link) write(send func(proto.Message) error) error {
	for {
		select {
		case <-l.over:
			return context.Canceled
		case q := <-l.queue:
			if !l.expected(q.id) {
				continue
			}
			if err := send(q.msg); err != nil {
				return err
			}
		}
	}
}
