package rollback

import (
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// Made names a target and what it was made of.
type Made struct{ Target, Image, Overlay digest.ID }

// Targets lists the targets that Known may have, of the newest generation
// first, each once.
func (n *Node) Targets() ([]Made, error) {
	gens, err := n.Generations()
	if err != nil {
		return nil, fmt.Errorf("list targets: %w", err)
	}
	var out []Made
	for _, g := range slices.Backward(gens) {
		made := Made{g.Target, g.ImageID, g.Overlay}
		if !g.Target.IsZero() && n.exists(genDir(g.Number, "target")) && !slices.Contains(out, made) {
			out = append(out, made)
		}
	}
	return out, nil
}

// Known returns the target that has this digest, as its push received it, and
// whether one is kept. A damaged one is as good as none: it costs the
// controller some bytes and nothing else.
func (n *Node) Known(target digest.ID) (*manifest.Manifest, bool, error) {
	gens, err := n.Generations()
	if err != nil {
		return nil, false, fmt.Errorf("look for a target: %w", err)
	}
	for _, g := range slices.Backward(gens) {
		if target.IsZero() || g.Target != target {
			continue
		}
		m, err := n.readTarget(g, gens)
		if err == nil {
			return m, true, nil
		}
		if !notThere(err) {
			n.log().Warn("a kept target is damaged: ignored", slogx.Gen, g.Number, slogx.Err, err)
		}
	}
	return nil, false, nil
}

// A kept target is the digest of the as-done manifest that it is a delta to,
// mostly that of its own generation, the delta, compressed, and the SHA-256 of
// all that and of the target's digest. The two differ in what the node keeps
// for itself.
func (n *Node) readTarget(g Generation, gens []Generation) (*manifest.Manifest, error) {
	b, err := n.readState(genDir(g.Number, "target"))
	if err != nil {
		return nil, err
	}
	at := len(b) - digest.Size
	if at < digest.Size || digest.ID(b[at:]) != targetSum(b[:at:at], g.Target) {
		return nil, fmt.Errorf("target of generation %d: its check does not fit: %w", g.Number, ErrCorrupt)
	}
	of := digest.ID(b[:digest.Size])
	i := slices.IndexFunc(gens, func(x Generation) bool { return x.Manifest == of })
	if i < 0 {
		return nil, unix.ENOENT // a rollback took it over, and what it was made against is gone
	}
	base, err := n.Manifest(gens[i].Number)
	if err != nil {
		return nil, err
	}
	if of == g.Target {
		return base, nil
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxState), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	delta, err := r.DecodeAll(b[digest.Size:at], nil)
	if err != nil {
		return nil, fmt.Errorf("target of generation %d: %w: %w", g.Number, ErrCorrupt, err)
	}
	m, err := base.ApplyKnown(delta)
	if err != nil {
		return nil, fmt.Errorf("target of generation %d: %w: %w", g.Number, ErrCorrupt, err)
	}
	return m, nil
}

// targetSum is the check of a kept target.
func targetSum(b []byte, target digest.ID) digest.ID { return digest.Of(append(b, target[:]...)) }

// putTarget writes a target into the directory of the generation whose as-done
// manifest is done. It returns the target's digest.
func (n *Node) putTarget(dir string, done, target *manifest.Manifest) (digest.ID, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return digest.ID{}, err
	}
	defer w.Close()
	of, id := done.ID(), target.ID()
	b := w.EncodeAll(manifest.Delta(done, target), of[:])
	sum := targetSum(b[:len(b):len(b)], id)
	return id, n.putState(dir+"/target", append(b, sum[:]...))
}
