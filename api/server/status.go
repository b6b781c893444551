package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// statusRoutes adds what is not a resource.
func (s *Server) statusRoutes(t table) {
	t.get("/", s.getIndex, openapi.Read("getIndex", "Read what answers here", "", t.doc.Of(index{})))
	t.get("/config", s.getConfig, openapi.Read("getConfig", "Read the effective configuration",
		"Secrets are masked.", &openapi.Schema{Type: openapi.Types{"object"}}))
	t.get("/policies", s.getPolicies, openapi.Read("getPolicies", "List the types of policies", "", t.doc.Of(policyList{})))
	t.get("/versions", s.getVersions, openapi.Read("getVersions", "List the versions of proxies",
		"Which versions of kuma-dp are accepted, and which Envoy each of them runs.", t.doc.Of(versions{})))
	t.get("/status/zones", s.getZonesStatus, openapi.Read("getZonesStatus", "List the zones and their connections",
		"What is not known is null.", t.doc.Of([]zoneStatus{})))
	t.get("/status/instances", s.getInstancesStatus, openapi.Read("getInstancesStatus", "List the instances of this plane",
		"As the one that answers knows them: one where membership is off.", t.doc.Of([]instanceStatus{})))
	t.get("/global-insights", s.getGlobalInsights, openapi.Read("getGlobalInsights", "Count the resources outside meshes",
		"", t.doc.Of(globalInsights{})))
}

// index is the answer of "/". kumactl checks tagline and version.
type index struct {
	Hostname   string `json:"hostname"`
	Tagline    string `json:"tagline"`
	Product    string `json:"product"`
	Version    string `json:"version" doc:"Generation of the API."`
	Meridian   string `json:"meridian" doc:"Version of the program."`
	Mode       string `json:"mode" doc:"global or zone."`
	Zone       string `json:"zone,omitempty" doc:"Name of the zone."`
	InstanceID string `json:"instanceId"`
	ClusterID  string `json:"clusterId" doc:"Empty on a zone that never met its global."`
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

// policyList is the answer of /policies.
type policyList struct {
	Policies []listedPolicy `json:"policies"`
}

// listedPolicy is one entry of /policies. displayName is what older clients read, the other two are newer.
type listedPolicy struct {
	Name                string `json:"name"`
	ReadOnly            bool   `json:"readOnly" doc:"Whether this control plane refuses to write it."`
	Path                string `json:"path" doc:"Last segment of the path of its lists."`
	DisplayName         string `json:"displayName"`
	SingularDisplayName string `json:"singularDisplayName"`
	PluralDisplayName   string `json:"pluralDisplayName"`
	IsExperimental      bool   `json:"isExperimental"`
}

func (s *Server) policiesBody() ([]byte, error) {
	var list []listedPolicy
	all := resource.All()
	for i := range all {
		d := &all[i]
		if !d.Policy {
			continue
		}
		list = append(list, listedPolicy{
			Name:                string(d.Name),
			ReadOnly:            endpoint{s, d}.readOnly("") != nil,
			Path:                d.Path,
			DisplayName:         d.Plural,
			SingularDisplayName: d.Singular,
			PluralDisplayName:   d.Plural,
			IsExperimental:      d.Experimental,
		})
	}
	slices.SortFunc(list, func(a, b listedPolicy) int { return cmp.Compare(a.Name, b.Name) })
	return marshal(policyList{list})
}

func (s *Server) getPolicies(w http.ResponseWriter, r *http.Request) error {
	return s.sendJSON(w, r, s.policies)
}

// versions is the answer of /versions. Keys and values are ranges as in the reference: "~2.1.0" is every 2.1.
type versions struct {
	KumaDP map[string]proxyEnvoy `json:"kumaDp" doc:"By a range of versions of kuma-dp that is accepted."`
}

type proxyEnvoy struct {
	Envoy string `json:"envoy" doc:"Range of versions of Envoy that it runs."`
}

// versionsBody renders /versions: a range for each minor version of kuma-dp from the oldest accepted to the newest, all
// of one major version. The reference's table ends at 2.0, which runs Envoy 1.22; later ones run what their release
// brings, and never an older one.
func versionsBody(oldest, newest string) ([]byte, error) {
	var major, first, majorOfNewest, last int
	if _, err := fmt.Sscanf(oldest+" "+newest, "%d.%d.0 %d.%d.", &major, &first, &majorOfNewest, &last); err != nil {
		return nil, fmt.Errorf("accepted versions of kuma-dp %q to %q: %w", oldest, newest, err)
	}
	if major != majorOfNewest || first > last {
		return nil, fmt.Errorf("accepted versions of kuma-dp %q to %q are no range of one major version", oldest, newest)
	}
	body := versions{make(map[string]proxyEnvoy, last-first+1)}
	for minor := first; minor <= last; minor++ {
		envoy := ">=1.22.0"
		if major == 2 && minor == 0 {
			envoy = "~1.22.0"
		}
		body.KumaDP[fmt.Sprintf("~%d.%d.0", major, minor)] = proxyEnvoy{envoy}
	}
	return marshal(body)
}

func (s *Server) getVersions(w http.ResponseWriter, r *http.Request) error {
	return s.sendJSON(w, r, s.versions)
}

// zoneStatus is one entry of /status/zones. What is not known is null, never invented.
type zoneStatus struct {
	Name           string     `json:"name"`
	URL            string     `json:"url" doc:"Address that the session comes from."`
	Active         bool       `json:"active" doc:"Enabled, and its session is alive."`
	Auth           *string    `json:"auth" doc:"How the zone proved who it is: token, exempt (this zone need not) or none (no zone need)."`
	ConnectedSince *time.Time `json:"connectedSince"`
	LastAck        *time.Time `json:"lastAck"`
	Lag            *int       `json:"lag" doc:"Resources that changed and are not acknowledged yet."`
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
			if live.Auth != "" {
				status.Auth = &live.Auth
			}
			status.ConnectedSince = knownTime(live.ConnectedSince)
		}
		list = append(list, status)
	}
	s.addProgress(r.Context(), snap, list)
	body, err := marshal(list)
	if err != nil {
		return internal(title, err)
	}
	return s.sendJSON(w, r, body)
}

// addProgress adds how far the zones have got, of those of which it is known.
func (s *Server) addProgress(ctx context.Context, snap *store.Snapshot, list []zoneStatus) {
	if s.zones == nil {
		return
	}
	names := make([]string, len(list))
	for i, z := range list {
		names[i] = z.Name
	}
	progress := s.zones.Progress(ctx, snap, names)
	for i := range list {
		if p, ok := progress[list[i].Name]; ok {
			list[i].LastAck, list[i].Lag = knownTime(p.LastAck), &p.Lag
		}
	}
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

// globalInsights is the answer of /global-insights.
type globalInsights struct {
	Type         string           `json:"type"`
	CreationTime time.Time        `json:"creationTime"`
	Resources    map[string]count `json:"resources" doc:"By type."`
}

type count struct {
	Total int `json:"total"`
}

func (s *Server) getGlobalInsights(w http.ResponseWriter, r *http.Request) error {
	snap := s.store.Snapshot()
	counts := make(map[string]count)
	for _, d := range resource.All() {
		if d.Scope == resource.ScopeGlobal && d.Path != "" && d.InsightOf == "" {
			counts[string(d.Name)] = count{snap.Count(string(d.Name), "")}
		}
	}
	body, err := marshal(globalInsights{"GlobalInsights", time.Now().UTC(), counts})
	if err != nil {
		return internal(titleGet, err)
	}
	return s.sendJSON(w, r, body)
}
