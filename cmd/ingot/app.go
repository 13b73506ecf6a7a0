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
	"regexp"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"ingot/imager/remote"
	"ingot/internal/problem"
)

// program is one run of ingot.
type program struct {
	// config
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	// state
	lazyAgents
	limit *remote.Limit // of --bwlimit; nil: none
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
	fmt.Fprintf(p.Stderr, "ingot: %s\n", strings.TrimPrefix(text, "ingot "))
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
		Flags:                     []cli.Flag{siteFlag()},
		Commands: []*cli.Command{
			p.initCommand(), p.checkCommand(), p.serveCommand(),
			p.nodeCommand(), p.classCommand(),
			p.installerCommand(), p.imageCommand(),
			p.pushCommand(), p.rollbackCommand(), p.deploymentCommand(), p.drainCommand(), p.undrainCommand(), p.driftCommand(), p.repairCommand(),
			p.labCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return noVerb("ingot", c.App.Commands, c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	app.CustomAppHelpTemplate = appPage(app).template()
	for _, c := range app.Commands {
		finish(c, app.Name)
		c.HelpName = "" // the library puts the program's name before it
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
}

func (v verb) command() *cli.Command {
	return &cli.Command{
		Name: v.name, Aliases: v.aliases, Usage: v.usage, ArgsUsage: v.args, Description: v.about, UsageText: strings.Join(v.examples, "\n"),
		Flags: append(v.flags, siteFlag()), Action: v.run, HideHelpCommand: true, OnUsageError: onUsage,
	}
}

// noun groups verbs.
func noun(name, usage string, verbs ...*cli.Command) *cli.Command {
	return &cli.Command{Name: name, Usage: usage, Subcommands: verbs, Flags: []cli.Flag{siteFlag()}, HideHelpCommand: true, OnUsageError: onUsage,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return noVerb("ingot "+name, verbs, c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		}}
}

// noVerb refuses a word that is no verb of a command.
func noVerb(command string, verbs []*cli.Command, word string) error {
	var known []string
	for _, v := range verbs {
		known = append(known, v.Names()...)
	}
	return withHint(usagef("%s verb %q%s", hasNo(command), word, problem.Hint(word, known)), "`%s --help` lists what there is", command)
}

// hasNo begins a sentence about what a command lacks.
func hasNo(command string) string {
	if command == "ingot" {
		return "there is no"
	}
	return command + " has no"
}

// finish makes the help of a command and of those below it name the whole command.
func finish(c *cli.Command, parent string) {
	c.HelpName = parent + " " + c.Name
	c.CustomHelpTemplate = pageOf(c, c.HelpName).template()
	for _, s := range c.Subcommands {
		finish(s, c.HelpName)
	}
}

// onUsage explains what package flag says of options.
func onUsage(c *cli.Context, err error, _ bool) error {
	command, value := orElse(c.Command.HelpName, c.App.Name), regexp.MustCompile(`for flag -+(\S+): .*`)
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		var known []string
		for _, f := range c.Command.Flags {
			known = append(known, f.Names()...)
		}
		name = strings.TrimLeft(name, "-")
		text = fmt.Sprintf("%s option --%s", hasNo(command), name)
		if near := problem.Nearest(name, known); near != "" {
			text += fmt.Sprintf(" (did you mean --%s?)", near)
		}
	} else if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		text = fmt.Sprintf("%s: --%s wants a value", command, strings.TrimLeft(name, "-"))
	} else {
		text = command + ": " + value.ReplaceAllString(text, "for --$1") // `invalid value "x" for flag -to: parse error`
	}
	return withHint(usageError{text}, "`%s --help` explains the options", command)
}

func siteFlag() cli.Flag {
	return &cli.StringFlag{Name: "site", Usage: "the site's `DIR`", DefaultText: "INGOT_SITE, else the current directory"}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "answer in JSON, for machines"}
}

// siteDir is the directory that --site names, before or after the verb, else
// INGOT_SITE. The library's own reading of the environment would let it win
// over a --site before the verb.
func siteDir(c *cli.Context) string {
	for _, ctx := range c.Lineage() {
		if s := ctx.String("site"); s != "" {
			return s
		}
	}
	return orElse(os.Getenv("INGOT_SITE"), ".")
}

// wantArgs checks the number of positional arguments.
func wantArgs(c *cli.Context, low, high int) error {
	if n := c.Args().Len(); n < low || high >= 0 && n > high {
		want := "wants " + c.Command.ArgsUsage
		if high == 0 {
			want = "takes no arguments"
		}
		return withHint(usagef("%s %s, got %d arguments", c.Command.HelpName, want, n), "see `%s --help`", c.Command.HelpName)
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
