package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
)

// cacheFiles holds small files that are found out again when they are lost.
// Nothing is fsynced; what is damaged, or of another version, is not there.
type cacheFiles struct{ dir string }

// maxCached bounds the files of a cacheFiles, each of a few kilobytes.
const maxCached = 20_000

func (c cacheFiles) head() []byte { return []byte("ingot cache 1 of " + version + "\n") }

func (c cacheFiles) get(name digest.ID) ([]byte, bool) {
	path := filepath.Join(c.dir, name.String())
	b, err := os.ReadFile(path)
	rest, ok := bytes.CutPrefix(b, c.head())
	if err != nil || !ok || len(rest) < digest.Size {
		return nil, false
	}
	end := len(b) - digest.Size
	if digest.Of(b[:end]) != digest.ID(b[end:]) {
		return nil, false
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // the oldest go first
	return rest[:len(rest)-digest.Size], true
}

func (c cacheFiles) put(name digest.ID, body []byte) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return
	}
	b := slices.Concat(c.head(), body)
	id := digest.Of(b)
	// Written in place: half a file is none, and leaves nothing to be swept up.
	_ = os.WriteFile(filepath.Join(c.dir, name.String()), append(b, id[:]...), 0o600)
	if id[0] < 4 { // now and then
		c.sweep(maxCached)
	}
}

// sweep removes the files that were not used for longest when there are more than most.
func (c cacheFiles) sweep(most int) {
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) <= most {
		return
	}
	type used struct {
		name string
		at   time.Time
	}
	var all []used
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			all = append(all, used{e.Name(), st.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b used) int { return a.at.Compare(b.at) })
	for _, u := range all[:max(0, len(all)-most*3/4)] {
		_ = os.Remove(filepath.Join(c.dir, u.name))
	}
}

// targetCache remembers what nodes were sent: the digest of a target, so that
// a push of nothing need not read the image, and the overlay in it, so that a
// target can be made again as the base of a delta.
type targetCache struct{ cacheFiles }

// knownTarget is an image with an overlay laid over it.
type knownTarget struct {
	target  digest.ID // of the manifest
	overlay *manifest.Manifest
}

func nameOf(made wire.Made) digest.ID {
	return digest.Of(slices.Concat(made.Image[:], made.Overlay[:]))
}

func (c targetCache) get(made wire.Made) (knownTarget, bool) {
	b, ok := c.cacheFiles.get(nameOf(made))
	if !ok || len(b) < digest.Size {
		return knownTarget{}, false
	}
	m, err := manifest.Decode(b[digest.Size:])
	if err != nil || m.ID() != made.Overlay {
		return knownTarget{}, false
	}
	return knownTarget{digest.ID(b[:digest.Size]), m}, true
}

func (c targetCache) put(made wire.Made, k knownTarget) {
	c.cacheFiles.put(nameOf(made), slices.Concat(k.target[:], k.overlay.Encode()))
}

// packCache remembers in which packs an image is.
type packCache struct{ cacheFiles }

func (c packCache) get(image digest.ID) ([]digest.ID, bool) {
	b, ok := c.cacheFiles.get(image)
	var out []digest.ID
	for ; len(b) >= digest.Size; b = b[digest.Size:] {
		out = append(out, digest.ID(b[:digest.Size]))
	}
	return out, ok
}

func (c packCache) put(image digest.ID, packs []digest.ID) {
	var b []byte
	for _, id := range packs {
		b = append(b, id[:]...)
	}
	c.cacheFiles.put(image, b)
}
