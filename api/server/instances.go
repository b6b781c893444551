package server

import (
	"net/http"
	"time"

	"github.com/meridian-mesh/meridian/common/cluster"
)

// PlaneLease is the lease under which one instance of a plane leads.
const PlaneLease = "plane"

// instanceStatus is one entry of /status/instances. What is not known is null, never invented.
type instanceStatus struct {
	Name          string    `json:"name" doc:"Instance id."`
	Self          bool      `json:"self" doc:"It is the one that answers."`
	Address       *string   `json:"address" doc:"Where the other instances hear it; null where membership is off."`
	CallAddress   *string   `json:"callAddress" doc:"Where the other instances call it; null where membership is off."`
	Version       string    `json:"version" doc:"Version of the program."`
	Started       time.Time `json:"started"`
	UptimeSeconds int64     `json:"uptimeSeconds" doc:"By the clock of the one that answers."`
	Leader        bool      `json:"leader" doc:"It does what is done once in the plane. While the lead changes, none or two may say so; the store knows better."`
	Zones         heldNames `json:"zones" doc:"That have their session with it."`
	Proxies       heldNames `json:"proxies" doc:"That have their stream with it."`
}

// heldNames is what an instance holds.
type heldNames struct {
	Total int      `json:"total"`
	Names []string `json:"names" doc:"In order; of a long list the beginning."`
}

func (s *Server) getInstancesStatus(w http.ResponseWriter, r *http.Request) error {
	list := []instanceStatus{}
	if s.opts.Instances != nil {
		now := time.Now()
		for _, m := range s.opts.Instances() {
			list = append(list, instanceStatusOf(m, now))
		}
	}
	body, err := marshal(list)
	if err != nil {
		return internal("Could not retrieve instances status", err)
	}
	return s.sendJSON(w, r, body)
}

func instanceStatusOf(m cluster.Member, now time.Time) instanceStatus {
	status := instanceStatus{
		Name: m.Name, Self: m.Self, Version: m.Version, Started: m.Started.UTC(),
		UptimeSeconds: max(0, int64(now.Sub(m.Started)/time.Second)), Leader: m.Holds(cluster.Leases, PlaneLease),
		Zones: heldNamesOf(m, cluster.Zones), Proxies: heldNamesOf(m, cluster.Proxies),
	}
	if m.Address != "" {
		status.Address = &m.Address
	}
	if m.Calls != "" {
		status.CallAddress = &m.Calls
	}
	return status
}

func heldNamesOf(m cluster.Member, kind string) heldNames {
	l := m.Lists[kind]
	if l.Names == nil {
		l.Names = []string{}
	}
	return heldNames{l.Total, l.Names}
}
