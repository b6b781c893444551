package agent

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
)

// Config is everything that can be set on an agent.
type Config struct {
	Log         logging.Config     `yaml:"log"`
	Diagnostics diagnostics.Config `yaml:"diagnostics"`

	ControlPlane string `yaml:"controlPlane" env:"MERIDIAN_AGENT_CONTROL_PLANE" doc:"URL of the zone control plane's port for proxies: https://host:5678"`
	CAFile       string `yaml:"caFile" env:"MERIDIAN_AGENT_CA_FILE" doc:"PEM file of the authorities the control plane's certificate may come from, such as trust/dp-ca.crt of its data directory; empty means those of the operating system"`
	TokenFile    string `yaml:"tokenFile" env:"MERIDIAN_AGENT_TOKEN_FILE" doc:"file with the token of the proxy; read anew for every stream, so that replacing it rotates the token; empty where the control plane asks for none"`

	DataplaneFile string `yaml:"dataplaneFile" env:"MERIDIAN_AGENT_DATAPLANE_FILE" doc:"YAML or JSON file of the Dataplane to register; it is removed some time after the agent stops"`
	Mesh          string `yaml:"mesh" env:"MERIDIAN_AGENT_MESH" doc:"mesh of a Dataplane that exists already, where there is no dataplaneFile"`
	Name          string `yaml:"name" env:"MERIDIAN_AGENT_NAME" doc:"name of a Dataplane that exists already, where there is no dataplaneFile"`

	Dir string `yaml:"dir" env:"MERIDIAN_AGENT_DIR" doc:"directory for what the program needs: grpc-bootstrap.json, the socket xds.sock, and the certificate and authorities under current/; made with mode 0700 when missing; an absolute path, or it is made one"`
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{
		Log:          logging.Default(),
		Diagnostics:  diagnostics.Config{BindAddress: "127.0.0.1", Port: 5691},
		ControlPlane: "https://localhost:5678",
		Dir:          "meridian-agent",
	}
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	if _, err := target(c.ControlPlane); err != nil {
		errs = append(errs, fmt.Errorf("controlPlane: %w", err))
	}
	switch {
	case c.DataplaneFile != "" && (c.Mesh != "" || c.Name != ""):
		errs = append(errs, errors.New("dataplaneFile: cannot be combined with mesh and name, which it has itself"))
	case c.DataplaneFile == "" && (c.Mesh == "" || c.Name == ""):
		errs = append(errs, errors.New("dataplaneFile: must be set, or mesh and name of a Dataplane that exists"))
	case strings.Contains(c.Mesh, "."):
		errs = append(errs, errors.New("mesh: holds a dot"))
	}
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: must be set"))
	}
	return errs
}

// target is the URL of the control plane.
func target(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("not a URL: %w", err)
	case u.Scheme != "https":
		return nil, fmt.Errorf("scheme must be https, not %q", u.Scheme)
	case u.Hostname() == "" || u.Port() == "":
		return nil, errors.New("host and port are required: https://host:5678")
	}
	return u, nil
}
