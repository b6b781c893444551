package envoy

import (
	"math"
	"slices"
	"testing"
)

func TestSharesFitIntoWhatProxiesTake(t *testing.T) {
	const most = math.MaxUint32
	for _, tt := range []struct {
		weights []uint64
		want    []uint32
	}{
		{[]uint64{1, 0, 2}, []uint32{1, 0, 2}},
		{[]uint64{most - 1, 1}, []uint32{most - 1, 1}},
		{[]uint64{most, most}, []uint32{most / 3, most / 3}},
		{[]uint64{3 * most, 1, 0}, []uint32{3 * most / 4, 1, 0}},
	} {
		var to []weighted
		for _, w := range tt.weights {
			to = append(to, weighted{weight: w})
		}
		got := shares(to)
		var sum uint64
		for _, w := range got {
			sum += uint64(w)
		}
		if !slices.Equal(got, tt.want) || sum > most {
			t.Errorf("%v: shares %v with the sum %d, want %v", tt.weights, got, sum, tt.want)
		}
	}
}

func TestValuesOfHeadersAreTakenByEnvoy(t *testing.T) {
	for value, want := range map[string]string{
		"":            "",
		"plain":       "plain",
		"100%":        "100%%",
		"100%%":       "100%%",
		"%":           "%%",
		"%%%":         "%%%%",
		"a%20b":       "a%%20b",
		"%NOSUCH%":    "%%NOSUCH%%",
		"%REQ(":       "%%REQ(",
		"%REQ()%":     "%%REQ()%%",
		"%HOSTNAME":   "%%HOSTNAME",
		"%HOSTNAMES%": "%%HOSTNAMES%%",
		"for=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%;host=%REQ(:authority)%": "for=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%;host=%REQ(:authority)%",
		"%PROTOCOL%% of 5%": "%PROTOCOL%%% of 5%%",
	} {
		if got := headerValue(value); got != want {
			t.Errorf("%q becomes %q, want %q", value, got, want)
		}
	}
}
