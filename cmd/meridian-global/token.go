package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/cmd/internal/launch"
	"github.com/meridian-mesh/meridian/common/atomicfile"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
	"github.com/meridian-mesh/meridian/common/tlsconf"
	"github.com/meridian-mesh/meridian/global"
	"github.com/meridian-mesh/meridian/global/kdsserver"
)

const tokenUsage = `Usage: meridian-global token zone --name ZONE [flags]

Makes the token that a zone control plane presents to the global (MERIDIAN_ZONE_TOKEN_FILE).

The global's data directory (MERIDIAN_DATA_DIR) is what gives the right to make one. While no global runs on it, the
token is made from the store there. While one does, it is asked, with the administrator's token that it keeps there:
on this host, or at --url. With a store in Postgres the right is to reach the database, and the token is made from that.

`

// order is what the command line of token zone asks for.
type order struct {
	zone, out            string
	validFor, wait       time.Duration
	url, caFile, dataDir string
	adminTokenFile       string
}

// tokenCommand is `meridian-global token zone`.
func tokenCommand(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	cfg, err := config.Load(global.DefaultConfig(), nil, environ)
	if err != nil {
		fmt.Fprintln(stderr, "meridian-global token:", err)
		return launch.ExitUsage
	}
	o, err := parseOrder(args, cfg.General.DataDir)
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(stderr, "meridian-global token:", err)
		}
		fmt.Fprint(stderr, tokenUsage)
		orderFlags(&order{}, cfg.General.DataDir, stderr).PrintDefaults()
		return launch.ExitUsage
	}
	raw, err := o.mint(ctx, cfg)
	if err == nil {
		err = o.deliver(raw, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "meridian-global token:", err)
		return launch.ExitFailed
	}
	return launch.ExitOK
}

func orderFlags(o *order, dataDir string, out io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("meridian-global token zone", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Usage = func() {} // printed by the caller
	fs.StringVar(&o.zone, "name", "", "`zone` the token is for; required")
	fs.StringVar(&o.out, "out", "", "`file` to write the token to, with mode 0600; it is replaced in one step (default: standard output)")
	fs.DurationVar(&o.validFor, "valid-for", 10*365*24*time.Hour, "how long the token is valid, e.g. 720h")
	fs.StringVar(&o.dataDir, "data-dir", dataDir, "`directory` of the global")
	fs.StringVar(&o.url, "url", "", "`address` of the API of a running global, e.g. https://global:5682")
	fs.StringVar(&o.caFile, "ca-file", "", "PEM `file` of the authorities the API's certificate may come from, such as trust/api-ca.crt in the global's data directory (default: the system's)")
	fs.StringVar(&o.adminTokenFile, "admin-token-file", "", "`file` with an administrator's token (default: "+global.AdminTokenFile+" in the data directory)")
	fs.DurationVar(&o.wait, "wait", 0, "how long to try again while the global is not there or does not answer, as when it is just starting")
	return fs
}

func parseOrder(args []string, dataDir string) (order, error) {
	var o order
	if len(args) == 0 || args[0] != "zone" {
		return o, errors.New(`only "token zone" is known; kumactl makes the other kinds of token`)
	}
	fs := orderFlags(&o, dataDir, io.Discard)
	if err := fs.Parse(args[1:]); err != nil {
		return o, err
	}
	switch {
	case fs.NArg() > 0:
		return o, fmt.Errorf("%q is not a flag", fs.Arg(0))
	case o.zone == "":
		return o, errors.New("--name must be set")
	case o.validFor <= 0:
		return o, fmt.Errorf("--valid-for: %s is not positive", o.validFor)
	}
	if o.adminTokenFile == "" {
		o.adminTokenFile = filepath.Join(o.dataDir, global.AdminTokenFile)
	}
	return o, nil
}

// mint makes the token, and tries again for as long as the order says.
func (o order) mint(ctx context.Context, cfg global.Config) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, max(o.wait, 5*time.Second))
	defer cancel()
	retry := time.NewTicker(250 * time.Millisecond)
	defer retry.Stop()
	for {
		raw, err := o.mintOnce(ctx, cfg)
		if err == nil || o.wait == 0 {
			return raw, err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no token within %s: %w", o.wait, err)
		case <-retry.C:
		}
	}
}

// mintOnce makes the token from the store while nobody has it open, else by asking the global that has.
func (o order) mintOnce(ctx context.Context, cfg global.Config) (string, error) {
	if o.url == "" {
		raw, err := o.fromStore(ctx, cfg.Store)
		if !errors.Is(err, bolt.ErrLocked) {
			return raw, err
		}
		o.url = fmt.Sprintf("http://localhost:%d", cfg.API.HTTPPort)
	}
	return o.ask(ctx)
}

func (o order) fromStore(ctx context.Context, c storage.Config) (_ string, err error) {
	if c.Type == storage.Memory {
		return "", fmt.Errorf("the store %q is not on disk: give the --url of the running global", c.Type)
	}
	st, err := o.openStore(ctx, c)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	raw, _, err := tokens.NewAuthority().Issue(st.Snapshot(), tokens.Zone,
		tokens.Claims{Zone: o.zone, Scope: []string{kdsserver.ScopeControlPlane}}, o.validFor)
	if err != nil {
		return "", fmt.Errorf("make the token: %w", err)
	}
	return raw, nil
}

// openStore opens the store of a global that was started before. A database may be in use by one that runs: nothing is written.
func (o order) openStore(ctx context.Context, c storage.Config) (*store.Store, error) {
	if c.Type == storage.Postgres {
		c.Postgres.AutoMigrate = false
		return storage.Open(ctx, c, o.dataDir, "global", store.Options{})
	}
	if _, err := os.Stat(filepath.Join(o.dataDir, storage.File)); err != nil {
		return nil, fmt.Errorf("find the global's store (start the global once, or give its --url): %w", err)
	}
	backend, err := bolt.Open(filepath.Join(o.dataDir, storage.File), bolt.Options{LockTimeout: time.Millisecond})
	if err != nil {
		return nil, err
	}
	return store.Open(ctx, backend, store.Options{})
}

// ask requests the token from the API of a running global.
func (o order) ask(ctx context.Context) (string, error) {
	u, err := url.Parse(o.url)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("--url: %q is not http://host:port or https://host:port", o.url)
	}
	body, err := json.Marshal(map[string]any{"zone": o.zone, "scope": []string{kdsserver.ScopeControlPlane}, "validFor": o.validFor.String()})
	if err != nil {
		return "", fmt.Errorf("encode the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.JoinPath("tokens", "zone").String(), bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	// On the global's own host no token is needed.
	switch admin, err := os.ReadFile(o.adminTokenFile); {
	case err == nil:
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(admin)))
	case !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("read the administrator's token: %w", err)
	}
	tls, err := tlsconf.ClientConfig{ServerName: u.Hostname(), CAFile: o.caFile}.TLS()
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: tls, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask the global: %w", err)
	}
	defer resp.Body.Close()
	const most = 64 << 10
	answer, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return "", fmt.Errorf("read the global's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the global answers %s: %s", resp.Status, bytes.TrimSpace(answer))
	}
	return string(answer), nil
}

// deliver writes the token to where it was asked for.
func (o order) deliver(raw string, stdout io.Writer) error {
	if o.out == "" {
		_, err := fmt.Fprintln(stdout, raw)
		return err
	}
	return atomicfile.Write(o.out, []byte(raw+"\n"), 0o600, 0o700)
}
