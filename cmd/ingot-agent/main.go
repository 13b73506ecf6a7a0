// Command ingot-agent is ingot's program on a node: the installer's /init, the receiver of pushes, rollback, and recovery at boot.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"ingot/rollback"
)

// version is set by the Makefile and equals that of the ingot that carries this agent.
var version = "dev"

// Exit codes, the same as ingot's.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitBusy     = 4
	exitNotFound = 5
	exitCorrupt  = 6
)

func main() {
	// As process 1 there is no command line to speak of: the kernel runs /init
	// of an initramfs, or what init= names on the installed root.
	if os.Getpid() == 1 {
		if os.Args[0] == "/init" {
			installMachine()
		} else {
			startSystem(os.Args)
		}
		return // not reached: process 1 ends in a reboot or becomes init
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := app().RunContext(ctx, os.Args)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ingot-agent: %v\n", err)
		os.Exit(exitCode(err))
	}
}

func exitCode(err error) int {
	switch {
	case errors.Is(err, context.Canceled):
		return 130
	case errors.Is(err, rollback.ErrBusy):
		return exitBusy
	case errors.Is(err, rollback.ErrNoGeneration):
		return exitNotFound
	case errors.Is(err, rollback.ErrDamaged), errors.Is(err, rollback.ErrCorrupt):
		return exitCorrupt
	case errors.As(err, new(usageError)):
		return exitUsage
	}
	return exitFailed
}

type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// alone is a verb that takes no arguments.
func alone(fn cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			return usageError{fmt.Sprintf("%s takes no arguments, got %q", c.Command.Name, c.Args().First())}
		}
		return fn(c)
	}
}

func app() *cli.App {
	dir := &cli.StringFlag{Name: "dir", Value: "/", Usage: "the top `DIR` of the tree"}
	exits := "EXIT STATUS\n   0 done · 1 failed · 2 wrong usage · 4 busy · 5 not found · 6 corrupt · 130 interrupted"
	a := &cli.App{
		Name: "ingot-agent", Usage: "ingot's program on a node", Version: version, HideHelpCommand: true,
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return usageError{err.Error()} },
		Description:    "Works without any server: `ingot-agent rollback` takes this node back from what it keeps itself.\n\n" + exits,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError{fmt.Sprintf("there is no verb %q; `ingot-agent --help` lists what there is", c.Args().First())}
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			{Name: "generations", Usage: "list what this node ran", Flags: []cli.Flag{dir, &cli.BoolFlag{Name: "json", Usage: "answer in JSON"}},
				Description: "EXAMPLES\n   ingot-agent generations\n\n" + exits, Action: alone(listGenerations)},
			{Name: "rollback", Usage: "take this node back to an earlier generation", Flags: []cli.Flag{dir,
				&cli.IntFlag{Name: "to", Usage: "the generation `N`; the one before by default"},
				&cli.BoolFlag{Name: "dry-run", Usage: "show what would change"},
				&cli.BoolFlag{Name: "no-reboot", Usage: "of a node with two sides: it starts from the other one the next time, not now"},
				&cli.StringSliceFlag{Name: "keep", Usage: "keep local changes of paths like `PATTERN`"},
				&cli.StringSliceFlag{Name: "take", Usage: "give up local changes of paths like `PATTERN`"}},
				Description: "EXAMPLES\n   ingot-agent rollback\n   ingot-agent rollback --to 3 --take '/etc/**'\n\n" + exits, Action: alone(rollbackHere)},
			{Name: "pin", Usage: "keep a generation from being retired", ArgsUsage: "N", Flags: []cli.Flag{dir,
				&cli.BoolFlag{Name: "unpin", Usage: "let it be retired again"}},
				Description: "The newest generations are kept in any case. A pinned one is kept together with\nwhat a rollback to it needs, until --unpin.\n\n" +
					"EXAMPLES\n   ingot-agent pin 3\n   ingot-agent pin --unpin 3\n\n" + exits, Action: pinHere},
			{Name: "recover", Usage: "finish or undo a change that was interrupted", Flags: []cli.Flag{dir},
				Description: "Runs by itself before init at every boot.\n\nEXAMPLES\n   ingot-agent recover\n\n" + exits, Action: alone(recoverHere)},
			{Name: "confirm", Usage: "keep a generation that is on trial", Flags: []cli.Flag{dir},
				Description: "Without it the node goes back by itself when the time is up, or when it is booted.\n\nEXAMPLES\n   ingot-agent confirm\n\n" + exits,
				Action:      alone(confirmHere)},
			{Name: "guard", Usage: "take a generation back unless it is confirmed in time", Hidden: true, Flags: []cli.Flag{dir,
				&cli.IntFlag{Name: "generation"}, &cli.DurationFlag{Name: "window"}, &cli.StringFlag{Name: "units"}}, Action: alone(guardHere)},
			{Name: "guard-side", Usage: "start the machine anew unless its side is confirmed", Hidden: true, Action: alone(guardSide)},
			{Name: "receive", Usage: "serve one request of a controller on standard input and output", Action: alone(receive)},
		},
	}
	for _, c := range a.Commands {
		c.OnUsageError, c.HideHelpCommand = a.OnUsageError, true
	}
	return a
}
