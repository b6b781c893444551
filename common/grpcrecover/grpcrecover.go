// Package grpcrecover keeps gRPC servers up: no message of a peer may take the process down, whatever a handler does with it.
package grpcrecover

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Options turn a panic of a handler into a failed call (codes.Internal), and log it.
func Options(log *slog.Logger) []grpc.ServerOption {
	panicked := func(ctx context.Context, method string, r any) {
		log.ErrorContext(ctx, "handler panicked", "method", method, "err", fmt.Sprint(r))
	}
	return []grpc.ServerOption{
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
			defer func() {
				if r := recover(); r != nil {
					panicked(ss.Context(), info.FullMethod, r)
					err = status.Error(codes.Internal, "stream failed")
				}
			}()
			return handler(srv, ss)
		}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
			defer func() {
				if r := recover(); r != nil {
					panicked(ctx, info.FullMethod, r)
					err = status.Error(codes.Internal, "call failed")
				}
			}()
			return handler(ctx, req)
		}),
	}
}
