package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRepositories(t *testing.T) {
	out := `http://mirror/debian/ bookworm main
http://mirror/debian/ bookworm contrib
http://mirror/debian/ bookworm-updates main
http://mirror/debian-security/ bookworm-security main
http://mirror/debian-security/ bookworm-security main
https://other/apt nodistro main
`
	main, pockets := repositories(out, "bookworm")
	if main.line() != "deb http://mirror/debian bookworm main" {
		t.Errorf("the release comes from %q", main.line())
	}
	if len(pockets) != 2 || pockets[0].release != "bookworm-updates" || pockets[1].line() != "deb http://mirror/debian-security bookworm-security main" {
		t.Errorf("the pockets are %v", pockets)
	}
	main, pockets = repositories("http://mirror/debian/ trixie main\n", "bookworm")
	if main.line() != "deb http://deb.debian.org/debian bookworm main" || len(pockets) != 0 {
		t.Errorf("where apt knows no mirror of the release: %v %v", main, pockets)
	}
}

func TestAptSettings(t *testing.T) {
	dump := "APT \"\";\nAcquire::http::Proxy \"http://cache:3142\";\nAcquire::Languages \"none\";\nAcquire::https::Proxy \"\";\nAcquire::Check-Valid-Until \"false\";\n"
	want := "Acquire::http::Proxy \"http://cache:3142\";\nAcquire::Check-Valid-Until \"false\";\n"
	if got := aptSettings(dump); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRecipeKey(t *testing.T) {
	main, pockets := repositories("", "bookworm")
	if recipeKey(main, pockets) != recipeKey(main, pockets) {
		t.Error("the key of the same recipe changes")
	}
	if recipeKey(main, pockets) == recipeKey(main, []repository{{"http://m", "bookworm-security", "main"}}) {
		t.Error("another recipe has the same key")
	}
}

func TestLinkBytes(t *testing.T) {
	text := `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    9 1    0    0    0     0          0         0     9 1    0    0    0     0       0          0
 node1: 1200 10   0    0    0     0          0         0  3400 20   0    0    0     0       0          0
`
	if n, err := linkBytes(text, "node1"); err != nil || n != 4600 {
		t.Errorf("node1: %d %v", n, err)
	}
	if _, err := linkBytes(text, "node"); err == nil {
		t.Error("a link that is not there has counters")
	}
	if _, err := linkBytes("node1: 1 2 3\n", "node1"); err == nil {
		t.Error("a short line has counters")
	}
}

func TestStatusPeak(t *testing.T) {
	name, peak := statusPeak("Name:\tagent\nVmPeak:\t  999999 kB\nVmHWM:\t   20480 kB\nVmRSS:\t   100 kB\n")
	if name != "agent" || peak != 20<<20 {
		t.Errorf("%q %d", name, peak)
	}
	if _, peak := statusPeak("Name:\tkthreadd\n"); peak != 0 {
		t.Errorf("a process without memory has %d", peak)
	}
}

func TestDifferences(t *testing.T) {
	for out, want := range map[string]string{
		"":                                "",
		".d..t...... ./\n":                "",
		".d..t...... ./\n*deleting   x\n": "1 entries differ: `*deleting   x`",
		">fc........ a\n>fc........ b\n":  "2 entries differ: `>fc........ a`, `>fc........ b`",
	} {
		if got := differences(out); got != want {
			t.Errorf("%q: got %q, want %q", out, got, want)
		}
	}
}

func TestChanges(t *testing.T) {
	got := changes("*deleting   old\n>f+++++++++ new\ncd+++++++++ dir/\ncL+++++++++ l -> x\n>fc.t...... a\n>f.st...... b\n.f..t...... c\n.d..t...... d/\nhf          e => f\n\n")
	if want := (difference{content: 2, added: 3, deleted: 1, metadata: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 9_994: "9.99 kB", 9_996: "10.0 kB", 99_960: "100 kB", 354_400_000: "354 MB", 999_600: "1.00 MB", 64 << 20: "67.1 MB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
	if seconds(3.456) != "3.46 s" || seconds(14.04) != "14.0 s" {
		t.Errorf("%q %q", seconds(3.456), seconds(14.04))
	}
	r := row{Seconds: []float64{2.2, 2, 3}}
	if r.best() != 2 || r.spread() != 0.5 {
		t.Errorf("best %v, spread %v", r.best(), r.spread())
	}
	if (row{}).best() != 0 || (row{}).spread() != 0 || (row{}).ok() {
		t.Error("a row of nothing")
	}
}

// results are what a run may have measured.
func results(ours float64) []row {
	return []row{
		{Work: workCapture, Tool: "ingot", Seconds: []float64{ours, ours + 1}, Bytes: 100},
		{Work: workCapture, Tool: "casync", Seconds: []float64{14}, Bytes: 120},
		{Work: workCapture, Tool: "restic", Seconds: []float64{9, 8}, Bytes: 90},
		{Work: workCapture, Tool: "desync", Failed: "cannot be had"},
		{Work: workUpdate, Tool: "ingot", Seconds: []float64{0.6}, Bytes: 10},
		{Work: workUpdate, Tool: "restic", Seconds: []float64{2}, Bytes: 20},
		{Work: workNothing, Tool: "ssh true", Seconds: []float64{0.2}, Bytes: 5000},
		{Work: workNothing, Tool: "ingot", Seconds: []float64{0.44}, Bytes: 9000},
	}
}

func TestJudge(t *testing.T) {
	wrong := results(4)
	wrong[0].Wrong = "1 entries differ"
	failed := results(4)
	failed[0] = row{Work: workCapture, Tool: "ingot", Failed: "exit status 1"}
	twice := goal{workCapture, inSeconds, []string{"casync", "desync", "restic"}, 0.5, 0, ""}
	for name, c := range map[string]struct {
		goal  goal
		rows  []row
		word  string
		ratio string
	}{
		"reached to the point":     {twice, results(4), pass, "0.50"},
		"missed by little":         {twice, results(4.01), fail, "0.50"},
		"a wrong result of ours":   {twice, wrong, fail, "-"},
		"ours failed":              {twice, failed, fail, "-"},
		"nobody measured":          {twice, nil, unknown, "-"},
		"theirs not measured":      {twice, results(4)[:1], unknown, "-"},
		"ours not measured":        {twice, results(4)[1:], unknown, "-"},
		"theirs failed alone":      {goal{workCapture, inSeconds, []string{"desync"}, 1, 0, ""}, results(4), unknown, "-"},
		"with something added":     {goal{workNothing, inSeconds, []string{"ssh true"}, 1, 0.25, ""}, results(4), pass, "2.20"},
		"added too little":         {goal{workNothing, inSeconds, []string{"ssh true"}, 1, 0.2, ""}, results(4), fail, "2.20"},
		"absolute":                 {goal{workNothing, inBytes, nil, 0, 9000, ""}, results(4), pass, "-"},
		"absolute, missed":         {goal{workNothing, inBytes, nil, 0, 8999, ""}, results(4), fail, "-"},
		"memory, not measured":     {goal{workNothing, onNode, nil, 0, 64 << 20, ""}, results(4), unknown, "-"},
		"stored bytes, both works": {goal{workStored, inBytes, []string{"restic"}, 1, 0, ""}, results(4), pass, "1.00"},
	} {
		if v := judge(c.goal, withStored(c.rows)); v.Word != c.word || v.Ratio != c.ratio {
			t.Errorf("%s: %s with ratio %s, want %s with %s", name, v.Word, v.Ratio, c.word, c.ratio)
		}
	}
}

// Every goal must speak of a work and of tools that are measured, or it stays
// "not measured" for ever.
func TestGoalsSpeakOfWhatIsMeasured(t *testing.T) {
	tools := map[string]bool{"rsync": true, "cp -a": true, "rsync -z --zc=zstd": true, "ssh true": true, "rsync from a full copy": true}
	for _, a := range archivers() {
		tools[a.name] = true
	}
	for _, g := range goals() {
		if notes()[g.work] == "" && g.work != workStored {
			t.Errorf("no note says what %q is", g.work)
		}
		for _, name := range g.against {
			if !tools[name] {
				t.Errorf("%s: no tool is called %q", g.text, name)
			}
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := report{rows: results(4), tools: []fact{{"tar", "1.34"}}}
	for _, g := range goals() {
		r.verdicts = append(r.verdicts, judge(g, withStored(r.rows)))
	}
	text := r.markdown()
	for _, want := range []string{
		"| casync | 14.0 s | +0% | 0.29 | 120 B | - | - |  |\n",
		"| desync | - | - | - | - | - | - | fails: cannot be had |\n",
		"| restic | 8.00 s | +12% | 0.50 |",
		"no slower than `tar \\| zstd -3 -T0` |",
		"| PASS |\n",
		"## First capture of A\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the document does not have %q:\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "|") && strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") < 3 {
			t.Errorf("a row of one cell: %q", line)
		}
	}
	if n := r.failed(); n != 0 {
		t.Errorf("%d goals are missed: %s", n, r.goals().text())
	}
}

func TestOnlyOneRunMeasures(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "bench")
	lock, err := alone(cache)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(cache, "run-1")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := alone(cache); err == nil {
		t.Error("two runs measure at once")
	}
	if _, err := os.Stat(left); err != nil {
		t.Errorf("the files of a run that goes on: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if lock, err = alone(cache); err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := os.Stat(left); err == nil {
		t.Error("what a killed run left is still there")
	}
}

func TestParse(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if o, err := parse(nil); err != nil || !o.whole() || o.out != "docs/BENCHMARKS.md" {
		t.Errorf("no options: %+v %v", o, err)
	}
	for _, args := range [][]string{{"-work", "capture, write"}, {"-tools", "ingot"}, {"-runs", "1"}} {
		if o, err := parse(args); err != nil || o.whole() || o.out != "" {
			t.Errorf("%v writes the whole document: %+v %v", args, o, err)
		}
	}
	if _, err := parse([]string{"-work", "captures"}); err == nil {
		t.Error("a work that there is not")
	}
}

// What machines wrote to their disks has a column of its own, where it was measured.
func TestMachines(t *testing.T) {
	text := `[{"mode":"slots","what":"ingot push","seconds":60,"moved":5000000,"written":700000000},{"mode":"slots","what":"installed anew","seconds":120,"moved":400000000,"written":800000000}]`
	rows, err := machineRows([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r := report{rows: append(rows, row{Work: workBack, Tool: "rsync", Seconds: []float64{1}, Bytes: -1})}
	if got := r.results(workSlots); len(got.rows) != 2 || got.head[8] != "to the disk" || got.rows[1][3] != "0.50" || got.rows[1][8] != "800 MB" || got.rows[0][4] != "5.00 MB" {
		t.Errorf("%q", got)
	}
	if got := r.results(workBack); len(got.head) != 8 || len(got.rows[0]) != 8 {
		t.Errorf("%q", got)
	}
}

// A part of the page is replaced alone, and a whole run keeps it.
func TestParts(t *testing.T) {
	page := "# Benchmarks\n\nall of it\n"
	one := withPart(page, "machines", "## Machines\n\nfirst\n")
	two := withPart(one+"\nbehind it\n", "machines", "## Machines\n\nsecond\n")
	if !strings.HasPrefix(two, page) || strings.Contains(two, "first") || strings.Count(two, "second") != 1 || !strings.HasSuffix(two, "\nbehind it\n") {
		t.Errorf("%q", two)
	}
	if got := "new page\n" + parts(two); !strings.Contains(got, "second") || strings.Contains(got, "behind") || parts(page) != "" {
		t.Errorf("%q", got)
	}
	for _, x := range []struct {
		args       []string
		only       bool
		part, page string
	}{{nil, false, "docs/BENCHMARKS.md", "docs/BENCHMARKS.md"}, {[]string{"-work", "machines"}, true, "docs/BENCHMARKS.md", ""}, {[]string{"-work", "machines", "-runs", "1"}, true, "", ""},
		{[]string{"-work", "machines,capture"}, false, "docs/BENCHMARKS.md", ""}} {
		if o, err := parse(x.args); err != nil || o.onlyApart() != x.only || o.part != x.part || o.out != x.page {
			t.Errorf("%v: %+v, %v", x.args, o, err)
		}
	}
}

// What many nodes cost is told for each node, too.
func TestFleetRows(t *testing.T) {
	rows, err := fleetRows([]byte(`[{"nodes":250,"what":"push","seconds":50,"cpu":5,"memory":50000000,"database":1000000},{"nodes":1000,"what":"push","seconds":200,"cpu":24,"memory":60000000,"database":4000000}]`))
	if err != nil {
		t.Fatal(err)
	}
	r := report{rows: rows}
	got := r.tableOf(rows[0].Work)
	if len(got.rows) != 2 || got.rows[0][2] != "200.0 ms" || got.rows[1][2] != "200.0 ms" || got.rows[1][4] != "24.0 ms" || got.rows[0][5] != "-" || got.rows[1][5] != "1.20" || got.rows[1][0] != "1000 nodes" || got.rows[1][7] != "4.00 MB" {
		t.Errorf("%q", got)
	}
}
