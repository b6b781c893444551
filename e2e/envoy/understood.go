package envoy

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// understood are, by type, the fields of what is met on the way of a request that this stand-in either does or may pass over: what is
// only counted, logged or traced, bounds on connections that no test comes near, and compression, which a client may not rely on.
// Any other field fails loudly. A new field belongs here when it is done, or when a request cannot tell whether it is.
var understood = map[protoreflect.FullName][]protoreflect.Name{ //nolint:gochecknoglobals // a constant
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": {
		"codec_type", "stat_prefix", "rds", "route_config", "http_filters", "common_http_protocol_options", "http_protocol_options",
		"http2_protocol_options", "stream_idle_timeout", "request_headers_timeout", "request_timeout", "drain_timeout", "access_log", "tracing",
		"use_remote_address", "forward_client_cert_details", "set_current_client_cert_details", "normalize_path", "merge_slashes",
		"strip_any_host_port", "server_name", "server_header_transformation", "path_with_escaped_slashes_action", "generate_request_id",
		"preserve_external_request_id", "xff_num_trusted_hops",
	},
	"envoy.config.core.v3.HttpProtocolOptions": {
		"idle_timeout", "max_connection_duration", "max_headers_count", "max_stream_duration", "headers_with_underscores_action",
	},
	"envoy.config.route.v3.RouteConfiguration": {
		"name", "virtual_hosts", "validate_clusters", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
		"response_headers_to_remove", "typed_per_filter_config",
	},
	"envoy.config.route.v3.VirtualHost": {
		"name", "domains", "routes", "require_tls", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
		"response_headers_to_remove", "typed_per_filter_config", "retry_policy",
	},
	"envoy.config.route.v3.Route": {
		"name", "match", "route", "redirect", "direct_response", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
		"response_headers_to_remove", "typed_per_filter_config", "decorator", "metadata", "tracing",
	},
	"envoy.config.route.v3.RouteMatch": {
		"prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "headers", "query_parameters", "runtime_fraction",
	},
	"envoy.config.route.v3.RouteAction": {
		"cluster", "weighted_clusters", "metadata_match", "timeout", "idle_timeout", "max_stream_duration", "prefix_rewrite", "regex_rewrite",
		"host_rewrite_literal", "auto_host_rewrite", "request_mirror_policies", "retry_policy",
	},
	"envoy.config.route.v3.RouteAction.RequestMirrorPolicy": {"cluster", "runtime_fraction"},
	"envoy.config.route.v3.RedirectAction": {
		"https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect", "prefix_rewrite", "regex_rewrite",
		"response_code", "strip_query",
	},
	"envoy.config.route.v3.DirectResponseAction": {"status", "body"},
	"envoy.config.route.v3.RetryPolicy": {
		"retry_on", "num_retries", "per_try_timeout", "retriable_status_codes", "retry_back_off", "retriable_request_headers",
	},
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit": {
		"stat_prefix", "status", "token_bucket", "filter_enabled", "filter_enforced", "response_headers_to_add",
	},
	"envoy.extensions.filters.http.fault.v3.HTTPFault":                     {"delay", "abort", "headers"},
	"envoy.extensions.filters.common.fault.v3.FaultDelay":                  {"fixed_delay", "percentage"},
	"envoy.extensions.filters.http.fault.v3.FaultAbort":                    {"http_status", "percentage"},
	"envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit": {"stat_prefix", "max_connections", "delay"},
}

// understands is an error when a message has a field that this stand-in does not know what to do with. What is inside of it is
// looked at when it is used.
func understands(messages ...proto.Message) error {
	for _, m := range messages {
		reflected := m.ProtoReflect()
		var failed error
		reflected.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			for _, name := range understood[reflected.Descriptor().FullName()] {
				if name == fd.Name() {
					return true
				}
			}
			failed = fmt.Errorf("%w: %s", ErrUnsupported, fd.FullName())
			return false
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}
