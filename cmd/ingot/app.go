package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// program is one run of ingot.
type program struct {
	// config
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	// state
	lazyAgent
}

// Run does what Args say and returns the exit code.
func (p *program) Run(ctx context.Context) int {
	app := p.app()
	err := app.RunContext(ctx, reorder(app, p.Args))
	if err == nil {
		return exitDone
	}
	var said silent
	if errors.As(err, &said) {
		return said.code
	}
	if ctx.Err() != nil && !errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w (%v)", context.Canceled, err)
	}
	text, hint, code := diagnose(err)
	fmt.Fprintf(p.Stderr, "ingot: %s\n", text)
	if hint != "" {
		fmt.Fprintf(p.Stderr, "hint: %s\n", hint)
	}
	return code
}

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:                      "ingot",
		Usage:                     "bring bare machines up and keep them true",
		Version:                   version,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // console=ttyS0,115200 is one value
		Writer:                    p.Stdout,
		ErrWriter:                 p.Stderr,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              onUsage,
		CustomAppHelpTemplate:     appHelp,
		Flags:                     []cli.Flag{siteFlag()},
		Commands: []*cli.Command{
			p.initCommand(), p.checkCommand(), p.serveCommand(),
			p.nodeCommand(), p.classCommand(),
			p.installerCommand(), p.imageCommand(),
			p.pushCommand(), p.rollbackCommand(),
			p.labCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef("there is no verb %q; `ingot --help` lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range app.Commands {
		finish(c, "ingot")
	}
	return app
}

// verb is a command of the program: what cli.Command lacks for our help pages.
type verb struct {
	name     string
	aliases  []string
	args     string // of the synopsis
	usage    string // one line
	about    string // paragraphs
	examples []string
	flags    []cli.Flag
	run      func(c *cli.Context) error
	raw      bool // flags behind the first argument belong to another program
}

func (v verb) command() *cli.Command {
	return &cli.Command{
		Name: v.name, Aliases: v.aliases, Usage: v.usage, ArgsUsage: v.args, Description: describe(v),
		Flags: append(v.flags, siteFlag()), Action: v.run, SkipFlagParsing: v.raw,
		HideHelpCommand: true, OnUsageError: onUsage, CustomHelpTemplate: verbHelp,
	}
}

// noun groups verbs.
func noun(name, usage string, verbs ...*cli.Command) *cli.Command {
	return &cli.Command{Name: name, Usage: usage, Subcommands: verbs, HideHelpCommand: true, OnUsageError: onUsage,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef("`ingot %s` has no verb %q; `ingot %s --help` lists them", name, c.Args().First(), name)
			}
			return cli.ShowSubcommandHelp(c)
		}, CustomHelpTemplate: nounHelp}
}

// finish makes the help of nested commands name the whole command.
func finish(c *cli.Command, parent string) {
	c.HelpName = parent + " " + c.Name
	for _, s := range c.Subcommands {
		finish(s, c.HelpName)
	}
}

func onUsage(_ *cli.Context, err error, _ bool) error { return usageError{err.Error()} }

func siteFlag() cli.Flag {
	return &cli.StringFlag{Name: "site", Usage: "the site's `DIR`", EnvVars: []string{"INGOT_SITE"}, DefaultText: "the current directory"}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "answer in JSON, for machines"}
}

// siteDir is the directory that --site names, before or after the verb.
func siteDir(c *cli.Context) string {
	for _, ctx := range c.Lineage() {
		if ctx.IsSet("site") {
			if s := ctx.String("site"); s != "" {
				return s
			}
		}
	}
	return "."
}

// wantArgs checks the number of positional arguments.
func wantArgs(c *cli.Context, low, high int) error {
	if n := c.Args().Len(); n < low || high >= 0 && n > high {
		return usagef("%s: want %s, got %d arguments; see `%s --help`", c.Command.HelpName, c.Command.ArgsUsage, n, c.Command.HelpName)
	}
	return nil
}

// printJSON writes v as the answer.
func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(p.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table writes rows with aligned columns; the first is the heading.
func (p *program) table(rows [][]string) error {
	w := tabwriter.NewWriter(p.Stdout, 0, 4, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// say tells the person something on the side.
func (p *program) say(format string, args ...any) { fmt.Fprintf(p.Stderr, format+"\n", args...) }

// terminal reports whether a person watches standard error.
func (p *program) terminal() bool {
	f, ok := p.Stderr.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (p *program) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(p.Stderr, &slog.HandlerOptions{Level: level}))
}

// operator names who gives the order, for the records.
func operator() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if s := os.Getenv("SUDO_USER"); s != "" {
		name = s
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}
