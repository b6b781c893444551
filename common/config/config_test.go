package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/common/config"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// server has a field of every type.
type server struct {
	Port      int           `yaml:"port" env:"MERIDIAN_SERVER_PORT" doc:"port to listen on, 0-65535"`
	MaxBytes  int64         `yaml:"maxBytes" env:"MERIDIAN_SERVER_MAX_BYTES" doc:"largest message in bytes"`
	Weight    uint16        `yaml:"weight" env:"MERIDIAN_SERVER_WEIGHT" doc:"share of the load"`
	TLSCAFile string        `yaml:"tlsCAFile" env:"MERIDIAN_SERVER_TLS_CA_FILE" doc:"PEM file, or a|b"`
	Enabled   bool          `yaml:"enabled" env:"MERIDIAN_SERVER_ENABLED" doc:"whether to listen at all"`
	Timeout   time.Duration `yaml:"timeout" env:"MERIDIAN_SERVER_TIMEOUT" doc:"longest wait"`
	Hosts     []string      `yaml:"hosts" env:"MERIDIAN_SERVER_HOSTS" doc:"names to answer to"`
	Token     config.Secret `yaml:"token" env:"MERIDIAN_SERVER_TOKEN" doc:"what clients must send"`
}

func (s server) Validate() []error {
	var errs []error
	if s.Port < 0 || s.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not in 0-65535", s.Port))
	}
	if s.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %s is not positive", s.Timeout))
	}
	return errs
}

type program struct {
	Mode string `yaml:"mode" doc:"what kind of program this is"`
	Zone struct {
		Name   string `yaml:"name" env:"MERIDIAN_ZONE_NAME" doc:"name of the zone"`
		Server server `yaml:"server"`
	} `yaml:"zone"`
	Derived int `yaml:"-"`
}

func (p program) Validate() []error {
	if p.Zone.Name == "" {
		return []error{errors.New("zone.name: must be set")}
	}
	return nil
}

func defaults() program {
	p := program{Mode: "zone"}
	p.Zone.Name = "zone-1"
	p.Zone.Server = server{Port: 80, MaxBytes: 1 << 20, Weight: 1, Enabled: true, Timeout: time.Second, Hosts: []string{"localhost"}}
	return p
}

func TestLoad(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		args []string
		want func(*program)
	}{
		{name: "without sources the defaults stand", want: func(*program) {}},
		{
			name: "the file wins over the defaults and leaves the rest",
			file: "mode: other\nzone:\n  name: 7\n  server: {port: 81, hosts: [a, b], token: s3cret, timeout: 1m30s, enabled: false}\n",
			want: func(p *program) {
				p.Mode, p.Zone.Name = "other", "7"
				s := &p.Zone.Server
				s.Port, s.Hosts, s.Token, s.Timeout, s.Enabled = 81, []string{"a", "b"}, "s3cret", 90*time.Second, false
			},
		},
		{name: "an empty file says nothing", file: "# nothing here\n", want: func(*program) {}},
		{name: "a key without a value says nothing", file: "zone:\n  name:\n  server:\n", want: func(*program) {}},
		{
			name: "the environment wins over the file",
			file: "zone: {server: {port: 81, weight: 2}}",
			env:  []string{"MERIDIAN_SERVER_PORT=82", "MERIDIAN_SERVER_HOSTS= a , b,", "MERIDIAN_SERVER_TOKEN=x", "PATH=/bin"},
			want: func(p *program) {
				s := &p.Zone.Server
				s.Port, s.Weight, s.Hosts, s.Token = 82, 2, []string{"a", "b"}, "x"
			},
		},
		{
			name: "flags win over the environment",
			env:  []string{"MERIDIAN_SERVER_PORT=82", "MERIDIAN_SERVER_ENABLED=true"},
			args: []string{"--zone-server-port", "83", "--zone-server-enabled=false", "--zone-server-tls-ca-file=/ca.pem", "-zone-server-max-bytes=5"},
			want: func(p *program) {
				s := &p.Zone.Server
				s.Port, s.Enabled, s.TLSCAFile, s.MaxBytes = 83, false, "/ca.pem", 5
			},
		},
		{
			name: "a switch needs no value",
			env:  []string{"MERIDIAN_SERVER_ENABLED=false"},
			args: []string{"--zone-server-enabled"},
			want: func(*program) {},
		},
		{
			name: "an empty variable counts as not set",
			env:  []string{"MERIDIAN_SERVER_PORT=", "MERIDIAN_ZONE_NAME=", "MERIDIAN_NO_SUCH="},
			want: func(*program) {},
		},
		{
			name: "variables that Kubernetes adds for services are not ours",
			env: []string{
				"MERIDIAN_GLOBAL_SERVICE_HOST=10.0.0.1", "MERIDIAN_GLOBAL_SERVICE_PORT_API=5681",
				"MERIDIAN_GLOBAL_PORT=tcp://10.0.0.1:5681", "MERIDIAN_GLOBAL_PORT_5681_TCP_ADDR=10.0.0.1",
			},
			want: func(*program) {},
		},
		{
			name: "an alias in the file stands for its anchor",
			file: "zone: {server: {timeout: &t 3s}, name: *t}",
			want: func(p *program) { p.Zone.Server.Timeout, p.Zone.Name = 3*time.Second, "3s" },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.Load(defaults(), withFile(t, tt.file, tt.args), tt.env)
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			tt.want(&want)
			if got.Zone.Server.Token != want.Zone.Server.Token { // Diff would show *****
				t.Error("the token is another")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadReportsEveryProblem(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		args []string
		want []string
	}{
		{
			name: "of all sources at once",
			file: "zone:\n  server:\n    prot: 81\n    port: x\n    hosts: {a: b}\nmood: x\nmode: [a]\n",
			env:  []string{"MERIDIAN_SERVER_WEIGHT=70000", "MERIDIAN_SERVER_PROT=1", "MERIDIAN_ZONE_NAME=z"},
			args: []string{"--zone-server-timeout=-1s", "--zone-server-max-bytes=1MB"},
			want: []string{
				"c.yaml:3: zone.server.prot: no such key; known here: port, maxBytes, weight, tlsCAFile, enabled, timeout, hosts, token",
				`c.yaml:4: zone.server.port: "x" is not a whole number of at most 64 bits`,
				"c.yaml:5: zone.server.hosts: not a single value",
				"c.yaml:6: mood: no such key; known here: mode, zone",
				"c.yaml:7: mode: not a single value",
				"MERIDIAN_SERVER_PROT: no such variable",
				`MERIDIAN_SERVER_WEIGHT: "70000" is not a whole number from 0 to 65535`,
				`--zone-server-max-bytes: "1MB" is not a whole number of at most 64 bits`,
				"zone.server.timeout: -1s is not positive",
			},
		},
		{
			name: "of structs inside each other, with their paths",
			file: "zone: {name: '', server: {port: -1, timeout: 0s}}",
			want: []string{"zone.server.port: -1 is not in 0-65535", "zone.server.timeout: 0s is not positive", "zone.name: must be set"},
		},
		{name: "a key given twice", file: "mode: a\nzone: {name: b}\nmode: c\n", want: []string{"c.yaml:3: mode: given twice, first in line 1"}},
		{name: "a file that is no mapping", file: "- a\n", want: []string{"c.yaml:1: the file: not a mapping of keys to values"}},
		{name: "a value where a section belongs", file: "\nzone: a\n", want: []string{"c.yaml:2: zone: not a mapping of keys to values"}},
		{name: "a second document", file: "mode: a\n---\nmode: b\n", want: []string{"c.yaml:2: a second document: one file holds one configuration"}},
		{name: "a file that is no YAML", file: "mode: [a\n", want: []string{"c.yaml: yaml: line 1: did not find expected ',' or ']'"}},
		{name: "a list of lists", file: "zone: {server: {hosts: [[a]]}}", want: []string{"c.yaml:1: zone.server.hosts: not a list of strings"}},
		{name: "a switch that is neither on nor off", env: []string{"MERIDIAN_SERVER_ENABLED=maybe"}, want: []string{`MERIDIAN_SERVER_ENABLED: "maybe" is not true or false`}},
		{name: "a duration without a unit", env: []string{"MERIDIAN_SERVER_TIMEOUT=5"}, want: []string{`MERIDIAN_SERVER_TIMEOUT: "5" is not a duration such as 250ms, 10s or 1h30m`}},
		{
			name: "a mistyped port is not taken for a variable of Kubernetes",
			env:  []string{"MERIDIAN_SERVR_PORT=80", "MERIDIAN_GLOBAL_PORT=tcp://10.0.0.1:5681"},
			want: []string{"MERIDIAN_SERVR_PORT: no such variable"},
		},
		{name: "an unknown flag", args: []string{"--zone-nam=x"}, want: []string{"flags: flag provided but not defined: -zone-nam"}},
		{name: "a secret is no flag", args: []string{"--zone-server-token=x"}, want: []string{"flags: flag provided but not defined: -zone-server-token"}},
		{name: "a field without a variable is no flag", args: []string{"--mode=x"}, want: []string{"flags: flag provided but not defined: -mode"}},
		{name: "words that are no flags", args: []string{"start"}, want: []string{`flags: "start" is not a flag`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Load(defaults(), withFile(t, tt.file, tt.args), tt.env)
			problems, ok := errors.AsType[config.Problems](err)
			if !ok {
				t.Fatalf("error is %v, want Problems", err)
			}
			var got []string
			for _, p := range problems {
				_, text, found := strings.Cut(p.Error(), string(filepath.Separator)+"c.yaml")
				if found {
					got = append(got, "c.yaml"+text)
				} else {
					got = append(got, p.Error())
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadNamesAFileThatIsMissing(t *testing.T) {
	_, err := config.Load(defaults(), []string{"--config", filepath.Join(t.TempDir(), "absent.yaml")}, nil)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "absent.yaml") {
		t.Errorf("error is %v", err)
	}
}

func TestLoadKeepsWhatCouldBeRead(t *testing.T) {
	got, err := config.Load(defaults(), nil, []string{"MERIDIAN_SERVER_PORT=99", "MERIDIAN_SERVER_TIMEOUT=x"})
	if err == nil || got.Zone.Server.Port != 99 {
		t.Errorf("got port %d and error %v, want 99 beside the problem", got.Zone.Server.Port, err)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for arg, want := range map[string]error{"--help": config.ErrHelp, "-h": config.ErrHelp, "--version": config.ErrVersion} {
		// A wrong environment does not keep a person from asking.
		if _, err := config.Load(defaults(), []string{arg}, []string{"MERIDIAN_NO_SUCH=1"}); !errors.Is(err, want) {
			t.Errorf("%s: error is %v, want %v", arg, err, want)
		}
	}
}

func TestRenderings(t *testing.T) {
	p := defaults()
	p.Zone.Server.Token = "s3cret"
	var usage bytes.Buffer
	if err := config.Usage(&usage, "meridian-test", "A program for tests.", p); err != nil {
		t.Fatal(err)
	}
	effective, err := config.Effective(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"effective.json": effective, "usage.txt": usage.Bytes(), "reference.md": config.Reference(p)} {
		if bytes.Contains(got, []byte("s3cret")) {
			t.Errorf("%s shows the secret", name)
		}
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	type holder struct {
		S config.Secret `json:"s" yaml:"s"`
	}
	h := holder{S: "s3cret"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("started", "secret", h.S, "holder", h)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("started", "secret", h.S, "holder", h)
	asJSON, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string]string{"log": log.String(), "JSON": string(asJSON), "YAML": string(asYAML), "String": h.S.String()}
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%d", "%t"} {
		forms[verb] = fmt.Sprintf(verb, h) + fmt.Sprintf(verb, h.S)
	}
	for form, text := range forms {
		if strings.Contains(text, "s3cret") || strings.Contains(text, "733363726574") || !strings.Contains(text, "*****") {
			t.Errorf("%s: %s", form, text)
		}
	}
	if got := fmt.Sprintf("%s%v", config.Secret(""), config.Secret("")); got != "" {
		t.Errorf("an empty secret shows %q, want nothing", got)
	}
}

func withFile(t *testing.T, content string, args []string) []string {
	t.Helper()
	if content == "" {
		return args
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return append([]string{"--config", path}, args...)
}

func FuzzLoadFile(f *testing.F) {
	f.Add("zone: {server: {port: 81, hosts: [a, b]}}")
	f.Add("mode: &a x\nzone: {name: *a}\n")
	f.Add("? [a]\n: b\n")
	f.Add("<<: {a: b}")
	f.Add("a: &a [*a]")
	f.Add("--- \n...\n---")
	f.Fuzz(func(t *testing.T, content string) {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := config.Load(defaults(), []string{"--config=" + path}, nil); err != nil {
			if _, ok := errors.AsType[config.Problems](err); !ok {
				t.Errorf("error is %T, want Problems", err)
			}
		}
	})
}

func TestAStructInSeveralPlacesTakesItsVariablesFromThem(t *testing.T) {
	type grant struct {
		Users []string `yaml:"users" env:"_USERS" doc:"who may"`
	}
	type rights struct {
		Read  grant `yaml:"read" env:"MERIDIAN_READ"`
		Write grant `yaml:"write" env:"MERIDIAN_WRITE"`
	}
	got, err := config.Load(rights{}, []string{"--write-users=joe"}, []string{"MERIDIAN_READ_USERS=jane,jim", "MERIDIAN_WRITE_USERS=jim"})
	if err != nil {
		t.Fatal(err)
	}
	want := rights{Read: grant{Users: []string{"jane", "jim"}}, Write: grant{Users: []string{"joe"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
