// Command grpcapp is an ordinary gRPC program for the scenarios of gRPC without proxies: a server that tells which instance it
// is, and a client that counts what becomes of its calls. Of xDS it knows what every program must: the import, and credentials.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	listen := flag.String("listen", "", "address to serve on; without it the program is a client")
	name := flag.String("name", "", "what the server answers")
	failing := flag.Bool("failing", false, "the server answers every call with UNAVAILABLE")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	run := func() error { return serve(ctx, *listen, *name, *failing) }
	if *listen == "" {
		run = func() error { return obey(ctx, os.Stdin, os.Stdout) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}
