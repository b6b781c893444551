// Command protogen turns the schemas under api/kuma into Go, and their comments into descriptions for OpenAPI. It exists
// so that generating needs neither protoc nor a network: the compiler is a Go library, imports of Envoy's and Google's
// schemas come from the descriptors linked into this program, and the two plugins are tools of this module, pinned in
// go.mod.
//
// Usage, from the root of the module:
//
//	go run ./api/internal/protogen          # write *.pb.go beside the schemas and openapi/descriptions.go, remove
//	                                        # *.pb.go without a schema
//	go run ./api/internal/protogen -check   # write nothing; exit 1 when a file differs from what would be written
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	_ "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3" // links the schemas that kds.proto imports
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	_ "google.golang.org/protobuf/types/known/anypb"
	_ "google.golang.org/protobuf/types/known/durationpb"
	_ "google.golang.org/protobuf/types/known/structpb"
	_ "google.golang.org/protobuf/types/known/timestamppb"
	_ "google.golang.org/protobuf/types/known/wrapperspb"
	"google.golang.org/protobuf/types/pluginpb"
)

// plugins are the tools of go.mod that write code, in the order in which they run.
var plugins = []string{"protoc-gen-go", "protoc-gen-go-grpc"}

// schemas is the folder below the import root that holds our own schemas. Imports outside it are linked in.
const schemas = "kuma"

func main() {
	check := flag.Bool("check", false, "write nothing; exit 1 when a generated file is not up to date")
	root := flag.String("root", "api", "import root: the `folder` that holds "+schemas+"/")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *check); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func run(ctx context.Context, root string, check bool) error {
	want, err := generate(ctx, root)
	if err != nil {
		return err
	}
	stale, err := differing(root, want)
	if err != nil {
		return err
	}
	if check {
		if len(stale) > 0 {
			return fmt.Errorf("not up to date (run `make generate`): %s", strings.Join(stale, ", "))
		}
		return nil
	}
	for _, name := range stale {
		path := filepath.Join(root, filepath.FromSlash(name))
		content, ok := want[name]
		if !ok {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove file without a schema: %w", err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // as for files
			return fmt.Errorf("make folder of generated file: %w", err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil { //nolint:gosec // source code is for everyone to read
			return fmt.Errorf("write generated file: %w", err)
		}
	}
	return nil
}

// generate returns the content of every generated file, by its slash-separated name below root.
func generate(ctx context.Context, root string) (map[string][]byte, error) {
	names, err := list(root, ".proto")
	if err != nil {
		return nil, err
	}
	req, err := compile(ctx, root, names)
	if err != nil {
		return nil, err
	}
	out := make(map[string][]byte)
	for _, plugin := range plugins {
		files, err := runPlugin(ctx, plugin, req)
		if err != nil {
			return nil, err
		}
		maps.Copy(out, files)
	}
	out[descriptionsFile], err = describe(req)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// list returns the sorted names of our own files with the given extension.
func list(root, ext string) ([]string, error) {
	var names []string
	err := fs.WalkDir(os.DirFS(root), schemas, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ext) {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s files: %w", ext, err)
	}
	slices.Sort(names)
	return names, nil
}

// compile parses and links the named schemas and returns what protoc would hand to a plugin.
func compile(ctx context.Context, root string, names []string) (*pluginpb.CodeGeneratorRequest, error) {
	compiler := protocompile.Compiler{
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{root}},
			protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
				fd, err := protoregistry.GlobalFiles.FindFileByPath(path)
				return protocompile.SearchResult{Desc: fd}, err
			}),
		},
		SourceInfoMode: protocompile.SourceInfoStandard, // comments become doc comments
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("compile schemas: %w", err)
	}
	req := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: names,
		Parameter:      new("paths=source_relative"),
	}
	seen := make(map[string]bool)
	var add func(fd protoreflect.FileDescriptor) // dependencies first
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i).FileDescriptor)
		}
		req.ProtoFile = append(req.ProtoFile, fileProto(fd))
	}
	for _, fd := range files {
		add(fd)
	}
	return req, nil
}

// fileProto prefers the compiler's own form of a file, which has the comments.
func fileProto(fd protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	if compiled, ok := fd.(interface {
		FileDescriptorProto() *descriptorpb.FileDescriptorProto
	}); ok {
		return compiled.FileDescriptorProto()
	}
	return protodesc.ToFileDescriptorProto(fd)
}

func runPlugin(ctx context.Context, plugin string, req *pluginpb.CodeGeneratorRequest) (map[string][]byte, error) {
	in, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request for %s: %w", plugin, err)
	}
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", plugin, err)
	}
	var resp pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &resp); err != nil {
		return nil, fmt.Errorf("decode answer of %s: %w", plugin, err)
	}
	if resp.Error != nil {
		return nil, fmt.Errorf("%s: %s", plugin, resp.GetError())
	}
	files := make(map[string][]byte, len(resp.GetFile()))
	for _, f := range resp.GetFile() {
		files[f.GetName()] = []byte(f.GetContent())
	}
	return files, nil
}

// differing returns the sorted names of files that are missing, differ from want, or have no schema any more.
func differing(root string, want map[string][]byte) ([]string, error) {
	present, err := list(root, ".pb.go")
	if err != nil {
		return nil, err
	}
	var stale []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		have, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("read generated file: %w", err)
		}
		if err != nil || !bytes.Equal(have, want[name]) {
			stale = append(stale, name)
		}
	}
	for _, name := range present {
		if _, ok := want[name]; !ok {
			stale = append(stale, name)
		}
	}
	return stale, nil
}
