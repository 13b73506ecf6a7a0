package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ingot/imager"
	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/inventory"
	"ingot/site"
)

// maxLearned bounds what a node may put into the server's records at once.
const maxLearned = 100

// learn records what a node keeps and the server has not heard of: rollbacks
// on its console, and switches whose connection broke.
func (w *world) learn(ctx context.Context, node string, kept wire.Kept) error {
	list := kept.Generations
	if err := w.saw(context.WithoutCancel(ctx), node); err != nil {
		return err
	}
	about := w.learnSides(context.WithoutCancel(ctx), node, kept.Sides)
	if kept.Sides == nil {
		about = w.forgetSides(context.WithoutCancel(ctx), node)
	}
	if about != nil {
		return about
	}
	have, err := w.state.Generations(ctx, node)
	if err != nil {
		return err
	}
	for _, g := range unheard(node, have, list) {
		if err := w.state.AddGeneration(context.WithoutCancel(ctx), g); err != nil {
			return err
		}
	}
	if len(list) == 0 { // a node that cannot read its own list says so, too
		return nil
	}
	return w.retire(context.WithoutCancel(ctx), node, list)
}

// retire lets go of what a node does not keep any more: neither its
// generations nor what was given to it keep an image from being removed then.
// What was given last may be on its way just now.
func (w *world) retire(ctx context.Context, node string, list []wire.Generation) error {
	var numbers []int
	images := map[string]bool{}
	for _, g := range list {
		numbers = append(numbers, g.Number)
		images[g.Image.String()] = true
	}
	if err := w.state.Retire(ctx, node, numbers); err != nil {
		return err
	}
	given, err := w.given(ctx, node)
	if err != nil || len(given) == 0 {
		return err
	}
	last := given[len(given)-1]
	left := slices.DeleteFunc(slices.Clone(given), func(id string) bool { return id != last && !images[id] })
	if len(left) == len(given) {
		return nil
	}
	return w.state.SetFact(ctx, node, factGiven, strings.Join(left, " "))
}

// unheard are the generations of a node that are not among those recorded.
// What was found on a node before its first push is none that was made.
func unheard(node string, have []inventory.Generation, list []wire.Generation) []inventory.Generation {
	known := map[int]inventory.Generation{}
	for _, g := range have {
		known[g.Number] = g
	}
	var out []inventory.Generation
	for _, g := range list[max(0, len(list)-maxLearned):] {
		k, ok := known[g.Number]
		if ok && k.Image == g.Image.String() && k.Kind == g.Kind || g.Kind == "found" {
			continue
		}
		if g.Kind == "install" {
			clear(known) // recording it forgets all others
		}
		out = append(out, inventory.Generation{Node: node, Number: g.Number, Ref: g.Ref, Image: g.Image.String(), Overlay: g.Overlay.String(),
			Within: g.Within, Mode: g.Mode, Kind: g.Kind, By: g.By, Reason: g.Reason, Time: time.Unix(g.Time, 0)})
	}
	return out
}

// factGiven is the record of the images that were pushed to a node: what it
// may be given again. Its own word does not count, as others' images hold
// others' secrets.
const factGiven = "images given"

func (w *world) given(ctx context.Context, node string) ([]string, error) {
	text, err := w.state.Fact(ctx, node, factGiven)
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return nil, err
	}
	return strings.Fields(text), nil
}

// factParts is the record of the parts of images that were pushed to a node, in
// JSON: it may not ask for the rest of these.
const factParts = "parts given"

// givenPart is a path of an image, from its top.
type givenPart struct {
	Image digest.ID `json:"image"`
	Path  string    `json:"path"`
}

func (w *world) parts(ctx context.Context, node string) (list []givenPart, err error) {
	text, err := w.state.Fact(ctx, node, factParts)
	if errors.Is(err, inventory.ErrNotFound) || err == nil && text == "" {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &list)
	}
	if err != nil {
		return nil, fmt.Errorf("node %q: parts given: %w", node, err)
	}
	return list, nil
}

// give records that a node is about to get an image, or a path of it.
func (w *world) give(ctx context.Context, node string, image digest.ID, within string) error {
	const most = 30
	if within != "" {
		list, err := w.parts(ctx, node)
		if err != nil {
			return err
		}
		part := givenPart{image, within}
		list = append(slices.DeleteFunc(list, func(p givenPart) bool { return p == part }), part)
		b, err := json.Marshal(list[max(0, len(list)-most):])
		if err != nil {
			return err
		}
		return w.state.SetFact(ctx, node, factParts, string(b))
	}
	list, err := w.given(ctx, node)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(s string) bool { return s == image.String() })
	list = append(list, image.String())
	return w.state.SetFact(ctx, node, factGiven, strings.Join(list[max(0, len(list)-most):], " "))
}

// lostSource has what a node that lost content may have again: the chunks of
// the images that were given to it, of which perhaps only a path was, and of its
// overlay as it is now.
type lostSource struct {
	w    *world
	node *site.Node
	own  map[digest.ID][]byte // of the overlay
	all  map[digest.ID]bool   // nil: not looked for
	gone bool                 // an image that it was given is not there any more
}

// Missing implements imager.Store.
func (l *lostSource) Missing(ctx context.Context, ids []digest.ID) ([]digest.ID, error) {
	missing, err := l.other(ctx, ids)
	if err != nil {
		return nil, err
	}
	rest := slices.DeleteFunc(slices.Clone(ids), func(id digest.ID) bool { return l.own[id] != nil || !l.all[id] })
	gone, err := l.w.images.Missing(ctx, rest)
	return append(missing, gone...), err
}

// Foreign implements imager.Lost. Where an image is gone nobody knows what was in it.
func (l *lostSource) Foreign(ctx context.Context, ids []digest.ID) ([]digest.ID, error) {
	other, err := l.other(ctx, ids)
	if l.gone {
		return nil, err
	}
	return other, err
}

// other lists those of ids that are not known to be the node's.
func (l *lostSource) other(ctx context.Context, ids []digest.ID) ([]digest.ID, error) {
	if l.all == nil {
		if err := l.look(ctx); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id digest.ID) bool { return l.own[id] != nil || l.all[id] }), nil
}

// Fetch implements imager.Store.
func (l *lostSource) Fetch(ctx context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	release, err := l.w.images.Lock(ctx, false) // a prune may be moving them
	if err != nil {
		return err
	}
	defer release()
	return imager.Layered{Data: l.own, Below: l.w.images}.Fetch(ctx, ids, fn)
}

func (l *lostSource) look(ctx context.Context) error {
	l.all = map[digest.ID]bool{}
	list, err := l.w.given(ctx, l.node.Name)
	if err != nil {
		return err
	}
	in, err := l.w.state.Install(ctx, l.node.Name)
	if err == nil {
		list = append(list, in.Image)
	} else if !errors.Is(err, inventory.ErrNotFound) {
		return err
	}
	parts, err := l.w.parts(ctx, l.node.Name)
	if err != nil {
		return err
	}
	for _, text := range list {
		id, err := digest.Parse(text)
		if err != nil {
			return fmt.Errorf("node %q: images given: %w", l.node.Name, err)
		}
		parts = append(parts, givenPart{Image: id})
	}
	for _, part := range parts {
		id := part.Image
		m, err := l.w.images.Manifest(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			l.gone = true // removed, or damaged: it has nothing to give
			continue
		}
		maps.Copy(l.all, imager.ChunksOf(m, part.Path))
		if l.own == nil {
			l.overlay(ctx, id)
		}
	}
	return nil
}

// overlay adds the node's overlay, when it can be made.
func (l *lostSource) overlay(ctx context.Context, image digest.ID) {
	r, err := resolveProfile(l.w.Site, l.node)
	if err != nil {
		return
	}
	if over, err := renderOverlay(ctx, l.w, l.node, r, image); err == nil {
		l.own = over.Data
	}
}
