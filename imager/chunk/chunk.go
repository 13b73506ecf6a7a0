// Package chunk splits the content of files where the content itself says so,
// so that an insertion moves only the chunks around it.
package chunk

import (
	"errors"
	"fmt"
	"io"

	cdc "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc" // registers "fastcdc"
)

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

// Chunker splits one stream after another, reusing its buffer. It is not safe
// for concurrent use.
type Chunker struct {
	params Params
	cdc    *cdc.Chunker
	r      one
}

// New returns a Chunker with the default parameters.
func New() *Chunker {
	c := &Chunker{params: Default()}
	inner, err := cdc.NewChunker(c.params.Algorithm, &c.r, &cdc.ChunkerOpts{
		MinSize: c.params.Min, NormalSize: c.params.Avg, MaxSize: c.params.Max,
	})
	if err != nil { // constants that the tests cover
		panic(fmt.Sprintf("BUG: chunker: %v", err))
	}
	c.cdc = inner
	return c
}

// Params returns where c cuts.
func (c *Chunker) Params() Params { return c.params }

// Split reads r to its end and calls fn with one chunk after another, each
// Max bytes at most and, but for the last, more than Min. An empty stream has
// no chunk. data is valid only until fn returns. Errors of r and fn come back
// as they are.
func (c *Chunker) Split(r io.Reader, fn func(data []byte) error) error {
	c.r.src = r
	defer func() { c.r.src = nil }()
	c.cdc.Reset(&c.r)
	for {
		data, err := c.cdc.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(data) > 0 {
			if ferr := fn(data); ferr != nil {
				return ferr
			}
		}
		if err != nil {
			return nil
		}
	}
}

// one lets the library keep one reader while streams change.
type one struct{ src io.Reader }

func (o *one) Read(p []byte) (int, error) { return o.src.Read(p) }
