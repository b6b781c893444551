package admin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cncf/xds/go/udpa/annotations"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/meridian-mesh/meridian/api/redact"
)

// TestWhatEnvoyCallsSensitiveIsMasked: every field that Envoy's own definitions mark so, as far as they are linked in, in both
// spellings, with text and with bytes.
func TestWhatEnvoyCallsSensitiveIsMasked(t *testing.T) {
	const secret = "SECRET"
	elsewhere := map[protoreflect.FullName]bool{
		// They are lists and maps within a field that is masked as a whole.
		"envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys.keys": true,
		"envoy.extensions.transport_sockets.tls.v3.GenericSecret.secret":      true,
		"envoy.extensions.transport_sockets.tls.v3.GenericSecret.secrets":     true,
		// What is in it is masked by its own name, as far as that is a secret's.
		"envoy.extensions.transport_sockets.tls.v3.PrivateKeyProvider.typed_config": true,
		// Labels for the authorization service, which Envoy itself masks.
		"envoy.extensions.filters.http.ext_authz.v3.CheckSettings.context_extensions": true,
	}
	found := 0
	protoregistry.GlobalTypes.RangeMessages(func(m protoreflect.MessageType) bool {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			sensitive, _ := proto.GetExtension(f.Options(), annotations.E_Sensitive).(bool)
			if !sensitive || elsewhere[f.FullName()] {
				continue
			}
			found++
			for _, source := range []*corev3.DataSource{
				{Specifier: &corev3.DataSource_InlineString{InlineString: secret}}, {Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(secret)}},
			} {
				msg := m.New()
				value := protoreflect.ValueOfString(secret)
				if f.Message() != nil {
					value = protoreflect.ValueOfMessage(source.ProtoReflect())
				}
				if f.IsList() {
					msg.Mutable(f).List().Append(value)
				} else {
					msg.Set(f, value)
				}
				for _, names := range []bool{false, true} {
					text, err := (protojson.MarshalOptions{UseProtoNames: names}).Marshal(msg.Interface())
					if err != nil {
						t.Fatal(err)
					}
					if !json.Valid(text) {
						t.Fatalf("%s", text)
					}
					var out bytes.Buffer
					if err := redact.Dump(&out, bytes.NewReader(text)); err != nil {
						t.Fatal(err)
					}
					if strings.Contains(out.String(), secret) || strings.Contains(out.String(), base64.StdEncoding.EncodeToString([]byte(secret))) {
						t.Errorf("%s is shown: %s", f.FullName(), text)
					}
				}
			}
		}
		return true
	})
	if found < 5 {
		t.Errorf("%d sensitive fields are known, so the test looks at little", found)
	}
}
