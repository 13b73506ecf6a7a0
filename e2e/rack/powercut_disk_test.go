package rack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ingot/internal/writelog"
)

// history is what a disk can be after a power cut: its state at each flush,
// which is kept as a copy that shares what did not change, and what was written
// after it, of which a disk with a cache may hold any part.
type history struct {
	b      *bench
	dir    string // on a file system with reflinks
	log    *writelog.Log
	size   int64 // of the disk, in bytes
	extent       // of the largest partition
	parts  []extent
	points []point
}

// extent is where a partition is on its disk, in bytes.
type extent struct{ start, length int64 }

// loop are mount(8)'s options for a partition in the image of a disk.
func (x extent) loop() string { return fmt.Sprintf("loop,offset=%d,sizelimit=%d", x.start, x.length) }

// view is the partition for debugfs and e2fsck.
func (x extent) view(img string) string { return fmt.Sprintf("%s?offset=%d", img, x.start) }

// point is one flush.
type point struct {
	flush int64            // its entry in the log
	later []writelog.Entry // up to the next one
}

// cacheBlock is the unit in which a disk writes whole or not at all, in bytes.
// Disks with 512-byte sectors may tear ext4's blocks; nobody has made them for
// a decade, and ext4 itself would not survive it.
const cacheBlock = 4096

// diskFile is a disk in a sparse file.
type diskFile struct{ *os.File }

// Punch implements writelog.Puncher.
func (d diskFile) Punch(off, n int64) error {
	return unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// openLog reads what has been logged until now of the writes to a machine's disk.
func (b *bench) openLog(machine string) *writelog.Log {
	b.t.Helper()
	m, err := b.rack.Machine(machine)
	b.must(err)
	f, err := os.Open(m.Disks[0].WriteLog)
	b.must(err)
	b.t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	b.must(err)
	l, err := writelog.Open(f, st.Size())
	b.must(err)
	return l
}

// logged makes all of the node n1 durable and says how many entries the log of
// its machine has.
func (b *bench) logged(machine string) int64 {
	b.t.Helper()
	b.ssh("n1", "sync")
	return b.openLog(machine).Entries
}

// replay keeps the states of the disk at all flushes from entry begin to entry
// end, and replays the rest, too: it has to be what is on the disk. The log
// began on the disk base.
func (b *bench) replay(machine, base string, begin, end int64) *history {
	b.t.Helper()
	m, err := b.rack.Machine(machine)
	b.must(err)
	st, err := os.Stat(m.Disks[0].Path)
	b.must(err)
	h := &history{b: b, dir: b.reflinks(), log: b.openLog(machine), size: st.Size()}
	b.copyDisk(base, filepath.Join(h.dir, "work.img"))
	work, err := os.OpenFile(filepath.Join(h.dir, "work.img"), os.O_RDWR, 0)
	b.must(err)
	defer work.Close()
	inside := false
	for e, err := range h.log.All() {
		b.must(err)
		b.must(h.log.Replay(diskFile{work}, h.size, e))
		last := len(h.points) - 1
		switch {
		case e.Flags&writelog.Flush != 0:
			if inside = e.Index >= begin-1 && e.Index < end; inside {
				h.points = append(h.points, point{flush: e.Index})
				b.must(clone(work.Name(), h.at(last+1)))
			}
		case inside:
			h.points[last].later = append(h.points[last].later, e)
		}
	}
	b.must(equalDisks(work.Name(), m.Disks[0].Path))
	h.findParts(work.Name())
	return h
}

// at is the file of the disk as it was at a flush.
func (h *history) at(i int) string {
	return filepath.Join(h.dir, fmt.Sprintf("flush-%06d.img", h.points[i].flush))
}

// reflinks mounts an XFS, which can copy an image of a disk in no time.
func (b *bench) reflinks() string {
	b.t.Helper()
	img, dir := filepath.Join(b.rack.Dir(), "history.xfs"), filepath.Join(b.rack.Dir(), "history")
	f, err := os.Create(img)
	b.must(err)
	b.must(errors.Join(f.Truncate(64<<30), f.Close()))
	b.command("mkfs.xfs", "-q", "-m", "reflink=1", img)
	b.must(os.Mkdir(dir, 0o700))
	b.command("mount", "-o", "loop", img, dir)
	b.t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			b.t.Error(err)
		}
	})
	return dir
}

// clone makes dst a copy of src that shares its blocks: ioctl_ficlone(2).
func clone(src, dst string) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(dst)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlFileClone(int(to.Fd()), int(from.Fd())), to.Close())
}

// cut makes an image of the disk as a power cut leaves it: all up to a flush,
// and, with a seed, of each later write all, nothing, or some blocks.
func (h *history) cut(i int, seed uint64, dst string) error {
	if err := clone(h.at(i), dst); err != nil || seed == 0 {
		return err
	}
	f, err := os.OpenFile(dst, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(uint64(h.points[i].flush), seed))
	for _, e := range h.points[i].later {
		whole, torn := r.IntN(2) == 0, r.IntN(8) == 0
		for off := e.Off; off < e.Off+e.Length; {
			next := min(e.Off+e.Length, (off/cacheBlock+1)*cacheBlock)
			if torn {
				whole = r.IntN(2) == 0
			} else {
				next = e.Off + e.Length
			}
			if whole {
				if err := h.log.Replay(diskFile{f}, h.size, e.Part(off, next-off)); err != nil {
					return err
				}
			}
			off = next
		}
	}
	return nil
}

// findParts finds the partitions.
func (h *history) findParts(disk string) {
	h.b.t.Helper()
	var table struct {
		PartitionTable struct {
			SectorSize int64
			Partitions []struct{ Start, Size int64 }
		}
	}
	h.b.must(json.Unmarshal([]byte(h.b.command("sfdisk", "--json", disk)), &table))
	sector := max(512, table.PartitionTable.SectorSize)
	for _, p := range table.PartitionTable.Partitions {
		x := extent{p.Start * sector, p.Size * sector}
		h.parts = append(h.parts, x)
		if x.length > h.length {
			h.extent = x
		}
	}
	if h.length == 0 {
		h.b.t.Fatalf("%q has no partitions", disk)
	}
}

// equalDisks compares two sparse files, reading only what one of them has.
func equalDisks(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	const block = 1 << 20
	ba, bb := make([]byte, block), make([]byte, block)
	for off := int64(0); ; off += block {
		next := min(nextData(fa, off), nextData(fb, off))
		if next == 1<<62 {
			return nil
		}
		off = next / block * block
		na, erra := fa.ReadAt(ba, off)
		nb, errb := fb.ReadAt(bb, off)
		if erra != nil && erra != io.EOF || errb != nil && errb != io.EOF {
			return errors.Join(erra, errb)
		}
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return fmt.Errorf("%q and %q differ near byte %d: the log is not what was written", a, b, off)
		}
	}
}

// nextData is where data follows in a file at or after off; 1<<62 is nowhere.
func nextData(f *os.File, off int64) int64 {
	next, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if err != nil {
		return 1 << 62
	}
	return next
}

// output runs a program, and has both of its streams in the error.
func output(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return string(out), err
}
