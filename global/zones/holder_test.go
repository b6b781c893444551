package zones

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

func TestAHolderIsReadAsItWasWritten(t *testing.T) {
	at := time.Date(2026, 11, 25, 11, 0, 0, 7, time.FixedZone("", 3600))
	want := Holder{
		Instance: "global-1", Session: "s", Number: 7, Plane: "p", Address: "10.0.0.1:1", Secure: true, Auth: AuthToken,
		Since: at.UTC(), Leaving: true, Ended: at.UTC(), Lost: true,
	}
	st, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	local := want
	local.Since, local.Ended = at, at
	op, err := putHolder("zone-1", local)
	if err != nil {
		t.Fatal(err)
	}
	broken := store.Put(&store.Record{Key: holderKey("zone-2"), Spec: []byte("{")})
	if _, err := st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return []store.Op{op, broken}, nil }); err != nil {
		t.Fatal(err)
	}
	got, ok := HolderOf(st.Snapshot(), "zone-1")
	if d := cmp.Diff(want, got); d != "" || !ok {
		t.Errorf("ok is %t: %s", ok, d)
	}
	for _, zone := range []string{"zone-2", "zone-3"} {
		if h, ok := HolderOf(st.Snapshot(), zone); ok {
			t.Errorf("%s has a session: %+v", zone, h)
		}
	}
}

func TestASessionIsOnlineWhileItIsLiveAndHasItsStream(t *testing.T) {
	at := time.Now()
	for _, tt := range []struct {
		h            Holder
		live, online bool
	}{
		{Holder{}, true, false},
		{Holder{Since: at}, true, true},
		{Holder{Since: at, Ended: at}, false, false},
	} {
		if tt.h.Live() != tt.live || tt.h.Online() != tt.online {
			t.Errorf("%+v: live is %t, online is %t", tt.h, tt.h.Live(), tt.h.Online())
		}
	}
}
