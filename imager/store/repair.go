package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"ingot/internal/digest"
	"ingot/internal/slogx"
)

// Repaired says what Repair did.
type Repaired struct {
	Packs     []digest.ID // taken out of use
	Indexes   []digest.ID // packs whose index files were written again
	Manifests []digest.ID // taken out of use
	Images    []string    // names that lack something now: to be captured or built again
}

// Repair takes out of use what a report found damaged, so that a capture
// stores it anew: packs, manifests that cannot be read, and manifests without
// a name that lack chunks. The files stay beside the others under damaged/.
// Damaged index files are written again from their packs.
// The caller holds the exclusive lock since before the report was made.
func (s *Store) Repair(ctx context.Context, r Report) (Repaired, error) {
	var out Repaired
	for _, d := range r.Damage {
		id, err := digest.Parse(d.ID)
		switch {
		case err != nil: // a name
		case d.Object == "pack":
			if err := s.Quarantine(ctx, id); err != nil {
				return out, fmt.Errorf("repair: %w", err)
			}
			out.Packs = append(out.Packs, id)
		case d.Object == "index":
			block, _, err := s.ownBlock(ctx, id)
			if err == nil {
				err = s.b.Put(ctx, indexName(id), block)
			}
			if err != nil {
				return out, fmt.Errorf("repair: index of pack %s: %w", id.Short(), err)
			}
			out.Indexes = append(out.Indexes, id)
		}
	}
	if err := s.Refresh(ctx); err != nil {
		return out, fmt.Errorf("repair: %w", err)
	}
	if err := s.repairManifests(ctx, &out); err != nil {
		return out, fmt.Errorf("repair: %w", err)
	}
	return out, nil
}

func (s *Store) repairManifests(ctx context.Context, out *Repaired) error {
	good, bad, err := s.refs(ctx)
	if err != nil {
		return err
	}
	for _, e := range bad {
		out.Images = append(out.Images, e.Ref.String())
	}
	names := map[digest.ID][]string{}
	for _, n := range good {
		names[n.Digest] = append(names[n.Digest], n.Ref.String())
	}
	ids, err := s.Manifests(ctx)
	if err != nil {
		return err
	}
	for id, called := range names {
		if !slices.Contains(ids, id) {
			out.Images = append(out.Images, called...)
		}
	}
	for _, id := range ids {
		m, err := s.Manifest(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && len(s.missing(Chunks(m), nil)) == 0 {
			continue
		}
		out.Images = append(out.Images, names[id]...)
		if err == nil && len(names[id]) > 0 {
			continue // what it has is a reason to keep it: the same capture makes it whole
		}
		if err := s.setAside(ctx, manifestName(id), "damaged/"+id.String()+".zst"); err != nil {
			return fmt.Errorf("manifest %s: %w", id.Short(), err)
		}
		out.Manifests = append(out.Manifests, id)
	}
	slices.Sort(out.Images)
	out.Images = slices.Compact(out.Images)
	slices.SortFunc(out.Manifests, func(a, b digest.ID) int { return bytes.Compare(a[:], b[:]) })
	return nil
}

// Quarantine takes a damaged pack out of use, so that a capture stores its
// chunks again. What is still good in it is lost to the store; the file stays
// beside the others under damaged/.
func (s *Store) Quarantine(ctx context.Context, id digest.ID) error {
	// The pack first: without its index a writer would index it again.
	err := s.setAside(ctx, packName(id), "damaged/"+id.String())
	if err == nil || errors.Is(err, ErrMissing) {
		err = s.b.Remove(ctx, indexName(id))
	}
	if err != nil && !errors.Is(err, ErrMissing) {
		return fmt.Errorf("quarantine pack %s: %w", id.Short(), err)
	}
	slogx.Or(s.Log).Warn("took a pack out of use", "pack", id.Short())
	return s.Refresh(ctx)
}

// mover is a Backend that can rename objects.
type mover interface {
	Move(ctx context.Context, from, to string) error
}

func (s *Store) setAside(ctx context.Context, name, to string) error {
	if m, ok := s.b.(mover); ok {
		return m.Move(ctx, name, to)
	}
	raw, err := readAll(ctx, s.b, name, math.MaxInt64)
	if err != nil {
		return err
	}
	if err := s.b.Put(ctx, to, raw); err != nil {
		return err
	}
	return s.b.Remove(ctx, name)
}

// Aside says how many files repairs have taken out of use, and their bytes.
func (s *Store) Aside(ctx context.Context) (files int, bytes int64, err error) {
	names, err := s.b.List(ctx, "damaged")
	if err != nil {
		return 0, 0, fmt.Errorf("list damaged objects: %w", err)
	}
	for _, name := range names {
		o, err := s.b.Open(ctx, "damaged/"+name)
		if err != nil {
			return 0, 0, err
		}
		files, bytes = files+1, bytes+o.Size()
		o.Close()
	}
	return files, bytes, nil
}
