package bootstrap

// What kuma-dp sends and gets. The names are the wire's.

type request struct {
	Mesh               string            `json:"mesh"`
	Name               string            `json:"name"`
	ProxyType          string            `json:"proxyType"`
	DataplaneToken     string            `json:"dataplaneToken"`
	DataplaneTokenPath string            `json:"dataplaneTokenPath"`
	DataplaneResource  string            `json:"dataplaneResource"`
	Version            Version           `json:"version"`
	CACert             string            `json:"caCert"`
	DynamicMetadata    map[string]string `json:"dynamicMetadata"`
	DNSPort            uint32            `json:"dnsPort"`
	EmptyDNSPort       uint32            `json:"emptyDnsPort"`
	OperatingSystem    string            `json:"operatingSystem"`
	Features           []string          `json:"features"`
	Resources          struct {
		MaxHeapSizeBytes uint64 `json:"maxHeapSizeBytes"`
	} `json:"resources"`
}

// Version is what a proxy says of its programs.
type Version struct {
	KumaDP struct {
		Version   string `json:"version"`
		GitTag    string `json:"gitTag"`
		GitCommit string `json:"gitCommit"`
		BuildDate string `json:"buildDate"`
	} `json:"kumaDp"`
	Envoy struct {
		Version          string `json:"version"`
		Build            string `json:"build"`
		KumaDPCompatible bool   `json:"kumaDpCompatible"`
	} `json:"envoy"`
}

type response struct {
	Bootstrap                []byte               `json:"bootstrap"` // base64 of YAML
	KumaSidecarConfiguration sidecarConfiguration `json:"kumaSidecarConfiguration"`
}

type sidecarConfiguration struct {
	Networking networking `json:"networking"`
	Metrics    metrics    `json:"metrics"`
}

type networking struct {
	IsUsingTransparentProxy bool `json:"isUsingTransparentProxy"`
}

type metrics struct {
	Aggregate []aggregate `json:"aggregate"` // never null
}

// aggregate is an application whose metrics the sidecar serves with its own.
type aggregate struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Port    uint32 `json:"port"`
	Path    string `json:"path"`
}
