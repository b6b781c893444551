package codec

import (
	"encoding/base64"
	"fmt"
	"math"
	"mime"
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
)

// maxReported bounds how many violations and how many unknown fields of one body are reported.
const maxReported = 100

// Decode reads a body of the type d. mediaType is a Content-Type, with or without parameters: application/json, or one
// of application/yaml, application/x-yaml and text/yaml (a single document).
//
// It returns ErrMediaType for any other format, and an *Error naming everything that is wrong with the body: bad
// syntax, wrong JSON types, numbers that do not fit, unknown enum values, names given twice. It judges structure only;
// whether the values make sense, and whether they agree with a URL, is for others. A field of the specification goes
// by its JSON name or by its name in the schema, an enum value by name or number; null stands for absence;
// creationTime and modificationTime are ignored.
func Decode(d *resource.Descriptor, mediaType string, content []byte) (*Document, error) {
	b, err := parse(mediaType, content)
	if err != nil {
		return nil, err
	}
	doc := &Document{}
	if err := b.decode(d, doc, false); err != nil {
		return nil, err
	}
	return doc, nil
}

// JSON returns a body that is no resource as compact JSON. Formats and errors are those of Decode: bad syntax and names
// given twice.
func JSON(mediaType string, content []byte) ([]byte, error) {
	b, err := parse(mediaType, content)
	if err != nil {
		return nil, err
	}
	w := walker{body: b}
	if b.repeats {
		w.repeats(&b.root, nil)
	}
	if len(w.violations) > 0 {
		return nil, &Error{Violations: w.violations}
	}
	return b.raw(&b.root), nil
}

func parse(mediaType string, content []byte) (*body, error) {
	format, _, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return nil, fmt.Errorf("%w: %q", ErrMediaType, mediaType)
	}
	var parse func(string) (*body, error)
	switch format {
	case "application/json":
		parse = parseJSON
	case "application/yaml", "application/x-yaml", "text/yaml":
		parse = parseYAML
	default:
		return nil, fmt.Errorf("%w: %q", ErrMediaType, format)
	}
	if len(strings.TrimSpace(string(content))) == 0 {
		return nil, errEmpty()
	}
	return parse(string(content))
}

// decode reads b as a resource of type d into doc, which is not to be used when there is an error; times says whether
// creationTime and modificationTime matter.
func (b *body) decode(d *resource.Descriptor, doc *Document, times bool) error {
	w := walker{body: b, times: times}
	if b.repeats {
		w.repeats(&b.root, nil)
	}
	w.document(d, &b.root, doc)
	if len(w.violations) > 0 {
		return &Error{Violations: w.violations}
	}
	doc.Unknown = w.unknown
	return nil
}

func errEmpty() error { return &Error{Violations: []Violation{{Message: "the body is empty"}}} }

// walker reads a parsed body and collects what is wrong with it.
type walker struct {
	body       *body
	times      bool // creationTime and modificationTime are read
	violations []Violation
	unknown    []string
}

func (w *walker) fail(at *path, message string) {
	if len(w.violations) < maxReported {
		w.violations = append(w.violations, Violation{Field: at.String(), Message: message})
	}
}

func (w *walker) failf(at *path, format string, args ...any) {
	if len(w.violations) < maxReported {
		w.fail(at, fmt.Sprintf(format, args...))
	}
}

// want reports whether n is of the kind, and complains when it is not.
func (w *walker) want(k kind, n *node, at *path) bool {
	if n.kind != k {
		w.failf(at, "must be %s, got %s", k, n.kind)
		return false
	}
	return true
}

func (w *walker) ignore(at *path) {
	if len(w.unknown) < maxReported {
		w.unknown = append(w.unknown, at.String())
	}
}

// repeats complains about every name that stands twice in its object.
func (w *walker) repeats(n *node, at *path) {
	for i := range n.children {
		child := &n.children[i]
		where := at.element(i)
		if n.kind == kindObject {
			where = at.field(child.name)
			if child.repeated {
				w.fail(where, "is given twice")
			}
		}
		w.repeats(child, where)
	}
}

func (w *walker) document(d *resource.Descriptor, root *node, doc *Document) {
	if !w.want(kindObject, root, nil) {
		return
	}
	var (
		at       *path
		spec     []node
		jsonSpec *node
	)
	for i := range root.children {
		n := &root.children[i]
		switch where := at.field(n.name); {
		case n.repeated:
		case n.name == "creationTime":
			w.instant(&doc.Created, n, where)
		case n.name == "modificationTime":
			w.instant(&doc.Modified, n, where)
		case n.name == "mesh" && d.Scope == resource.ScopeGlobal:
			doc.Mesh = ""
		case n.name == "type":
			w.text(&doc.Type, n, where)
		case n.name == "mesh":
			w.text(&doc.Mesh, n, where)
		case n.name == "name":
			w.text(&doc.Name, n, where)
		case n.name == "labels":
			doc.Labels = w.labels(n, where)
		case !d.IsJSON():
			spec = append(spec, *n)
		case n.name == "spec":
			jsonSpec = n
		default:
			w.ignore(where)
		}
	}
	if d.IsJSON() {
		doc.Spec = w.jsonSpec(d, jsonSpec)
		return
	}
	m := d.NewSpec()
	w.members(m.ProtoReflect(), spec, nil)
	if len(w.violations) > 0 {
		return
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		w.fail(nil, "cannot be encoded: "+err.Error())
	}
	doc.Spec = encoded
}

// instant reads when something happened. The zero time is written as 1970-01-01T00:00:00Z.
func (w *walker) instant(dst *time.Time, n *node, at *path) {
	if !w.times || n.kind == kindNull {
		return
	}
	if seconds, nanos, ok := w.timestamp(n, at); ok && (seconds != 0 || nanos != 0) {
		*dst = time.Unix(seconds, int64(nanos)).UTC()
	}
}

func (w *walker) jsonSpec(d *resource.Descriptor, n *node) []byte {
	at := (*path)(nil).field("spec")
	if n == nil || n.kind == kindNull {
		w.fail(at, "must be defined")
		return nil
	}
	if !w.want(kindObject, n, at) {
		return nil
	}
	w.shape(jsonShapes[d.Name], n, at)
	return w.body.raw(n)
}

func (w *walker) text(dst *string, n *node, at *path) {
	if n.kind != kindNull && w.want(kindString, n, at) {
		*dst = strings.Clone(n.text) // the rest of the body must not stay in memory because of a name
	}
}

func (w *walker) labels(n *node, at *path) map[string]string {
	if n.kind == kindNull || !w.want(kindObject, n, at) || len(n.children) == 0 {
		return nil
	}
	labels := make(map[string]string, len(n.children))
	for i := range n.children {
		if child := &n.children[i]; w.want(kindString, child, at.entry(child.name)) {
			labels[strings.Clone(child.name)] = strings.Clone(child.text)
		}
	}
	return labels
}

// members fills m from the members of an object that stands at a path.
func (w *walker) members(m protoreflect.Message, members []node, at *path) {
	fields := m.Descriptor().Fields()
	for i := range members {
		n := &members[i]
		if n.repeated {
			continue // reported before
		}
		where := at.field(n.name)
		fd := fields.ByJSONName(n.name)
		if fd == nil {
			fd = fields.ByName(protoreflect.Name(n.name))
		}
		if fd == nil {
			w.ignore(where)
			continue
		}
		if n.kind == kindNull {
			continue
		}
		if m.Has(fd) {
			w.failf(where, "is given twice, as %s and as %s", fd.JSONName(), fd.Name())
			continue
		}
		if oneof := fd.ContainingOneof(); oneof != nil {
			if other := m.WhichOneof(oneof); other != nil {
				w.failf(where, "cannot be given together with %s", other.JSONName())
				continue
			}
		}
		w.field(m, fd, n, where)
	}
}

func (w *walker) field(m protoreflect.Message, fd protoreflect.FieldDescriptor, n *node, at *path) {
	switch {
	case fd.IsList():
		if !w.want(kindArray, n, at) {
			return
		}
		list := m.Mutable(fd).List()
		for i := range n.children {
			if v, ok := w.value(fd, list.NewElement, &n.children[i], at.element(i)); ok {
				list.Append(v)
			}
		}
	case fd.IsMap():
		if !w.want(kindObject, n, at) {
			return
		}
		entries := m.Mutable(fd).Map()
		for i := range n.children {
			child := &n.children[i]
			if v, ok := w.value(fd.MapValue(), entries.NewValue, child, at.entry(child.name)); ok {
				entries.Set(protoreflect.ValueOfString(child.name).MapKey(), v)
			}
		}
	default:
		if v, ok := w.value(fd, func() protoreflect.Value { return m.NewField(fd) }, n, at); ok {
			m.Set(fd, v)
		}
	}
}

// value reads one value of the field's type; fresh makes an empty one where it is a message.
func (w *walker) value(fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value, n *node, at *path) (protoreflect.Value, bool) {
	var none protoreflect.Value
	switch fd.Kind() {
	case protoreflect.BoolKind:
		v, ok := w.bool(n, at)
		return protoreflect.ValueOfBool(v), ok
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(n.text), w.want(kindString, n, at)
	case protoreflect.BytesKind:
		v, ok := w.bytes(n, at)
		return protoreflect.ValueOfBytes(v), ok
	case protoreflect.EnumKind:
		v, ok := w.enum(fd.Enum(), n, at)
		return protoreflect.ValueOfEnum(v), ok
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		v, ok := w.int(n, 32, at)
		return protoreflect.ValueOfInt32(int32(v)), ok
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		v, ok := w.int(n, 64, at)
		return protoreflect.ValueOfInt64(v), ok
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		v, ok := w.uint(n, 32, at)
		return protoreflect.ValueOfUint32(uint32(v)), ok
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		v, ok := w.uint(n, 64, at)
		return protoreflect.ValueOfUint64(v), ok
	case protoreflect.FloatKind:
		v, ok := w.float(n, 32, at)
		return protoreflect.ValueOfFloat32(float32(v)), ok
	case protoreflect.DoubleKind:
		v, ok := w.float(n, 64, at)
		return protoreflect.ValueOfFloat64(v), ok
	case protoreflect.MessageKind:
		v := fresh()
		return v, w.message(v.Message(), n, at)
	default:
		w.failf(at, "is of a kind that cannot be given: %s", fd.Kind())
		return none, false
	}
}

// message fills an empty message from n, which is in a special form of JSON where the message is a well-known type.
func (w *walker) message(m protoreflect.Message, n *node, at *path) (ok bool) {
	switch v := m.Interface().(type) {
	case *wrapperspb.BoolValue:
		v.Value, ok = w.bool(n, at)
	case *wrapperspb.StringValue:
		v.Value, ok = n.text, w.want(kindString, n, at)
	case *wrapperspb.BytesValue:
		v.Value, ok = w.bytes(n, at)
	case *wrapperspb.Int32Value:
		var i int64
		i, ok = w.int(n, 32, at)
		v.Value = int32(i)
	case *wrapperspb.Int64Value:
		v.Value, ok = w.int(n, 64, at)
	case *wrapperspb.UInt32Value:
		var u uint64
		u, ok = w.uint(n, 32, at)
		v.Value = uint32(u)
	case *wrapperspb.UInt64Value:
		v.Value, ok = w.uint(n, 64, at)
	case *wrapperspb.FloatValue:
		var f float64
		f, ok = w.float(n, 32, at)
		v.Value = float32(f)
	case *wrapperspb.DoubleValue:
		v.Value, ok = w.float(n, 64, at)
	case *durationpb.Duration:
		v.Seconds, v.Nanos, ok = w.duration(n, at)
	case *timestamppb.Timestamp:
		v.Seconds, v.Nanos, ok = w.timestamp(n, at)
	case *structpb.Struct:
		if ok = w.want(kindObject, n, at); ok {
			v.Fields, ok = w.structure(n, at)
		}
	case *structpb.ListValue:
		if ok = w.want(kindArray, n, at); ok {
			v.Values, ok = w.listValue(n, at)
		}
	case *structpb.Value:
		var dynamic *structpb.Value
		if dynamic, ok = w.dynamic(n, at); ok {
			v.Kind = dynamic.GetKind()
		}
	default:
		if ok = w.want(kindObject, n, at); ok {
			w.members(m, n.children, at)
		}
	}
	return ok
}

func (w *walker) structure(n *node, at *path) (map[string]*structpb.Value, bool) {
	fields := make(map[string]*structpb.Value, len(n.children))
	for i := range n.children {
		child := &n.children[i]
		v, ok := w.dynamic(child, at.field(child.name))
		if !ok {
			return nil, false
		}
		fields[child.name] = v
	}
	return fields, true
}

func (w *walker) listValue(n *node, at *path) ([]*structpb.Value, bool) {
	values := make([]*structpb.Value, len(n.children))
	for i := range n.children {
		v, ok := w.dynamic(&n.children[i], at.element(i))
		if !ok {
			return nil, false
		}
		values[i] = v
	}
	return values, true
}

func (w *walker) dynamic(n *node, at *path) (*structpb.Value, bool) {
	switch n.kind {
	case kindBool:
		return structpb.NewBoolValue(n.text == "true"), true
	case kindNumber:
		v, ok := w.float(n, 64, at)
		return structpb.NewNumberValue(v), ok
	case kindString:
		return structpb.NewStringValue(n.text), true
	case kindObject:
		fields, ok := w.structure(n, at)
		return structpb.NewStructValue(&structpb.Struct{Fields: fields}), ok
	case kindArray:
		values, ok := w.listValue(n, at)
		return structpb.NewListValue(&structpb.ListValue{Values: values}), ok
	case kindNull:
	}
	return structpb.NewNullValue(), true
}

func (w *walker) bool(n *node, at *path) (bool, bool) {
	return n.text == "true", w.want(kindBool, n, at)
}

func (w *walker) bytes(n *node, at *path) ([]byte, bool) {
	if !w.want(kindString, n, at) {
		return nil, false
	}
	encoding := base64.RawStdEncoding
	if strings.ContainsAny(n.text, "-_") {
		encoding = base64.RawURLEncoding
	}
	v, err := encoding.DecodeString(strings.TrimRight(n.text, "="))
	if err != nil {
		w.fail(at, "must be base64")
		return nil, false
	}
	return v, true
}

func (w *walker) enum(ed protoreflect.EnumDescriptor, n *node, at *path) (protoreflect.EnumNumber, bool) {
	var known protoreflect.EnumValueDescriptor
	switch n.kind {
	case kindString:
		known = ed.Values().ByName(protoreflect.Name(n.text))
	case kindNumber:
		if v, ok := integral(n.text); ok && v >= math.MinInt32 && v <= math.MaxInt32 {
			known = ed.Values().ByNumber(protoreflect.EnumNumber(v))
		}
	default:
		w.failf(at, "must be a string, got %s", n.kind)
		return 0, false
	}
	if known != nil {
		return known.Number(), true
	}
	allowed := make([]string, ed.Values().Len())
	for i := range allowed {
		allowed[i] = string(ed.Values().Get(i).Name())
	}
	w.failf(at, "has the unknown value %s; allowed: %s", quote(n), strings.Join(allowed, ", "))
	return 0, false
}

// quote shows a scalar as the client wrote it, cut when it is long.
func quote(n *node) string {
	if n.kind == kindString {
		return strconv.Quote(shorten(n.text))
	}
	return shorten(n.text)
}

// number returns the text of a number; one of 64 bits may also stand in a string.
func (w *walker) number(n *node, bits int, at *path) (string, bool) {
	if n.kind == kindString && bits == 64 && n.text != "" && numberLength(n.text) == len(n.text) {
		return n.text, true
	}
	return n.text, w.want(kindNumber, n, at)
}

func (w *walker) int(n *node, bits int, at *path) (int64, bool) {
	text, ok := w.number(n, bits, at)
	if !ok {
		return 0, false
	}
	if v, err := strconv.ParseInt(text, 10, bits); err == nil {
		return v, true
	}
	minimum, maximum := int64(math.MinInt32), int64(math.MaxInt32)
	if bits == 64 {
		minimum, maximum = math.MinInt64, math.MaxInt64
	}
	v, ok := integral(text)
	switch {
	case !ok:
		w.failf(at, "must be a whole number, got %s", shorten(text))
	case v < float64(minimum) || v > float64(maximum) || v == 1<<63:
		w.failf(at, "must be between %d and %d, got %s", minimum, maximum, shorten(text))
		ok = false
	}
	return int64(v), ok
}

func (w *walker) uint(n *node, bits int, at *path) (uint64, bool) {
	text, ok := w.number(n, bits, at)
	if !ok {
		return 0, false
	}
	if v, err := strconv.ParseUint(text, 10, bits); err == nil {
		return v, true
	}
	maximum := uint64(math.MaxUint32)
	if bits == 64 {
		maximum = math.MaxUint64
	}
	v, ok := integral(text)
	switch {
	case !ok:
		w.failf(at, "must be a whole number, got %s", shorten(text))
	case v < 0 || v > float64(maximum) || v == 1<<64:
		w.failf(at, "must be between 0 and %d, got %s", maximum, shorten(text))
		ok = false
	}
	return uint64(v), ok
}

// integral reads a number that is whole although it may not look so, such as 1e3 or 5.0. Beyond the range of float64
// it is an infinity.
func integral(text string) (float64, bool) {
	v, _ := strconv.ParseFloat(text, 64) // out of range: an infinity, which no bound admits
	return v, v == math.Trunc(v)
}

func (w *walker) float(n *node, bits int, at *path) (float64, bool) {
	if !w.want(kindNumber, n, at) {
		return 0, false
	}
	v, err := strconv.ParseFloat(n.text, bits)
	if err != nil {
		w.failf(at, "is too large a number: %s", shorten(n.text))
		return 0, false
	}
	return v, true
}

// maxSeconds is the largest Duration of protobuf: about ten thousand years.
const maxSeconds = 315_576_000_000

func (w *walker) duration(n *node, at *path) (seconds int64, nanos int32, ok bool) {
	const form = `must be a duration such as "5s", "0.250s" or "1m30s", got `
	if n.kind != kindString {
		w.fail(at, form+n.kind.String())
		return 0, 0, false
	}
	if v, err := time.ParseDuration(n.text); err == nil {
		return int64(v / time.Second), int32(v % time.Second), true
	}
	// Longer than Go's durations, which end at 292 years: seconds alone are understood.
	number, isSeconds := strings.CutSuffix(n.text, "s")
	number, negative := strings.CutPrefix(number, "-")
	whole, fraction, _ := strings.Cut(number, ".")
	if isSeconds && len(fraction) <= 9 && number != "" && numberLength(number) == len(number) && !strings.ContainsAny(number, "eE-") {
		var err error
		seconds, err = strconv.ParseInt(whole, 10, 64)
		if err == nil && seconds <= maxSeconds {
			f, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 32)
			nanos = int32(f)
			if negative {
				seconds, nanos = -seconds, -nanos
			}
			if seconds < maxSeconds && seconds > -maxSeconds || nanos == 0 {
				return seconds, nanos, true
			}
		}
		w.failf(at, "must be between -%ds and %ds, got %s", int64(maxSeconds), int64(maxSeconds), quote(n))
		return 0, 0, false
	}
	w.fail(at, form+quote(n))
	return 0, 0, false
}

func (w *walker) timestamp(n *node, at *path) (seconds int64, nanos int32, ok bool) {
	const form = `must be a time such as "2006-01-02T15:04:05Z", got `
	if n.kind != kindString {
		w.fail(at, form+n.kind.String())
		return 0, 0, false
	}
	t, err := time.Parse(time.RFC3339Nano, n.text)
	if year := t.UTC().Year(); err != nil || year < 1 || year > 9999 {
		w.fail(at, form+quote(n))
		return 0, 0, false
	}
	return t.Unix(), int32(t.Nanosecond()), true
}

// shape checks the JSON types inside the specification of a JSON type. What the shape does not mention is not looked at.
func (w *walker) shape(s *shape, n *node, at *path) {
	if n.kind == kindNull {
		return
	}
	switch {
	case s.fields != nil:
		if !w.want(kindObject, n, at) {
			return
		}
		for i := range n.children {
			child := &n.children[i]
			switch where := at.field(child.name); {
			case child.repeated: // reported before
			case s.fields[child.name] != nil:
				w.shape(s.fields[child.name], child, where)
			default:
				w.ignore(where)
			}
		}
	case s.elements != nil:
		if !w.want(kindArray, n, at) {
			return
		}
		for i := range n.children {
			w.shape(s.elements, &n.children[i], at.element(i))
		}
	case s.entries != nil:
		if !w.want(kindObject, n, at) {
			return
		}
		for i := range n.children {
			w.shape(s.entries, &n.children[i], at.entry(n.children[i].name))
		}
	case s.percent && n.kind == kindString: // how later generations may write it
	case s.percent:
		w.uint(n, 32, at)
	case s.allowed != nil:
		if w.want(kindString, n, at) && !slices.Contains(s.allowed, n.text) {
			w.failf(at, "has the unknown value %s; allowed: %s", quote(n), strings.Join(s.allowed, ", "))
		}
	default:
		w.want(s.scalar, n, at)
	}
}
