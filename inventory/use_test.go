package inventory

import (
	"fmt"
	"slices"
	"testing"
)

func uses(t *testing.T, d *DB) []string {
	t.Helper()
	list, err := d.Uses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, u := range list {
		out = append(out, fmt.Sprintf("%s %s %s %d", u.Node, u.How, u.Image, u.Generation))
	}
	return out
}

// An installation holds its image from its arming until its generation does.
func TestUses(t *testing.T) {
	ctx, d := t.Context(), open(t)
	want := func(want ...string) {
		t.Helper()
		if got := uses(t, d); !slices.Equal(got, want) {
			t.Errorf("uses %q, want %q", got, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want()
	must(d.AddGeneration(ctx, Generation{Node: "n1", Number: 1, Image: "old", Kind: "install"}))
	must(d.AddGeneration(ctx, Generation{Node: "n1", Number: 2, Image: "new", Kind: "push"}))
	must(d.AddGeneration(ctx, Generation{Node: "n2", Number: 7, Image: "old", Kind: "push"}))
	must(d.Arm(ctx, "n1", "web:3", "fresh", "key", "test"))
	want("n1 installs fresh 0", "n1 keeps old 1", "n1 runs new 2", "n2 runs old 7")
	in, err := d.BeginAttempt(ctx, "n1", "")
	must(err)
	in, err = d.Claim(ctx, "n1", in.Nonce, "client", "")
	must(err)
	must(d.Progress(ctx, in.Token, Step{Task: "write", Writing: true}))
	want("n1 installs fresh 0", "n1 keeps old 1", "n1 runs new 2", "n2 runs old 7")
	must(d.Finish(ctx, in.Token, ""))
	want("n1 keeps fresh 0", "n1 keeps old 1", "n1 runs new 2", "n2 runs old 7")
	must(d.AddGeneration(ctx, Generation{Node: "n1", Number: 1, Image: "fresh", Kind: "install"}))
	want("n1 runs fresh 1", "n2 runs old 7")
	for n := range 3 {
		must(d.AddGeneration(ctx, Generation{Node: "n1", Number: 2 + n, Image: fmt.Sprint("p", n), Kind: "push"}))
	}
	must(d.Retire(ctx, "n1", []int{3, 4}))
	want("n1 keeps p1 3", "n1 runs p2 4", "n2 runs old 7")
	must(d.Retire(ctx, "n1", []int{2}))
	want("n1 keeps p0 2", "n1 runs p2 4", "n2 runs old 7")
	list, err := d.Generations(ctx, "n1")
	if err != nil || len(list) != 4 || !list[0].Retired || list[3].Retired {
		t.Errorf("%+v, %v", list, err)
	}
	must(d.Arm(ctx, "n2", "web:3", "fresh", "key", "test"))
	in, err = d.BeginAttempt(ctx, "n2", "")
	must(err)
	must(d.Fail(ctx, "n2", in.Nonce, "no disk"))
	want("n1 keeps p0 2", "n1 runs p2 4", "n2 runs old 7") // it has to be armed again
	must(d.SetFact(ctx, "n1", "k", "v"))
	must(d.SetFact(ctx, "n2", "other", "v"))
	if facts, err := d.Facts(ctx, "k"); err != nil || len(facts) != 1 || facts["n1"] != "v" {
		t.Errorf("facts %v, %v", facts, err)
	}
	must(d.Forget(ctx, "n1"))
	want("n2 runs old 7")
}

// Who got a part of an image keeps it, and runs what the rest is of.
func TestUsesOfParts(t *testing.T) {
	db := open(t)
	for i, within := range []string{"", "srv/www"} {
		g := Generation{Node: "n1", Number: i + 1, Ref: "web:" + string(rune('1'+i)), Image: string(rune('a' + i)), Mode: "live", Kind: "push", Within: within}
		if err := db.AddGeneration(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	uses, err := db.Uses(t.Context())
	if err != nil || len(uses) != 2 || uses[0].How != Runs || uses[0].Image != "a" || uses[1].How != Keeps {
		t.Errorf("uses: %+v, %v", uses, err)
	}
	// The node cannot go back to it any more, but most of its tree still is of it.
	if err := db.Retire(t.Context(), "n1", []int{2}); err != nil {
		t.Fatal(err)
	}
	if uses, err = db.Uses(t.Context()); err != nil || len(uses) != 2 || uses[0].How != Runs || uses[0].Image != "a" {
		t.Errorf("uses after it was retired: %+v, %v", uses, err)
	}
	list, err := db.Generations(t.Context(), "n1")
	if err != nil || list[1].Within != "srv/www" {
		t.Errorf("generations: %+v, %v", list, err)
	}
}
