// Package tlsconf gives listeners and dialers their TLS, so that it is on by default without anyone preparing
// certificates: a plane without a certificate of its own makes itself an authority and keeps it in its data directory.
//
// Servers use [LoadOrCreate] (self-made) or [FromFiles] (given, read again when the files change), clients
// [ClientConfig]. Nothing older than TLS 1.2 is spoken.
package tlsconf

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// FromFiles serves the certificate chain and key of two PEM files. Files that change are read again at the next
// handshake; while what they hold cannot be used, the last good pair stays. The error of the first read is returned.
func FromFiles(certFile, keyFile string) (*tls.Config, error) {
	p := &filePair{certFile: certFile, keyFile: keyFile}
	if _, err := p.load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current(), nil },
	}, nil
}

type filePair struct {
	certFile, keyFile string

	mu    sync.Mutex // guards what follows
	pair  *tls.Certificate
	state [2]fileState
}

// fileState tells whether a file may have changed.
type fileState struct {
	modified time.Time
	size     int64
}

func (p *filePair) current() *tls.Certificate {
	if pair, err := p.load(); err == nil {
		return pair
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pair
}

func (p *filePair) load() (*tls.Certificate, error) {
	var state [2]fileState
	for i, name := range []string{p.certFile, p.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		state[i] = fileState{info.ModTime(), info.Size()}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pair != nil && state == p.state {
		return p.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s and key %s: %w", p.certFile, p.keyFile, err)
	}
	p.pair, p.state = &pair, state
	return p.pair, nil
}
