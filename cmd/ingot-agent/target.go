package main

import (
	"fmt"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/rollback"
)

// kept tells the controller what the node keeps: it may have been rolled back
// on its console, or have switched after a connection broke.
func kept(n *rollback.Node) wire.Kept {
	list, err := generations(n)
	if err != nil {
		list = nil // whether it matters the plan finds out
	}
	return wire.Kept{Generations: list[max(0, len(list)-maxGenerations):]}
}

// maxGenerations bounds those that the controller hears of: the newest.
const maxGenerations = 16

// targetOf returns the manifest that a push asks for: the one that the node
// keeps from a push before, or else what the controller sends.
func targetOf(conn *wire.Conn, n *rollback.Node, req wire.Request) (*manifest.Manifest, error) {
	k := kept(n)
	m, err := known(n, wire.Made{Image: req.Image, Overlay: req.Overlay}, req.Manifest)
	if err != nil {
		return nil, err
	}
	if k.Has = m != nil; !k.Has {
		targets, err := n.Targets()
		if err != nil {
			return nil, err
		}
		for _, t := range targets[:min(len(targets), wire.MaxKnown)] {
			k.Knows = append(k.Knows, wire.Made(t))
		}
	}
	if err := conn.SendKept(k); err != nil || k.Has {
		return m, err
	}
	if m, err = received(conn, n); err != nil {
		return nil, fmt.Errorf("manifest from the controller: %w", err)
	}
	if id := m.ID(); id != req.Manifest {
		return nil, fmt.Errorf("manifest from the controller: is %s, should be %s", id.Short(), req.Manifest.Short())
	}
	return m, nil
}

// known returns the target that was made of these two, when the node keeps it
// and it has this digest.
func known(n *rollback.Node, made wire.Made, id digest.ID) (*manifest.Manifest, error) {
	m, ok, err := n.Known(made.Image, made.Overlay)
	if err != nil || !ok || m.ID() != id {
		return nil, err
	}
	return m, nil
}

// received receives a manifest, whole or as a delta. A delta against what is
// not the same here is no use: then it is asked for whole, once.
func received(conn *wire.Conn, n *rollback.Node) (*manifest.Manifest, error) {
	for {
		var b wire.Base
		if err := conn.Expect(wire.KindBase, &b, nil); err != nil {
			return nil, err
		}
		raw, err := conn.RecvBlob(nil)
		if err != nil {
			return nil, err
		}
		if b.Manifest.IsZero() {
			return manifest.Decode(raw)
		}
		base, err := known(n, b.Made, b.Manifest)
		if err != nil {
			return nil, err
		}
		if base != nil {
			return base.Apply(raw)
		}
		if err := conn.SendRaw(wire.KindWhole, nil); err != nil {
			return nil, err
		}
	}
}
