package main

import (
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"ingot/imager/remote"
)

// minRate is the least that --bwlimit takes, in bytes a second: below it the
// pings that keep a connection alive would come too late.
const minRate = 16_000

func bwlimitFlag() cli.Flag {
	return &cli.StringFlag{Name: "bwlimit", Usage: "over SSH, move at most `RATE` bytes a second, both ways and all nodes together: 500k, 10M, 1.5MiB"}
}

// setLimit reads --bwlimit.
func (p *program) setLimit(text string) error {
	if text == "" {
		return nil
	}
	rate, err := parseRate(text)
	if err != nil {
		return err
	}
	p.limit = remote.NewLimit(rate)
	return nil
}

// parseRate reads a rate in bytes a second. It wants a unit: of a bare number
// rsync would take KiB, curl bytes.
func parseRate(text string) (int64, error) {
	last := text[len(text)-1]
	if last >= '0' && last <= '9' {
		return 0, usagef("--bwlimit %q: of what? %sk is %s000 bytes a second", text, text, text)
	}
	n, err := humanize.ParseBytes(strings.TrimSuffix(text, "/s"))
	switch {
	case err != nil || n > 1<<50:
		return 0, usagef("--bwlimit %q: want a rate such as 500k or 10M", text)
	case n < minRate:
		return 0, usagef("--bwlimit %q: the least is %dk", text, minRate/1000)
	}
	return int64(n), nil
}
