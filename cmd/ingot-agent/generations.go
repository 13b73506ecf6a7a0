package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager/wire"
	"ingot/rollback"
)

func generation(g rollback.Generation, current int) wire.Generation {
	kind := "push"
	switch {
	case g.Reason != "":
		kind = "revert"
	case g.To != 0:
		kind = "rollback"
	case g.Result == "repaired":
		kind = "repair"
	case g.Result == "installed":
		kind = "install"
	case g.Result == "found":
		kind = "found"
	}
	var trial int64
	if g.OnTrial() {
		trial = g.Trial.Until.Unix()
	}
	return wire.Generation{Number: g.Number, Trial: trial, Reason: g.Reason, Kind: kind, Ref: g.Image, Image: g.ImageID, Overlay: g.Overlay, Within: string(g.Within), Mode: g.Mode, By: g.By,
		Time: g.When.Unix(), Current: g.Number == current, Pinned: g.Pinned}
}

func generations(n *rollback.Node) ([]wire.Generation, error) {
	list, err := n.Generations()
	if err != nil {
		return nil, err
	}
	out := []wire.Generation{}
	for _, g := range list {
		out = append(out, generation(g, list[len(list)-1].Number))
	}
	return out, nil
}

func listGenerations(c *cli.Context) error {
	return withNode(c.String("dir"), func(n *rollback.Node) error {
		list, err := allGenerations(n)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return json.NewEncoder(c.App.Writer).Encode(list)
		}
		w := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "GENERATION\tKIND\tIMAGE\tDIGEST\tWHEN\tBY\tNOTE")
		for _, g := range list {
			mark := ""
			if g.Current {
				mark = " *"
			}
			if g.Pinned {
				mark += " pinned"
			}
			if g.Trial != 0 {
				mark += " on trial until " + time.Unix(g.Trial, 0).Format(time.TimeOnly)
			}
			ref := g.Ref
			if g.Within != "" {
				ref = fmt.Sprintf("%q of %s", "/"+g.Within, g.Ref)
			}
			fmt.Fprintf(w, "%d%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Number, mark, g.Kind, ref, g.Image.Short(), time.Unix(g.Time, 0).Format(time.DateTime), g.By, g.Reason)
		}
		if c.String("dir") == "/" {
			if s := sidesNow(); s != nil {
				fmt.Fprintf(w, "\n%s\n", s)
			}
		}
		return w.Flush()
	})
}

// pinHere keeps a generation from being retired, or no longer.
func pinHere(c *cli.Context) error {
	args := c.Args().Slice()
	unpin := c.Bool("unpin") || len(args) == 2 && args[1] == "--unpin" // options end at the first argument
	if unpin && len(args) == 2 {
		args = args[:1]
	}
	num, err := strconv.Atoi(strings.Join(args, " "))
	if err != nil || num < 1 {
		return usageError{fmt.Sprintf("pin wants the number of one generation, got %q", args)}
	}
	return withNode(c.String("dir"), func(n *rollback.Node) error {
		if err := n.Pin(num, !unpin); err != nil {
			return err
		}
		state := "kept until it is unpinned"
		if unpin {
			state = "no longer pinned"
		}
		fmt.Fprintf(c.App.Writer, "generation %d is %s\n", num, state)
		return nil
	})
}
