package main

import (
	"context"
	"errors"
	"fmt"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/rollback"
)

// kept tells the controller what the node keeps: it may have been rolled back
// on its console, or have switched after a connection broke.
func kept(n *rollback.Node) wire.Kept {
	list, err := allGenerations(n)
	if err != nil {
		list = nil // whether it matters the plan finds out
	}
	k := wire.Kept{Generations: list[max(0, len(list)-maxGenerations):]}
	if n.Boots {
		k.Sides = sidesNow()
	}
	return k
}

// maxGenerations bounds those that the controller hears of: the newest.
const maxGenerations = 16

// targetOf returns the manifest that a push asks for: the one that the node
// keeps from a push before, or else what the controller sends.
func targetOf(conn *wire.Conn, n *rollback.Node, req wire.Request) (*manifest.Manifest, error) {
	k := kept(n)
	m, has, err := n.Known(req.Manifest)
	if err != nil {
		return nil, err
	}
	if cur, err := n.Current(); err == nil && !cur.Target.IsZero() {
		k.Runs = &wire.Made{Target: cur.Target, Image: cur.ImageID, Overlay: cur.Overlay}
	}
	var base *manifest.Manifest
	if k.Has = has; !has {
		if base, k.Knows, err = newest(n); err != nil {
			return nil, err
		}
	}
	if err := conn.SendKept(k); err != nil || has {
		return m, err
	}
	if m, err = received(conn, base); err != nil {
		return nil, fmt.Errorf("manifest from the controller: %w", err)
	}
	if id := m.ID(); id != req.Manifest {
		return nil, fmt.Errorf("manifest from the controller: is %s, should be %s", id.Short(), req.Manifest.Short())
	}
	return m, nil
}

// source is where the chunks of a plan come from. Where the controller knows
// what the node was given, it is asked for differences first.
func source(conn *wire.Conn, n *rollback.Node, req wire.Request) rollback.Source {
	p := wire.Puller{C: conn}
	if cur, err := n.Current(); req.Verb != wire.VerbPush || err != nil || cur.Target.IsZero() {
		return p
	}
	return alikePuller{p}
}

// alikePuller is a rollback.AlikeSource.
type alikePuller struct{ wire.Puller }

// FetchAlike implements rollback.AlikeSource.
func (p alikePuller) FetchAlike(ctx context.Context, groups []*rollback.Alike, fn func(digest.ID, []byte) error) error {
	list := make([]wire.Alike, len(groups))
	for i, g := range groups {
		list[i] = wire.Alike{Wanted: g.Wanted, Like: g.Like, Content: g.Content}
	}
	return p.Puller.FetchAlike(ctx, list, fn)
}

// newest returns the newest target that the node keeps, nil for none, to take
// another manifest as a delta against it.
func newest(n *rollback.Node) (*manifest.Manifest, *wire.Made, error) {
	targets, err := n.Targets()
	if err != nil {
		return nil, nil, err
	}
	for _, t := range targets {
		m, ok, err := n.Known(t.Target)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			made := wire.Made(t)
			return m, &made, nil
		}
	}
	return nil, nil, nil
}

// received receives a manifest, whole or as a delta against base.
func received(conn *wire.Conn, base *manifest.Manifest) (*manifest.Manifest, error) {
	var b wire.Base
	if err := conn.Expect(wire.KindBase, &b, nil); err != nil {
		return nil, err
	}
	raw, err := conn.RecvBlob(nil)
	if err != nil {
		return nil, err
	}
	switch {
	case !b.Delta:
		return manifest.Decode(raw)
	case base == nil:
		return nil, errors.New("a delta against nothing")
	}
	return base.Apply(raw)
}
