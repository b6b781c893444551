package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
)

var (
	durationType = reflect.TypeFor[time.Duration]()
	secretType   = reflect.TypeFor[Secret]()
	stringsType  = reflect.TypeFor[[]string]()
)

// field is one leaf of a configuration struct.
type field struct {
	path, env, doc string
	value          reflect.Value // settable when the struct was passed by pointer
}

// flag is the name of the command line flag; empty when the field has none.
func (f field) flag() string {
	if f.env == "" || f.value.Type() == secretType {
		return ""
	}
	return kebab(f.path)
}

// fields lists the leaves of v, a struct, in the order they are declared. It panics on a struct that breaks the rules
// of the package: that is a mistake of ours, which any test that loads the struct finds.
func fields(v reflect.Value) []field { return appendFields(nil, v, "", "") }

// appendFields puts prefix before the paths of v's fields, and envPrefix before those of their variables that begin with
// an underscore.
func appendFields(fs []field, v reflect.Value, prefix, envPrefix string) []field {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		name, _, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if !sf.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			panic(fmt.Sprintf("config: %s.%s has no yaml tag", v.Type(), sf.Name))
		}
		path := join(prefix, name)
		if sf.Type.Kind() == reflect.Struct {
			fs = appendFields(fs, v.Field(i), path, sf.Tag.Get("env"))
			continue
		}
		f := field{path: path, env: sf.Tag.Get("env"), doc: sf.Tag.Get("doc"), value: v.Field(i)}
		if strings.HasPrefix(f.env, "_") {
			f.env = envPrefix + f.env
		}
		if f.doc == "" || !supported(sf.Type) {
			panic(fmt.Sprintf("config: %s has no doc tag, or the type %s, which the package does not know", path, sf.Type))
		}
		fs = append(fs, f)
	}
	return fs
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

func supported(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint16, reflect.Uint32:
		return true
	default:
		return t == stringsType
	}
}

// set parses text into the field. The error quotes the text, unless the field is a secret.
func (f field) set(text string) error {
	t := f.value.Type()
	switch {
	case t == stringsType:
		list := []string{}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		f.value.Set(reflect.ValueOf(list))
	case t == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 250ms, 10s or 1h30m", text)
		}
		f.value.SetInt(int64(d))
	case t.Kind() == reflect.String:
		f.value.SetString(text)
	case t.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		f.value.SetBool(b)
	case f.value.CanInt():
		n, err := strconv.ParseInt(text, 10, t.Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number of at most %d bits", text, t.Bits())
		}
		f.value.SetInt(n)
	case f.value.CanUint():
		n, err := strconv.ParseUint(text, 10, t.Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number from 0 to %d", text, uint64(1)<<t.Bits()-1)
		}
		f.value.SetUint(n)
	}
	return nil
}

// shown is the value as JSON and the reference page have it.
func (f field) shown() any {
	switch v := f.value.Interface().(type) {
	case time.Duration:
		return v.String()
	case Secret:
		return v.String()
	case []string:
		if v == nil {
			return []string{}
		}
		return v
	default:
		return v
	}
}

// kebab turns a path such as apiServer.tlsCAFile into api-server-tls-ca-file.
func kebab(path string) string {
	rs := []rune(path)
	var b strings.Builder
	for i, r := range rs {
		switch {
		case r == '.':
			b.WriteByte('-')
			continue
		case i > 0 && unicode.IsUpper(r) && rs[i-1] != '.' &&
			(!unicode.IsUpper(rs[i-1]) || i+1 < len(rs) && unicode.IsLower(rs[i+1])):
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
