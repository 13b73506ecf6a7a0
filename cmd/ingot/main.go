// Command ingot is the operator's program and the boot server.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// version is set by the Makefile; the agent that is embedded has the same.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // who interrupts twice does not want to wait
	p := &program{Args: os.Args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	code := p.Run(ctx)
	stop()
	os.Exit(code)
}
