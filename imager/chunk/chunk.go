// Package chunk splits the content of files where the content itself says so,
// so that an insertion moves only the chunks around it.
package chunk

import "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc"

// Params say where content is cut. Two stores hold the same chunks for the
// same file only when their Params are equal, which is why they are recorded
// in a store and never changed in it. Sizes are in bytes.
type Params struct {
	Algorithm string `json:"algorithm"`
	Min       int    `json:"min"`
	Avg       int    `json:"avg"`
	Max       int    `json:"max"`
}

// Algorithm is FastCDC (Xia et al., USENIX ATC 2016) as version 1 of
// docs/FORMAT.md fixes it: gear hash with the library's static table, no key.
const Algorithm = "fastcdc"

// Default returns the parameters of this version of ingot. docs/FORMAT.md
// says what was measured before they were chosen.
func Default() Params {
	return Params{Algorithm: Algorithm, Min: 16 << 10, Avg: 64 << 10, Max: 256 << 10}
}

// The masks of the library's "fastcdc": 13 bits up to Avg, 11 beyond it.
const (
	maskSmall = 0x0003590703530000
	maskLarge = 0x0000d90003530000
)

// Cut returns how long the first chunk of data is: Max bytes at most and more
// than Min, unless data has no more. data holds Max bytes or more, or all that
// is left of the content. Nothing is cut of nothing.
func Cut(data []byte) int {
	p := Default()
	if len(data) <= p.Min {
		return len(data)
	}
	data = data[:min(len(data), p.Max)]
	mid := min(p.Avg, len(data))
	fp, n := scan(data[p.Min:mid], 0, maskSmall)
	if n += p.Min; n < mid {
		return n
	}
	_, n = scan(data[mid:], fp, maskLarge)
	return mid + n
}

// scan returns where the gear hash of data, which goes on from fp, is zero
// under the mask.
func scan(data []byte, fp, mask uint64) (uint64, int) {
	for i, b := range data {
		fp = fp<<1 + fastcdc.G[b]
		if fp&mask == 0 {
			return fp, i
		}
	}
	return fp, len(data)
}
