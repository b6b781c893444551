package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

const (
	// questionTimeout is how long a question may take until its answer is ready; also what Kuma's global waits for it.
	questionTimeout = 10 * time.Second
	// maxQuestions is how many questions are on their way at a time, those whose answers the global has not taken yet included. It
	// is above what a global asks a zone by default.
	maxQuestions = 64
)

// superviseAdmin holds open the three reverse streams on which the global asks about proxies. Their failures concern
// nothing else.
func (u *Upstream) superviseAdmin(ctx context.Context, g *errgroup.Group, client meshv1.GlobalKDSServiceClient) {
	slots := make(chan struct{}, maxQuestions)
	g.Go(func() error {
		return u.superviseOptional(ctx, "xds_configs", func(ctx context.Context) error {
			return answer(ctx, u, slots, client.StreamXDSConfigs, xdsConfigs)
		})
	})
	g.Go(func() error {
		return u.superviseOptional(ctx, "stats", func(ctx context.Context) error {
			return answer(ctx, u, slots, client.StreamStats, stats)
		})
	})
	g.Go(func() error {
		return u.superviseOptional(ctx, "clusters", func(ctx context.Context) error {
			return answer(ctx, u, slots, client.StreamClusters, clusters)
		})
	})
}

// xdsConfigs, stats and clusters read a request and write its response, of which neither arm is set when there is nothing to say.
var (
	xdsConfigs = messages[meshv1.XDSConfigRequest, meshv1.XDSConfigResponse]{
		question: func(r *meshv1.XDSConfigRequest) (server.ProxyQuestion, error) {
			q := about(r)
			q.View, q.IncludeEndpoints = server.ViewConfigDump, r.GetIncludeEds()
			err := kds.ReadQuery(&q, r.GetMeridianQuery())
			return q, err
		},
		response: func(id string, body []byte) *meshv1.XDSConfigResponse {
			r := &meshv1.XDSConfigResponse{RequestId: id}
			if len(body) > 0 {
				r.Result = &meshv1.XDSConfigResponse_Config{Config: body}
			}
			return r
		},
		failure: func(id, text, reason string) *meshv1.XDSConfigResponse {
			return &meshv1.XDSConfigResponse{RequestId: id, Result: &meshv1.XDSConfigResponse_Error{Error: text}, MeridianReason: reason}
		},
	}
	stats = messages[meshv1.StatsRequest, meshv1.StatsResponse]{
		question: func(r *meshv1.StatsRequest) (server.ProxyQuestion, error) {
			q := about(r)
			q.View, q.UsedOnly = server.ViewStats, r.GetUsedOnly()
			err := format(&q, r.GetFormat())
			return q, err
		},
		response: func(id string, body []byte) *meshv1.StatsResponse {
			r := &meshv1.StatsResponse{RequestId: id}
			if len(body) > 0 {
				r.Result = &meshv1.StatsResponse_Stats{Stats: body}
			}
			return r
		},
		failure: func(id, text, reason string) *meshv1.StatsResponse {
			return &meshv1.StatsResponse{RequestId: id, Result: &meshv1.StatsResponse_Error{Error: text}, MeridianReason: reason}
		},
	}
	clusters = messages[meshv1.ClustersRequest, meshv1.ClustersResponse]{
		question: func(r *meshv1.ClustersRequest) (server.ProxyQuestion, error) {
			q := about(r)
			q.View = server.ViewClusters
			err := format(&q, r.GetFormat())
			return q, err
		},
		response: func(id string, body []byte) *meshv1.ClustersResponse {
			r := &meshv1.ClustersResponse{RequestId: id}
			if len(body) > 0 {
				r.Result = &meshv1.ClustersResponse_Clusters{Clusters: body}
			}
			return r
		},
		failure: func(id, text, reason string) *meshv1.ClustersResponse {
			return &meshv1.ClustersResponse{RequestId: id, Result: &meshv1.ClustersResponse_Error{Error: text}, MeridianReason: reason}
		},
	}
)

// messages are the requests and responses of one kind of stream.
type messages[Req, Resp any] struct {
	question func(*Req) (server.ProxyQuestion, error)
	response func(id string, body []byte) *Resp
	failure  func(id, text, reason string) *Resp
}

type request[T any] interface {
	*T
	proto.Message
	GetRequestId() string
	GetResourceType() string
	GetResourceMesh() string
	GetResourceName() string
}

func about[T any, R request[T]](r R) server.ProxyQuestion {
	return server.ProxyQuestion{Type: resource.Type(r.GetResourceType()), Mesh: r.GetResourceMesh(), Name: r.GetResourceName()}
}

func format(q *server.ProxyQuestion, f meshv1.AdminOutputFormat) error {
	switch f {
	case meshv1.AdminOutputFormat_TEXT:
	case meshv1.AdminOutputFormat_JSON:
		q.JSON = true
	default:
		return fmt.Errorf("format %d is not known to this zone", f)
	}
	return nil
}

// answer answers the requests of one stream until it ends, each in a goroutine of its own, and returns when all of those have
// ended. It answers each id once: an unknown or second answer ends the stream at a Kuma global.
func answer[Req, Resp any, R request[Req], A interface {
	*Resp
	proto.Message
}](ctx context.Context, u *Upstream, slots chan struct{}, open func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Resp, Req], error), m messages[Req, Resp],
) error {
	g, ctx := errgroup.WithContext(ctx)
	stream, err := open(ctx)
	if err != nil {
		g.Go(func() error { return fmt.Errorf("open stream: %w", err) })
		return g.Wait()
	}
	answers := make(chan *Resp) // not buffered: a global that does not read is not read either
	send := func(resp *Resp) error {
		if size := proto.Size(A(resp)); size > u.o.Config.MaxMessageBytes {
			id := any(resp).(interface{ GetRequestId() string }).GetRequestId()
			text := fmt.Sprintf("the answer has %d bytes, more than the %d that fit into a message", size, u.o.Config.MaxMessageBytes)
			resp = m.failure(id, text, kds.Reason(&server.AskError{Reason: server.AskFailed}))
		}
		select {
		case answers <- resp:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	fail := func(id string, err error) error { return send(m.failure(id, err.Error(), kds.Reason(err))) }
	g.Go(func() error { // the only Send
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case resp := <-answers:
				err := stream.Send(resp)
				if errors.Is(err, io.EOF) {
					<-ctx.Done() // Recv tells why the stream ended
					return ctx.Err()
				}
				if err != nil {
					return fmt.Errorf("send response: %w", err)
				}
			}
		}
	})
	g.Go(func() error { // the only Recv
		asked := newAsked()
		for {
			req, err := stream.Recv()
			if err != nil {
				return fmt.Errorf("read request: %w", err)
			}
			id := R(req).GetRequestId()
			q, err := m.question(req)
			if err != nil {
				err = invalid("%v", err)
			} else {
				err = u.check(&q)
			}
			first, twice := asked.add(id)
			switch {
			case twice: // its answer is out
				continue
			case !first:
				err = invalid("request_id %q is asked twice at a time", id)
			case err == nil && !take(slots):
				err = &server.AskError{Reason: server.AskBusy, Details: fmt.Sprintf("the zone has %d questions to answer already", maxQuestions)}
			}
			if err != nil {
				if first {
					asked.done(id)
				}
				if err := fail(id, err); err != nil {
					return err
				}
				continue
			}
			g.Go(func() error {
				defer func() { <-slots }()
				body, err := u.ask(ctx, q)
				switch {
				case !asked.done(id):
					return nil
				case err != nil:
					return fail(id, err)
				default:
					return send(m.response(id, body))
				}
			})
		}
	})
	return g.Wait()
}

func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// asked is the ids that are being answered.
type asked struct {
	mu  sync.Mutex
	ids map[string]bool // true: a second question with the id has been answered, and so has the first
}

func newAsked() *asked { return &asked{ids: make(map[string]bool)} }

// add notes a question. first: no other with its id is being answered. twice: one is, and a second one before this has had the
// answer.
func (a *asked) add(id string) (first, twice bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	twice, known := a.ids[id]
	a.ids[id] = known
	return !known, twice
}

// done forgets a question and reports whether it is still to be answered.
func (a *asked) done(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	twice := a.ids[id]
	delete(a.ids, id)
	return !twice
}

func invalid(format string, args ...any) error {
	return &server.AskError{Reason: server.AskInvalid, Details: fmt.Sprintf(format, args...)}
}

// check looks up the proxy that is asked about. Only proxies of this zone can be asked: the copies of other zones' ingresses that it
// holds are known here, and no more.
func (u *Upstream) check(q *server.ProxyQuestion) error {
	switch q.Type {
	case resource.Dataplane:
	case resource.ZoneIngress, resource.ZoneEgress:
		q.Mesh = ""
	default:
		return invalid("%q is not a type of proxies", q.Type)
	}
	rec, ok := u.o.Store.Snapshot().Get(store.Key{Type: string(q.Type), Mesh: q.Mesh, Name: q.Name})
	if !ok {
		text := fmt.Sprintf("resource not found: type=%q name=%q mesh=%q", q.Type, q.Name, q.Mesh)
		return &server.AskError{Reason: server.AskNotFound, Details: text}
	}
	if rec.Origin != "" {
		return invalid("%s %q belongs to %q and is not a proxy of this zone", q.Type, q.Name, rec.Origin)
	}
	return nil
}

// ask asks the proxy. A fault in it fails this question and nothing else.
func (u *Upstream) ask(ctx context.Context, q server.ProxyQuestion) (body []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			u.o.Log.ErrorContext(ctx, "panic in a question about a proxy", "view", q.View, "panic", r, "stack", string(debug.Stack()))
			err = errors.New("internal error")
		}
	}()
	if u.o.Proxies == nil {
		return nil, &server.AskError{Reason: server.AskUnreachable, Details: "no proxy of this zone can be asked"}
	}
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	body, err = u.o.Proxies.Ask(ctx, q)
	if _, told := errors.AsType[*server.AskError](err); err != nil && !told && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = &server.AskError{Reason: server.AskTimeout, Details: fmt.Sprintf("no answer within %s", questionTimeout)}
	}
	return body, err
}
