package codec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAShapeIsShownToOthersAsItIsChecked(t *testing.T) {
	text := Shape{Scalar: "string"}
	targetRef := Shape{Fields: map[string]Shape{"kind": text, "name": text, "mesh": text, "tags": {Entries: &text}}}
	want := Shape{Fields: map[string]Shape{
		"targetRef": targetRef,
		"from": {Elements: &Shape{Fields: map[string]Shape{
			"targetRef": targetRef,
			"default": {Fields: map[string]Shape{
				"action": {Allowed: []string{"ALLOW", "DENY", "ALLOW_WITH_SHADOW_DENY", "Allow", "Deny", "AllowWithShadowDeny"}},
			}},
		}}},
	}}
	got, ok := ShapeOf("MeshTrafficPermission")
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Errorf("(-want +got):\n%s", diff)
	}
	trace, _ := ShapeOf("MeshTrace")
	conf := trace.Fields["default"]
	if !conf.Fields["sampling"].Fields["overall"].Percent || conf.Fields["backends"].Elements.Fields["zipkin"].Fields["traceId128bit"].Scalar != "boolean" {
		t.Errorf("%+v", conf)
	}
	if _, ok := ShapeOf("Mesh"); ok {
		t.Error("a protobuf type has a shape")
	}
}
