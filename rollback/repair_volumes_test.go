package rollback

import (
	"os"
	"slices"
	"strings"
	"testing"

	"ingot/internal/entry"
)

// A volume of the record is compared and repaired as the rest; one that is not
// mounted is named, and what somebody mounted over what was given is neither
// looked at nor touched.
func TestDriftOfVolumes(t *testing.T) {
	w := newWorldOn(t, 63, 120, 60, "tmpfs", "vol")
	n := w.node()
	w.push(n)
	file := func(on bool) string {
		t.Helper()
		i := slices.IndexFunc(w.target.Entries, func(e entry.Entry) bool {
			return e.Type == entry.File && e.Link == "" && e.Size > 0 && strings.Contains(e.Path, "/") && under(e.Path, "vol") == on && under(e.Path, "vol") == under(parentOf(e.Path)+"/", "vol")
		})
		if i < 0 {
			t.Fatalf("no such file: on the volume: %v", on)
		}
		return w.target.Entries[i].Path
	}
	inside, outside := file(true), file(false)
	write(t, w.at(inside), "mine")
	p, err := n.Drift(bg(), Repair{})
	if back := kindsOf(t, p); err != nil || back[inside] != LocalChange {
		t.Errorf("%v, %v", back, err)
	}
	_, _, err = repair(n, Repair{}, w.src)
	ok(t, err)
	w.isNew("the volume, too")

	w.detach("vol")
	look := func(at, why string) {
		t.Helper()
		p, err := n.PlanRepair(bg(), Repair{})
		ok(t, err)
		if len(p.Drift()) != 1 || p.Drift()[0].Path != at || p.Drift()[0].Kind != Unseen || !strings.Contains(p.Drift()[0].Why, why) || !p.Empty() {
			t.Errorf("%q: %+v", at, p.Drift())
		}
	}
	look("vol", "not mounted")
	w.attach(w.disks[0], "vol")

	over := parentOf(outside)
	foreign := w.dir + ".foreign"
	disk(t, "tmpfs", foreign, "")
	ok(t, os.WriteFile(foreign+"/data", []byte("a person's"), 0o600))
	w.attach(foreign, over)
	defer w.detach(over)
	look(over, "was not there when")
	write(t, w.at(inside), "mine again")
	g, _, err := repair(n, Repair{}, w.src)
	ok(t, err)
	if read(t, w.at(over+"/data")) != "a person's" || len(g.Volumes) != 1 || len(g.Aside) != 0 {
		t.Errorf("a repair touched what was mounted since, or recorded it: %+v", g)
	}
	if p, err = n.Drift(bg(), Repair{}); err != nil || len(kindsOf(t, p)) > 0 {
		t.Errorf("after the repair: %v, %v", p.Drift(), err)
	}
}

// A path alone takes along what shares an inode with it, wherever that is.
func TestRepairWithinLinks(t *testing.T) {
	dir := scratch(t) + "/node"
	plot(t, dir, map[string]string{"etc/a": "linked", "etc/other": "1"})
	ok(t, os.Mkdir(dir+"/srv", 0o755))
	ok(t, os.Link(dir+"/etc/a", dir+"/srv/b"))
	n := open(t, dir)
	m := snapshot(t, dir)
	ok(t, n.Record(bg(), Generation{Image: "x:1"}, m, m, nil))
	src := chunked(t, dir, m, pieceSize)
	write(t, dir+"/etc/a", "mine, by both names")
	write(t, dir+"/etc/other", "mine")
	p, err := n.Drift(bg(), Repair{Within: "srv"})
	ok(t, err)
	sameDrift(t, "a part", map[string]ConflictKind{"etc/a": LocalChange, "srv/b": LocalChange}, kindsOf(t, p))
	_, _, err = repair(n, Repair{Within: "srv"}, src)
	ok(t, err)
	if p, err = n.Drift(bg(), Repair{}); err != nil {
		t.Fatal(err)
	}
	sameDrift(t, "the rest", map[string]ConflictKind{"etc/other": LocalChange}, kindsOf(t, p))
}
