package templates

import (
	"fmt"
	"strings"
)

// How iPXE reads a line (src/core/exec.c, script.c): ${name} is expanded first, then the
// line is cut at blanks; there are no quotes. A word that begins with # starts a comment;
// the words ||, && and ; end a command. A backslash at the end of a line joins the next.

// ipxeText makes any text safe to be echoed: one line of printable ASCII, nothing that
// means something to iPXE. It is for people's eyes; what cannot be shown becomes a dot.
func ipxeText(s string) string {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:/()[]-_=+@'\"%?!*<>^~"
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r == ';':
			return ','
		case r < 0x80 && strings.ContainsRune(safe, r):
			return r
		}
		return '.'
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// ipxeWord passes exactly one word through, or fails: a kernel argument or an URL that
// means something to iPXE must not be changed silently.
func ipxeWord(s string) (string, error) {
	if s == "" || strings.ContainsAny(s, " \t") {
		return "", fmt.Errorf("%q is not one word", s)
	}
	return ipxeWords(s)
}

// ipxeWords is ipxeWord for text that may hold single blanks, such as quoted kernel arguments.
func ipxeWords(s string) (string, error) {
	for _, r := range s {
		if r < ' ' || r > '~' {
			return "", fmt.Errorf("%q holds characters that iPXE cannot pass on", s)
		}
	}
	if strings.Contains(s, "${") || strings.HasSuffix(s, `\`) || strings.HasSuffix(s, "$") {
		return "", fmt.Errorf("%q would be expanded by iPXE", s)
	}
	if strings.Join(strings.Fields(s), " ") != s || s == "" {
		return "", fmt.Errorf("%q: iPXE makes one blank of several", s)
	}
	for _, w := range strings.Fields(s) {
		if strings.HasPrefix(w, "#") || w == "||" || w == "&&" || w == ";" {
			return "", fmt.Errorf("%q: the word %q ends a command of iPXE", s, w)
		}
	}
	return s, nil
}

// lines folds text for a screen: safe lines of at most width characters, ten at most.
func lines(width int, text string) []string {
	const most = 10
	var out []string
	for paragraph := range strings.SplitSeq(text, "\n") {
		line := ""
		for _, w := range strings.Fields(ipxeText(paragraph)) {
			for len(w) > width {
				if line != "" {
					out, line = append(out, line), ""
				}
				out, w = append(out, w[:width]), w[width:]
			}
			switch {
			case line == "":
				line = w
			case len(line)+1+len(w) > width:
				out, line = append(out, line), w
			default:
				line += " " + w
			}
		}
		if line != "" {
			out = append(out, line)
		}
	}
	if len(out) > most {
		out = append(out[:most-1], "...")
	}
	return out
}
