package openapi

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/api/resource"
)

func TestValuesAreDescribedAsTheCodecWritesThem(t *testing.T) {
	s := newSchemas()
	all := resource.All()
	for i := range all {
		s.resource(&all[i])
	}
	for _, tc := range []struct{ name, schema, property, want string }{
		{"a string", "Dataplane.Networking", "address", `{"type":"string"}`},
		{"a map", "Selector", "match", `{"type":"object","additionalProperties":{"type":"string"}}`},
		{"a list of messages", "Dataplane.Networking", "inbound", `{"type":"array","items":{"$ref":"#/components/schemas/Dataplane.Networking.Inbound"}}`},
		{"a small integer", "Dataplane.Networking.Inbound", "port", `{"type":"integer","minimum":0,"maximum":4294967295}`},
		{"a large integer", "system.KDSServiceStats", "responsesSent", `{"description":"Answered as a string of digits; a number is accepted too.","type":["string","integer"],"format":"int64"}`},
		{"a duration", "Timeout.Conf", "connectTimeout", `{"$ref":"#/components/schemas/Duration"}`},
		{"a wrapped boolean", "Zone", "enabled", `{"description":"Absent means enabled.","type":"boolean"}`},
		{"wrapped bytes", "Secret", "data", `{"type":"string","contentEncoding":"base64"}`},
		{"anything", "CertificateAuthorityBackend", "conf", `{"type":"object","additionalProperties":{}}`},
		{"an enum", "CertificateAuthorityBackend", "mode", `{"$ref":"#/components/schemas/CertificateAuthorityBackend.Mode"}`},
		{"a message of another package", "ZoneInsight", "healthCheck", `{"$ref":"#/components/schemas/system.HealthCheck"}`},
		{"the type of a resource", "Dataplane", "type", `{"type":"string","const":"Dataplane"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, p := range s.named[tc.schema].Properties {
				if p.Name == tc.property {
					got, err := marshal(p.Schema)
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(tc.want, string(got)); diff != "" {
						t.Error(diff)
					}
					return
				}
			}
			t.Errorf("%s has no %s", tc.schema, tc.property)
		})
	}
}

func TestATypeSaysWhichFieldsExcludeEachOther(t *testing.T) {
	s := newSchemas()
	row, _ := resource.Lookup("MeshGateway")
	s.resource(row)
	const want = "At most one of secret, file, inline, inlineString."
	if got := s.named["system.DataSource"].Description; !strings.HasSuffix(got, want) {
		t.Errorf("%q does not say %q", got, want)
	}
}

func TestABodyThatIsAStructIsDescribedAsItIsWritten(t *testing.T) {
	type inner struct {
		N int `json:"n" doc:"A number."`
	}
	s := newSchemas()
	got, err := marshal(s.goType(reflect.TypeFor[struct {
		inner
		Name  string           `json:"name"`
		Since *time.Time       `json:"since"`
		Lag   *int             `json:"lag"`
		Note  *string          `json:"note,omitempty"`
		By    map[string]inner `json:"by"`
		Skip  int              `json:"-"`
		Raw   json.RawMessage  `json:"raw"`
	}]()))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"type":"object","required":["n","name","since","lag","by","raw"],"properties":{` +
		`"n":{"description":"A number.","type":"integer"},"name":{"type":"string"},` +
		`"since":{"anyOf":[{"$ref":"#/components/schemas/Timestamp"},{"type":"null"}]},"lag":{"type":["integer","null"]},` +
		`"note":{"type":"string"},` +
		`"by":{"type":"object","additionalProperties":{"$ref":"#/components/schemas/Inner"}},` +
		`"raw":{}}}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if s.named["Inner"] == nil {
		t.Error("the named struct has no schema of its own")
	}
}

func TestTwoThingsCannotHaveOneSchema(t *testing.T) {
	type mesh struct{}
	d := New(resource.Global, "")
	row, _ := resource.Lookup(resource.Mesh)
	d.List(row, false)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	d.Of(mesh{})
}

func TestYAMLSaysWhatJSONSays(t *testing.T) {
	d := New(resource.Global, "1.0.0")
	row, _ := resource.Lookup(resource.Mesh)
	d.Add("GET", "/meshes", d.List(row, false))
	d.Add("PUT", "/meshes/{name}", d.Put(row, true))
	inJSON, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	inYAML, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal(inJSON, &want); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(inYAML, &got); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := json.Unmarshal(again, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestADocumentThatRefersToNothingIsAnError(t *testing.T) {
	for _, tc := range []struct {
		op   Operation
		want string
	}{
		{Operation{Tags: []string{"Nonsense"}}, "tag Nonsense"},
		{Operation{Parameters: []Parameter{Param("nonsense")}}, "get /x: parameter nonsense"},
		{Operation{Responses: answers(nil, "Nonsense")}, "get /x: answer Nonsense"},
		{Operation{Responses: map[string]Response{"200": {Headers: map[string]Header{"X": header("Nonsense")}}}}, "get /x: header Nonsense"},
	} {
		d := New(resource.Zone, "")
		d.Add("GET", "/x", tc.op)
		for form, render := range map[string]func() ([]byte, error){"JSON": d.JSON, "YAML": d.YAML, "page": d.Page} {
			if _, err := render(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: got %v, want an error with %q", form, err, tc.want)
			}
		}
	}
}
