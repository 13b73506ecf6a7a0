package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"ingot/internal/digest"
)

// Ref is the name of an image: name:tag. Tags can be moved, digests cannot.
type Ref struct {
	Name string
	Tag  string
}

// DefaultTag is meant where none is given.
const DefaultTag = "latest"

// ParseRef reads name or name:tag. Names and tags begin with a letter or
// digit and go on with letters, digits, dots, dashes and underscores, 128
// characters at most: they are file names, parts of URLs and easy to type.
func ParseRef(s string) (Ref, error) {
	name, tag, ok := strings.Cut(s, ":")
	if !ok {
		tag = DefaultTag
	}
	r := Ref{Name: name, Tag: tag}
	if err := r.check(); err != nil {
		return Ref{}, fmt.Errorf("image %q: %w", s, err)
	}
	return r, nil
}

func (r Ref) check() error {
	for what, part := range map[string]string{"name": r.Name, "tag": r.Tag} {
		if len(part) == 0 || len(part) > 128 {
			return fmt.Errorf("a %s has 1 to 128 characters", what)
		}
		for i, c := range []byte(part) {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			case i > 0 && (c == '.' || c == '-' || c == '_'):
			default:
				return fmt.Errorf("%q cannot be in a %s there", c, what)
			}
		}
	}
	return nil
}

// String returns name:tag.
func (r Ref) String() string { return r.Name + ":" + r.Tag }

func (r Ref) object() string { return "names/" + r.Name + "/" + r.Tag }

// Image is what is recorded under a name.
type Image struct {
	Digest  digest.ID `json:"digest"`
	Created time.Time `json:"created"`
	Parent  digest.ID `json:"parent,omitzero"` // the image that it was made from
	Source  string    `json:"source,omitempty"`
	Arch    string    `json:"arch,omitempty"` // as Go calls it: amd64, arm64
	Kernel  string    `json:"kernel,omitempty"`
	Notes   string    `json:"notes,omitempty"`
	Size    int64     `json:"size,omitempty"` // bytes of content
	Entries int       `json:"entries,omitempty"`
	Sealed  []string  `json:"sealed,omitempty"` // paths that were left out or blanked because they make a machine itself
}

// Named is an image with its name.
type Named struct {
	Ref
	Image
}

// SetRef gives an image its name, taking it from another that had it. The
// manifest has to be there already. A zero Created is now.
func (s *Store) SetRef(ctx context.Context, r Ref, img Image) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("name image %q: %w", r, err)
	}
	switch ok, err := s.HasManifest(ctx, img.Digest); {
	case err != nil:
		return fmt.Errorf("name image %q: %w", r, err)
	case !ok:
		return fmt.Errorf("name image %q: manifest %s: %w", r, img.Digest.Short(), ErrMissing)
	}
	if img.Created.IsZero() {
		img.Created = time.Now()
	}
	img.Created = img.Created.UTC().Truncate(time.Second)
	raw, err := encodeRecord(img)
	if err != nil {
		return fmt.Errorf("name image %q: %w", r, err)
	}
	if err := s.b.Put(ctx, r.object(), raw); err != nil {
		return fmt.Errorf("name image %q: %w", r, err)
	}
	return nil
}

// Ref reads what is recorded under a name.
func (s *Store) Ref(ctx context.Context, r Ref) (Image, error) {
	if err := r.check(); err != nil {
		return Image{}, fmt.Errorf("image %q: %w", r, err)
	}
	raw, err := readAll(ctx, s.b, r.object(), 1<<20)
	if err != nil {
		return Image{}, fmt.Errorf("image %q: %w", r, err)
	}
	img, err := decodeRecord(raw)
	if err != nil {
		return Image{}, fmt.Errorf("image %q: %w", r, &CorruptError{ID: img.Digest, Where: r.object(), Err: err})
	}
	return img, nil
}

// Resolve finds an image by name:tag, name or full digest.
func (s *Store) Resolve(ctx context.Context, text string) (digest.ID, error) {
	if id, err := digest.Parse(text); err == nil {
		ok, err := s.HasManifest(ctx, id)
		if err == nil && !ok {
			err = ErrMissing
		}
		if err != nil {
			return digest.ID{}, fmt.Errorf("image %s: %w", id.Short(), err)
		}
		return id, nil
	}
	r, err := ParseRef(text)
	if err != nil {
		return digest.ID{}, err
	}
	img, err := s.Ref(ctx, r)
	return img.Digest, err
}

// RemoveRef removes a name; the image stays until it is pruned.
func (s *Store) RemoveRef(ctx context.Context, r Ref) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("remove image %q: %w", r, err)
	}
	if err := s.b.Remove(ctx, r.object()); err != nil {
		return fmt.Errorf("remove image %q: %w", r, err)
	}
	return nil
}

// NameError is a name whose record cannot be read.
type NameError struct {
	Ref Ref
	Err error
}

func (e *NameError) Error() string { return e.Err.Error() }

// Unwrap returns why.
func (e *NameError) Unwrap() error { return e.Err }

// Refs lists all names, sorted, that can be read. Records that cannot are
// NameErrors, joined.
func (s *Store) Refs(ctx context.Context) ([]Named, error) {
	good, bad, err := s.refs(ctx)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(bad))
	for i, e := range bad {
		errs[i] = e
	}
	return good, errors.Join(errs...)
}

func (s *Store) refs(ctx context.Context) (good []Named, bad []*NameError, err error) {
	names, err := s.b.List(ctx, "names")
	if err != nil {
		return nil, nil, fmt.Errorf("list images: %w", err)
	}
	for _, name := range names {
		name, ok := strings.CutSuffix(name, "/")
		if !ok {
			continue
		}
		tags, err := s.b.List(ctx, "names/"+name)
		if err != nil {
			return nil, nil, fmt.Errorf("list images: %w", err)
		}
		for _, tag := range tags {
			r := Ref{Name: name, Tag: tag}
			if r.check() != nil {
				continue
			}
			switch img, err := s.Ref(ctx, r); {
			case ctx.Err() != nil:
				return nil, nil, fmt.Errorf("list images: %w", ctx.Err())
			case errors.Is(err, ErrMissing): // removed meanwhile
			case err != nil:
				bad = append(bad, &NameError{r, err})
			default:
				good = append(good, Named{r, img})
			}
		}
	}
	return good, bad, nil
}
