package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"ingot/imager/store"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/inventory"
	"ingot/site"
)

// The server learns what happened on a node while it did not look.
func TestLearn(t *testing.T) {
	a, b := digest.Of([]byte("a")), digest.Of([]byte("b"))
	have := []inventory.Generation{{Number: 1, Kind: "install", Image: a.String()}, {Number: 2, Kind: "push", Image: b.String()}}
	node := []wire.Generation{{Number: 1, Kind: "install", Image: a}, {Number: 2, Kind: "push", Image: b}}
	for _, tc := range []struct {
		name string
		have []inventory.Generation
		list []wire.Generation
		want string
	}{
		{"nothing new", have, node, ""},
		{"nothing at all", nil, nil, ""},
		{"a rollback on the console", have, append(node[:2:2], wire.Generation{Number: 3, Kind: "rollback", Image: a}), "3 rollback;"},
		{"a broken connection", have[:1], node, "2 push;"},
		{"what was found", nil, []wire.Generation{{Number: 1, Kind: "found"}, {Number: 2, Kind: "push", Image: a}}, "2 push;"},
		{"retired on the node", have, node[1:], ""},
		{"installed by another server", have, []wire.Generation{{Number: 1, Kind: "install", Image: b}, {Number: 2, Kind: "push", Image: b}}, "1 install;2 push;"},
	} {
		var got string
		for _, g := range unheard("n1", tc.have, tc.list) {
			got += fmt.Sprintf("%d %s;", g.Number, g.Kind)
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if n := len(unheard("n1", nil, make([]wire.Generation, 100_000))); n != maxLearned {
		t.Errorf("a node made %d records at once", n)
	}
}

// What a node does not keep any more holds no image, but for what is on its way.
func TestLearnRetires(t *testing.T) {
	ctx := t.Context()
	db, err := inventory.Open(ctx, t.TempDir()+"/state.db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w := &world{state: db}
	id := func(s string) digest.ID { return digest.Of([]byte(s)) }
	var list []wire.Generation
	for i, s := range []string{"a", "b", "c"} {
		list = append(list, wire.Generation{Number: i + 1, Kind: "push", Image: id(s)})
	}
	for _, s := range []string{"a", "b", "c", "d"} {
		if err := w.give(ctx, "n1", id(s), ""); err != nil {
			t.Fatal(err)
		}
	}
	uses := func() (out string) {
		list, err := db.Uses(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list {
			out += fmt.Sprintf("%d %s;", u.Generation, u.How)
		}
		given, err := w.given(ctx, "n1")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"a", "b", "c", "d"} {
			if slices.Contains(given, id(s).String()) {
				out += s
			}
		}
		return out
	}
	for _, tc := range []struct {
		list []wire.Generation
		want string
	}{
		{list, "1 keeps;2 keeps;3 runs;abcd"},
		{list[1:], "2 keeps;3 runs;bcd"},
		{nil, "2 keeps;3 runs;bcd"},    // it could not read its list
		{list[:1], "1 keeps;3 runs;d"}, // nobody takes away what a node runs on its own word
	} {
		if err := w.learn(ctx, "n1", wire.Kept{Generations: tc.list}); err != nil {
			t.Fatal(err)
		}
		if got := uses(); got != tc.want {
			t.Errorf("%d generations: %q, want %q", len(tc.list), got, tc.want)
		}
	}
}

// A node that lost content gets that of its own images only.
func TestLostSource(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	w := &world{Site: &site.Site{Dir: dir}}
	var err error
	if w.state, err = inventory.Open(ctx, dir+"/state.db"); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.images, err = store.OpenOrInit(dir + "/store"); err != nil {
		t.Fatal(err)
	}
	theirs, theirChunk := storedImage(t, w.images, "given to the node")
	_, others := storedImage(t, w.images, "another's secret")
	n := &site.Node{Name: "n1"}
	for range 40 { // again and again
		if err := w.give(ctx, "n1", theirs, ""); err != nil {
			t.Fatal(err)
		}
	}
	src := &lostSource{w: w, node: n}
	missing, err := src.Missing(ctx, []digest.ID{theirChunk, others})
	if err != nil || !slices.Equal(missing, []digest.ID{others}) {
		t.Errorf("Missing = %v, %v, want the other's", missing, err)
	}
	var got string
	err = src.Fetch(ctx, []digest.ID{theirChunk}, func(_ digest.ID, b []byte) error { got = string(b); return nil })
	if err != nil || got != "given to the node" {
		t.Errorf("Fetch = %q, %v", got, err)
	}
	both, first := storedImage(t, w.images, "not in the part", "in the part")
	for range 2 {
		if err := w.give(ctx, "n1", both, "x1"); err != nil {
			t.Fatal(err)
		}
	}
	second := digest.Of([]byte("in the part"))
	missing, err = (&lostSource{w: w, node: n}).Missing(ctx, []digest.ID{theirChunk, first, second})
	if err != nil || !slices.Equal(missing, []digest.ID{first}) {
		t.Errorf("of a part: Missing = %v, %v, want what is not in it", missing, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := (&lostSource{w: w, node: n}).Missing(cancelled, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// storedImage stores an image of a file for each text, and returns the chunk of the first.
func storedImage(t *testing.T, s *store.Store, texts ...string) (image, chunk digest.ID) {
	t.Helper()
	out, err := s.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Abort()
	m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir, Mode: 0o755}}}
	for i, text := range texts {
		id := digest.Of([]byte(text))
		if err := out.Put(t.Context(), id, []byte(text)); err != nil {
			t.Fatal(err)
		}
		m.Entries = append(m.Entries, entry.Entry{Path: fmt.Sprint("x", i), Type: entry.File, Mode: 0o600, Size: int64(len(text)), Chunks: []entry.Chunk{{ID: id, Size: uint32(len(text))}}})
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if image, err = s.PutManifest(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return image, digest.Of([]byte(texts[0]))
}

// A server that has given out an image before a prune finds it after it, and
// whoever reads it by the index of then is not disturbed while that is recorded.
func TestServeAfterPrune(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	w := &world{Site: &site.Site{Dir: dir}}
	var err error
	if w.state, err = inventory.Open(ctx, dir+"/state.db"); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.images, err = store.OpenOrInit(dir + "/store"); err != nil {
		t.Fatal(err)
	}
	serving, err := store.Open(dir + "/store")
	if err != nil {
		t.Fatal(err)
	}
	images := &storeImages{s: serving}
	old, _ := storedImage(t, w.images, "an older one")
	image, _ := storedImage(t, w.images, "and a newer one", "an older one")
	served := func() (packs []digest.ID, err error) {
		raw, err := images.RawIndex(ctx, image)
		if err != nil {
			t.Fatal(err)
		}
		x, err := store.DecodeIndex(raw)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range x.Packs {
			packs = append(packs, p.ID)
		}
		return packs, nil
	}
	open := func(packs []digest.ID) (err error) {
		for _, id := range packs {
			f, e := images.OpenPack(ctx, image, id)
			if e == nil {
				e = f.Close()
			}
			err = errors.Join(err, e)
		}
		return err
	}
	for range 7 { // so many small packs are merged
		storedImage(t, w.images, fmt.Sprint("more ", old, time.Now().UnixNano()))
	}
	before, _ := served()
	prune := func() *store.Prune {
		if err := w.state.AddGeneration(ctx, inventory.Generation{Node: "n2", Number: 1, Image: image.String()}); err != nil {
			t.Fatal(err)
		}
		refs, err := w.references(ctx)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := w.images.PlanPrune(ctx, store.PruneOptions{Keep: refs.keep(), Hold: refs.hold()})
		if err == nil {
			_, err = plan.Run(ctx, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		return plan
	}
	if err := w.state.Arm(ctx, "n1", "web:1", image.String(), "key", "test"); err != nil {
		t.Fatal(err)
	}
	if p := prune(); len(p.Packs) == 0 {
		t.Error("nothing was removed")
	}
	if err := open(before); err != nil || len(before) != 2 {
		t.Errorf("%d packs of an image that is installed: %v", len(before), err)
	}
	if err := w.state.Disarm(ctx, "n1", "test"); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		id, _ := storedImage(t, w.images, fmt.Sprint("kept ", i))
		if err := w.state.AddGeneration(ctx, inventory.Generation{Node: fmt.Sprint("k", i), Number: 1, Image: id.String()}); err != nil {
			t.Fatal(err)
		}
	}
	if p := prune(); len(p.Rewrite) == 0 {
		t.Error("nothing was rewritten")
	}
	if err := open(before); !errors.Is(err, store.ErrMissing) {
		t.Errorf("the test proves nothing: %v", err)
	}
	now, _ := served()
	if err := open(now); err != nil {
		t.Errorf("after a prune: %v", err)
	}
}
