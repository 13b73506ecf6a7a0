package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/manifest"
)

const (
	maxManifest = 1 << 30   // raw bytes
	maxStored   = 512 << 20 // compressed bytes
)

// PutManifest stores m, whose chunks have to be in the store and durable, and
// returns its digest.
func (s *Store) PutManifest(ctx context.Context, m *manifest.Manifest) (digest.ID, error) {
	if err := m.Validate(); err != nil {
		return digest.ID{}, fmt.Errorf("store manifest: %w", err)
	}
	if err := s.refresh(ctx, time.Second); err != nil {
		return digest.ID{}, fmt.Errorf("store manifest: %w", err)
	}
	hashed := make(chan digest.ID, 1)
	go func() { hashed <- m.ID() }() // takes about as long as looking for every chunk
	missing := s.lacking(m)
	id := <-hashed
	if len(missing) > 0 {
		return digest.ID{}, fmt.Errorf("store manifest: %d of its chunks, as %s: %w", len(missing), missing[0].Short(), ErrMissing)
	}
	if _, err := s.RawManifest(ctx, id); err == nil {
		return id, nil
	}
	raw := m.Encode()
	if len(raw) > maxManifest {
		return digest.ID{}, fmt.Errorf("store manifest: %d bytes are too many", len(raw))
	}
	if err := s.b.Put(ctx, manifestName(id), appendCheck(s.enc.EncodeAll(raw, nil))); err != nil {
		return digest.ID{}, fmt.Errorf("store manifest: %w", err)
	}
	return id, nil
}

// lacking lists the chunks of a manifest that the store does not have.
func (s *Store) lacking(m *manifest.Manifest) (out []digest.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[digest.ID]bool{} // of those: mostly there are none
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			if _, ok := s.index.chunks[c.ID]; !ok && !seen[c.ID] {
				seen[c.ID] = true
				out = append(out, c.ID)
			}
		}
	}
	return out
}

// Manifest reads a manifest.
func (s *Store) Manifest(ctx context.Context, id digest.ID) (*manifest.Manifest, error) {
	_, raw, err := s.readManifest(ctx, id)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", id.Short(), err)
	}
	return m, nil
}

// RawManifest returns a manifest as it is stored, compressed, for whoever
// sends it on. It is checked all the same.
func (s *Store) RawManifest(ctx context.Context, id digest.ID) ([]byte, error) {
	stored, _, err := s.readManifest(ctx, id)
	return stored, err
}

func (s *Store) readManifest(ctx context.Context, id digest.ID) (stored, raw []byte, err error) {
	stored, err = readAll(ctx, s.b, manifestName(id), maxStored)
	if err != nil {
		return nil, nil, fmt.Errorf("read manifest %s: %w", id.Short(), err)
	}
	raw, err = UnpackManifest(id, stored)
	if err != nil {
		return nil, nil, err
	}
	return stored, raw, nil
}

// UnpackManifest decompresses what RawManifest returned and checks that it is
// the manifest id: what manifest.Decode reads.
func UnpackManifest(id digest.ID, stored []byte) ([]byte, error) {
	var raw []byte
	err := checkStored(stored)
	if err == nil {
		raw, err = inflateWhole(stored, maxManifest)
	}
	if err != nil {
		return nil, &CorruptError{ID: id, Where: manifestName(id), Err: err}
	}
	if got := digest.Of(raw); got != id {
		return nil, &CorruptError{ID: id, Got: got, Where: manifestName(id)}
	}
	return raw, nil
}

// inflateWhole decompresses one frame that says how much it holds, with what may
// be skipped behind it. What no frame of this length can hold costs no memory: a
// block of 4 bytes at least gives 128 KiB at most (RFC 8878, 3.1.1.2).
func inflateWhole(stored []byte, most uint64) ([]byte, error) {
	var head zstd.Header
	if err := head.Decode(stored); err != nil {
		return nil, err
	}
	can := min(most, (uint64(len(stored))/4+1)<<17)
	if head.Skippable || !head.HasFCS || head.FrameContentSize > can {
		return nil, fmt.Errorf("a frame of %d bytes that claims to hold %d", len(stored), head.FrameContentSize)
	}
	dec, err := newDecoder(1, most, zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	return dec.DecodeAll(stored, make([]byte, 0, head.FrameContentSize))
}

// checkHead begins the skippable frame (RFC 8878, 3.1.2) that holds the digest
// of the frame before it: most flipped bits of a frame change what it decodes
// to, but not all.
const checkHead = "\x50\x2a\x4d\x18\x20\x00\x00\x00"

func appendCheck(stored []byte) []byte {
	sum := digest.Of(stored)
	return append(append(stored, checkHead...), sum[:]...)
}

// checkStored compares a stored manifest with its check, where it has one:
// at first, they had none.
func checkStored(stored []byte) error {
	at := len(stored) - len(checkHead) - digest.Size
	if at < 0 || string(stored[at+1:at+len(checkHead)]) != checkHead[1:] {
		return nil // no frame, or one that cannot be decoded
	}
	if stored[at] != checkHead[0] || digest.Of(stored[:at]) != digest.ID(stored[at+len(checkHead):]) {
		return errors.New("its check does not fit")
	}
	return nil
}

// Manifests lists the manifests of the store.
func (s *Store) Manifests(ctx context.Context) ([]digest.ID, error) {
	ids, err := walkFan(ctx, s.b, "manifests", ".zst")
	if err != nil {
		return nil, fmt.Errorf("list manifests: %w", err)
	}
	return ids, nil
}

// HasManifest reports whether the store has a manifest under this digest; it
// does not read it.
func (s *Store) HasManifest(ctx context.Context, id digest.ID) (bool, error) {
	o, err := s.b.Open(ctx, manifestName(id))
	if errors.Is(err, ErrMissing) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, o.Close()
}

// Chunks returns the distinct chunks of m in the order of its tree.
func Chunks(m *manifest.Manifest) []digest.ID {
	seen := map[digest.ID]struct{}{}
	var ids []digest.ID
	for i := range m.Entries {
		for _, c := range m.Entries[i].Chunks {
			if _, ok := seen[c.ID]; !ok {
				seen[c.ID] = struct{}{}
				ids = append(ids, c.ID)
			}
		}
	}
	return ids
}
