package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/meridian-mesh/meridian/common/atomicfile"
)

// files is the directory that the agent shares with its program.
type files struct{ dir string }

func (f files) bootstrap() string  { return filepath.Join(f.dir, "grpc-bootstrap.json") }
func (f files) socketPath() string { return filepath.Join(f.dir, "xds.sock") }

// current is a link to the directory with the newest certificate. It is replaced as a whole, so that a key and a certificate
// that are read through it belong together.
func (f files) current(name string) string { return filepath.Join(f.dir, "current", name) }

const (
	certFile = "cert.pem"
	keyFile  = "key.pem"
	caFile   = "ca.pem"
)

// maxSocketPath is what all systems allow.
const maxSocketPath = 103

// listen binds the socket. Only the user of the agent may connect: whoever does acts with its token.
func (f files) listen() (net.Listener, error) {
	path := f.socketPath()
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("dir: too long: the path of a socket, %s, may have %d bytes", path, maxSocketPath)
	}
	if conn, err := net.Dial("unix", path); err == nil { //nolint:noctx // connecting to a socket here does not block
		_ = conn.Close()
		return nil, fmt.Errorf("dir: another agent runs in %s: give each program's agent a directory of its own", f.dir)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of an earlier run: %w", err)
	}
	ln, err := net.Listen("unix", path) //nolint:noctx // binding does not block
	if err != nil {
		return nil, fmt.Errorf("bind the socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("bind the socket: %w", err)
	}
	return ln, nil
}

// certificateInstance is the name by which the control plane refers to the certificates in current.
const certificateInstance = "mesh"

// writeBootstrap writes what GRPC_XDS_BOOTSTRAP of the program names.
func (f files) writeBootstrap(s *self) error {
	type object = map[string]any
	doc := object{
		"xds_servers": []object{{
			"server_uri":      "unix://" + f.socketPath(),
			"channel_creds":   []object{{"type": "insecure"}},
			"server_features": []string{"xds_v3"},
		}},
		"node": object{"id": s.nodeID(), "metadata": s.metadata()},
		"certificate_providers": object{certificateInstance: object{
			"plugin_name": "file_watcher",
			"config": object{
				"certificate_file": f.current(certFile), "private_key_file": f.current(keyFile), "ca_certificate_file": f.current(caFile),
				"refresh_interval": "1s",
			},
		}},
		"server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
	}
	raw, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", f.bootstrap(), err)
	}
	return atomicfile.Write(f.bootstrap(), append(raw, '\n'), 0o600, 0o700)
}

// writeIdentity makes a certificate with its key, and the authorities, the current ones.
func (f files) writeIdentity(cert, key, ca []byte) (err error) {
	dir, err := os.MkdirTemp(f.dir, "identity-")
	if err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	for name, content := range map[string][]byte{certFile: cert, keyFile: key, caFile: ca} {
		if err := atomicfile.Write(filepath.Join(dir, name), content, 0o600, 0o700); err != nil {
			return err
		}
	}
	old, _ := os.Readlink(filepath.Join(f.dir, "current")) // "" when there is none
	link := dir + ".link"
	if err := os.Symlink(filepath.Base(dir), link); err != nil {
		return fmt.Errorf("link the certificate: %w", err)
	}
	if err := os.Rename(link, filepath.Join(f.dir, "current")); err != nil {
		_ = os.Remove(link)
		return fmt.Errorf("link the certificate: %w", err)
	}
	f.removeOld(filepath.Base(dir), old)
	return nil
}

// removeOld removes the directories that were current before the last: a program may still be reading that one.
func (f files) removeOld(keep ...string) {
	entries, err := filepath.Glob(filepath.Join(f.dir, "identity-*"))
	if err != nil {
		return // the pattern is good
	}
	for _, e := range entries {
		if base := filepath.Base(e); base != keep[0] && base != keep[1] {
			_ = os.RemoveAll(e)
		}
	}
}
