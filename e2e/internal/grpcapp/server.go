package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const method = "/meridian.e2e.Echo/Who"

// Metadata by which callers ask a server for trouble.
const (
	failFirst = "fail-first" // so many tries of a call fail
	takeTime  = "take-time"  // before the answer
)

// echo answers with its name.
type echo struct {
	name    string
	failing bool
}

// serve serves until ctx ends.
func serve(ctx context.Context, address, name string, failing bool) error {
	creds, err := xdscreds.NewServerCredentials(xdscreds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	mode := xds.ServingModeCallback(func(a net.Addr, m xds.ServingModeChangeArgs) {
		fmt.Fprintln(os.Stderr, "server", a, m.Mode, m.Err)
	})
	srv, err := xds.NewGRPCServer(grpc.Creds(creds), mode)
	if err != nil {
		return fmt.Errorf("new server: %w", err)
	}
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "meridian.e2e.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Who", Handler: handle}},
	}, &echo{name, failing})
	lis, err := net.Listen("tcp", address) //nolint:noctx // binding does not block
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	context.AfterFunc(ctx, srv.GracefulStop)
	return srv.Serve(lis)
}

// handle is what generated code would be.
func handle(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // gRPC has the context second
	in := &emptypb.Empty{}
	if err := decode(in); err != nil {
		return nil, err
	}
	call := func(ctx context.Context, _ any) (any, error) { return srv.(*echo).who(ctx) }
	if interceptor == nil {
		return call(ctx, in)
	}
	return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, call) // permissions are in there
}

func (e *echo) who(ctx context.Context) (*wrapperspb.StringValue, error) {
	if e.failing {
		return nil, status.Error(codes.Unavailable, "this instance always fails")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	first := func(key string) string {
		if v := md.Get(key); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	tries, _ := strconv.Atoi(first("grpc-previous-rpc-attempts")) // gRPC's own, none at first
	if n, _ := strconv.Atoi(first(failFirst)); tries < n {
		return nil, status.Errorf(codes.Unavailable, "try %d fails as asked for", tries+1)
	}
	if d, err := time.ParseDuration(first(takeTime)); err == nil {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	return wrapperspb.String(e.name), nil
}
