package main

import "strings"

// describe lays out what stands below the synopsis of a verb's help page.
func describe(v verb) string {
	var b strings.Builder
	b.WriteString(v.about)
	b.WriteString("\n\nEXAMPLES\n")
	for _, e := range v.examples {
		b.WriteString("  " + e + "\n")
	}
	b.WriteString("\nEXIT STATUS\n  " + exitStatus)
	return b.String()
}

const appHelp = `NAME
  {{.Name}} - {{.Usage}}

SYNOPSIS
  {{.Name}} [--site DIR] VERB [ARGUMENTS]

VERBS{{range .VisibleCommands}}
  {{join .Names ", "}}{{"\t"}}{{.Usage}}{{end}}

OPTIONS{{range .VisibleFlags}}
  {{.}}{{end}}

NODES
  Names, ranges n[01-16], classes @web, all; joined by commas.

EXAMPLES
  ingot init rack && cd rack                       begin a site
  ingot image build debian:12 --debian bookworm    make a golden image
  ingot node add n1 --mac 52:54:00:00:00:01 --class WEB
  ingot node set n1 --install                      the next network boot installs it
  ingot serve                                      answer machines that boot from the network
  ingot push web:2 n1                              make a running node equal to an image
  ingot rollback n1                                and take it back

EXIT STATUS
  ` + exitStatus + "\n"

const nounHelp = `NAME
  {{.HelpName}} - {{.Usage}}

SYNOPSIS
  {{.HelpName}} VERB [ARGUMENTS]

VERBS{{range .VisibleCommands}}
  {{join .Names ", "}}{{"\t"}}{{.Usage}}{{end}}

EXAMPLES
  {{.HelpName}} {{(index .VisibleCommands 0).Name}} --help

EXIT STATUS
  ` + exitStatus + "\n"

const verbHelp = `NAME
  {{.HelpName}} - {{.Usage}}

SYNOPSIS
  {{.HelpName}} [OPTIONS]{{if .ArgsUsage}} {{.ArgsUsage}}{{end}}

DESCRIPTION
  {{nindent 2 .Description | trim}}

OPTIONS{{range .VisibleFlags}}
  {{.}}{{end}}
`
