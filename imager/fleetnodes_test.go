package imager

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"testing"

	"ingot/imager/wire"
	"ingot/internal/digest"
	"ingot/internal/manifest"
)

// The nodes of TestTwentyForTheCPUOfOne are another process, so that what they
// use is not counted. This names the file of their questions.
const fleetNodes = "INGOT_TEST_FLEET"

func TestMain(m *testing.M) {
	if file := os.Getenv(fleetNodes); file != "" {
		if err := beNodes(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// beNodes is one node on each of the descriptors from 3 on. Each asks for what
// is in the file, the target that it runs and groups; where that is empty, for
// all of its target.
func beNodes(file string) error {
	questions, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	errs := make(chan error, n)
	for i := range n {
		go func() {
			f := os.NewFile(uintptr(3+i), "controller")
			defer f.Close()
			c := wire.New(&opened{r: bufio.NewReaderSize(f, 64<<10), aead: fleetCipher()}, f)
			kept := wire.Kept{}
			if len(questions) > 0 {
				kept.Runs = &wire.Made{Target: digest.ID(questions)}
				kept.Knows = kept.Runs
			}
			errs <- agent(c, kept, func(p wire.Puller, m *manifest.Manifest) error {
				if len(questions) == 0 {
					return drain(c, m)
				}
				return askRecorded(c, questions[digest.Size:])
			})
		}()
	}
	for range n {
		err = errors.Join(err, <-errs)
	}
	return err
}

// recorded is a question about groups: its length, how many they are, itself.
func recorded(b []byte, groups []wire.Group) []byte {
	var q []byte
	for _, g := range groups {
		for _, ids := range [][]digest.ID{g.Wanted, g.Like} {
			q = binary.AppendUvarint(q, uint64(len(ids)))
			for _, id := range ids {
				q = append(q, id[:]...)
			}
		}
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
	return append(binary.BigEndian.AppendUint32(b, uint32(len(groups))), q...)
}

func askRecorded(c *wire.Conn, b []byte) error {
	for len(b) > 0 {
		size, groups := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if err := c.SendRaw(wire.KindLike, b[8:8+size]); err != nil {
			return err
		}
		b = b[8+size:]
		for range groups {
			f, err := c.Next(nil)
			if err == nil && (f.Kind != wire.KindDiff || len(f.Payload) == 0) {
				err = fmt.Errorf("%d bytes of %q for a difference", len(f.Payload), byte(f.Kind))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// drain asks for all of m and does not decompress what comes, which others
// look at: it takes from the caches of the processor what is measured. The
// end is where a second question is answered.
func drain(c *wire.Conn, m *manifest.Manifest) error {
	var ids []digest.ID
	for id := range listChunks(m).at {
		ids = append(ids, id)
	}
	second := recorded(nil, []wire.Group{{Like: []digest.ID{{}}}})
	if err := errors.Join(c.SendIDs(wire.KindWant, ids), c.SendRaw(wire.KindLike, second[8:])); err != nil {
		return err
	}
	for {
		if f, err := c.Next(nil); err != nil || f.Kind == wire.KindDiff {
			return err
		}
	}
}

// fleetCipher is the one that SSH agrees on between us and OpenSSH.
func fleetCipher() cipher.AEAD {
	b, err := aes.NewCipher(make([]byte, 16))
	if err == nil {
		var a cipher.AEAD
		if a, err = cipher.NewGCM(b); err == nil {
			return a
		}
	}
	panic(err)
}

// sealedPacket is as much as SSH encrypts in one piece.
const sealedPacket = 32 << 10

// sealed encrypts what is written to it, as SSH does.
type sealed struct {
	w    io.Writer
	aead cipher.AEAD
	n    uint64
	buf  []byte
}

func (s *sealed) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part := rest[:min(len(rest), sealedPacket)]
		rest = rest[len(part):]
		if _, err := s.w.Write(s.seal(part)); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (s *sealed) seal(part []byte) []byte {
	var nonce [12]byte
	s.n++
	binary.BigEndian.PutUint64(nonce[4:], s.n)
	s.buf = binary.BigEndian.AppendUint32(s.buf[:0], uint32(len(part)+s.aead.Overhead()))
	s.buf = s.aead.Seal(s.buf, nonce[:], part, nil)
	return s.buf
}

// opened decrypts what sealed encrypted.
type opened struct {
	r    io.Reader
	aead cipher.AEAD
	n    uint64
	buf  []byte
	rest []byte
}

func (o *opened) Read(p []byte) (int, error) {
	for len(o.rest) == 0 {
		var head [4]byte
		if _, err := io.ReadFull(o.r, head[:]); err != nil {
			return 0, err
		}
		o.buf = slices.Grow(o.buf[:0], int(binary.BigEndian.Uint32(head[:])))[:binary.BigEndian.Uint32(head[:])]
		if _, err := io.ReadFull(o.r, o.buf); err != nil {
			return 0, err
		}
		var nonce [12]byte
		o.n++
		binary.BigEndian.PutUint64(nonce[4:], o.n)
		var err error
		if o.rest, err = o.aead.Open(o.buf[:0], nonce[:], o.buf, nil); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.rest)
	o.rest = o.rest[n:]
	return n, nil
}
