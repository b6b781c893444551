package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// command is a command of a document, and the status it must be answered with.
type command struct {
	text   string
	status int
}

var (
	shellBlock   = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	commandStart = regexp.MustCompile(`(?m)^(?:[A-Z]+=\$\()?curl `)
	wantedStatus = regexp.MustCompile(`  # (\d{3})\s*$`)
)

// commandsOf returns the curl commands of a document, in order. One goes on until the next begins.
func commandsOf(t *testing.T, file string) []command {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []command
	for _, block := range shellBlock.FindAllStringSubmatch(string(content), -1) {
		starts := commandStart.FindAllStringIndex(block[1], -1)
		for i, at := range starts {
			end := len(block[1])
			if i+1 < len(starts) {
				end = starts[i+1][0]
			}
			c := command{text: strings.TrimSpace(block[1][at[0]:end]), status: 200}
			if m := wantedStatus.FindStringSubmatch(c.text); m != nil {
				c.status, _ = strconv.Atoi(m[1])
			}
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s has no commands", file)
	}
	return out
}

// Whoever follows the documents gets what they promise.
func TestTheCommandsOfTheDocumentsWork(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("NOT RUN: there is no %s", program)
		}
	}
	for _, doc := range []string{"../docs/API.md", "../docs/SECURITY.md", "../docs/PROXYLESS.md", "../README.md"} {
		t.Run(filepath.Base(doc), func(t *testing.T) {
			s := newSystem(t, bin, "zone-1")
			commands := commandsOf(t, doc)
			dir := t.TempDir()
			// The function notes the status of each call, ends those that would go on for ever, and gives what was written on
			// the global the moment it needs to reach the zone.
			script := `curl() { [[ "$*" == *"$ZONE"* ]] && sleep 0.5; command curl --max-time 8 $([[ " $* " == *" -N "* ]] && echo --max-time 1) -w '%{stderr}status %{http_code}\n' -sS "$@" 2>>statuses; }` + "\n"
			ports := strings.NewReplacer("localhost:5681", fmt.Sprint("localhost:", s.Global.HTTP), "localhost:15681", fmt.Sprint("localhost:", s.Zones[0].HTTP))
			for i, c := range commands {
				script += fmt.Sprintf("echo 'command %d' | tee -a statuses\n%s\n", i, ports.Replace(c.text))
			}
			s.Zones[0].eventually(5*time.Second, "given the default mesh", func() error { return is(s.Zones[0], "/meshes/default", 200) })
			cmd := exec.CommandContext(t.Context(), "bash")
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(script)
			cmd.Env = append(os.Environ(), fmt.Sprint("ZONE=localhost:", s.Zones[0].HTTP))
			output, err := cmd.CombinedOutput()
			if err != nil {
				t.Logf("the last command ended with %v", err)
			}
			log, err := os.ReadFile(filepath.Join(dir, "statuses"))
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range commands {
				_, after, found := strings.Cut(string(log), fmt.Sprintf("command %d\n", i))
				got, _, _ := strings.Cut(after, "command ")
				if want := fmt.Sprintf("status %d\n", c.status); !found || !strings.HasSuffix(got, want) {
					t.Errorf("%s\nanswered %q, want %q", c.text, got, want)
				}
			}
			if t.Failed() {
				t.Logf("output:\n%s", output)
			}
		})
	}
}
