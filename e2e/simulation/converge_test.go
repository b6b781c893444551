package simulation

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/resource"
)

// TestConverge drives random writes on both sides, cut and frozen connections, and restarts of either side, and asks
// that everything is as it should be once the world holds still (acceptance 6 of step 1; lessons 10, 11, 15, 16, 18).
func TestConverge(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(step(), 1, 60).Draw(rt, "script")
		// A bubble per case; what went wrong is reported outside it, so that rapid can shrink the script.
		if wrong := play(t, script); wrong != "" {
			rt.Fatalf("after %v:\n%s", script, wrong)
		}
	})
}

type action struct {
	Do   string
	Zone int
	Name int
	Type int
	N    int
}

func (a action) String() string {
	return fmt.Sprintf("%s(z%d n%d t%d %d)", a.Do, a.Zone, a.Name, a.Type, a.N)
}

func step() *rapid.Generator[action] {
	return rapid.Custom(func(t *rapid.T) action {
		return action{
			Do: rapid.SampledFrom([]string{
				"put", "put", "put", "delete", "delete", "zput", "zput", "zput", "zdelete", "zdelete", "enable", "disable",
				"cut", "freeze", "restartGlobal", "restartZone", "wait", "pause", "deleteZone",
			}).Draw(t, "do"),
			Zone: rapid.IntRange(0, 2).Draw(t, "zone"),
			Name: rapid.IntRange(0, 4).Draw(t, "name"),
			Type: rapid.IntRange(0, 3).Draw(t, "type"),
			N:    rapid.IntRange(0, 50).Draw(t, "n"),
		}
	})
}

func play(t *testing.T, script []action) (wrong string) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		var all []*zonePlane
		for i := range 3 {
			z := newZone(t, fmt.Sprintf("zone-%d", i+1), g)
			z.start(t)
			all = append(all, z)
			defer func() { z.stop() }()
		}
		for _, a := range script {
			perform(t, g, all, a)
		}
		settle(5 * time.Minute) // longer than every time-out and back-off there is
		wrong = diverged(g, all...)
		for _, z := range all {
			live, _ := g.table.Live(g.st.Snapshot(), z.name)
			if !live.Online {
				wrong += z.name + " is not online\n"
			}
			progress, known := g.table.Progress(t.Context(), g.st.Snapshot(), []string{z.name})[z.name]
			if !known || progress.Lag != 0 {
				wrong += fmt.Sprintf("%s lags by %d (known: %v)\n", z.name, progress.Lag, known)
			}
		}
	})
	return wrong
}

func perform(t *testing.T, g *globalPlane, all []*zonePlane, a action) {
	z := all[a.Zone]
	name := fmt.Sprintf("r%d", a.Name)
	down := []resource.Type{"TrafficPermission", "MeshTrace", resource.Mesh, resource.Secret}[a.Type]
	up := []resource.Type{resource.Dataplane, resource.ZoneIngress, resource.ZoneEgress, resource.DataplaneInsight}[a.Type]
	switch a.Do {
	case "put":
		switch down {
		case resource.Mesh:
			g.put(t, down, "", name, meshSpec(a.N))
		case "MeshTrace":
			g.put(t, down, "default", name, nil)
		case resource.Secret:
			g.put(t, down, "default", name, secret(a.N))
		default:
			g.put(t, down, "default", name, permission(fmt.Sprint("s", a.N)))
		}
	case "delete":
		mesh := "default"
		if down == resource.Mesh {
			mesh = ""
		}
		g.delete(t, down, mesh, name)
	case "zput":
		address := fmt.Sprintf("10.0.0.%d", a.N)
		switch up {
		case resource.Dataplane:
			z.put(t, up, "default", name, dataplane(address))
		case resource.DataplaneInsight:
			z.put(t, up, "default", name, insight(a.N))
		case resource.ZoneIngress:
			z.put(t, up, "", name, ingress(address))
		default:
			z.put(t, up, "", name, egress(address))
		}
	case "zdelete":
		mesh := ""
		if strings.HasPrefix(string(up), "Dataplane") {
			mesh = "default"
		}
		z.delete(t, up, mesh, name)
	case "enable", "disable":
		g.put(t, resource.ZoneType, "", z.name, zoneSpec(a.Do == "enable"))
	case "cut":
		g.net.cut(z.name)
	case "freeze":
		for _, l := range g.net.of(z.name) {
			l.freeze()
		}
	case "restartGlobal":
		g.restart(t)
	case "restartZone":
		z.restart(t)
	case "deleteZone":
		deleteZone(t, g, z.name)
	case "wait":
		settle(time.Duration(a.N) * time.Second)
	case "pause":
		time.Sleep(time.Duration(a.N) * time.Millisecond)
	}
}
