// Package config fills one documented struct per program from its defaults, a YAML file, the environment and flags, in
// that order: the later source wins.
//
// A field says everything about itself in its tags, so that the file, the environment, the flags, --help and the
// reference page cannot disagree:
//
//	Port int `yaml:"port" env:"MERIDIAN_KDS_PORT" doc:"port zones connect to, 0-65535; 0 takes any free port"`
//
// Fields may be structs of further fields, or of type string, bool, int, int64, uint16, uint32, [time.Duration], []string
// (comma-separated outside the file) and [Secret]. The flag's name is the path in the file in kebab case:
// multizone.global.kds.port becomes --multizone-global-kds-port. A field without an env tag is read from the file
// only, and a Secret has no flag, because command lines are visible to every user of a machine. A struct that stands in
// several places leaves the beginning of its variables to them: env:"_USERS" follows the env tag of the field above.
//
// Nothing is ignored: keys of the file and MERIDIAN_ variables that no field knows are errors, and all problems of all
// sources are reported at once, together with those that the structs' own Validate methods find.
package config
