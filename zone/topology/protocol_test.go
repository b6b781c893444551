package topology

import "testing"

func TestCommonProtocol(t *testing.T) {
	tests := []struct {
		name  string
		given []string
		want  string
	}{
		{"nothing has nothing in common", nil, ""},
		{"one is itself", []string{"grpc"}, "grpc"},
		{"equals are themselves", []string{"http", "http"}, "http"},
		{"http and http2 share tcp", []string{"http", "http2"}, "tcp"},
		{"grpc is made of http2", []string{"grpc", "http2"}, "http2"},
		{"whatever the order", []string{"http2", "grpc"}, "http2"},
		{"kafka and http share tcp", []string{"kafka", "http"}, "tcp"},
		{"three share what all share", []string{"grpc", "http2", "http"}, "tcp"},
		{"one unknown makes it unknown", []string{"grpc", "", "http2"}, ""},
		{"also as the first", []string{"", "http"}, ""},
		{"also alone", []string{""}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := CommonProtocol(tt.given...); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestProtocolOfTags(t *testing.T) {
	for value, want := range map[string]string{"http": "http", "HTTP2": "http2", "gRPC": "grpc", "Kafka": "kafka", "tcp": "tcp", "redis": "", "": ""} {
		if got := Protocol(map[string]string{"kuma.io/protocol": value}); got != want {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
}
