package validate

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	capb "github.com/meridian-mesh/meridian/api/kuma/plugins/ca"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// meshState checks the certificate authorities of a mesh against its secrets and against what it was.
func meshState(r *report, view View, rec, old *store.Record) {
	m, ok := decode[*meshv1.Mesh](rec)
	if !ok {
		return
	}
	var root path
	mtls := root.field("mtls")
	if old != nil {
		if was, ok := decode[*meshv1.Mesh](old); ok {
			r.changeOfCA(mtls.field("enabledBackend"), was.GetMtls(), m.GetMtls())
		}
	}
	backends := mtls.field("backends")
	for i, b := range m.GetMtls().GetBackends() {
		if b.GetType() == "provided" {
			item := backends.at(i)
			r.providedPair(item.field("conf"), view, b.GetConf(), b.GetName() == m.GetMtls().GetEnabledBackend())
		}
	}
}

// changeOfCA refuses to replace the authority of a mesh whose proxies are using it, unless every proxy trusts both the
// old one and the new one: it must have had the new one in its list before, and must keep the old one for as long as
// certificates of it are about.
func (r *report) changeOfCA(at path, was, is *meshv1.Mesh_Mtls) {
	from, to := was.GetEnabledBackend(), is.GetEnabledBackend()
	if from == "" || to == "" || backend(was, from) == nil {
		return
	}
	kept := backend(is, from)
	switch {
	case from == to && kept != nil && kept.GetType() == backend(was, from).GetType():
		return
	case from != to && kept != nil && kept.GetType() == backend(was, from).GetType() && backend(was, to) != nil &&
		backend(was, to).GetType() == backend(is, to).GetType():
		return
	}
	r.add(at, "Changing CA when mTLS is enabled is forbidden. To change it without failing requests, first add the new backend "+
		"beside the enabled one, then make it the enabledBackend while both stay listed, and remove the old one "+
		"when all proxies have new certificates. Or disable mTLS first")
}

func backend(m *meshv1.Mesh_Mtls, name string) *meshv1.CertificateAuthorityBackend {
	for _, b := range m.GetBackends() {
		if b.GetName() == name {
			return b
		}
	}
	return nil
}

// providedPair checks the certificate and key of an authority that the user provides. Those of a backend that is not
// enabled may still be missing: it is listed before it is used, and a secret can only be written into a mesh that exists.
// Files are not opened: whoever may write a mesh could ask so what there is on the control plane's disk.
func (r *report) providedPair(at path, view View, s *structpb.Struct, enabled bool) {
	var conf capb.ProvidedCertificateAuthorityConfig
	if unpack(s, &conf) != nil {
		return
	}
	certAt, keyAt := at.field("cert"), at.field("key")
	cert, certErr := r.load(view, conf.GetCert())
	key, keyErr := r.load(view, conf.GetKey())
	if certErr != nil || keyErr != nil {
		if enabled {
			for _, failed := range [...]struct {
				at  path
				err error
			}{{certAt, certErr}, {keyAt, keyErr}} {
				if failed.err != nil {
					r.addf(failed.at, "could not load data: %v", failed.err)
				}
			}
		}
		return
	}
	if cert == nil || key == nil {
		return // in a file, or not given, which Spec says
	}
	if len(cert) > maxCertBytes || len(key) > maxKeyBytes {
		r.addf(certAt, "not a valid TLS key pair: longer than %d bytes of certificates or %d of key", maxCertBytes, maxKeyBytes)
		return
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		r.addf(certAt, "not a valid TLS key pair: %s", strings.TrimPrefix(clip(err.Error()), "tls: "))
		return
	}
	for j := 0; ; j++ {
		var block *pem.Block
		if block, cert = pem.Decode(cert); block == nil {
			return
		}
		if block.Type != "CERTIFICATE" {
			j--
			continue
		}
		r.caCertificate(certAt.at(j), block.Bytes)
	}
}

// The longest chain and key that are looked at: checking an enormous key would take the committer minutes.
const maxCertBytes, maxKeyBytes = 256 << 10, 16 << 10

// load returns the content of a data source; nil without an error for one that is not looked into.
func (r *report) load(view View, s *systemv1.DataSource) ([]byte, error) {
	switch v := s.GetType().(type) {
	case *systemv1.DataSource_Secret:
		key := store.Key{Type: string(resource.Secret), Mesh: r.key.Name, Name: v.Secret}
		rec, ok := view.Get(key)
		if !ok {
			return nil, fmt.Errorf("Resource not found: type=%q name=%q mesh=%q", key.Type, clip(key.Name), key.Mesh) //nolint:staticcheck // the text clients know
		}
		secret, ok := decode[*systemv1.Secret](rec)
		if !ok {
			return nil, fmt.Errorf("secret %q cannot be decoded", clip(key.Name))
		}
		if data := secret.GetData().GetValue(); data != nil {
			return data, nil
		}
		return []byte{}, nil
	case *systemv1.DataSource_Inline:
		return v.Inline.GetValue(), nil
	case *systemv1.DataSource_InlineString:
		return []byte(v.InlineString), nil
	default:
		return nil, nil
	}
}

func (r *report) caCertificate(at path, der []byte) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		r.addf(at, "not a valid certificate: %s", clip(err.Error()))
		return
	}
	r.check(cert.IsCA, at, "basic constraint 'CA' must be set to 'true' (see X509-SVID: 4.1. Basic Constraints)")
	r.check(cert.KeyUsage&x509.KeyUsageCertSign != 0, at, "key usage extension 'keyCertSign' must be set (see X509-SVID: 4.3. Key Usage)")
	r.check(cert.KeyUsage&x509.KeyUsageKeyAgreement == 0, at, "key usage extension 'keyAgreement' must NOT be set (see X509-SVID: Appendix A)")
}
