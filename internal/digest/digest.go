// Package digest names content by its SHA-256 (FIPS 180-4).
package digest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Size is the length of an ID in bytes.
const Size = sha256.Size

// ID is the SHA-256 of some bytes. The zero ID names nothing.
type ID [Size]byte

// Of returns the ID of b.
func Of(b []byte) ID { return sha256.Sum256(b) }

// Parse reads the 64 lower-case hexadecimal digits that String writes.
func Parse(s string) (ID, error) {
	var id ID
	if len(s) != 2*Size {
		return ID{}, fmt.Errorf("digest %q: want %d hexadecimal digits, got %d characters", s, 2*Size, len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("digest %q: %w", s, err)
	}
	if id.String() != s {
		return ID{}, fmt.Errorf("digest %q: use lower-case digits", s)
	}
	return id, nil
}

// String returns id as 64 lower-case hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 12 digits of id, enough for people.
func (id ID) Short() string { return hex.EncodeToString(id[:6]) }

// IsZero reports whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; empty text is the zero ID.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	got, err := Parse(string(b))
	if err != nil {
		return err
	}
	*id = got
	return nil
}
