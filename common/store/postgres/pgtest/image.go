package pgtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Image makes a container image of the installed Postgres, for machines that cannot pull one: the server, the libraries it
// needs, and its data, in which are a superuser with that name and password, and what sql makes, a statement after the other.
// Like the official image it listens at port 5432, asks for the password, runs as a user that is not root, keeps its data in
// /var/lib/postgresql/data, and has pg_isready.
func Image(tb testing.TB, tag, user, password, sql string) {
	tb.Helper()
	s := Start(tb)
	s.Exec(tb, fmt.Sprintf("CREATE ROLE %s SUPERUSER LOGIN PASSWORD '%s'", user, password))
	for statement := range strings.SplitSeq(sql, ";") {
		s.Exec(tb, statement)
	}
	if err := s.Stop(); err != nil {
		tb.Fatal(err)
	}
	if err := s.image(tb.Context(), tag); err != nil {
		tb.Fatalf("make an image of Postgres: %v", err)
	}
}

const (
	imageData = "/var/lib/postgresql/data"
	imageUser = 999
	// initdb wrote the name of a time zone, of which the image has no file.
	imageSettings = `
listen_addresses = '*'
port = 5432
unix_socket_directories = ''
timezone = 'GMT'
log_timezone = 'GMT'
jit = off
`
	imageAccess = "host all all all scram-sha-256\n"
)

func (s *Server) image(ctx context.Context, tag string) error {
	settings, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = settings.WriteString(imageSettings)
	if err := errors.Join(err, settings.Close(), os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(imageAccess), 0o600)); err != nil {
		return err
	}
	content, archive := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := s.archive(ctx, archive)
		written <- errors.Join(err, archive.CloseWithError(err))
	}()
	cmd := exec.CommandContext(ctx, "docker", "import", "--change", "ENV PATH="+s.bin, "--change", fmt.Sprint("USER ", imageUser),
		"--change", fmt.Sprintf("ENTRYPOINT [%q, %q, %q]", "postgres", "-D", imageData), "-", tag)
	cmd.Stdin = content
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker import: %w: %s", err, out)
	}
	_ = content.Close() // lets the archive go, should docker have ended before it
	return errors.Join(err, <-written)
}

// archive writes the files of the image.
func (s *Server) archive(ctx context.Context, to io.Writer) error {
	places := map[string]string{imageData: s.data()} // in the image, and here
	for _, program := range []string{"postgres", "pg_isready"} {
		path := filepath.Join(s.bin, program)
		libraries, err := libraries(ctx, path)
		if err != nil {
			return err
		}
		for _, file := range append(libraries, path) {
			places[file] = file
		}
	}
	for option, part := range map[string]string{"--sharedir": "", "--pkglibdir": "plpgsql.so"} {
		out, err := s.command("pg_config", option).Output()
		if err != nil {
			return fmt.Errorf("pg_config %s: %w", option, err)
		}
		path := filepath.Join(strings.TrimSpace(string(out)), part)
		places[path] = path
	}
	w := tar.NewWriter(to)
	for target, path := range places {
		if err := addTree(w, path, target); err != nil {
			return err
		}
	}
	return w.Close()
}

// addTree adds a file, or a folder with what is in it, with their modes, on which Postgres insists. Of a link it adds what it leads to.
func addTree(w *tar.Writer, from, to string) error {
	return filepath.WalkDir(from, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = to+strings.TrimPrefix(path, from), imageUser, imageUser, "", ""
		if err := w.WriteHeader(h); err != nil || info.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
}

var libraryPath = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(`)

// libraries returns the shared libraries that a program needs, the loader included.
func libraries(ctx context.Context, program string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	if bytes.Contains(out, []byte("not found")) {
		return nil, fmt.Errorf("ldd %s: %s", program, out)
	}
	var paths []string
	for _, m := range libraryPath.FindAllSubmatch(out, -1) {
		paths = append(paths, string(m[1]))
	}
	return paths, nil
}
