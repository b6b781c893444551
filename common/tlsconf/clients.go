package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// ClientCerts judges the certificates that clients present, by the files of a directory. Each file that ends in .pem or
// .crt holds certificates: authorities whose clients are trusted, or clients' own. The directory is looked at again at
// most once a second, so that adding or removing a file needs no restart; a connection that was opened before is judged
// by what is there now. Safe for concurrent use.
//
// The listener has to ask for certificates ([tls.RequestClientCert]) and leave the verification to Verify: in a handshake
// it would happen once per session, whatever became of the file since.
type ClientCerts struct {
	dir string

	mu    sync.Mutex // guards what follows
	pool  *x509.CertPool
	files []certFile
	next  time.Time // when to look again
	err   error     // why the files cannot be used as they are
}

// certFile is a file and what tells whether it has changed.
type certFile struct {
	path  string
	state fileState
}

// lookInterval is how long the content of the directory is taken as known.
const lookInterval = time.Second

// NewClientCerts reads dir. It returns an error when that cannot be read or a file in it holds no certificate; an empty
// directory trusts nobody.
func NewClientCerts(dir string) (*ClientCerts, error) {
	c := &ClientCerts{dir: dir}
	if _, err := c.current(); err != nil {
		return nil, err
	}
	return c, nil
}

// Verify reports whether a client presented a certificate that is trusted for clients. While the files cannot be read as
// they are, nobody is.
func (c *ClientCerts) Verify(state *tls.ConnectionState) error {
	if state == nil || len(state.PeerCertificates) == 0 {
		return errors.New("no client certificate")
	}
	pool, err := c.current()
	if err != nil {
		return err
	}
	opts := x509.VerifyOptions{
		Roots: pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := state.PeerCertificates[0].Verify(opts); err != nil {
		return fmt.Errorf("verify client certificate: %w", err)
	}
	return nil
}

// current returns the certificates of the directory as it is now.
func (c *ClientCerts) current() (*x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.next) {
		return c.pool, c.err
	}
	c.next = now.Add(lookInterval)
	files, err := certFiles(c.dir)
	if err != nil {
		c.pool, c.files, c.err = nil, nil, err
		return nil, err
	}
	if c.pool == nil || !slices.Equal(files, c.files) {
		c.files = files
		c.pool, c.err = loadCerts(files)
	}
	return c.pool, c.err
}

func certFiles(dir string) ([]certFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read client certificates: %w", err)
	}
	var files []certFile
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".pem" && ext != ".crt" {
			continue
		}
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path) // follows links, which is how clusters mount such files
		if err != nil {
			return nil, fmt.Errorf("read client certificates: %w", err)
		}
		files = append(files, certFile{path, fileState{info.ModTime(), info.Size()}})
	}
	return files, nil
}

func loadCerts(files []certFile) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, f := range files {
		content, err := os.ReadFile(f.path)
		if err != nil {
			return nil, fmt.Errorf("read client certificates: %w", err)
		}
		if bytes.Contains(content, []byte("PRIVATE KEY-----")) {
			return nil, fmt.Errorf("read client certificates: %s holds a private key, which belongs to the client alone", f.path)
		}
		if !pool.AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("read client certificates: %s holds no certificate", f.path)
		}
	}
	return pool, nil
}
