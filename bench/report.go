package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run tells.
type report struct {
	rows     []row
	verdicts []verdict
	machine  []fact
	trees    []fact
	tools    []fact
	took     time.Duration
	fast     int // runs of each tool
	slow     int // of those that take long
	date     time.Time
}

// fact is a line of a table of two columns.
type fact struct{ name, value string }

func (b *bench) report(ctx context.Context) report {
	r := report{rows: b.rows, took: time.Since(b.begin), fast: b.o.times(false), slow: b.o.times(true), date: b.begin, machine: machine(ctx, b.o.cache), tools: b.versions(ctx), trees: b.treeFacts(ctx)}
	rows := withStored(b.rows)
	for _, g := range goals() {
		r.verdicts = append(r.verdicts, judge(g, rows))
	}
	return r
}

// failed is how many goals were missed.
func (r report) failed() int {
	n := 0
	for _, v := range r.verdicts {
		if v.Word == fail {
			n++
		}
	}
	return n
}

// seconds prints a duration to what is meant by it: hundredths, of long ones tenths.
func seconds(s float64) string {
	if s < 10 {
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// size prints bytes in decimal units, with three digits.
func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v := float64(n)
	i := 0
	for ; v >= 999.5 && i < len(units)-1; i++ {
		v /= 1000
	}
	switch {
	case i == 0:
		return fmt.Sprintf("%d B", n)
	case v < 9.995:
		return fmt.Sprintf("%.2f %s", v, units[i])
	case v < 99.95:
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}

// sizeOr prints what was measured, and a dash where nothing was.
func sizeOr(n int64) string {
	if n <= 0 {
		return "-"
	}
	return size(n)
}

// table is a head and rows of cells.
type table struct {
	head []string
	rows [][]string
}

// works are the names of the works in the order in which they were measured.
func (r report) works() []string {
	var names []string
	for _, row := range r.rows {
		if !slices.Contains(names, row.Work) {
			names = append(names, row.Work)
		}
	}
	return names
}

// results is the table of one work.
func (r report) results(work string) table {
	var ours float64
	for _, row := range r.rows {
		if row.Work == work && strings.HasPrefix(row.Tool, "ingot") && row.ok() {
			ours = row.best()
		}
	}
	t := table{head: []string{"tool", "seconds", "slowest", "ingot / tool", "bytes", "memory", "on the node", "result"}}
	disk := slices.ContainsFunc(r.rows, func(row row) bool { return row.Work == work && row.Disk > 0 })
	if disk {
		t.head = append(t.head, "to the disk")
	}
	for _, row := range r.rows {
		if row.Work != work {
			continue
		}
		cells := row.cells(ours)
		if disk {
			cells = append(cells, sizeOr(row.Disk))
		}
		t.rows = append(t.rows, cells)
	}
	return t
}

func (r row) cells(ours float64) []string {
	if !r.ok() {
		return []string{r.Tool, "-", "-", "-", "-", "-", "-", "fails: " + r.Failed}
	}
	ratio := "-"
	if ours > 0 && !strings.HasPrefix(r.Tool, "ingot") {
		ratio = fmt.Sprintf("%.2f", ours/r.best())
	}
	bytes := "-"
	if r.Bytes >= 0 {
		bytes = size(r.Bytes)
	}
	return []string{r.Tool, seconds(r.best()), fmt.Sprintf("+%.0f%%", 100*r.spread()), ratio, bytes, sizeOr(r.Memory), sizeOr(r.Node), r.Wrong}
}

func (r report) goals() table {
	t := table{head: []string{"goal", "work", "ingot", "theirs", "whose", "ratio", "allowed", ""}}
	for _, v := range r.verdicts {
		t.rows = append(t.rows, []string{v.text, v.work, v.Ours, v.Theirs, v.Of, v.Ratio, v.bound(), v.Word})
	}
	return t
}

// markdown writes a table as Markdown: bars inside of cells are escaped.
func (t table) markdown() string {
	var b strings.Builder
	line := func(cells []string) {
		for _, c := range cells {
			b.WriteString("| " + escape(c) + " ")
		}
		b.WriteString("|\n")
	}
	line(t.head)
	b.WriteString(strings.Repeat("|---", len(t.head)) + "|\n")
	for _, r := range t.rows {
		line(r)
	}
	return b.String()
}

func escape(cell string) string {
	cell = strings.ReplaceAll(cell, `\|`, "|")
	return strings.ReplaceAll(strings.ReplaceAll(cell, "|", `\|`), "\n", " ")
}

// text writes a table for a terminal.
func (t table) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(w, strings.ReplaceAll(strings.Join(r, "\t"), `\|`, "|"))
	}
	if err := w.Flush(); err != nil {
		return err.Error()
	}
	return b.String()
}

func (r report) text() string {
	var b strings.Builder
	for _, w := range r.works() {
		fmt.Fprintf(&b, "%s\n%s\n", strings.ToUpper(w), r.results(w).text())
	}
	fmt.Fprintf(&b, "GOALS\n%s", r.goals().text())
	fmt.Fprintf(&b, "%d of %d goals are missed; measured in %s\n", r.failed(), len(r.verdicts), r.took.Round(time.Second))
	return b.String()
}

func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\n`make bench` wrote this page on %s, in %s. Everything on it, but for the parts at its end that say so, was measured in that one run, each tool\n%s. `make bench WORK=capture` measures some of it (%s) and writes nothing; of the parts at the end it writes those that were asked for.\n\n",
		r.date.UTC().Format("2006-01-02 15:04 UTC"), r.took.Round(time.Second), times(r.fast, r.slow), strings.Join(workNames(), ", "))
	fmt.Fprintf(&b, "## Goals\n\nRatios are ingot's number divided by theirs: less than 1 is faster, or less. %d of %d goals are missed.\n\n%s\n", r.failed(), len(r.verdicts), r.goals().markdown())
	for _, w := range r.works() {
		fmt.Fprintf(&b, "## %s\n\n", strings.ToUpper(w[:1])+w[1:])
		if about := notes()[w]; about != "" {
			b.WriteString(about + "\n\n")
		}
		b.WriteString(r.results(w).markdown() + "\n")
	}
	b.WriteString(method)
	for _, s := range []struct {
		title string
		facts []fact
	}{{"Trees", r.trees}, {"Machine", r.machine}, {"Programs", r.tools}} {
		t := table{head: []string{"", ""}}
		for _, f := range s.facts {
			t.rows = append(t.rows, []string{f.name, f.value})
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s", s.title, t.markdown())
	}
	return b.String()
}

// times says how often tools were measured.
func times(fast, slow int) string {
	if fast == slow {
		return fmt.Sprintf("%d times", fast)
	}
	return fmt.Sprintf("%d times, those that take long %d times", fast, slow)
}

// notes say what the numbers of a work are.
func notes() map[string]string {
	return map[string]string{
		workCapture: "Into an empty store. Bytes: all files of the store afterwards, without caches.",
		workAgain:   "The same directory, with whatever the tool remembers of it, under a new name.",
		workUpdate:  "The directory has become B; the store holds A. Bytes: what the store has grown by.",
		workWrite:   "From the store of the first capture; `rsync` and `cp -a` from tree A itself.",
		workLocal:   "A directory that is A becomes B; ingot and casync read B from their stores, rsync from the tree. ingot wrote A there before; it keeps what it replaces, for a rollback.",
		workFirst:   "The node has nothing but sshd: the agent is uploaded and reads the whole tree once.",
		workPush:    "The node is A. For ingot it was brought there by a push; rsync needs nothing of the kind.",
		workNothing: "The node is B already. `ssh true` is what a login alone costs.",
		workFile:    "One line is appended to /etc/services.",
		workRename:  "/srv/release-1 becomes /srv/release-2: modules, headers, gcc, documentation and more of tree A were moved there before.",
		workSlots:   "BIOS, ext4 on partitions.",
		workSubvols: "UEFI, subvolumes of a btrfs, of which a push makes a snapshot.",
		workBack:    "`ingot` is `/.ingot/agent rollback` on the node's console, as is rsync, which has a full copy of A on the node's disk; `ingot rollback` is the same asked for from the controller, over SSH.",
	}
}

const machinesNote = "A machine of the rack (QEMU without KVM, two processors), each thing measured once. The release has 420 other files, another kernel and initramfs. Until it runs, is reached by a new login and is confirmed; bytes on the machine's cable and to its disk. `installed anew` is the whole installation of the image that the release was made of, from reset to login."

const fleetNote = "Small nodes, each with a tree of its own in memory (104 files, half a megabyte) and an address of its own; one OpenSSH server starts the real agent in the tree whose address was dialled. " +
	"All of it, controller, server and agents, shares this machine's processors; sixteen nodes at once, pushes with the usual confirmation over a second connection. Measured once."

const method = `## Method

- The page cache is warm: all trees were read before. Before each run, outside of the time, ` + "`sync`" + ` writes what the run before left.
- The tools of a work take turns, each round begins with another one. The table has the fastest; *slowest* is how much longer the slowest took.
- *memory* is the peak resident memory of the largest process on the measuring side (wait4(2), by time(1)); mapped files count. *on the node* is the same (VmHWM in /proc, sampled)
  of the node's largest rsync or ingot-agent, in a further run that is not timed.
- Each result is compared once with ` + "`rsync -aHAXSn@-1 --numeric-ids --checksum --delete --itemize-changes`" + `, outside of the time; *result* is empty when nothing differs. The top
  directory itself does not count, nor on the node the times of directories: some hold the node's own files.
- The captured directory is always the same one; between works it is made equal to another tree with rsync, so that caches of unchanged files hold, as on a machine that was upgraded.
- The node is made of namespaces (processes, mounts, network, host name) on this machine: its own root tree on the same disk, OpenSSH's sshd with Debian's
  configuration, a veth cable. Controller and node share the processors. Before each run rsync brings the node's tree back.
- *bytes* over SSH are those of the node's network interface in both directions, from connecting to the end: encrypted payload and the headers of Ethernet, IP and TCP. The kernel
  hands large packets over this cable whole (GSO), so headers count for less than on a real one; for all tools alike.
- rsync leaves out what a push of ingot leaves alone (host keys, most of /var/lib, logs, caches: ` + "`owned`" + ` in bench/nodework.go), so that both do the same work.
- ingot makes what it wrote durable (fsync) before it says that it is done; tar, cp and rsync do not.
`

// machine says where this was measured.
func machine(ctx context.Context, dir string) []fact {
	cpu, mem := "unknown", "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cpu = field(string(b), "model name")
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib int64
		if _, err := fmt.Sscan(field(string(b), "MemTotal"), &kib); err == nil {
			mem = size(kib << 10)
		}
	}
	load := "unknown"
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return []fact{{"processor", fmt.Sprintf("%s, %d cores", cpu, runtime.NumCPU())}, {"memory", mem},
		{"file system", output(ctx, "findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", dir)},
		{"kernel", output(ctx, "uname", "-sr")}, {"load at the end", load}}
}

// field is the value of the first "name: value" line.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// output is the first line that a program prints.
func output(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil && len(out) == 0 {
		return "not installed"
	}
	return strings.Join(strings.Fields(firstLine(string(out))), " ")
}

func (b *bench) versions(ctx context.Context) []fact {
	facts := []fact{{"ingot", output(ctx, b.ingot, "--version")}}
	for _, f := range [][]string{{"rsync", "--version"}, {"tar", "--version"}, {"zstd", "--version"}, {"casync", "--version"}, {"restic", "version"}, {"borg", "--version"}, {"ssh", "-V"}} {
		facts = append(facts, fact{f[0], output(ctx, f[0], f[1])})
	}
	v := "not to be had"
	if text, err := os.ReadFile(filepath.Join(b.o.cache, "bin", "desync.version")); err == nil {
		v = string(text)
	}
	return append(facts, fact{"desync", v})
}

func (b *bench) treeFacts(ctx context.Context) []fact {
	about := func(dir string) string {
		c, err := measureTree(dir)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%s in %d entries, of them %d regular files", size(c.bytes), c.entries, c.files)
	}
	differ := "unknown"
	cmd := exec.CommandContext(ctx, "rsync", "-aHAXn", "--checksum", "--numeric-ids", "--delete", "--itemize-changes", b.trees.b+"/", b.trees.a+"/")
	if out, err := cmd.Output(); err == nil {
		differ = changes(string(out)).String()
	}
	return []fact{{"A", "Debian " + debianRelease + " with " + strings.Join(packagesA(), ", ") + "; without updates: " + about(b.trees.a)},
		{"B", "A, upgraded from the updates and security pockets, with " + strings.Join(packagesB(), " and ") + " installed: " + about(b.trees.b)},
		{"B against A", differ}}
}

// difference counts what rsync itemizes between two trees.
type difference struct{ content, added, deleted, metadata int }

// changes reads rsync's itemized changes: rsync(1), --itemize-changes.
func changes(out string) difference {
	var d difference
	for line := range strings.Lines(out) {
		switch {
		case len(line) < 12 || line[11] != ' ':
		case strings.HasPrefix(line, "*deleting"):
			d.deleted++
		case line[2] == '+':
			d.added++
		case line[2] == 'c' || line[3] == 's':
			d.content++
		default:
			d.metadata++
		}
	}
	return d
}

func (d difference) String() string {
	return fmt.Sprintf("%d entries with other content, %d added, %d deleted; %d more differ in metadata alone, most in times", d.content, d.added, d.deleted, d.metadata)
}
