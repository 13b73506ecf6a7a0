package main

import (
	"fmt"
	"strconv"
	"strings"

	"ingot/imager/wire"
)

// itemised renders a plan that is only to be looked at: every change with its
// reason, what is left alone, and the sum.
func itemised(who string, plan wire.Plan) string {
	var b strings.Builder
	n := map[string]int{}
	for _, ch := range plan.Changes {
		n[ch.Kind]++
		fmt.Fprintf(&b, "%s: %-8s %q  %s\n", who, ch.Kind, "/"+ch.Path, ch.Why)
	}
	for _, ch := range plan.Conflicts {
		fmt.Fprintf(&b, "%s: conflict %q: %s on the node: %s\n", who, "/"+ch.Path, ch.Kind, ch.Why)
	}
	for _, d := range plan.Drift {
		if d.Left != "" {
			fmt.Fprintf(&b, "%s: left     %q  %s: %s\n", who, "/"+wire.PathOf(d.Path), d.Kind, d.Left)
		}
	}
	for _, text := range folded(plan.Notes) {
		fmt.Fprintf(&b, "%s: note     %s\n", who, text)
	}
	fmt.Fprintf(&b, "%s: %d to add, %d to replace, %d to delete, %d metadata; %s (%s) to send, %s taken from what is there\n", who,
		n["add"], n["replace"], n["delete"], n["meta"], count(plan.Need, "chunk"), size(plan.NeedBytes), size(plan.LocalBytes))
	return b.String()
}

// folded brings notes of many paths for one reason down to a few: each is a
// quoted path, a colon, and why.
func folded(notes []string) []string {
	const most = 5
	reason := func(note string) string {
		path, err := strconv.QuotedPrefix(note)
		if err != nil {
			return note
		}
		return strings.TrimPrefix(note[len(path):], ": ")
	}
	all, seen := map[string]int{}, map[string]int{}
	for _, note := range notes {
		all[reason(note)]++
	}
	var out []string
	for _, note := range notes {
		why := reason(note)
		switch seen[why]++; {
		case all[why] <= most || seen[why] < most:
			out = append(out, note)
		case seen[why] == most:
			out = append(out, fmt.Sprintf("and %s more: %s", count(all[why]-most+1, "path"), why))
		}
	}
	return out
}
