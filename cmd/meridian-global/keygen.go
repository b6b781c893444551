package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/meridian-mesh/meridian/cmd/internal/launch"
	"github.com/meridian-mesh/meridian/common/atomicfile"
)

const keygenUsage = `Usage: meridian-global keygen --out FILE

Makes a file with 32 random bytes in base64, mode 0600: the key of what replicas tell each other
(MERIDIAN_CLUSTER_KEY_FILE), or a password for the database. A file that is there already stays as it is, so that a
deployment may run this at each start.

`

// keygenCommand is `meridian-global keygen`, for places without openssl or a shell, such as our own image.
func keygenCommand(_ context.Context, args, _ []string, _, stderr io.Writer) int {
	var out string
	flags := flag.NewFlagSet("meridian-global keygen", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, keygenUsage)
		flags.PrintDefaults()
	}
	flags.StringVar(&out, "out", "", "`file` to make; required")
	if err := flags.Parse(args); err != nil {
		return launch.ExitUsage // which the flag set has explained
	}
	switch {
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "meridian-global keygen: %q is not a flag\n", flags.Arg(0))
		return launch.ExitUsage
	case out == "":
		fmt.Fprintln(stderr, "meridian-global keygen: --out must be set")
		return launch.ExitUsage
	}
	if err := ensureKey(out); err != nil {
		fmt.Fprintln(stderr, "meridian-global keygen:", err)
		return launch.ExitFailed
	}
	return launch.ExitOK
}

func ensureKey(path string) error {
	_, err := os.Lstat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err // nil: it is there
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	return atomicfile.Write(path, []byte(base64.StdEncoding.EncodeToString(key[:])+"\n"), 0o600, 0o700)
}
