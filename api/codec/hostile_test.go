package codec_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
)

// A quarter of a megabyte of anything must be read or refused in time that does not grow faster than its length.
func TestHostileBodiesTakeLittleTime(t *testing.T) {
	const size = 1 << 18
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	var names strings.Builder
	for i := 0; names.Len() < size; i++ {
		fmt.Fprintf(&names, `,"%d":{}`, i)
	}
	bodies := map[string]string{
		"open arrays":      fill("["),
		"open objects":     fill(`{"a":`),
		"empty arrays":     "[" + fill("[],") + "[]]",
		"different names":  "{" + names.String()[1:] + "}",
		"one name again":   "{" + fill(`"a":1,`) + `"a":1}`,
		"names in a map":   `{"networking":{"gateway":{"tags":{` + names.String()[1:] + `}}}}`,
		"wrong elements":   `{"networking":{"inbound":[` + fill("1,") + "1]}}",
		"a long string":    `{"name":"` + fill(`\n`) + `"}`,
		"a long number":    `{"networking":{"admin":{"port":` + fill("9") + `}}}`,
		"a long exponent":  `{"networking":{"admin":{"port":1e` + fill("9") + `}}}`,
		"a long name":      `{"networking":{"` + fill("a") + `":1}}`,
		"yaml sequences":   fill("- "),
		"yaml keys":        fill("? "),
		"yaml anchors":     fill("&a "),
		"yaml aliases":     "a: &a 1\nb: [" + fill("*a,") + "*a]",
		"yaml merges":      "a: &a {x: 1}\nb: {" + fill("<<: *a,") + "}",
		"yaml documents":   fill("--- a\n"),
		"yaml indentation": strings.Repeat("a:\n"+strings.Repeat(" ", 50), size/53),
		"yaml comments":    fill("#\n"),
		"yaml deeper each line": func() string {
			var b strings.Builder
			for i := 0; b.Len() < size; i++ {
				b.WriteString(strings.Repeat(" ", i) + "a:\n")
			}
			return b.String()
		}(),
		"yaml quotes":            fill(`"`),
		"yaml one name again":    fill("a: 1\n"),
		"yaml tabs and brackets": fill("\t[{"),
	}
	for name, body := range bodies {
		for _, mediaType := range []string{"application/json", "application/yaml"} {
			t.Run(name+" as "+mediaType, func(t *testing.T) {
				start := time.Now()
				_, err := codec.Decode(row(t, "Dataplane"), mediaType, []byte(body))
				took := time.Since(start)
				message := fmt.Sprint(err)
				t.Logf("%v %.100s", took, message)
				if took > 5*time.Second {
					t.Errorf("took %v", took)
				}
				if len(message) > 64<<10 {
					t.Errorf("the error has %d bytes", len(message))
				}
			})
		}
	}
}
