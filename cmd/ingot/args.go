package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// reorder moves the flags that stand behind positional arguments in front of
// them, as people type them (`ingot push web:2 n1 --dry-run`); the CLI library
// stops at the first positional argument. What follows "--" is left alone.
func reorder(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	out, rest := args[:1:1], args[1:]
	commands, flags := app.Commands, app.Flags
	for len(rest) > 0 {
		word := rest[0]
		if strings.HasPrefix(word, "-") && word != "-" && word != "--" {
			n := flagWidth(flags, rest)
			out, rest = append(out, rest[:n]...), rest[n:]
			continue
		}
		cmd := findCommand(commands, word)
		if cmd == nil {
			break
		}
		out, rest = append(out, word), rest[1:]
		commands, flags = cmd.Subcommands, cmd.Flags
		if cmd.SkipFlagParsing {
			return append(out, rest...)
		}
	}
	var flagged, plain []string
	for len(rest) > 0 {
		switch word := rest[0]; {
		case word == "--":
			return append(append(append(out, flagged...), plain...), rest...)
		case strings.HasPrefix(word, "-") && word != "-":
			n := flagWidth(flags, rest)
			flagged, rest = append(flagged, rest[:n]...), rest[n:]
		default:
			plain, rest = append(plain, word), rest[1:]
		}
	}
	return append(append(out, flagged...), plain...)
}

// flagWidth says how many words the flag at words[0] takes: 2 when its value
// stands apart.
func flagWidth(flags []cli.Flag, words []string) int {
	name := strings.TrimLeft(words[0], "-")
	if strings.Contains(name, "=") || len(words) < 2 {
		return 1
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n != name {
				continue
			}
			if d, ok := f.(cli.DocGenerationFlag); ok && d.TakesValue() {
				return 2
			}
			return 1
		}
	}
	return 1
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
