package rollback

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// parseTree reads one line an entry: "path", "dir/" for a directory,
// "path=content", "path->target", "path&first" for a hard link; then
// "mode=0600" or "time=5"; and for live trees "mount", "immutable", "alone".
func parseTree(t *testing.T, text string) []entry.Entry {
	t.Helper()
	out := []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755}}
	for _, line := range strings.Split(text, ";") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		e := entry.Entry{Path: f[0], Type: entry.File, Mode: 0o644}
		if p, ok := strings.CutSuffix(f[0], "/"); ok {
			e.Path, e.Type, e.Mode = p, entry.Dir, 0o755
		} else if p, to, ok := strings.Cut(f[0], "->"); ok {
			e.Path, e.Type, e.Target, e.Mode = p, entry.Symlink, to, 0o777
		} else if p, first, ok := strings.Cut(f[0], "&"); ok {
			e.Path, e.Link = p, first
		} else if p, content, ok := strings.Cut(f[0], "="); ok {
			e.Path, e.Size = p, int64(len(content))
			e.Chunks = []entry.Chunk{{ID: digest.Of([]byte(content)), Size: uint32(len(content))}}
		}
		for _, opt := range f[1:] {
			fmt.Sscanf(opt, "mode=%o", &e.Mode)
			fmt.Sscanf(opt, "time=%d", &e.ModTime)
		}
		out = append(out, e)
	}
	for i := range out {
		if l := out[i].Link; l != "" {
			at := slices.IndexFunc(out, func(e entry.Entry) bool { return e.Path == l })
			path := out[i].Path
			out[i] = out[at]
			out[i].Path, out[i].Link, out[i].Chunks = path, l, nil
		}
	}
	return out
}

func parseManifest(t *testing.T, text string) *index {
	t.Helper()
	m := &manifest.Manifest{Entries: parseTree(t, text)}
	m.Sort()
	if err := m.Validate(); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return indexOf(m)
}

// parseLive makes what a scan would have found.
func parseLive(t *testing.T, text string, base, target *index, r *rules) *live {
	t.Helper()
	x := parseManifest(t, text)
	inode := map[string]uint64{}
	links := map[uint64]uint64{}
	var items []item
	for i, e := range x.m.Entries {
		root := rootOf(&e)
		if inode[root] == 0 {
			inode[root] = uint64(i + 1)
		}
		own := e
		it := item{Entry: &own, base: base.get(e.Path), target: target.get(e.Path), stat: entry.Stat{Ino: inode[root], MTime: e.ModTime, Size: e.Size}, alone: r.left(e.Path)}
		it.Entry.Link = ""
		content := x.content(&e)
		if e.Type == entry.File && it.alone == "" {
			is := func(y *index) bool {
				o := y.get(e.Path)
				return o != nil && o.Type == entry.File && contentKey(y.content(o)) == contentKey(content)
			}
			it.sameBase, it.sameTarget = is(base), is(target)
			it.described = !it.sameBase && !it.sameTarget
			it.Entry.Holes, it.Entry.Chunks = content.Holes, content.Chunks
		}
		links[inode[root]]++
		items = append(items, it)
	}
	l := &live{}
	l.flat(items)
	for i := range l.items {
		l.items[i].stat.Nlink = links[l.items[i].stat.Ino]
		for _, line := range strings.Split(text, ";") {
			f := strings.Fields(line)
			if len(f) < 2 || strings.TrimSuffix(f[0], "/") != l.items[i].Path && !strings.HasPrefix(f[0], l.items[i].Path+"=") {
				continue
			}
			for _, opt := range f[1:] {
				switch opt {
				case "mount":
					l.items[i].alone = Mount
				case "socket":
					l.items[i].alone = Socket
				case "immutable":
					l.items[i].immutable = true
				case "outside":
					l.items[i].stat.Nlink++
				}
			}
		}
		if up := l.get(parentOf(l.items[i].Path)); up != nil && l.items[i].alone != "" {
			up.anchored = true
		}
	}
	return l
}

func list(t *testing.T, texts ...string) pattern.List {
	t.Helper()
	l, err := pattern.Parse(texts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCompare(t *testing.T) {
	const owned = "/o/**"
	tests := []struct {
		name               string
		base, live, target string
		keep, take, seed   string
		derived            string
		def                Action
		want               string // steps
		conflicts          string
		blocked            string
		notes              string // substrings, by "|"
		done, left         string // paths of the manifests, where it matters
	}{
		{name: "nothing", base: "a=1;d/", live: "a=1;d/", target: "a=1;d/"},
		{name: "add", base: "", live: "", target: "a=1", want: "add a;times ."},
		{name: "delete", base: "a=1", live: "a=1", target: "", want: "delete a;times ."},
		{name: "replace", base: "a=1", live: "a=1", target: "a=2", want: "replace a;times ."},
		{name: "meta only", base: "a=1", live: "a=1", target: "a=1 mode=600", want: "meta a"},
		{name: "time only", base: "a=1", live: "a=1", target: "a=1 time=5", want: "meta a"},
		{name: "link target", base: "a->x", live: "a->x", target: "a->y", want: "replace a;times ."},
		{name: "link to file", base: "a->x", live: "a->x", target: "a=1", want: "replace a;times ."},
		{name: "tree gone, leaves first", base: "d/;d/e/;d/e/f=1", live: "d/;d/e/;d/e/f=1", target: "",
			want: "delete d/e/f;delete d/e;delete d;times ."},
		{name: "tree comes, top first", base: "", live: "", target: "d/;d/e/;d/e/f=1",
			want: "add d;add d/e;add d/e/f;times .;times d;times d/e"},
		{name: "directory to file", base: "d/;d/f=1", live: "d/;d/f=1", target: "d=1", want: "delete d/f;replace d;times ."},
		{name: "file to directory", base: "d=1", live: "d=1", target: "d/;d/f=1", want: "replace d;add d/f;times .;times d"},
		{name: "directory mode", base: "d/;d/f=1", live: "d/;d/f=1", target: "d/ mode=700;d/f=1", want: "meta d"},
		{name: "directory time", base: "d/", live: "d/ time=3", target: "d/", want: "times d"},

		{name: "changed by the node", base: "a=1", live: "a=x", target: "a=1", conflicts: `"a" changed by the node only: refuse`},
		{name: "changed by both", base: "a=1", live: "a=x", target: "a=2", conflicts: `"a" changed by the node and by the target: refuse`},
		{name: "changed by both the same way", base: "a=1", live: "a=2", target: "a=2"},
		{name: "changed by both the same way but for the time", base: "a=1", live: "a=2 time=9", target: "a=2", want: "meta a"},
		{name: "mode changed by the node", base: "a=1", live: "a=1 mode=600", target: "a=1",
			conflicts: `"a" changed in metadata by the node only: refuse`},
		{name: "touched by the node", base: "a=1", live: "a=1 time=9", target: "a=1", want: "meta a"},
		{name: "added by the node", base: "", live: "a=x", target: "", conflicts: `"a" added by the node only: refuse`},
		{name: "added by both", base: "", live: "a=x", target: "a=1", conflicts: `"a" added by the node and by the target: refuse`},
		{name: "deleted by the node", base: "a=1", live: "", target: "a=1", conflicts: `"a" deleted by the node only: refuse`},
		{name: "deleted by both", base: "a=1", live: "", target: ""},
		{name: "made a link by the node", base: "a=1", live: "a->b", target: "a=1", conflicts: `"a" made something else by the node only: refuse`},
		{name: "deleted by the target, changed by the node", base: "a=1", live: "a=x", target: "",
			conflicts: `"a" changed by the node and by the target: refuse`},

		{name: "keep", base: "a=1;b=1", live: "a=x;b=1", target: "a=2;b=2", keep: "/a", want: "replace b;times .",
			conflicts: `"a" changed by the node and by the target: keep`, done: ". a b", left: ". a b"},
		{name: "keep what the target drops", base: "d/;d/a=1", live: "d/;d/a=x", target: "", keep: "/d/a",
			conflicts: `"d/a" changed by the node and by the target: keep`, notes: `"d": stays`, done: ".", left: ". d d/a"},
		{name: "take", base: "a=1", live: "a=x", target: "a=2", take: "/a", want: "replace a;times .",
			conflicts: `"a" changed by the node and by the target: take`},
		{name: "take a deletion back", base: "a=1", live: "", target: "a=1", take: "/a", want: "add a;times .",
			conflicts: `"a" deleted by the node only: take`},
		{name: "take away what was added", base: "d/", live: "d/;d/a=x", target: "d/", def: Take, want: "delete d/a;times d",
			conflicts: `"d/a" added by the node only: take`},
		{name: "keep wins over take", base: "a=1", live: "a=x", target: "a=2", keep: "/a", take: "/**",
			conflicts: `"a" changed by the node and by the target: keep`},
		{name: "kept file where the target has a directory", base: "a=1", live: "a=x", target: "a/;a/b=1", keep: "/a",
			conflicts: `"a" changed by the node and by the target: keep`, blocked: `"a": cannot become`, want: "-"},

		{name: "node-owned is not compared", base: "o/;o/a=1", live: "o/;o/a=x;o/b=x", target: "o/;o/a=2"},
		{name: "node-owned is not deleted", base: "o/;o/a=1", live: "o/;o/a=1", target: "", notes: `"o": stays`},
		{name: "node-owned is in the way", base: "o/;o/a=1", live: "o/;o/a=1", target: "o=1", blocked: `"o": cannot become a file`, want: "-"},
		{name: "node-owned is not made", base: "o/", live: "o/", target: "o/;o/a=1", notes: `"o/a": new in the target but node-owned`},
		{name: "seeded", base: "o/", live: "o/", target: "o/;o/a=1", seed: "/o/**", want: "add o/a;times o"},
		{name: "seeded once", base: "o/;o/a=1", live: "o/", target: "o/;o/a=2", seed: "/o/**"},
		{name: "times of a directory with node-owned files alone are no change", base: "o/;o/a=1", live: "o/ time=3;o/a=1", target: "o/;o/a=1"},
		{name: "but they are set when something changes", base: "o/;o/a=1;b=1", live: "o/ time=3;o/a=1;b=1", target: "o/;o/a=1;b=2",
			want: "replace b;times .;times o"},

		{name: "derived", base: "a=here;b=1", live: "a=here;b=1", target: "a=image;b=2", derived: "a", want: "replace b;times .",
			notes: `"a": made by the installation`, done: ". a b"},
		{name: "derived and changed since", base: "a=here", live: "a=x", target: "a=image", derived: "a", notes: `"a": made by`},
		{name: "derived that the image does not have", base: "d/;d/a=here", live: "d/;d/a=here", target: "", derived: "d/a",
			notes: `"d": stays`, done: ". d d/a"},
		{name: "derived deletion", base: "", live: "", target: "a=1", derived: "a", notes: `"a": made by`, done: "."},

		{name: "mount point", base: "m/", live: "m/ mount", target: "m/ mode=700;m/x=1", notes: `"m": a mount point`},
		{name: "mount point to be deleted", base: "d/;d/m/", live: "d/;d/m/ mount", target: "", notes: `"d": stays`},
		{name: "mount point in the way", base: "d/;d/m/", live: "d/;d/m/ mount", target: "d=1", blocked: `"d": cannot become`, notes: `a mount point`, want: "-"},
		{name: "socket stays", base: "d/", live: "d/;d/s=0 socket", target: "", notes: `"d": stays`},
		{name: "socket in the way", base: "", live: "s=0 socket", target: "s=1", blocked: `"s": is a socket`, want: "-"},
		{name: "immutable", base: "a=1", live: "a=1 immutable", target: "a=2", blocked: `"a": is immutable`, want: "-"},
		{name: "immutable but unchanged", base: "a=1", live: "a=1 immutable", target: "a=1"},
		{name: "immutable directory", base: "d/;d/a=1", live: "d/ immutable;d/a=1", target: "d/", blocked: `"d": is an immutable`, want: "-"},

		{name: "hard links as they are", base: "a=1;b&a", live: "a=1;b&a", target: "a=1;b&a"},
		{name: "hard links, one change of metadata", base: "a=1;b&a", live: "a=1;b&a", target: "a=1 mode=600;b&a", want: "meta a"},
		{name: "hard links get new content together", base: "a=1;b&a", live: "a=1;b&a", target: "a=2;b&a", want: "replace a;replace b;times ."},
		{name: "hard link cut", base: "a=1;b&a", live: "a=1;b&a", target: "a=1;b=1", want: "replace a;replace b;times ."},
		{name: "hard link made", base: "a=1;b=1", live: "a=1;b=1", target: "a=1;b&a", want: "replace a;replace b;times ."},
		{name: "hard link added", base: "a=1", live: "a=1", target: "a=1;b&a", want: "replace a;add b;times ."},
		{name: "hard link dropped", base: "a=1;b&a", live: "a=1;b&a", target: "a=1", want: "delete b;replace a;times ."},
		{name: "linked symbolic links as they are", base: "a->x;b&a", live: "a->x;b&a", target: "a->x;b&a"},
		{name: "linked symbolic links change together", base: "a->x;b&a", live: "a->x;b&a", target: "a->y;b&a", want: "replace a;replace b;times ."},
		{name: "linked symbolic links cut", base: "a->x;b&a", live: "a->x;b&a", target: "a->x;b->x", want: "replace a;replace b;times ."},
		{name: "linked symbolic links made", base: "a->x;b->x", live: "a->x;b->x", target: "a->x;b&a", want: "replace a;replace b;times ."},
		{name: "linked from outside: new inode", base: "a=1", live: "a=1 outside", target: "a=1 mode=600", want: "replace a;times ."},
		{name: "linked from outside, unchanged", base: "a=1", live: "a=1 outside", target: "a=1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base, target := parseManifest(t, tt.base), parseManifest(t, tt.target)
			r := &rules{leaves: leaves{owned: []pattern.List{list(t, owned)}}, derived: map[string]bool{tt.derived: true},
				seed:   list(t, strings.Fields(tt.seed)...),
				policy: Policy{Keep: list(t, strings.Fields(tt.keep)...), Take: list(t, strings.Fields(tt.take)...), Default: tt.def}}
			p := compare(base, parseLive(t, tt.live, base, target, r), target, r)
			p.record()
			var steps, conflicts []string
			for _, s := range p.Steps {
				steps = append(steps, s.Kind.String()+" "+s.Path)
			}
			for _, c := range p.Conflicts {
				conflicts = append(conflicts, c.String())
			}
			if got := strings.Join(steps, ";"); got != tt.want && tt.want != "-" {
				t.Errorf("steps %q, want %q", got, tt.want)
			}
			if got := strings.Join(conflicts, ";"); got != tt.conflicts {
				t.Errorf("conflicts %q, want %q", got, tt.conflicts)
			}
			for what, x := range map[string]struct {
				notes []Note
				want  string
			}{"blocked": {p.Blocked, tt.blocked}, "notes": {p.Notes, tt.notes}} {
				if (x.want == "") != (len(x.notes) == 0) || x.want != "" && !holdsNote(x.notes, x.want) {
					t.Errorf("%s %v, want %q", what, x.notes, x.want)
				}
			}
			for _, m := range []*manifest.Manifest{p.done, p.left} {
				if err := m.Validate(); err != nil {
					t.Error(err)
				}
			}
			if got := paths(p.done); tt.done != "" && got != tt.done {
				t.Errorf("recorded %q, want %q", got, tt.done)
			}
			if got := paths(p.left); tt.left != "" && got != tt.left {
				t.Errorf("left %q, want %q", got, tt.left)
			}
			if (p.Err() != nil) != (tt.blocked != "" || strings.Contains(tt.conflicts, "refuse")) {
				t.Errorf("Err() = %v", p.Err())
			}
		})
	}
}

func holdsNote(notes []Note, want string) bool {
	return slices.ContainsFunc(notes, func(n Note) bool { return strings.Contains(n.String(), want) })
}

func paths(m *manifest.Manifest) string {
	var out []string
	for _, e := range m.Entries {
		out = append(out, e.Path)
	}
	return strings.Join(out, " ")
}

// An exchange of a directory with something else sets the directory's time on xfs.
func TestExchangedDirectoryGetsItsTime(t *testing.T) {
	base, target := parseManifest(t, "d=1"), parseManifest(t, "d/ time=5")
	r := &rules{}
	p := compare(base, parseLive(t, "d=1", base, target, r), target, r)
	last := p.Steps[len(p.Steps)-1]
	if last.Kind != Times || last.Path != "d" || last.New.ModTime != 5 {
		t.Errorf("the last step is %v of %q", last.Kind, last.Path)
	}
}
