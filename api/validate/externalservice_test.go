package validate

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// The look into the encoding must not pass over a RateLimit that decoding would show to select by more.
func TestTheShortLookAtARateLimitAgreesWithDecodingIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		selectors := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *meshv1.Selector {
			return &meshv1.Selector{Match: rapid.MapOfN(rapid.SampledFrom([]string{tagService, "version", ""}), rapid.SampledFrom([]string{"a", "*", ""}), 0, 3).Draw(t, "match")}
		}), 0, 4)
		limit := &meshv1.RateLimit{
			Sources: selectors.Draw(t, "sources"), Destinations: selectors.Draw(t, "destinations"),
			Conf: &meshv1.RateLimit_Conf{Http: &meshv1.RateLimit_Conf_Http{Requests: 5}},
		}
		spec, err := proto.Marshal(limit)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := mayLimitByMore(spec), selectsByMore(limit); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	if !mayLimitByMore([]byte{0x12, 0xff}) {
		t.Error("an encoding that cannot be followed was passed over")
	}
}
