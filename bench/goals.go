package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// metric is which number of a row a goal speaks of.
type metric int

const (
	inSeconds metric = iota
	inBytes
	onNode // memory of the largest process there
)

// goal is what is to be reached: our number is to be at most times the least
// of theirs, or at most a limit.
type goal struct {
	work    string
	metric  metric
	against []string // the least of these counts; none: limit is absolute
	times   float64
	plus    float64 // added to theirs, or the limit
	text    string
}

func goals() []goal {
	dedup := []string{"casync", "desync", "restic", "borg"}
	return []goal{
		{workCapture, inSeconds, dedup, 0.5, 0, "at least twice as fast as the fastest of casync, desync, restic, borg"},
		{workCapture, inSeconds, []string{"tar | zstd -3 -T0"}, 1, 0, "no slower than `tar \\| zstd -3 -T0`"},
		{workAgain, inSeconds, []string{"restic"}, 1.0 / 5, 0, "at least 5 times as fast as restic"},
		{workUpdate, inSeconds, []string{"restic"}, 1.0 / 3, 0, "at least 3 times as fast as restic"},
		{workStored, inBytes, []string{"restic"}, 1, 0, "no more than restic"},
		{workWrite, inSeconds, append([]string{"rsync"}, dedup...), 1, 0, "faster than rsync's local copy and every deduplicating tool"},
		{workWrite, inSeconds, []string{"tar | zstd -3 -T0"}, 1.3, 0, "within 1.3 of `zstd -d \\| tar x`"},
		{workPush, inBytes, []string{"rsync -z --zc=zstd"}, 1, 0, "no more bytes than rsync with zstd"},
		{workPush, inSeconds, []string{"rsync"}, 1, 0, "no slower than rsync"},
		{workNothing, inSeconds, []string{"ssh true"}, 1, 0.25, "within 0.25 s of `ssh true`"},
		{workNothing, inSeconds, []string{"rsync"}, 1, 0, "under rsync's time"},
		{workNothing, inBytes, nil, 0, 10_000, "under 10 kB on the wire"},
		{workPush, onNode, nil, 0, 64 << 20, "under 64 MiB of memory on the node"},
		{workFirst, onNode, nil, 0, 64 << 20, "under 64 MiB of memory on the node"},
		{workBack, inSeconds, nil, 0, 1, "under a second"},
		{workBack, inSeconds, []string{"rsync from a full copy"}, 1.0 / 5, 0, "at most a fifth of rsync from a full copy"},
	}
}

// workStored is not measured: it is the sum of what two works stored.
const workStored = "stored bytes of A and B"

// value is the number of a row that a metric speaks of; false when it has none.
func (m metric) value(r row) (float64, bool) {
	switch {
	case !r.ok():
		return 0, false
	case m == inBytes:
		return float64(r.Bytes), r.Bytes >= 0
	case m == onNode:
		return float64(r.Node), r.Node > 0
	}
	return r.best(), true
}

func (m metric) text(v float64) string {
	if m == inSeconds {
		return seconds(v)
	}
	return size(int64(v))
}

// verdict is a goal and what came of it.
type verdict struct {
	goal
	Ours, Theirs string
	Of           string // whose number theirs is
	Ratio        string // ours divided by theirs
	Word         string // PASS, FAIL or "not measured"
}

const (
	pass    = "PASS"
	fail    = "FAIL"
	unknown = "not measured"
)

// withStored adds the rows of what is stored after both captures.
func withStored(rows []row) []row {
	rows = slices.Clone(rows)
	for _, first := range rows {
		for _, then := range rows {
			if first.Work == workCapture && then.Work == workUpdate && first.Tool == then.Tool && first.ok() && then.ok() {
				rows = append(rows, row{Work: workStored, Tool: first.Tool, Seconds: first.Seconds, Bytes: first.Bytes + then.Bytes})
			}
		}
	}
	return rows
}

// judge compares our row with theirs. Of a tool whose result was wrong the
// number counts all the same: it makes a goal harder, not easier. Ours does
// not: a wrong result is a failure.
func judge(g goal, rows []row) verdict {
	v := verdict{goal: g, Word: unknown, Ours: "-", Theirs: "-", Ratio: "-"}
	theirs, limit := math.Inf(1), g.plus
	mine, have := 0.0, false
	for _, r := range rows {
		n, known := g.metric.value(r)
		switch {
		case r.Work != g.work:
		case r.Tool == "ingot":
			mine, have = n, known
			if r.Failed != "" || r.Wrong != "" {
				v.Word = fail
				v.Ours = "failed"
				have = false
			}
		case slices.Contains(g.against, r.Tool) && known && n < theirs:
			theirs, v.Of = n, r.Tool
		}
	}
	if have {
		v.Ours = g.metric.text(mine)
	}
	if len(g.against) > 0 {
		if math.IsInf(theirs, 1) {
			return v
		}
		limit = theirs*g.times + g.plus
		v.Theirs = g.metric.text(theirs)
		if have && theirs > 0 {
			v.Ratio = fmt.Sprintf("%.2f", mine/theirs)
		}
	}
	if !have {
		return v
	}
	v.Word = fail
	if mine <= limit && (limit > 0) {
		v.Word = pass
	}
	return v
}

// bound is what the goal allows, for people.
func (g goal) bound() string {
	switch {
	case len(g.against) == 0:
		return "≤ " + g.metric.text(g.plus)
	case g.plus > 0:
		return "≤ +" + g.metric.text(g.plus)
	}
	return "≤ " + strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", g.times), "0"), ".")
}
