package rollback

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

func itoa(v int64) string { return strconv.FormatInt(v, 10) }

func newRand() *rand.Rand { return rand.New(rand.NewPCG(4, 4)) }

func TestParseMounts(t *testing.T) {
	text := `22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
36 35 98:0 /part\040one /mnt/a\011b\134c ro,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
37 35 98:1 / /srv rw - ext4 /dev/vdb1 ro
torn line
38 x
`
	want := []mount{
		{id: 22, root: "/", at: "/sys", kind: "sysfs", source: "sysfs"},
		{id: 36, root: "/part one", at: "/mnt/a\tb\\c", readOnly: true, kind: "ext3", source: "/dev/root"},
		{id: 37, root: "/", at: "/srv", readOnly: true, kind: "ext4", source: "/dev/vdb1"},
	}
	if got := parseMounts([]byte(text)); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestUnfit(t *testing.T) {
	for _, tt := range []struct {
		m    mount
		ino  uint64
		top  string
		want string // "" takes part
	}{
		{mount{kind: "ext4", root: "/"}, 2, "ext4", ""},
		{mount{kind: "xfs", root: "/"}, 128, "ext4", ""},
		{mount{kind: "ext4", root: "/srv"}, 2, "ext4", "bind mount"},
		{mount{kind: "btrfs", root: "/@srv"}, 256, "btrfs", ""},
		{mount{kind: "btrfs", root: "/@/srv"}, 300, "btrfs", "bind mount"},
		{mount{kind: "tmpfs", root: "/"}, 1, "ext4", "does not outlive a reboot"},
		{mount{kind: "tmpfs", root: "/"}, 1, "tmpfs", ""},
		{mount{kind: "nfs4", root: "/"}, 1, "ext4", "network"},
		{mount{kind: "vfat", root: "/"}, 1, "ext4", "owners"},
		{mount{kind: "proc", root: "/"}, 1, "ext4", "not a file system that ingot knows"},
		{mount{kind: "overlay", root: "/"}, 1, "ext4", "not a file system that ingot knows"},
	} {
		got := tt.m.unfit(&mount{kind: tt.top}, tt.ino)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q, want %q", tt.m, got, tt.want)
		}
	}
}

func vols(at ...string) volumes {
	vs := volumes{{Volume: Volume{At: "."}, dev: 1}}
	for i, a := range at {
		vs = append(vs, volume{Volume: Volume{At: Path(a), ID: "id of " + a, FSType: "ext4"}, dev: uint64(i + 2)})
	}
	return vs
}

func TestVolumeOf(t *testing.T) {
	vs := vols("a", "a/b", "a-c")
	for path, want := range map[string]int{".": 0, "x": 0, "a": 1, "a/x": 1, "a/b": 2, "a/b/c": 2, "a/bc": 1, "a-c": 3, "a-c/a": 3, "ab": 0} {
		if got := vs.of(path); got != want {
			t.Errorf("%q is on %d, want %d", path, got, want)
		}
		if got := numberOf(vs.described(), path); got != want {
			t.Errorf("%q is on %d by the journal, want %d", path, got, want)
		}
	}
	if vs.at("a/b") != 2 || vs.at("a/x") != 0 || vs.at(".") != 0 {
		t.Error("mount points are not told from what is in them")
	}
}

// TestCensus decides which mounts take part.
func TestCensus(t *testing.T) {
	const full = "m/;m/x=1;n/;n/o/;n/o/y=2;home/;home/u=3"
	empty := "m/;n/;home/"
	mp := func(why string, at string) mountPoint {
		return mountPoint{volume{Volume: Volume{At: Path(at), ID: "id of " + at, FSType: "ext4"}, dev: uint64(100 + len(at))}, why}
	}
	twin := func(at string, dev uint64) mountPoint {
		m := mp("", at)
		m.dev = dev
		return m
	}
	for _, tt := range []struct {
		name         string
		base, target string
		found        bool
		volumes      []Volume // of the generation
		mounts       []mountPoint
		moved        string // a plain directory with the identity
		take, away   []string
		aside        map[string]string
	}{
		{name: "the target has something there", base: empty, target: full, mounts: []mountPoint{mp("", "m")}, take: []string{"m"}},
		{name: "the record has", base: full, target: empty, mounts: []mountPoint{mp("", "m")}, take: []string{"m"}},
		{name: "it was only found", base: full, target: empty, found: true, mounts: []mountPoint{mp("", "m")}, aside: map[string]string{"m": "neither the target"}},
		{name: "nothing there", base: empty, target: empty, mounts: []mountPoint{mp("", "m")}, aside: map[string]string{"m": "neither the target"}},
		{name: "only what is the node's", base: full, target: full, mounts: []mountPoint{mp("", "home")}, aside: map[string]string{"home": "neither the target"}},
		{name: "unfit", base: full, target: full, mounts: []mountPoint{mp("vfat", "m")}, aside: map[string]string{"m": "vfat"}},
		{name: "in another one", base: full, target: full, mounts: []mountPoint{mp("", "n"), mp("", "n/o")}, take: []string{"n", "n/o"}},
		{name: "in one that takes no part", base: full, target: full, mounts: []mountPoint{mp("nfs", "n"), mp("", "n/o")}, aside: map[string]string{"n": "nfs", "n/o": "in what takes no part"}},
		{name: "twice", base: empty, target: full, mounts: []mountPoint{twin("m", 9), twin("n", 9)}, take: []string{"m"}, aside: map[string]string{"n": `already, at "m"`}},
		{name: "twice, the second recorded", base: full, target: full, volumes: []Volume{{At: "n", ID: "id of n"}}, mounts: []mountPoint{twin("m", 9), twin("n", 9)}, take: []string{"n"}, aside: map[string]string{"m": `already, at "n"`}},
		{name: "twice, one of them of no concern", base: empty, target: "m/;n/;n/x=1;home/", mounts: []mountPoint{twin("m", 9), twin("n", 9)}, take: []string{"n"}, aside: map[string]string{"m": "neither the target"}},
		{name: "the top once more", base: empty, target: full, mounts: []mountPoint{twin("m", 0)}, aside: map[string]string{"m": `already, at "."`}},
		{name: "not mounted", base: full, target: full, volumes: []Volume{{At: "m", ID: "id of m"}}, away: []string{"m"}, aside: map[string]string{"m": "not mounted"}},
		{name: "not mounted and empty", base: empty, target: full, volumes: []Volume{{At: "m", ID: "id of m"}}},
		{name: "moved into the tree", base: full, target: full, volumes: []Volume{{At: "m", ID: "id of m"}}, moved: "m"},
		{name: "another one", base: full, target: full, volumes: []Volume{{At: "m", ID: "other"}}, mounts: []mountPoint{mp("", "m")}, away: []string{"m"}, aside: map[string]string{"m": "another file system there"}},
		{name: "without identity", base: full, target: full, volumes: []Volume{{At: "m"}}, mounts: []mountPoint{mp("", "m")}, take: []string{"m"}},
		{name: "now unfit", base: full, target: full, volumes: []Volume{{At: "m", ID: "id of m"}}, mounts: []mountPoint{mp("nfs", "m")}, away: []string{"m"}, aside: map[string]string{"m": "nfs"}},
	} {
		g := &Generation{Number: 3, Volumes: tt.volumes}
		if tt.found {
			g.Image = asFound
		}
		r := &rules{leaves: leaves{owned: []pattern.List{list(t, "/home/**")}}}
		c := &census{g: g, base: parseManifest(t, tt.base), target: parseManifest(t, tt.target), rules: r,
			holdsID: func(at, id string) bool { return at == tt.moved }}
		c.take(volume{Volume: Volume{At: "."}}, tt.mounts)
		var take []string
		for _, v := range r.vols.described() {
			take = append(take, string(v.At))
		}
		if !slices.Equal(take, tt.take) || !slices.Equal(r.away, tt.away) || len(r.aside) != len(tt.aside) {
			t.Errorf("%s: takes %q, away %q, aside %v", tt.name, take, r.away, r.aside)
		}
		for at, why := range tt.aside {
			if !strings.Contains(r.aside[at], why) {
				t.Errorf("%s: %q stands aside because %q, want %q", tt.name, at, r.aside[at], why)
			}
		}
		for _, at := range take {
			if r.left(at+"/.ingot") != Volatile || r.left(at+"/lost+found") != Volatile || r.left(at+"/x/.ingot") != "" {
				t.Errorf("%s: .ingot of %q is not left alone, or more is", tt.name, at)
			}
		}
	}
}

func TestTendedIsLiteral(t *testing.T) {
	l := tended([]Volume{{At: `a*[b]\?`}, {At: "**"}})
	for path, want := range map[string]bool{`a*[b]\?/.ingot`: true, `a*[b]\?/.ingot/x`: true, `axb\y/.ingot`: false, "**/.ingot": true, "q/.ingot": false} {
		if l.Match(path) != want {
			t.Errorf("%q: %v", path, !want)
		}
	}
}

func TestSeparate(t *testing.T) {
	m := parseManifest(t, "a=1;b&a;v/;v/c&a;v/d&a;v/w/;v/w/e&a;z=2;zz&z").m
	got, notes := separate(m, vols("v", "v/w"))
	if err := got.Validate(); err != nil {
		t.Fatal(err)
	}
	links := map[string]string{}
	for i := range got.Entries {
		e := &got.Entries[i]
		links[e.Path] = e.Link
		if e.Type == entry.File && e.Link == "" && len(e.Chunks) != 1 {
			t.Errorf("%q has lost its content", e.Path)
		}
	}
	for path, want := range map[string]string{"a": "", "b": "a", "v/c": "", "v/d": "v/c", "v/w/e": "", "zz": "z"} {
		if links[path] != want {
			t.Errorf("%q is a link to %q, want %q", path, links[path], want)
		}
	}
	if len(notes) != 2 || notes[0].Path != "v/c" || notes[1].Path != "v/w/e" {
		t.Errorf("notes %v", notes)
	}
	if e, _ := m.Lookup("v/c"); e.Link != "a" {
		t.Error("the target itself was changed")
	}
	if same, notes := separate(m, vols("q")); same != m || notes != nil {
		t.Error("what needs no change is changed")
	}
}

// Two files with one number on two file systems are two files.
func TestInodeNumbersAreOfTheirDevice(t *testing.T) {
	e := func(path string) *entry.Entry { return &entry.Entry{Path: path, Type: entry.File, Mode: 0o644} }
	st := func(dev uint64) entry.Stat { return entry.Stat{Dev: dev, Ino: 7, Nlink: 2} }
	b := newBuilder(3)
	b.add(&entry.Entry{Path: ".", Type: entry.Dir}, nil, group{})
	for i, path := range []string{"a", "b"} {
		b.add(e(path), nil, liveGroup(&item{Entry: e(path), stat: st(uint64(i))}))
	}
	if m := b.build(&live{}); m.Entries[2].Link != "" {
		t.Errorf("%q is recorded as a hard link to %q", m.Entries[2].Path, m.Entries[2].Link)
	}
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir}, *e("a"), {Path: "v", Type: entry.Dir}, *e("v/b"), *e("z")}}
	s := states{{}, {st(10), true}, {}, {st(11), true}, {st(10), true}}
	s.moved(11, func(i int) bool { return i != 3 })
	s.moved(10, func(i int) bool { return i == 3 })
	for i, want := range []uint64{0, 11, 0, 10, 11} {
		if s[i].Dev != want {
			t.Errorf("%q is on device %d, want %d", m.Entries[i].Path, s[i].Dev, want)
		}
	}
}

func TestJournalOfVolumes(t *testing.T) {
	one := func() *journal {
		j := someJournal()
		j.volumes = vols("c", "c/e").described()
		j.steps[1].vol, j.used[1].vol = 1, 2
		return j
	}
	j := one()
	got, err := decodeJournal(j.encode())
	if err != nil || !reflect.DeepEqual(j, got) {
		t.Fatalf("got  %+v, %v\nwant %+v", got, err, j)
	}
	if !bytes.HasPrefix(someJournal().encode(), []byte(journalMagic)) {
		t.Error("a journal of one file system is not what older agents read")
	}
	for name, spoil := range map[string]func(*journal){
		"step on another volume":    func(j *journal) { j.steps[1].vol = 0 },
		"volume that is not listed": func(j *journal) { j.steps[0].vol = 3 },
		"undo file of no volume":    func(j *journal) { j.used[0].vol = 3 },
		"volume without identity":   func(j *journal) { j.volumes[0].ID = "" },
		"volume at the top":         func(j *journal) { j.volumes[0].At = "." },
		"volume above the top":      func(j *journal) { j.volumes[0].At = "../c" },
		"volumes out of order":      func(j *journal) { slices.Reverse(j.volumes) },
		"one volume twice":          func(j *journal) { j.volumes[1].At = j.volumes[0].At },
	} {
		j := one()
		spoil(j)
		if got, err := decodeJournal(j.encode()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	whole := one().encode()
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		if got, err := decodeJournal(b); err == nil && got.ready {
			t.Fatalf("damage at byte %d of %d is not seen", i, len(whole))
		}
	}
}
