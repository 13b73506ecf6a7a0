package rollback

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
)

// Probe tells by its superblock which file system a device has, of those that
// take part in switches: its type as mount(8) names it (ext4 for ext2 to ext4,
// which one driver serves) and its UUID. Others have none.
//
// Sources: fs/ext4/ext4.h (struct ext4_super_block), fs/xfs/libxfs/xfs_format.h
// (struct xfs_dsb), fs/btrfs/fs.h (struct btrfs_super_block).
func Probe(r io.ReaderAt) (fstype, uuid string) {
	at := func(off int64, n int) []byte {
		b := make([]byte, n)
		if _, err := r.ReadAt(b, off); err != nil {
			return make([]byte, n)
		}
		return b
	}
	const extSuper, btrfsSuper = 1024, 64 << 10
	switch {
	case binary.LittleEndian.Uint16(at(extSuper+0x38, 2)) == 0xEF53:
		return "ext4", uuidText(at(extSuper+0x68, 16))
	case bytes.Equal(at(0, 4), []byte("XFSB")):
		return "xfs", uuidText(at(32, 16))
	case bytes.Equal(at(btrfsSuper+0x40, 8), []byte("_BHRfS_M")):
		return "btrfs", uuidText(at(btrfsSuper+0x20, 16))
	}
	return "", ""
}

func uuidText(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// uuidOf reads the UUID of the file system on a device; "" where that cannot be.
func uuidOf(device string) string {
	if !strings.HasPrefix(device, "/dev/") {
		return ""
	}
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close()
	_, uuid := Probe(f)
	return uuid
}
