package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// What a call says under these keys is said back, in the header and the trailer
// (gRPC: interoperability test case custom_metadata).
const (
	headerKey  = "x-grpc-test-echo-initial"
	trailerKey = "x-grpc-test-echo-trailing-bin"
)

// serveGRPC serves until SIGTERM, then lets calls in flight end.
func serveGRPC(term context.Context) error {
	listener, err := net.Listen("tcp", ":"+cmp.Or(os.Getenv("PORT"), "8080"))
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	server := grpc.NewServer(limited(os.Getenv("LIMIT")))
	grpc_testing.RegisterTestServiceServer(server, testService{})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Println("protocols: listening on", listener.Addr())
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-term.Done():
	}
	server.GracefulStop()
	fmt.Println("protocols: ended")
	return nil
}

// limited refuses streams when more than limit are open.
func limited(limit string) grpc.ServerOption {
	var open atomic.Int64
	return grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		defer open.Add(-1)
		n := open.Add(1)
		if most, err := strconv.ParseInt(limit, 10, 64); err == nil && n > most {
			return status.Errorf(codes.ResourceExhausted, "%d calls are in flight, not %d", n, most)
		}
		return handle(srv, stream)
	})
}

// testService is gRPC's service for interoperability tests, as far as it is used.
type testService struct {
	grpc_testing.UnimplementedTestServiceServer
}

func echoed(ctx context.Context) (header, trailer metadata.MD) {
	md, _ := metadata.FromIncomingContext(ctx)
	return metadata.MD{headerKey: md[headerKey]}, metadata.MD{trailerKey: md[trailerKey]}
}

// failure is the status that was asked for, with that itself as detail.
func failure(want *grpc_testing.EchoStatus) error {
	if want == nil {
		return nil
	}
	s, err := status.New(codes.Code(want.GetCode()), want.GetMessage()).WithDetails(want)
	if err != nil {
		return err
	}
	return s.Err()
}

func (testService) UnaryCall(ctx context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	header, trailer := echoed(ctx)
	_ = grpc.SetHeader(ctx, header)
	_ = grpc.SetTrailer(ctx, trailer)
	if err := failure(in.GetResponseStatus()); err != nil {
		return nil, err
	}
	return &grpc_testing.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (testService) StreamingInputCall(stream grpc.ClientStreamingServer[grpc_testing.StreamingInputCallRequest, grpc_testing.StreamingInputCallResponse]) error {
	var size int
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&grpc_testing.StreamingInputCallResponse{AggregatedPayloadSize: int32(size)})
		}
		if err != nil {
			return err
		}
		size += len(in.GetPayload().GetBody())
	}
}

func (testService) StreamingOutputCall(in *grpc_testing.StreamingOutputCallRequest, stream grpc.ServerStreamingServer[grpc_testing.StreamingOutputCallResponse]) error {
	for _, want := range in.GetResponseParameters() {
		time.Sleep(time.Duration(want.GetIntervalUs()) * time.Microsecond)
		payload := &grpc_testing.Payload{Body: make([]byte, want.GetSize())}
		if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: payload}); err != nil {
			return err
		}
	}
	return failure(in.GetResponseStatus())
}

func (testService) FullDuplexCall(stream grpc.BidiStreamingServer[grpc_testing.StreamingOutputCallRequest, grpc_testing.StreamingOutputCallResponse]) error {
	header, trailer := echoed(stream.Context())
	_ = stream.SetHeader(header)
	stream.SetTrailer(trailer)
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := failure(in.GetResponseStatus()); err != nil {
			return err
		}
		if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
	}
}
