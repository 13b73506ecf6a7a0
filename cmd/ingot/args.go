package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// reorder moves the flags that stand behind positional arguments in front of
// them, as people type them (`ingot push web:2 n1 --dry-run`); the CLI library
// stops at the first positional argument. What follows "--" is no flag.
// `ingot help VERB` becomes `ingot VERB --help`, `ingot version` --version.
func reorder(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	out, rest := args[:1:1], args[1:]
	if len(rest) > 0 && (rest[0] == "help" || rest[0] == "version") {
		rest = append(rest[1:len(rest):len(rest)], "--"+rest[0])
	}
	commands, flags := app.Commands, app.Flags
	for len(rest) > 0 && len(commands) > 0 {
		word := rest[0]
		if isFlag(word) {
			n := flagWidth(flags, rest)
			out, rest = append(out, rest[:n]...), rest[n:]
			continue
		}
		cmd := findCommand(commands, word)
		if cmd == nil { // no verb: the flags behind it are not ours to judge
			return append(out, rest...)
		}
		out, rest = append(out, word), rest[1:]
		commands, flags = cmd.Subcommands, cmd.Flags
	}
	var plain []string
	for len(rest) > 0 {
		switch word := rest[0]; {
		case word == "--":
			return append(append(append(out, "--"), plain...), rest[1:]...)
		case isFlag(word):
			n := flagWidth(flags, rest)
			out, rest = append(out, rest[:n]...), rest[n:]
		default:
			plain, rest = append(plain, word), rest[1:]
		}
	}
	return append(out, plain...)
}

// isFlag reports whether word is an option; "-" is standard input, and "--"
// ends the options.
func isFlag(word string) bool {
	return strings.HasPrefix(word, "-") && word != "-" && word != "--"
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
