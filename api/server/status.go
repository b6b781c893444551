package server

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// index is the answer of "/". kumactl checks tagline and version.
type index struct {
	Hostname   string `json:"hostname"`
	Tagline    string `json:"tagline"`
	Product    string `json:"product"`
	Version    string `json:"version"`  // API generation
	Meridian   string `json:"meridian"` // our own version
	Mode       string `json:"mode"`     // global or zone
	Zone       string `json:"zone,omitempty"`
	InstanceID string `json:"instanceId"`
	ClusterID  string `json:"clusterId"` // empty on a zone that never met its global
}

func (s *Server) getIndex(w http.ResponseWriter, r *http.Request) error {
	id, err := s.clusterID()
	if err != nil {
		return internal(titleGet, err)
	}
	body, err := marshal(index{
		Hostname:   s.opts.Hostname,
		Tagline:    "Kuma",
		Product:    "Kuma",
		Version:    cmp.Or(s.opts.APIVersion, "2.0.8"),
		Meridian:   s.opts.Version,
		Mode:       s.plane.String(),
		Zone:       s.opts.ZoneName,
		InstanceID: s.opts.InstanceID,
		ClusterID:  id,
	})
	if err != nil {
		return internal(titleGet, err)
	}
	return s.sendJSON(w, r, body)
}

func (s *Server) clusterID() (string, error) {
	rec, ok := s.store.Snapshot().Get(store.Key{Type: string(resource.Config), Name: resource.ClusterIDName})
	if !ok {
		return "", nil
	}
	d, _ := resource.Lookup(resource.Config)
	spec, err := codec.Spec(d, rec)
	if err != nil {
		return "", fmt.Errorf("read cluster id: %w", err)
	}
	c, ok := spec.(*systemv1.Config)
	if !ok {
		return "", fmt.Errorf("read cluster id: the record holds a %T", spec)
	}
	return c.GetConfig(), nil
}

func (s *Server) getConfig(w http.ResponseWriter, r *http.Request) error {
	body := []byte("{}")
	if s.opts.EffectiveConfig != nil {
		effective, err := s.opts.EffectiveConfig()
		if err != nil {
			return internal(titleGet, fmt.Errorf("render effective configuration: %w", err))
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, effective); err != nil {
			return internal(titleGet, fmt.Errorf("render effective configuration: %w", err))
		}
		body = compact.Bytes()
	}
	return s.sendJSON(w, r, body)
}

// policy is one entry of /policies. displayName is what older clients read, the other two are newer.
type policy struct {
	Name                string `json:"name"`
	ReadOnly            bool   `json:"readOnly"`
	Path                string `json:"path"`
	DisplayName         string `json:"displayName"`
	SingularDisplayName string `json:"singularDisplayName"`
	PluralDisplayName   string `json:"pluralDisplayName"`
	IsExperimental      bool   `json:"isExperimental"`
}

func (s *Server) policiesBody() ([]byte, error) {
	var list []policy
	all := resource.All()
	for i := range all {
		d := &all[i]
		if !d.Policy {
			continue
		}
		list = append(list, policy{
			Name:                string(d.Name),
			ReadOnly:            endpoint{s, d}.readOnly() != nil,
			Path:                d.Path,
			DisplayName:         d.Plural,
			SingularDisplayName: d.Singular,
			PluralDisplayName:   d.Plural,
			IsExperimental:      d.Experimental,
		})
	}
	slices.SortFunc(list, func(a, b policy) int { return cmp.Compare(a.Name, b.Name) })
	return marshal(map[string][]policy{"policies": list})
}

func (s *Server) getPolicies(w http.ResponseWriter, r *http.Request) error {
	return s.sendJSON(w, r, s.policies)
}

// versionsBody renders /versions: which Envoy each range of kuma-dp versions runs.
func versionsBody(ranges map[string]string) ([]byte, error) {
	if ranges == nil {
		ranges = map[string]string{"~1.7.0": "~1.22.0", "~1.8.0": "~1.22.0", "~2.0.0": "~1.22.0"}
	}
	type envoy struct {
		Envoy string `json:"envoy"`
	}
	proxies := make(map[string]envoy, len(ranges))
	for proxy, e := range ranges {
		proxies[proxy] = envoy{e}
	}
	return marshal(map[string]map[string]envoy{"kumaDp": proxies})
}

func (s *Server) getVersions(w http.ResponseWriter, r *http.Request) error {
	return s.sendJSON(w, r, s.versions)
}

// zoneStatus is one entry of /status/zones. What is not known is null, never invented.
type zoneStatus struct {
	Name           string     `json:"name"`
	URL            string     `json:"url"`
	Active         bool       `json:"active"` // enabled, and its session is alive
	ConnectedSince *time.Time `json:"connectedSince"`
	LastAck        *time.Time `json:"lastAck"`
	Lag            *int       `json:"lag"` // resources changed and not yet acknowledged
}

func (s *Server) getZonesStatus(w http.ResponseWriter, r *http.Request) error {
	const title = "Could not retrieve zones status"
	d, _ := resource.Lookup(resource.ZoneType)
	list := []zoneStatus{}
	snap := s.store.Snapshot()
	for rec := range snap.List(string(resource.ZoneType), "") {
		spec, err := codec.Spec(d, rec)
		if err != nil {
			return internal(title, fmt.Errorf("read %s: %w", rec.Key, err))
		}
		zone, ok := spec.(*systemv1.Zone)
		if !ok {
			return internal(title, fmt.Errorf("read %s: it holds a %T", rec.Key, spec))
		}
		enabled := zone.GetEnabled() == nil || zone.GetEnabled().GetValue()
		status := zoneStatus{Name: rec.Key.Name}
		if live, ok := s.live(snap, rec.Key.Name); ok {
			status.URL = live.URL
			status.Active = enabled && live.Online
			status.ConnectedSince = knownTime(live.ConnectedSince)
			status.LastAck = knownTime(live.LastAck)
			status.Lag = &live.Lag
		}
		list = append(list, status)
	}
	body, err := marshal(list)
	if err != nil {
		return internal(title, err)
	}
	return s.sendJSON(w, r, body)
}

// live asks the sessions about a zone; a plane without sessions knows nothing.
func (s *Server) live(snap *store.Snapshot, zone string) (ZoneLive, bool) {
	if s.zones == nil {
		return ZoneLive{}, false
	}
	return s.zones.Live(snap, zone)
}

func knownTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func (s *Server) getGlobalInsights(w http.ResponseWriter, r *http.Request) error {
	type count struct {
		Total int `json:"total"`
	}
	snap := s.store.Snapshot()
	counts := make(map[string]count)
	for _, d := range resource.All() {
		if d.Scope == resource.ScopeGlobal && d.Path != "" && d.InsightOf == "" {
			counts[string(d.Name)] = count{snap.Count(string(d.Name), "")}
		}
	}
	body, err := marshal(struct {
		Type         string           `json:"type"`
		CreationTime time.Time        `json:"creationTime"`
		Resources    map[string]count `json:"resources"`
	}{"GlobalInsights", time.Now().UTC(), counts})
	if err != nil {
		return internal(titleGet, err)
	}
	return s.sendJSON(w, r, body)
}
