package disks

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// mib is the default alignment, and where the first partition begins.
const mib = 1 << 20

// extent is where a partition is, in bytes.
type extent struct {
	part  *Partition // nil for what the label needs: extended, BIOS boot
	num   int
	start uint64
	size  uint64
	bios  bool
}

// sizing is FAI's size algorithm for one disk: partitions in order of their numbers,
// logical ones before the extended one, each range taking its share of what is left.
type sizing struct {
	disk   *Disk
	sector uint64
	ram    uint64
	align  uint64
	full   uint64 // bytes that 100 % mean
	last   uint64 // last usable byte
}

// sizes places the partitions of a disk of size bytes. align is used where the stanza has none.
func (d *Disk) sizes(size, sector, ram, align uint64) ([]extent, error) {
	s := &sizing{disk: d, sector: sector, ram: ram, align: max(align, sector)}
	if d.Align > 0 {
		s.align = d.Align
	}
	if s.align%sector != 0 {
		return nil, fmt.Errorf("align-at of %d bytes is no multiple of the disk's sectors of %d", s.align, sector)
	}
	start := uint64(mib)
	var out []extent
	if d.Label == "gpt-bios" {
		out = append(out, extent{num: len(d.Partitions) + 1, start: start, size: mib, bios: true})
		start += mib
	}
	if size < start+mib {
		return nil, fmt.Errorf("it holds %s only", human(size))
	}
	s.last = size - 1
	if d.GPT() {
		// The backup of the table: one header, 128 entries of 128 bytes (UEFI 2.10, 5.3.1).
		s.last -= sector * (1 + (128*128+sector-1)/sector)
	}
	parts, err := s.place(roundUp(start, s.align))
	return append(out, parts...), err
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// gap is what a logical partition's table takes before it.
func (s *sizing) gap() uint64 { return max(2*s.sector, s.align) }

// order is the work list.
func (s *sizing) order() []*Partition {
	work := slices.Clone(s.disk.Partitions)
	ext := s.disk.extended()
	rank := func(p *Partition) int {
		switch {
		case p.Logical:
			return 1
		case ext > 0 && p.Number > ext:
			return 2
		}
		return 0
	}
	slices.SortStableFunc(work, func(a, b *Partition) int {
		if r := rank(a) - rank(b); r != 0 {
			return r
		}
		return a.Number - b.Number
	})
	return work
}

func (s *sizing) place(start uint64) ([]extent, error) {
	s.full = s.last + 1 - start
	work := s.order()
	if err := s.fits(start, work); err != nil {
		return nil, err
	}
	var out []extent
	var first, end uint64 // of the logical partitions
	for i, p := range work {
		if p.Logical {
			start += 2 * s.sector
		}
		start = roundUp(start, s.align)
		size, err := s.share(start, work[i:])
		if err != nil {
			return nil, err
		}
		stop := (start + size) / s.align * s.align
		if stop <= start {
			return nil, fmt.Errorf("%s gets less than one alignment unit of %s", p.title(), human(s.align))
		}
		if stop > s.last+1 {
			return nil, fmt.Errorf("%s does not fit by %s", p.title(), human(stop-s.last-1))
		}
		if err := s.limit(p, start, stop); err != nil {
			return nil, err
		}
		out = append(out, extent{part: p, num: p.Number, start: start, size: stop - start})
		if p.Logical {
			if first == 0 {
				first = start - s.gap()
			}
			end = stop
		}
		start = stop
	}
	if end > 0 {
		out = append(out, extent{num: s.disk.extended(), start: first, size: end - first})
	}
	return out, nil
}

// limit: an msdos table counts sectors in 32 bits.
func (s *sizing) limit(p *Partition, start, stop uint64) error {
	if s.disk.GPT() {
		return nil
	}
	if end := stop / s.sector; end > math.MaxUint32 || (stop-start)/s.sector > math.MaxUint32 {
		return fmt.Errorf("%s would end beyond 2^32 sectors, which an msdos table cannot say: use disklabel:gpt or gpt-bios", p.title())
	}
	return nil
}

// share is the size of the first partition of work, which begins at start.
func (s *sizing) share(start uint64, work []*Partition) (uint64, error) {
	lo, hi := s.bounds(work[0])
	if lo == hi {
		return lo, nil
	}
	var sumMin, sumMax uint64
	for i, p := range work {
		a, b := s.bounds(p)
		if p.Logical && i > 0 {
			a, b = a+s.gap(), b+s.gap()
		}
		sumMin, sumMax = sumMin+a, sumMax+b
	}
	avail := s.last - start + 1
	if avail < sumMin {
		return 0, fmt.Errorf("%s and what follows need %s, but %s are left", work[0].title(), human(sumMin), human(avail))
	}
	if sumMax <= avail {
		return hi, nil
	}
	part := math.Floor(float64(hi-lo) * (float64(avail-sumMin) / float64(sumMax-sumMin)))
	return min(lo+uint64(part), hi), nil
}

// bounds are the least and the most bytes of a partition.
func (s *sizing) bounds(p *Partition) (lo, hi uint64) {
	lo = p.Size.Min.bytes(s.full, s.ram, false)
	if p.Size.Max == p.Size.Min {
		return lo, lo
	}
	return lo, max(lo, p.Size.Max.bytes(s.full, s.ram, true))
}

// fits checks the minima against the disk, to say at once by how much it is too small.
func (s *sizing) fits(start uint64, work []*Partition) error {
	end := start
	var names []string
	for _, p := range work {
		lo, _ := s.bounds(p)
		if p.Logical {
			end += 2 * s.sector
		}
		end = roundUp(end, s.align) + lo/s.align*s.align
		names = append(names, p.title()+" "+human(lo))
		if lo > math.MaxInt64/4 {
			end = math.MaxInt64
			break
		}
	}
	if end > s.last+1 {
		return fmt.Errorf("it is too small by %s: at least %s are needed for %s",
			human(end-s.last-1), human(end-start), strings.Join(names, ", "))
	}
	return nil
}

// title names a partition to people.
func (p *Partition) title() string {
	switch {
	case p.Mount != "":
		return p.Mount
	case p.Name != "":
		return p.Name
	}
	return fmt.Sprintf("partition %d", p.Number)
}
