package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// A pack is packMagic, zstd frames one after another, and its index block:
// body, SHA-256 of the body, length of the body (64 bits), blockMagic. All
// numbers are little-endian. The name of a pack is the SHA-256 of all of it.
const (
	packMagic  = "INGOTPK1"
	blockMagic = "INGOTIX1"
	trailerLen = digest.Size + 8 + len(blockMagic)

	frameTarget = 1 << 20   // a frame is closed when it holds as many raw bytes
	packTarget  = 32 << 20  // a pack is closed when it holds as many bytes
	maxFrame    = 8 << 20   // raw bytes of one frame, which readers hold in memory
	maxPack     = 256 << 20 // bytes of one pack

	frameHead = 12 // length, raw length, chunks
	chunkHead = digest.Size + 4
)

// frame is one zstd frame of a pack and the chunks that follow each other in it.
type frame struct {
	length uint32
	raw    uint32
	chunks []entry.Chunk
}

// appendBlock appends the index block of a pack with these frames: per frame
// its length, raw length and number of chunks (32 bits each), then the digest
// and size (32 bits) of every chunk.
func appendBlock(b []byte, frames []frame) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frames)))
	for _, f := range frames {
		b = binary.LittleEndian.AppendUint32(b, f.length)
		b = binary.LittleEndian.AppendUint32(b, f.raw)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(f.chunks)))
		for _, c := range f.chunks {
			b = append(b, c.ID[:]...)
			b = binary.LittleEndian.AppendUint32(b, c.Size)
		}
	}
	sum := digest.Of(b[start:])
	n := len(b) - start
	b = append(b, sum[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(n))
	return append(b, blockMagic...)
}

// blockLen reads from the last trailerLen bytes of a pack how long its index block is.
func blockLen(trailer []byte) (int64, error) {
	if len(trailer) != trailerLen || string(trailer[digest.Size+8:]) != blockMagic {
		return 0, errors.New("no index at the end")
	}
	n := binary.LittleEndian.Uint64(trailer[digest.Size:])
	if n > maxPack {
		return 0, fmt.Errorf("an index of %d bytes", n)
	}
	return int64(n) + int64(trailerLen), nil
}

// decodeBlock reads an index block, which is all of b.
func decodeBlock(b []byte) ([]frame, error) {
	if len(b) < trailerLen {
		return nil, errors.New("pack index: truncated")
	}
	n, err := blockLen(b[len(b)-trailerLen:])
	if err != nil {
		return nil, fmt.Errorf("pack index: %w", err)
	}
	body := b[:len(b)-trailerLen]
	if n != int64(len(b)) {
		return nil, fmt.Errorf("pack index: %d bytes, not %d", len(b), n)
	}
	if digest.Of(body) != digest.ID(b[len(body):len(body)+digest.Size]) {
		return nil, errors.New("pack index: wrong checksum")
	}
	frames, err := decodeBody(body)
	if err != nil {
		return nil, fmt.Errorf("pack index: %w", err)
	}
	return frames, nil
}

func decodeBody(b []byte) ([]frame, error) {
	if len(b) < 4 {
		return nil, errors.New("truncated")
	}
	count := binary.LittleEndian.Uint32(b)
	b = b[4:]
	if uint64(count) > uint64(len(b)/(frameHead+chunkHead)) {
		return nil, fmt.Errorf("%d frames do not fit", count)
	}
	frames := make([]frame, count)
	size := int64(len(packMagic))
	for i := range frames {
		if len(b) < frameHead {
			return nil, errors.New("truncated")
		}
		f := frame{length: binary.LittleEndian.Uint32(b), raw: binary.LittleEndian.Uint32(b[4:])}
		n := binary.LittleEndian.Uint32(b[8:])
		b = b[frameHead:]
		if n == 0 || uint64(n) > uint64(len(b)/chunkHead) {
			return nil, fmt.Errorf("%d chunks in frame %d", n, i)
		}
		f.chunks = make([]entry.Chunk, n)
		sum := uint64(0)
		for j := range f.chunks {
			c := entry.Chunk{ID: digest.ID(b[:digest.Size]), Size: binary.LittleEndian.Uint32(b[digest.Size:])}
			if c.Size == 0 || c.Size > manifest.MaxChunk {
				return nil, fmt.Errorf("a chunk of %d bytes", c.Size)
			}
			sum += uint64(c.Size)
			f.chunks[j] = c
			b = b[chunkHead:]
		}
		if sum != uint64(f.raw) || sum > maxFrame || f.length == 0 || f.length > 2*maxFrame {
			return nil, fmt.Errorf("frame %d of %d bytes, %d raw, chunks of %d", i, f.length, f.raw, sum)
		}
		size += int64(f.length)
		frames[i] = f
	}
	if len(b) != 0 {
		return nil, errors.New("trailing bytes")
	}
	if count == 0 || size > maxPack {
		return nil, fmt.Errorf("a pack of %d frames and %d bytes", count, size)
	}
	return frames, nil
}

// packSize returns how long a pack with these frames is.
func packSize(frames []frame) int64 {
	n := int64(len(packMagic) + 4 + trailerLen)
	for i := range frames {
		n += int64(frames[i].length) + frameHead + int64(len(frames[i].chunks))*chunkHead
	}
	return n
}

// inflate decompresses one frame into buf, which is grown when it is too
// small: exactly raw bytes, or an error.
func inflate(dec *zstd.Decoder, data, buf []byte, raw uint32) ([]byte, error) {
	var head zstd.Header
	if err := head.Decode(data); err != nil {
		return nil, err
	}
	if head.Skippable || !head.HasFCS || head.FrameContentSize != uint64(raw) {
		return nil, fmt.Errorf("a frame that does not hold %d bytes", raw)
	}
	if cap(buf) < int(raw) {
		buf = make([]byte, 0, raw)
	}
	out, err := dec.DecodeAll(data, buf[:0])
	if err != nil {
		return nil, err
	}
	if len(out) != int(raw) {
		return nil, fmt.Errorf("%d bytes instead of %d", len(out), raw)
	}
	return out, nil
}
