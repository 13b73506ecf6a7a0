package main

import (
	"context"
	"maps"
	"slices"
	"strings"

	"ingot/internal/digest"
	"ingot/inventory"
)

// references are what nodes have to do with images: why the store keeps
// images that have no name.
type references map[digest.ID]*nodesOf

// nodesOf are the nodes that have to do with one image. A node may be in several lists.
type nodesOf struct {
	Runs     []string `json:"runs"`               // in its newest generation
	Keeps    []string `json:"keeps"`              // in an older one
	Installs []string `json:"installs,omitempty"` // armed, or being installed
	Given    []string `json:"given,omitempty"`    // was sent to it; whether it keeps it is not known yet
}

// references asks the inventory.
func (w *world) references(ctx context.Context) (references, error) {
	uses, err := w.state.Uses(ctx)
	if err != nil {
		return nil, err
	}
	given, err := w.state.Facts(ctx, factGiven)
	if err != nil {
		return nil, err
	}
	refs := references{}
	for _, u := range uses {
		switch n := refs.at(u.Image); u.How {
		case inventory.Runs:
			n.Runs = append(n.Runs, u.Node)
		case inventory.Installs:
			n.Installs = append(n.Installs, u.Node)
		default:
			n.Keeps = append(n.Keeps, u.Node)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(given)) {
		for _, image := range strings.Fields(given[node]) {
			n := refs.at(image)
			if !slices.Contains(n.Runs, node) && !slices.Contains(n.Keeps, node) {
				n.Given = append(n.Given, node)
			}
		}
	}
	for _, n := range refs {
		n.Keeps = slices.Compact(n.Keeps) // in several generations
	}
	return refs, nil
}

// at is the entry of an image; what is no digest (a generation that was found
// on a node is of no image) has one that nobody sees.
func (r references) at(image string) *nodesOf {
	id, err := digest.Parse(image)
	if err != nil || id.IsZero() {
		return &nodesOf{}
	}
	if r[id] == nil {
		r[id] = &nodesOf{}
	}
	return r[id]
}

// keep are the images that must not be removed.
func (r references) keep() []digest.ID { return slices.Collect(maps.Keys(r)) }

// hold are the images of which installers read packs by an index made before.
func (r references) hold() []digest.ID {
	var out []digest.ID
	for id, n := range r {
		if len(n.Installs) > 0 {
			out = append(out, id)
		}
	}
	return out
}

// of are the nodes of some images.
func (r references) of(ids ...digest.ID) nodesOf {
	n := nodesOf{Runs: []string{}, Keeps: []string{}}
	for _, id := range ids {
		if at := r[id]; at != nil {
			n.Runs, n.Keeps = append(n.Runs, at.Runs...), append(n.Keeps, at.Keeps...)
			n.Installs, n.Given = append(n.Installs, at.Installs...), append(n.Given, at.Given...)
		}
	}
	for _, list := range []*[]string{&n.Runs, &n.Keeps, &n.Installs, &n.Given} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return n
}

// words is `run by n[01-02], kept by n03`, or "".
func (n nodesOf) words() string {
	var parts []string
	for _, p := range []struct {
		what  string
		nodes []string
	}{{"run by ", n.Runs}, {"kept by ", n.Keeps}, {"to be installed on ", n.Installs}, {"given to ", n.Given}} {
		if len(p.nodes) > 0 {
			parts = append(parts, p.what+fold(p.nodes))
		}
	}
	return strings.Join(parts, ", ")
}
