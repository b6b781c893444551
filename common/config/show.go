package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Effective renders cfg as compact JSON with the keys of the file, sorted; secrets read "*****".
func Effective(cfg any) ([]byte, error) {
	root := map[string]any{}
	for _, f := range fields(reflect.ValueOf(cfg)) {
		parent := root
		steps := strings.Split(f.path, ".")
		for _, step := range steps[:len(steps)-1] {
			child, ok := parent[step].(map[string]any)
			if !ok {
				child = map[string]any{}
				parent[step] = child
			}
			parent = child
		}
		parent[steps[len(steps)-1]] = f.shown()
	}
	out, err := json.Marshal(root)
	if err != nil {
		return nil, fmt.Errorf("render configuration: %w", err)
	}
	return out, nil
}

// Usage writes the text of --help: what the program is, then every flag with its default. Defaults are those of cfg.
func Usage(w io.Writer, program, summary string, cfg any) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\nUsage: %s [flags]\n\n", summary, program)
	fmt.Fprint(&b, "Each value comes from its default, then the file, then the environment, then the flag; the last one wins.\n\n")
	fmt.Fprint(&b, "  --config FILE\n        YAML file to read\n  --version\n        print the version and exit\n  --help\n        print this text and exit\n")
	for _, f := range fields(reflect.ValueOf(cfg)) {
		name := f.flag()
		if name == "" {
			continue
		}
		fmt.Fprintf(&b, "  --%s %s\n        %s (%s; default %s)\n", name, kindName(f.value.Type()), f.doc, f.env, defaultText(f))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Reference renders a Markdown page section for cfg, a table row per field, with cfg's values as the defaults.
func Reference(cfg any) []byte {
	var b bytes.Buffer
	section := "\x00"
	bars := strings.NewReplacer("|", `\|`) // a bar ends a cell
	for _, f := range fields(reflect.ValueOf(cfg)) {
		at, name := "", f.path
		if i := strings.LastIndexByte(f.path, '.'); i >= 0 {
			at, name = f.path[:i], f.path[i+1:]
		}
		if at != section {
			section = at
			if at == "" {
				at = "(top level)"
			}
			fmt.Fprintf(&b, "\n### %s\n\n| Key | Type | Default | Environment | Flag | What it is |\n|---|---|---|---|---|---|\n", at)
		}
		env, flag, def := "file only", "none", defaultText(f)
		if f.env != "" {
			env = "`" + f.env + "`"
		}
		if f.flag() != "" {
			flag = "`--" + f.flag() + "`"
		}
		if def != empty {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", name, kindName(f.value.Type()), bars.Replace(def), env, flag, bars.Replace(f.doc))
	}
	return b.Bytes()
}

func kindName(t reflect.Type) string {
	switch {
	case t == durationType:
		return "duration"
	case t == stringsType:
		return "list"
	case t == secretType:
		return "secret"
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64, t.Kind() == reflect.Uint16, t.Kind() == reflect.Uint32:
		return "number"
	default:
		return t.Kind().String()
	}
}

// empty stands for a default that has no text of its own.
const empty = "empty"

func defaultText(f field) string {
	switch v := f.shown().(type) {
	case []string:
		if len(v) == 0 {
			return empty
		}
		return strings.Join(v, ",")
	case string:
		if v == "" {
			return empty
		}
		return v
	default:
		return fmt.Sprint(v)
	}
}
