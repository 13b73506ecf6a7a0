package pxe

import (
	"encoding/hex"
	"errors"
	"strings"
)

// UUID is a machine's SMBIOS UUID in the order in which dmidecode prints it.
type UUID [16]byte

func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// swapped reverses the first three fields. SMBIOS 2.6 and option 97 (RFC 4578 2.3) keep them little-endian; text has them
// big-endian, and some firmware forgets to swap.
func (u UUID) swapped() UUID {
	return UUID{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]}
}

// Junk reports whether u is one of the values that many machines share, in either byte order: never an identity.
func (u UUID) Junk() bool {
	same := true // all 00, all FF, and every other single byte repeated
	for _, b := range u[1:] {
		same = same && b == u[0]
	}
	return same || knownJunk(u.String()) || knownJunk(u.swapped().String())
}

func knownJunk(s string) bool {
	switch s {
	case "03000200-0400-0500-0006-000700080009", // AMI's default: whole product lines of cheap boards
		"12345678-1234-5678-90ab-cddeefaabbcc",
		"12345678-1234-1234-1234-123456789abc",
		"00000000-0000-0000-0000-000000000001",
		"fefefefe-fefe-fefe-fefe-fefefefefefe":
		return true
	}
	return strings.HasPrefix(s, "00000000-0000-0000-0000-") // built from the MAC of whichever card is enabled
}

var errMachineID = errors.New("option 97 is not a type byte and 16 bytes of UUID")

// parseMachineID reads option 97 (RFC 4578 2.3): a type byte, which must be 0, and 16 bytes.
func parseMachineID(b []byte) (UUID, error) {
	if len(b) != 17 || b[0] != 0 {
		return UUID{}, errMachineID
	}
	return UUID(b[1:]).swapped(), nil
}
