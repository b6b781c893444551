package codec

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"strconv"

	"github.com/meridian-mesh/meridian/api/resource"
)

// Part is one document of a stream, not decoded.
type Part struct {
	Content []byte
	// Line is where in the stream the document begins, counted from 1; 0 where that is not known.
	Line int
}

// Split yields the documents of a stream one after another, so that a stream never has to be in memory as a whole:
//
//   - YAML: documents separated by "---" lines; those that hold nothing but comments are left out.
//   - JSON: objects one after another, or elements of an array, or of the array "items" of an object, which is the form
//     of a list.
//
// A document larger than maxBytes ends the stream with an *Error, as bad syntax of JSON does: from there on, nobody can
// tell where the next document begins. Errors of r are yielded wrapped; ErrMediaType is as with Decode.
func Split(r io.Reader, mediaType string, maxBytes int) iter.Seq2[Part, error] {
	return func(yield func(Part, error) bool) {
		format, _, err := mime.ParseMediaType(mediaType)
		if err != nil {
			yield(Part{}, fmt.Errorf("%w: %q", ErrMediaType, mediaType))
			return
		}
		s := splitter{maxBytes: maxBytes, yield: yield}
		switch format {
		case "application/json":
			err = s.json(r)
		case "application/yaml", "application/x-yaml", "text/yaml":
			err = s.yaml(r)
		default:
			err = fmt.Errorf("%w: %q", ErrMediaType, format)
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(Part{}, err)
		}
	}
}

// errEnough ends a splitter whose consumer wants no more.
var errEnough = errors.New("no more parts are wanted")

// errShape reports JSON that is neither resources nor a list of them.
var errShape = errors.New("expected an object, or an array of objects")

type splitter struct {
	maxBytes int
	yield    func(Part, error) bool
}

func (s *splitter) part(p Part) error {
	if len(p.Content) > s.maxBytes {
		return s.tooLarge(p.Line)
	}
	if !s.yield(p, nil) {
		return errEnough
	}
	return nil
}

func (s *splitter) tooLarge(line int) error {
	where := ""
	if line > 0 {
		where = fmt.Sprintf(" that begins at line %d", line)
	}
	return &Error{Violations: []Violation{{
		Message: fmt.Sprintf("a document%s is larger than %d bytes", where, s.maxBytes),
	}}}
}

// yaml splits at the markers that YAML reserves in the first column: "---" begins a document, "..." ends one.
func (s *splitter) yaml(r io.Reader) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	var (
		doc     []byte
		first   int  // line that doc begins at
		content bool // doc has more than comments and directives
		comment bool // the line is one of these
		number  = 1
		whole   = true // the line before was read to its end
	)
	flush := func() error {
		p := Part{Content: doc, Line: first}
		has := content
		doc, first, content = nil, number, false
		if !has {
			return nil
		}
		return s.part(p)
	}
	first = number
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("read the stream: %w", err)
		}
		start := whole
		whole = err == nil
		if start {
			if marker, rest := yamlMarker(line); marker != "" {
				if err := flush(); err != nil {
					return err
				}
				line = rest
			}
		}
		doc = append(doc, line...)
		if start {
			comment = bytes.HasPrefix(line, []byte{'%'}) || bytes.HasPrefix(bytes.TrimLeft(line, " \t"), []byte{'#'})
		}
		content = content || !comment && len(bytes.TrimSpace(line)) > 0
		if len(doc) > s.maxBytes {
			return s.tooLarge(first)
		}
		if whole {
			number++
		}
		if errors.Is(err, io.EOF) {
			return flush()
		}
	}
}

// yamlMarker returns the document marker that a line begins with, and the rest of the line.
func yamlMarker(line []byte) (marker string, rest []byte) {
	for _, m := range [...]string{"---", "..."} {
		if after, ok := bytes.CutPrefix(line, []byte(m)); ok && (len(after) == 0 || bytes.IndexByte([]byte(" \t\r\n"), after[0]) >= 0) {
			return m, after
		}
	}
	return "", nil
}

// json splits a stream of values.
func (s *splitter) json(r io.Reader) error {
	dec := json.NewDecoder(r)
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return malformed(dec, err)
		}
		switch token {
		case json.Delim('['):
			err = s.elements(dec)
		case json.Delim('{'):
			err = s.object(dec)
		default:
			err = malformed(dec, errShape)
		}
		if err != nil {
			return err
		}
	}
}

// elements yields the elements of the array that dec has entered.
func (s *splitter) elements(dec *json.Decoder) error {
	for dec.More() {
		var element json.RawMessage
		if err := dec.Decode(&element); err != nil {
			return malformed(dec, err)
		}
		if err := s.part(Part{Content: element}); err != nil {
			return err
		}
	}
	return leave(dec)
}

// object yields the object that dec has entered, or the elements of its "items".
func (s *splitter) object(dec *json.Decoder) error {
	object := []byte{'{'}
	list := false
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return malformed(dec, err)
		}
		name, _ := token.(string) // the decoder lets nothing else through
		if name == "items" && !list {
			if token, err = dec.Token(); err != nil {
				return malformed(dec, err)
			}
			if token == json.Delim('[') {
				if err := s.elements(dec); err != nil {
					return err
				}
			} else if token != nil {
				return malformed(dec, errShape)
			}
			list = true
			continue
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return malformed(dec, err)
		}
		if len(object) > 1 {
			object = append(object, ',')
		}
		object = append(append(appendString(object, name), ':'), value...)
	}
	if err := leave(dec); err != nil || list {
		return err
	}
	return s.part(Part{Content: append(object, '}')})
}

// leave reads the closing bracket.
func leave(dec *json.Decoder) error {
	if _, err := dec.Token(); err != nil {
		return malformed(dec, err)
	}
	return nil
}

// malformed is what is wrong with a JSON stream; what failed to be read is passed on.
func malformed(dec *json.Decoder, err error) error {
	_, syntax := errors.AsType[*json.SyntaxError](err)
	switch {
	case syntax, errors.Is(err, errShape):
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = io.ErrUnexpectedEOF
	default:
		return fmt.Errorf("read the stream: %w", err)
	}
	return &Error{Violations: []Violation{{
		Message: fmt.Sprintf("malformed JSON near byte %d: %s", dec.InputOffset(), err),
	}}}
}

// DecodeAny reads a document of a stream, whose type stands in it. Otherwise it is like Decode, except that creationTime
// and modificationTime are read as well.
//
// The document is returned with an *Error too, so that the resource can be named: with as much of type, mesh and name
// as could be read. The descriptor is nil where the type is missing or unknown.
func DecodeAny(mediaType string, content []byte) (*resource.Descriptor, *Document, error) {
	b, err := parse(mediaType, content)
	if err != nil {
		return nil, &Document{}, err
	}
	var head walker
	if !head.want(kindObject, &b.root, nil) {
		return nil, &Document{}, &Error{Violations: head.violations}
	}
	doc := &Document{}
	for i := range b.root.children {
		switch n := &b.root.children[i]; n.name {
		case "type":
			head.text(&doc.Type, n, (*path)(nil).field(n.name))
		case "mesh":
			doc.Mesh = n.text
		case "name":
			doc.Name = n.text
		}
	}
	d, ok := resource.Lookup(resource.Type(doc.Type))
	switch {
	case ok:
		return d, doc, b.decode(d, doc, true)
	case len(head.violations) == 0 && doc.Type == "":
		head.fail((*path)(nil).field("type"), "must be defined")
	case len(head.violations) == 0:
		head.fail((*path)(nil).field("type"), "is not known: "+strconv.Quote(shorten(doc.Type)))
	}
	return nil, doc, &Error{Violations: head.violations}
}
