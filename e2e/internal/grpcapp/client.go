package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// command is a line of the client's input.
type command struct {
	Target      string            // such as xds:///backend
	Calls       int               // 0: until the next command, which gets the statistics of both
	Concurrency int               // of calls; 1 unless told
	Pause       duration          // of each of these, between two calls
	Reconnect   duration          // each has a connection of its own, made anew so often
	Timeout     duration          // of a call, on the client's side; 10 s unless told
	Metadata    map[string]string // of each call
}

// statistics is the line of output for a command.
type statistics struct {
	Calls       int
	Codes       map[string]int
	Instances   map[string]int
	Connections int
	Fastest     duration // of all
	Slowest     duration
	Errors      map[string]int // texts, of which a few are kept
}

type duration struct{ time.Duration }

// UnmarshalJSON reads a duration such as "5s".
func (d *duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	d.Duration = v
	return err
}

// MarshalJSON writes it that way.
func (d duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// client keeps a connection to each target over all commands, as programs do.
type client struct {
	creds grpc.DialOption
	conns map[string]*grpc.ClientConn
}

// obey does what the lines of in say, one after the other, and answers each with a line.
func obey(ctx context.Context, in io.Reader, out io.Writer) error {
	creds, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	c := &client{creds: grpc.WithTransportCredentials(creds), conns: make(map[string]*grpc.ClientConn)}
	commands, results := json.NewDecoder(in), json.NewEncoder(out)
	stop := func() *counter { return nil } // what runs in the background
	for {
		var cmd command
		err := commands.Decode(&cmd)
		background := stop()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read command: %w", err)
		}
		stop = func() *counter { return nil }
		if background != nil {
			if err := results.Encode(background.stats); err != nil {
				return err
			}
			continue // the command that ends it does nothing else
		}
		if cmd.Calls == 0 {
			run, cancel := context.WithCancel(ctx)
			done := make(chan *counter, 1)
			if _, err := c.conn(cmd.Target); err != nil {
				cancel()
				return err
			}
			go func() { done <- c.run(run, cmd) }()
			stop = func() *counter { cancel(); return <-done }
			continue
		}
		if err := results.Encode(c.run(ctx, cmd).stats); err != nil {
			return err
		}
	}
}

func (c *client) conn(target string) (*grpc.ClientConn, error) {
	if conn := c.conns[target]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient(target, c.creds)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	c.conns[target] = conn
	return conn, nil
}

// counter counts calls.
type counter struct {
	mu    sync.Mutex // guards what follows
	left  int        // calls still to be made; below 0: no end
	stats statistics
}

func (n *counter) next() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.left == 0 {
		return false
	}
	n.left--
	return true
}

func (n *counter) add(instance string, err error, took time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.stats
	s.Calls++
	s.Codes[status.Code(err).String()]++
	if err == nil {
		s.Instances[instance]++
	} else if text := err.Error(); s.Errors[text] > 0 || len(s.Errors) < 8 {
		s.Errors[text]++
	}
	if s.Fastest.Duration == 0 || took < s.Fastest.Duration {
		s.Fastest.Duration = took
	}
	s.Slowest.Duration = max(s.Slowest.Duration, took)
}

// run makes the calls of a command. A call that has begun is ended by itself alone.
func (c *client) run(ctx context.Context, cmd command) *counter {
	n := &counter{left: cmd.Calls, stats: statistics{
		Codes: map[string]int{}, Instances: map[string]int{}, Errors: map[string]int{},
	}}
	if cmd.Calls == 0 {
		n.left = -1
	}
	if cmd.Timeout.Duration == 0 {
		cmd.Timeout.Duration = 10 * time.Second
	}
	shared, err := c.conn(cmd.Target)
	if err != nil {
		n.add("", err, 0)
		return n
	}
	var wg sync.WaitGroup
	for range max(cmd.Concurrency, 1) {
		wg.Go(func() { c.work(ctx, cmd, shared, n) })
	}
	wg.Wait()
	return n
}

// work makes one call after the other.
func (c *client) work(ctx context.Context, cmd command, shared *grpc.ClientConn, n *counter) {
	conn, made := shared, time.Time{}
	defer func() {
		if conn != shared {
			_ = conn.Close()
		}
	}()
	for ctx.Err() == nil && n.next() {
		if every := cmd.Reconnect.Duration; every > 0 && time.Since(made) > every {
			if conn != shared {
				_ = conn.Close()
			}
			var err error
			if conn, err = grpc.NewClient(cmd.Target, c.creds); err != nil {
				conn = shared
				n.add("", err, 0)
				return
			}
			made = time.Now()
			n.mu.Lock()
			n.stats.Connections++
			n.mu.Unlock()
		}
		call := metadata.NewOutgoingContext(context.WithoutCancel(ctx), metadata.New(cmd.Metadata))
		call, cancel := context.WithTimeout(call, cmd.Timeout.Duration)
		began, reply := time.Now(), &wrapperspb.StringValue{}
		err := conn.Invoke(call, method, &emptypb.Empty{}, reply)
		cancel()
		n.add(reply.GetValue(), err, time.Since(began))
		if cmd.Pause.Duration > 0 {
			select {
			case <-time.After(cmd.Pause.Duration):
			case <-ctx.Done():
			}
		}
	}
}
