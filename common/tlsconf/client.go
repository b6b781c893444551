package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ClientConfig says whom a dialer trusts.
type ClientConfig struct {
	// ServerName is the host name or IP address the server's certificate must be valid for: the host of the address
	// that is dialled.
	ServerName string
	// CAFile is a PEM file of the authorities to trust; empty means those of the operating system. It is read at each
	// handshake: it may appear or change later than the dialer starts.
	CAFile string
	// SkipVerify trusts anyone. Who sets it says so in the log.
	SkipVerify bool
}

// TLS returns the configuration for one server. A CA file that is missing or empty fails the handshake, not this call,
// so that a dialer which retries gets through as soon as the file is there.
func (c ClientConfig) TLS() (*tls.Config, error) {
	if c.ServerName == "" {
		return nil, errors.New("tls client: no server name")
	}
	cfg := &tls.Config{ServerName: c.ServerName, MinVersion: tls.VersionTLS12}
	switch {
	case c.SkipVerify && c.CAFile != "":
		return nil, errors.New("tls client: a CA file and no verification exclude each other")
	case c.SkipVerify:
		cfg.InsecureSkipVerify = true
	default:
		// The standard verification takes its roots once. Ours does the same with roots as they are now, and says which these were.
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = c.verify
	}
	return cfg, nil
}

// verify checks what [tls] would, against the authorities that CAFile holds at this moment.
func (c ClientConfig) verify(state tls.ConnectionState) error {
	var roots *x509.CertPool // nil: those of the operating system
	from := "the authorities of the operating system, as no CA file is set"
	if c.CAFile != "" {
		var err error
		if roots, err = loadRoots(c.CAFile); err != nil {
			return err
		}
		from = c.CAFile
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("server sent no certificate")
	}
	opts := x509.VerifyOptions{Roots: roots, DNSName: c.ServerName, Intermediates: x509.NewCertPool()}
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := state.PeerCertificates[0].Verify(opts); err != nil {
		return fmt.Errorf("verify certificate against %s: %w", from, err)
	}
	return nil
}

func loadRoots(file string) (*x509.CertPool, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("read CA file: %s holds no certificate", file)
	}
	return pool, nil
}
