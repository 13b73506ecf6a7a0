package rollback

import (
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// Made names what the target of a generation was made of.
type Made struct{ Image, Overlay digest.ID }

// Targets lists the targets that Known has, of the newest generation first,
// each once.
func (n *Node) Targets() ([]Made, error) {
	gens, err := n.Generations()
	if err != nil {
		return nil, fmt.Errorf("list targets: %w", err)
	}
	var out []Made
	for _, g := range slices.Backward(gens) {
		made := Made{g.ImageID, g.Overlay}
		if !g.Target.IsZero() && n.exists(genDir(g.Number, "target")) && !slices.Contains(out, made) {
			out = append(out, made)
		}
	}
	return out, nil
}

// Known returns the target of the newest generation that was made of image and
// overlay, as its push received it, and whether one is kept. A damaged one is
// as good as none: it costs the controller some bytes and nothing else.
func (n *Node) Known(image, overlay digest.ID) (*manifest.Manifest, bool, error) {
	gens, err := n.Generations()
	if err != nil {
		return nil, false, fmt.Errorf("look for a target: %w", err)
	}
	for _, g := range slices.Backward(gens) {
		if g.Target.IsZero() || g.ImageID != image || g.Overlay != overlay {
			continue
		}
		m, err := n.readTarget(g)
		if err == nil {
			return m, true, nil
		}
		if !notThere(err) {
			n.log().Warn("a kept target is damaged: ignored", slogx.Gen, g.Number, slogx.Err, err)
		}
	}
	return nil, false, nil
}

func (n *Node) readTarget(g Generation) (*manifest.Manifest, error) {
	b, err := n.readState(genDir(g.Number, "target"))
	if err != nil {
		return nil, err
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxState))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := r.DecodeAll(b, nil)
	if err != nil {
		return nil, fmt.Errorf("target of generation %d: %w: %w", g.Number, ErrCorrupt, err)
	}
	if id := digest.Of(raw); id != g.Target {
		return nil, fmt.Errorf("target of generation %d: is %s, should be %s: %w", g.Number, id.Short(), g.Target.Short(), ErrCorrupt)
	}
	return manifest.Decode(raw)
}

// putTarget writes a target into the directory of a generation, and returns its
// digest. Most of a manifest is digests, which nothing makes smaller: the
// fastest level is as good as any.
func (n *Node) putTarget(dir string, m *manifest.Manifest) (digest.ID, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return digest.ID{}, err
	}
	defer w.Close()
	raw := m.Encode()
	return digest.Of(raw), n.putState(dir+"/target", w.EncodeAll(raw, nil))
}
