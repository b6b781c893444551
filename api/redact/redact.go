// Package redact hides secrets in what proxies show of their configuration, before anybody sees it. Both planes use it: the zone on
// what a proxy, or its own control plane, says; the global on what a zone passes on, which may be older or not Meridian.
package redact

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// What stands in the place of a secret: of one that is text, and of one that is bytes, which JSON holds in base64.
const (
	Mask      = "[redacted]"
	MaskBytes = "W3JlZGFjdGVkXQ=="
)

// keyMark is in each private key in PEM.
const keyMark = "PRIVATE KEY-----"

// maxDepth is how deeply a dump may be nested. Envoy's are nested far less.
const maxDepth = 1000

// Dump copies a configuration dump as JSON, indented by one space, with these masked:
//
//   - the values of headers named authorization, such as those of initial_metadata, with which a proxy proves who it is
//   - private keys, passwords, PKCS#12 bundles, keys of session tickets, generic secrets and credentials of extensions, as far as
//     the dump holds them itself; names of files and of environment variables stay
//   - text or bytes with a private key in PEM anywhere else
//
// Envoy masks most of these itself. Fields are known by name, as protobuf spells them or in camel case, wherever they stand. Beyond
// that the copy equals the original, but for the order of members of an object that has value before key. Such an object is refused when
// it has one of them twice.
//
// Dump streams: it holds a value at a time. What is not exactly one JSON value is an error, after which w has a part of it.
func Dump(w io.Writer, r io.Reader) error {
	m := masker{dec: json.NewDecoder(r), out: bufio.NewWriter(w)}
	m.dec.UseNumber()
	m.enc = json.NewEncoder(&m.text)
	m.enc.SetEscapeHTML(false)
	t, err := m.token()
	if err == nil {
		err = m.value(t, false)
	}
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	if _, err := m.dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("dump: there is something after the JSON value")
	}
	m.raw("\n")
	if err := m.out.Flush(); err != nil {
		return fmt.Errorf("write dump: %w", err)
	}
	return nil
}

// secretFields are the names of fields that hold a secret: themselves, or in a data source below. Names are as plain makes them.
var secretFields = map[string]bool{
	"privatekey": true, "password": true, "passphrase": true, "pkcs12": true, "sessionticketkeys": true,
	"genericsecret": true,

	// of extensions
	"authusername": true, "authpassword": true, "downstreamauthusername": true, "downstreamauthpassword": true,
	"downstreamauthpasswords": true, "users": true, "secretaccesskey": true, "sessiontoken": true,
	"credentialsdatasource": true, "webidentitytokendatasource": true, "backendtoken": true,
	"accesstoken": true, "refreshtoken": true, "googlerefreshtoken": true, "jsonkey": true, "clientsecret": true,
}

// plain is a field's name without what its two spellings differ in.
func plain(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// masker copies one value.
type masker struct {
	dec   *json.Decoder
	out   *bufio.Writer // keeps its first error
	depth int
	text  bytes.Buffer // of one string
	enc   *json.Encoder
}

// token returns the next one. The end of the input is never expected here.
func (m *masker) token() (json.Token, error) {
	t, err := m.dec.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return t, err
}

// value copies the value that begins with a token. secret says that it is one, or has it in its data sources.
func (m *masker) value(t json.Token, secret bool) error {
	delim, nested := t.(json.Delim)
	if !nested {
		if secret {
			return m.mask(t, "")
		}
		return m.scalar(t)
	}
	if m.depth++; m.depth > maxDepth {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	defer func() { m.depth-- }()
	m.raw(delim.String())
	var empty bool
	var err error
	if delim == '{' {
		empty, err = m.object(secret)
	} else {
		empty, err = m.array(secret)
	}
	if err != nil {
		return err
	}
	end, err := m.token()
	if err != nil {
		return err
	}
	if !empty {
		m.newLine(m.depth - 1)
	}
	m.raw(end.(json.Delim).String()) //nolint:forcetypeassert // the decoder sees to it
	return nil
}

func (m *masker) array(secret bool) (empty bool, err error) {
	for empty = true; m.dec.More(); empty = false {
		t, err := m.token()
		if err != nil {
			return false, err
		}
		m.separate(empty)
		if err := m.value(t, secret); err != nil {
			return false, err
		}
	}
	return empty, nil
}

// object copies the members of an object.
func (m *masker) object(secret bool) (empty bool, err error) {
	o := object{m: m, secret: secret, empty: true}
	for m.dec.More() {
		name, err := m.token()
		if err != nil {
			return false, err
		}
		t, err := m.token()
		if err != nil {
			return false, err
		}
		if err := o.member(name.(string), t); err != nil { //nolint:forcetypeassert // the decoder sees to it
			return false, err
		}
	}
	err = o.settle()
	return o.empty, err
}

// object is one that is being copied. A header is one with key and value, which may come in any order: the value waits for the key.
type object struct {
	m       *masker
	secret  bool // it has a secret, or is a part of one
	empty   bool
	keyed   bool
	key     *string // nil: there is none yet, or it is no text
	waiting []pair
}

// pair is a member that waits.
type pair struct{ name, value string }

// member copies a member whose value begins with t.
func (o *object) member(name string, t json.Token) error {
	field := plain(name)
	text, isText := t.(string)
	if slices.ContainsFunc(o.waiting, func(w pair) bool { return w.name == name }) {
		return fmt.Errorf("an object has two members %q", name) // the order, which would change, says which one counts
	}
	if isText && !o.secret && isHeaderValue(field) && o.key == nil {
		o.waiting = append(o.waiting, pair{name, text})
		return nil
	}
	if name == "key" {
		if o.keyed {
			return errors.New("an object has two keys")
		}
		if o.keyed = true; isText {
			o.key = &text
		}
	}
	if err := o.begin(name); err != nil {
		return err
	}
	var err error
	_, nested := t.(json.Delim)
	switch {
	case nested:
		err = o.m.value(t, o.secret || secretFields[field] || o.ofAuthorization(field))
	case secretFields[field], o.secret && isContent(field), o.ofAuthorization(field):
		err = o.m.mask(t, field)
	case hasKey(field, text):
		err = o.m.string(MaskBytes)
	default:
		err = o.m.scalar(t)
	}
	if err != nil {
		return err
	}
	if o.key != nil {
		return o.settle()
	}
	return nil
}

// settle copies the values that waited for the key.
func (o *object) settle() error {
	for _, w := range o.waiting {
		if err := o.begin(w.name); err != nil {
			return err
		}
		var err error
		if field := plain(w.name); o.ofAuthorization(field) {
			err = o.m.mask(w.value, field)
		} else {
			err = o.m.scalar(w.value)
		}
		if err != nil {
			return err
		}
	}
	o.waiting = nil
	return nil
}

// begin writes a member's name.
func (o *object) begin(name string) error {
	o.m.separate(o.empty)
	o.empty = false
	err := o.m.string(name)
	o.m.raw(": ")
	return err
}

func (o *object) ofAuthorization(field string) bool {
	return isHeaderValue(field) && o.key != nil && (strings.EqualFold(*o.key, "authorization") || strings.EqualFold(*o.key, "proxy-authorization"))
}

func isHeaderValue(field string) bool { return field == "value" || field == "rawvalue" }

// hasKey says whether a field with bytes has a private key among them.
func hasKey(field, text string) bool {
	if !strings.HasSuffix(field, "bytes") || text == "" {
		return false
	}
	b, err := base64.StdEncoding.DecodeString(text)
	return err == nil && bytes.Contains(b, []byte(keyMark))
}

// isContent says whether a field of something secret is the secret itself.
func isContent(field string) bool {
	switch field {
	case "inlinestring", "inlinebytes", "secret":
		return true
	}
	return isHeaderValue(field)
}

// mask writes what stands for a secret, a scalar. That there is none is no secret.
func (m *masker) mask(t json.Token, field string) error {
	if t == nil {
		return m.scalar(t)
	}
	if strings.HasSuffix(field, "bytes") || field == "rawvalue" {
		return m.string(MaskBytes)
	}
	return m.string(Mask)
}

func (m *masker) scalar(t json.Token) error {
	switch t := t.(type) {
	case string:
		if strings.Contains(t, keyMark) {
			t = Mask
		}
		return m.string(t)
	case json.Number:
		m.raw(t.String())
	case bool:
		m.raw(strconv.FormatBool(t))
	default:
		m.raw("null")
	}
	return nil
}

// string writes text in quotes.
func (m *masker) string(text string) error {
	m.text.Reset()
	if err := m.enc.Encode(text); err != nil {
		return fmt.Errorf("encode text: %w", err)
	}
	_, _ = m.out.Write(bytes.TrimSuffix(m.text.Bytes(), []byte("\n")))
	return nil
}

// separate begins a line for the next member or element.
func (m *masker) separate(first bool) {
	if !first {
		m.raw(",")
	}
	m.newLine(m.depth)
}

func (m *masker) newLine(depth int) {
	m.raw("\n")
	for range depth {
		m.raw(" ")
	}
}

func (m *masker) raw(text string) { _, _ = m.out.WriteString(text) }
