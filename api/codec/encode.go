package codec

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// itemDepth is how much deeper an object stands in a list than alone: inside "items", inside the list's object.
const itemDepth = 2

// Meta is what an encoded resource begins with.
type Meta struct {
	Type string
	Mesh string // left out when empty
	Name string
	// Created and Modified are shown in UTC; the zero time as 1970-01-01T00:00:00Z.
	Created, Modified time.Time
	Labels            map[string]string // left out when empty
}

// MetaOf returns the meta of a record.
func MetaOf(rec *store.Record) Meta {
	return Meta{
		Type: rec.Key.Type, Mesh: rec.Key.Mesh, Name: rec.Key.Name,
		Created: rec.Created, Modified: rec.Modified, Labels: rec.Labels,
	}
}

// Encode renders a record as an answer of its own: indented by one space a level, without a newline at the end. Equal
// records give equal bytes. It fails when the specification cannot be decoded.
func Encode(d *resource.Descriptor, rec *store.Record) ([]byte, error) {
	return encode(d, rec, 0)
}

// EncodeItem renders a record as an element of a list: as Encode does, but every line except the first is indented by
// two more spaces. A list is then a concatenation, and Single gives the other form. Cache this one.
func EncodeItem(d *resource.Descriptor, rec *store.Record) ([]byte, error) {
	return encode(d, rec, itemDepth)
}

// Single returns what Encode would have, from what EncodeItem gave.
func Single(item []byte) []byte {
	out := make([]byte, 0, len(item))
	for {
		line, rest, more := bytes.Cut(item, []byte{'\n'})
		out = append(out, line...)
		if !more {
			return out
		}
		out = append(out, '\n')
		item = bytes.TrimPrefix(rest, []byte("  "))
	}
}

// Item returns what EncodeItem would have, from what Encode, EncodeOverview or EncodeMessage gave.
func Item(single []byte) []byte {
	return bytes.ReplaceAll(single, []byte{'\n'}, []byte("\n  "))
}

// EncodeOverview renders a record and the insight on it, which stand beside each other under the names of their types.
// insight may be nil; showMissing says whether it is then shown as {} or left out.
func EncodeOverview(d *resource.Descriptor, rec, insight *store.Record, showMissing bool) ([]byte, error) {
	insightType, ok := d.Insight()
	if !ok {
		return nil, fmt.Errorf("encode overview of %s: the type has no insight", rec.Key)
	}
	spec, err := Spec(d, rec)
	if err != nil {
		return nil, err
	}
	meta := MetaOf(rec)
	meta.Type += "Overview"
	p := printer{buf: make([]byte, 0, 2048)}
	p.open('{')
	p.meta(meta)
	p.key(lowerFirst(string(d.Name)))
	p.message(spec.ProtoReflect())
	switch {
	case insight != nil:
		spec, err := Spec(insightType, insight)
		if err != nil {
			return nil, err
		}
		p.key(lowerFirst(string(insightType.Name)))
		p.message(spec.ProtoReflect())
	case showMissing:
		p.key(lowerFirst(string(insightType.Name)))
		p.open('{')
		p.close('}')
	}
	p.close('}')
	return p.buf, nil
}

// EncodeMessage renders any message as if it were the specification of a resource with that meta. It serves what is
// shown as a resource but not stored as one, such as a single service of a ServiceInsight.
func EncodeMessage(meta Meta, spec proto.Message) []byte {
	p := printer{buf: make([]byte, 0, 512)}
	p.open('{')
	p.meta(meta)
	p.fields(spec.ProtoReflect())
	p.close('}')
	return p.buf
}

func encode(d *resource.Descriptor, rec *store.Record, depth int) ([]byte, error) {
	p := printer{buf: make([]byte, 0, 512+4*len(rec.Spec)), depth: depth}
	p.open('{')
	p.meta(MetaOf(rec))
	if d.IsJSON() {
		p.key("spec")
		if err := p.raw(rec.Spec); err != nil {
			return nil, fmt.Errorf("encode specification of %s: %w", rec.Key, err)
		}
	} else {
		spec, err := Spec(d, rec)
		if err != nil {
			return nil, err
		}
		p.fields(spec.ProtoReflect())
	}
	p.close('}')
	return p.buf, nil
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

// printer writes indented JSON. Whether a comma is due, it sees from the last byte written: a value never ends in an
// opening bracket.
type printer struct {
	buf   []byte
	depth int
}

func (p *printer) last() byte { return p.buf[len(p.buf)-1] }

func (p *printer) open(bracket byte) {
	p.buf = append(p.buf, bracket)
	p.depth++
}

func (p *printer) close(bracket byte) {
	p.depth--
	if c := p.last(); c != '{' && c != '[' {
		p.newline()
	}
	p.buf = append(p.buf, bracket)
}

func (p *printer) newline() {
	p.buf = append(p.buf, '\n')
	for range p.depth {
		p.buf = append(p.buf, ' ')
	}
}

// element starts the next element of an array or member of an object.
func (p *printer) element() {
	if c := p.last(); c != '{' && c != '[' {
		p.buf = append(p.buf, ',')
	}
	p.newline()
}

func (p *printer) key(name string) {
	p.element()
	p.string(name)
	p.buf = append(p.buf, ": "...)
}

func (p *printer) meta(m Meta) {
	p.key("type")
	p.string(m.Type)
	if m.Mesh != "" {
		p.key("mesh")
		p.string(m.Mesh)
	}
	p.key("name")
	p.string(m.Name)
	p.key("creationTime")
	p.time(m.Created)
	p.key("modificationTime")
	p.time(m.Modified)
	if len(m.Labels) == 0 {
		return
	}
	p.key("labels")
	p.open('{')
	for _, name := range slices.Sorted(maps.Keys(m.Labels)) {
		p.key(name)
		p.string(m.Labels[name])
	}
	p.close('}')
}

func (p *printer) time(t time.Time) {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	p.buf = append(p.buf, '"')
	p.buf = t.UTC().AppendFormat(p.buf, time.RFC3339Nano)
	p.buf = append(p.buf, '"')
}

// raw writes JSON as it is, apart from white space.
func (p *printer) raw(src []byte) error {
	if len(bytes.TrimSpace(src)) == 0 {
		src = []byte("{}")
	}
	out := bytes.NewBuffer(p.buf)
	if err := json.Indent(out, src, strings.Repeat(" ", p.depth), " "); err != nil {
		return err
	}
	p.buf = bytes.TrimRight(out.Bytes(), " \t\r\n")
	return nil
}

// fields writes the members of an object: the fields of m that are present, in the order of the schema.
func (p *printer) fields(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		p.key(fd.JSONName())
		switch v := m.Get(fd); {
		case fd.IsList():
			p.list(fd, v.List())
		case fd.IsMap():
			p.mapping(fd.MapValue(), v.Map())
		default:
			p.value(fd, v)
		}
	}
}

func (p *printer) list(fd protoreflect.FieldDescriptor, list protoreflect.List) {
	p.open('[')
	for i := range list.Len() {
		p.element()
		p.value(fd, list.Get(i))
	}
	p.close(']')
}

func (p *printer) mapping(fd protoreflect.FieldDescriptor, m protoreflect.Map) {
	type entry struct {
		key   string
		value protoreflect.Value
	}
	entries := make([]entry, 0, m.Len())
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		entries = append(entries, entry{k.String(), v})
		return true
	})
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	p.open('{')
	for _, e := range entries {
		p.key(e.key)
		p.value(fd, e.value)
	}
	p.close('}')
}

func (p *printer) value(fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		p.bool(v.Bool())
	case protoreflect.StringKind:
		p.string(v.String())
	case protoreflect.BytesKind:
		p.bytes(v.Bytes())
	case protoreflect.EnumKind:
		if known := fd.Enum().Values().ByNumber(v.Enum()); known != nil {
			p.string(string(known.Name()))
		} else {
			p.int(int64(v.Enum()))
		}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		p.int(v.Int())
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		p.uint(v.Uint())
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		p.quoted(func() { p.int(v.Int()) })
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		p.quoted(func() { p.uint(v.Uint()) })
	case protoreflect.FloatKind:
		p.float(v.Float(), 32)
	case protoreflect.DoubleKind:
		p.float(v.Float(), 64)
	case protoreflect.MessageKind, protoreflect.GroupKind:
		p.message(v.Message())
	}
}

// message writes a message, in the special form of JSON where it is a well-known type.
func (p *printer) message(m protoreflect.Message) {
	switch v := m.Interface().(type) {
	case *wrapperspb.BoolValue:
		p.bool(v.GetValue())
	case *wrapperspb.StringValue:
		p.string(v.GetValue())
	case *wrapperspb.BytesValue:
		p.bytes(v.GetValue())
	case *wrapperspb.Int32Value:
		p.int(int64(v.GetValue()))
	case *wrapperspb.UInt32Value:
		p.uint(uint64(v.GetValue()))
	case *wrapperspb.Int64Value:
		p.quoted(func() { p.int(v.GetValue()) })
	case *wrapperspb.UInt64Value:
		p.quoted(func() { p.uint(v.GetValue()) })
	case *wrapperspb.FloatValue:
		p.float(float64(v.GetValue()), 32)
	case *wrapperspb.DoubleValue:
		p.float(v.GetValue(), 64)
	case *durationpb.Duration:
		p.duration(v)
	case *timestamppb.Timestamp:
		p.timestamp(v)
	case *structpb.Struct:
		p.structure(v)
	case *structpb.ListValue:
		p.listValue(v)
	case *structpb.Value:
		p.dynamic(v)
	default:
		p.open('{')
		p.fields(m)
		p.close('}')
	}
}

func (p *printer) structure(s *structpb.Struct) {
	p.open('{')
	for _, name := range slices.Sorted(maps.Keys(s.GetFields())) {
		p.key(name)
		p.dynamic(s.GetFields()[name])
	}
	p.close('}')
}

func (p *printer) listValue(l *structpb.ListValue) {
	p.open('[')
	for _, v := range l.GetValues() {
		p.element()
		p.dynamic(v)
	}
	p.close(']')
}

func (p *printer) dynamic(v *structpb.Value) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_BoolValue:
		p.bool(k.BoolValue)
	case *structpb.Value_NumberValue:
		p.float(k.NumberValue, 64)
	case *structpb.Value_StringValue:
		p.string(k.StringValue)
	case *structpb.Value_StructValue:
		p.structure(k.StructValue)
	case *structpb.Value_ListValue:
		p.listValue(k.ListValue)
	default: // null, or unset by a peer that should not
		p.buf = append(p.buf, "null"...)
	}
}

func (p *printer) bool(v bool)   { p.buf = strconv.AppendBool(p.buf, v) }
func (p *printer) int(v int64)   { p.buf = strconv.AppendInt(p.buf, v, 10) }
func (p *printer) uint(v uint64) { p.buf = strconv.AppendUint(p.buf, v, 10) }

func (p *printer) quoted(write func()) {
	p.buf = append(p.buf, '"')
	write()
	p.buf = append(p.buf, '"')
}

func (p *printer) bytes(v []byte) {
	p.quoted(func() { p.buf = base64.StdEncoding.AppendEncode(p.buf, v) })
}

func (p *printer) string(s string) { p.buf = appendString(p.buf, s) }

// float writes a number as encoding/json does; what JSON has no number for, as protobuf's JSON does, as a string.
func (p *printer) float(v float64, bits int) { p.buf = appendFloat(p.buf, v, bits) }

// duration writes seconds with no, 3, 6 or 9 digits after the point.
func (p *printer) duration(d *durationpb.Duration) {
	seconds, nanos := d.GetSeconds(), d.GetNanos()
	p.quoted(func() {
		if seconds < 0 || nanos < 0 {
			p.buf = append(p.buf, '-')
			seconds, nanos = -seconds, -nanos
		}
		p.int(seconds)
		p.fraction(nanos)
		p.buf = append(p.buf, 's')
	})
}

func (p *printer) timestamp(t *timestamppb.Timestamp) {
	p.quoted(func() {
		p.buf = time.Unix(t.GetSeconds(), 0).UTC().AppendFormat(p.buf, "2006-01-02T15:04:05")
		p.fraction(t.GetNanos())
		p.buf = append(p.buf, 'Z')
	})
}

func (p *printer) fraction(nanos int32) {
	if nanos <= 0 {
		return
	}
	digits := fmt.Sprintf("%09d", nanos)
	for strings.HasSuffix(digits, "000") {
		digits = digits[:len(digits)-3]
	}
	p.buf = append(p.buf, '.')
	p.buf = append(p.buf, digits...)
}

// EncodeFlat renders the record of a targetRef policy as Encode does, except that the specification is not nested: its members
// stand beside the name. Members that would be read as something else there are left out.
func EncodeFlat(rec *store.Record) ([]byte, error) {
	p := printer{buf: make([]byte, 0, 512+4*len(rec.Spec))}
	p.open('{')
	p.meta(MetaOf(rec))
	if err := p.members(rec.Spec); err != nil {
		return nil, fmt.Errorf("encode specification of %s: %w", rec.Key, err)
	}
	p.close('}')
	return p.buf, nil
}

// members writes the members of a JSON object, in its order, into the one that is open.
func (p *printer) members(object []byte) error {
	if len(bytes.TrimSpace(object)) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(object))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return errors.Join(err, errors.New("is not an object"))
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		switch name {
		case "type", "mesh", "name", "creationTime", "modificationTime", "labels":
			continue
		}
		p.key(name.(string)) // the name of a member is a string
		if err := p.raw(value); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}
