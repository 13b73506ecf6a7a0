package netboot

import (
	"fmt"
	"io"
)

// The types of a mode in a cpio header; cpio(5), as in st_mode.
const (
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

// cpioWriter writes the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
// It is our own because cavaliergopher/cpio leaves out the device numbers, and /dev/console needs them.
// Every time is 0 and every owner root, so that equal content gives equal bytes.
type cpioWriter struct {
	w     io.Writer
	inode int
	n     int64
	err   error
}

// entry writes one file; body is the content or the target of a symlink.
func (c *cpioWriter) entry(name string, mode uint32, body []byte, major, minor int) {
	c.inode++
	nlink := 1
	if mode&0o170000 == typeDir {
		nlink = 2
	}
	c.header(c.inode, mode, nlink, len(body), major, minor, name)
	c.write(body)
	c.pad()
}

// header writes the 110 bytes of the header, the name and its padding.
func (c *cpioWriter) header(inode int, mode uint32, nlink, size, major, minor int, name string) {
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, mode, 0, 0, nlink, 0, size, 0, 0, major, minor, len(name)+1, 0, name))
	c.pad()
}

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	var n int
	n, c.err = c.w.Write(p)
	c.n += int64(n)
}

// pad fills up to the next multiple of four.
func (c *cpioWriter) pad() { c.write(make([]byte, (4-c.n%4)%4)) }

// close writes the trailer and returns the first error there was.
func (c *cpioWriter) close() error {
	c.header(0, 0, 1, 0, 0, 0, "TRAILER!!!")
	return c.err
}
