package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"ingot/internal/digest"
)

// record is what a file below names/ holds (docs/FORMAT.md, section 1).
type record struct {
	Image
	Check string `json:"check,omitempty"` // digest of the file with zeros in place of these digits
}

func blankCheck() string { return strings.Repeat("0", 2*digest.Size) }

func encodeRecord(img Image) ([]byte, error) {
	raw, err := json.MarshalIndent(record{img, blankCheck()}, "", "  ")
	if err != nil {
		return nil, err
	}
	raw = append(raw, '\n')
	sum := digest.Of(raw).String()
	copy(raw[bytes.LastIndex(raw, []byte(blankCheck())):], sum) // the last field
	return raw, nil
}

// decodeRecord reads a record. One without a check, as they were at first, is
// taken when it has no key that is unknown: that could be a damaged check.
func decodeRecord(raw []byte) (Image, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return Image{}, err
	}
	if r.Digest.IsZero() {
		return Image{}, errors.New("it has no digest")
	}
	if r.Check == "" {
		strict := json.NewDecoder(bytes.NewReader(raw))
		strict.DisallowUnknownFields()
		return r.Image, strict.Decode(&record{})
	}
	at := bytes.LastIndex(raw, []byte(r.Check))
	if len(r.Check) != 2*digest.Size || at < 0 {
		return r.Image, errors.New("its check is not one")
	}
	copy(raw[at:], blankCheck())
	if digest.Of(raw).String() != r.Check {
		return r.Image, errors.New("its check does not fit")
	}
	return r.Image, nil
}
