package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// EnvPrefix starts the name of every environment variable that belongs to the product.
const EnvPrefix = "MERIDIAN_"

var (
	// ErrHelp is returned when the arguments ask for help: print [Usage].
	ErrHelp = errors.New("help requested")
	// ErrVersion is returned when the arguments ask for the version.
	ErrVersion = errors.New("version requested")
)

// Problems is everything that is wrong with a configuration, each with the place it comes from.
type Problems []error

// Error lists the problems, one to a line.
func (p Problems) Error() string {
	var b strings.Builder
	b.WriteString("configuration:")
	for _, err := range p {
		b.WriteString("\n  - ")
		b.WriteString(err.Error())
	}
	return b.String()
}

// Unwrap lets [errors.Is] look at every problem.
func (p Problems) Unwrap() []error { return p }

// Load returns defaults overlaid with the file named by --config, then with environ (as [os.Environ] has it), then
// with args (without the program's name). C is a struct as the package comment describes it.
//
// The error is [ErrHelp], [ErrVersion] or [Problems]. Beside Problems the configuration is still returned, with the
// values that could be read, for a caller that needs a single one of them.
func Load[C any](defaults C, args, environ []string) (C, error) {
	cfg := defaults
	root := reflect.ValueOf(&cfg).Elem()
	fs := fields(root)
	var problems Problems

	given, err := parseArgs(fs, args)
	switch {
	case errors.Is(err, ErrHelp), errors.Is(err, ErrVersion):
		return cfg, err
	case err != nil:
		problems = append(problems, err)
	}
	if given.file != "" {
		if content, err := os.ReadFile(given.file); err != nil {
			problems = append(problems, fmt.Errorf("--config: %w", err))
		} else {
			f := file{name: given.file}
			f.decode(content, root)
			problems = append(problems, f.problems...)
		}
	}
	problems = append(problems, applyEnv(fs, environ)...)
	for _, fl := range fs {
		if text, ok := given.values[fl.path]; ok {
			if err := fl.set(text); err != nil {
				problems = append(problems, fmt.Errorf("--%s: %w", fl.flag(), err))
			}
		}
	}
	problems = append(problems, Check(cfg)...)
	if len(problems) > 0 {
		return cfg, problems
	}
	return cfg, nil
}

// arguments is what a command line says, not yet parsed into fields: flags win over the file that a flag names.
type arguments struct {
	file   string
	values map[string]string // by the field's path
}

func parseArgs(fs []field, args []string) (arguments, error) {
	given := arguments{values: map[string]string{}}
	set := flag.NewFlagSet("", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&given.file, "config", "", "")
	version := set.Bool("version", false, "")
	for _, fl := range fs {
		name := fl.flag()
		if name == "" {
			continue
		}
		keep := func(text string) error { given.values[fl.path] = text; return nil }
		if fl.value.Kind() == reflect.Bool {
			set.BoolFunc(name, "", keep)
		} else {
			set.Func(name, "", keep)
		}
	}
	switch err := set.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return given, ErrHelp
	case *version:
		return given, ErrVersion
	case err != nil:
		return given, fmt.Errorf("flags: %w", err)
	case set.NArg() > 0:
		return given, fmt.Errorf("flags: %q is not a flag", set.Arg(0))
	}
	return given, nil
}

// serviceLink matches the variables that Kubernetes adds for every service of a namespace: one for a service called
// meridian-global must not keep a control plane from starting. It matches name and value, because a mistyped
// MERIDIAN_…_PORT must.
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=|` +
	`_PORT=(tcp|udp|sctp)://`)

// applyEnv sets fields from the environment. A variable that is set but empty counts as not set, which is what
// compose files and shells make of an optional one.
func applyEnv(fs []field, environ []string) (problems []error) {
	byName := map[string]field{}
	for _, fl := range fs {
		if fl.env != "" {
			byName[fl.env] = fl
		}
	}
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, EnvPrefix) || text == "" {
			continue
		}
		fl, known := byName[name]
		switch {
		case known:
			if err := fl.set(text); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", name, err))
			}
		case serviceLink.MatchString(entry):
		default:
			problems = append(problems, fmt.Errorf("%s: no such variable", name))
		}
	}
	return problems
}

// Check runs the Validate methods of cfg and of every struct in it. Each returns all its problems, starting with the
// field's name in the file; Check puts the path of the struct in front.
func Check(cfg any) []error { return check(reflect.ValueOf(cfg), "") }

func check(v reflect.Value, path string) (problems []error) {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if name, _, _ := strings.Cut(sf.Tag.Get("yaml"), ","); sf.IsExported() && name != "-" && sf.Type.Kind() == reflect.Struct {
			problems = append(problems, check(v.Field(i), join(path, name))...)
		}
	}
	if c, ok := reflect.TypeAssert[interface{ Validate() []error }](v); ok {
		for _, err := range c.Validate() {
			if path != "" {
				err = fmt.Errorf("%s.%w", path, err)
			}
			problems = append(problems, err)
		}
	}
	return problems
}
