package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"ingot/internal/digest"
)

// dying is a Backend whose process dies before the nth change: that and all
// later ones fail and do nothing.
type dying struct {
	Backend
	mu   sync.Mutex
	left int
}

var errDead = errors.New("dead")

func (d *dying) step() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left == 0 {
		return errDead
	}
	d.left--
	return nil
}

func (d *dying) Put(ctx context.Context, name string, data []byte) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Backend.Put(ctx, name, data)
}

func (d *dying) Create(ctx context.Context) (Upload, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	u, err := d.Backend.Create(ctx)
	return &dyingUpload{u, d}, err
}

func (d *dying) Remove(ctx context.Context, name string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Backend.Remove(ctx, name)
}

type dyingUpload struct {
	Upload
	d *dying
}

func (u *dyingUpload) Write(b []byte) (int, error) {
	if err := u.d.step(); err != nil {
		n, _ := u.Upload.Write(b[:len(b)/2]) // torn
		return n, err
	}
	return u.Upload.Write(b)
}

func (u *dyingUpload) Commit(name string) error {
	if err := u.d.step(); err != nil {
		return err
	}
	return u.Upload.Commit(name)
}

func TestDeathAtEveryStep(t *testing.T) {
	chunks := content(3, 60)
	backends(t, func(t *testing.T, open func() Backend) {
		initStore(t, open())
		for n := 0; ; n++ {
			if n > 100 {
				t.Fatal("does not end")
			}
			ref := fmt.Sprintf("img:%d", n)
			fresh := slices.Concat(chunks, content(uint64(1000+n), 40))
			s := openStore(t, &dying{Backend: open(), left: n})
			_, err := publish(t.Context(), s, ref, fresh)
			if err != nil && !errors.Is(err, errDead) {
				t.Fatal(err)
			}
			after := openStore(t, open())
			if _, rerr := after.Resolve(t.Context(), ref); (rerr == nil) != (err == nil) {
				t.Fatalf("step %d: publish says %v, the name %v", n, err, rerr)
			}
			verifyClean(t, after)
			if err == nil {
				if n < 5 {
					t.Errorf("done after %d steps: nothing was tested", n)
				}
				fetchAll(t, after, fresh)
				break
			}
			if _, err := publish(t.Context(), after, ref, fresh); err != nil {
				t.Fatalf("step %d: a repeat: %v", n, err)
			}
			fetchAll(t, openStore(t, open()), fresh)
		}
	})
}

func TestCrashLeftovers(t *testing.T) {
	root := t.TempDir()
	s := initStore(t, NewDir(root))
	chunks := content(1, 40)
	if _, err := publish(t.Context(), s, "web", chunks); err != nil {
		t.Fatal(err)
	}
	// A torn pack and a torn index, as a power cut leaves them.
	torn := []string{"packs/.tmp-x", "index/.tmp-y", ".tmp-z", "packs/ab/.tmp-x", "manifests/ab/.tmp-m", "names/web/.tmp-n", "cache/.tmp-c", "damaged/.tmp-d"}
	for _, p := range torn {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, p)), 0700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, p), []byte("torn"), 0600); err != nil {
			t.Fatal(err)
		}
	}
	// A pack whose index was not written any more, and then no index at all.
	packs, err := s.packs(t.Context())
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs %v, %v", packs, err)
	}
	if err := os.RemoveAll(filepath.Join(root, "index")); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, NewDir(root))
	fetchAll(t, s, chunks)
	put(t, s, content(2, 10))
	for _, p := range torn {
		if _, err := os.Lstat(filepath.Join(root, p)); err == nil {
			t.Errorf("left %q", p)
		}
	}
	if err := os.Remove(filepath.Join(root, indexName(packs[0]))); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, NewDir(root))
	if n, err := s.Reindex(t.Context()); n != 1 || err != nil {
		t.Errorf("reindex %d, %v", n, err)
	}
	fetchAll(t, s, chunks)
	verifyClean(t, s)
	// Whoever writes again finds it, too.
	if err := os.Remove(filepath.Join(root, indexName(packs[0]))); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, NewDir(root))
	w, err := s.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, c := range chunks {
		if err := w.Put(t.Context(), digest.Of(c), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil || w.Stats().NewChunks != 0 {
		t.Errorf("%v, stored %d chunks again", err, w.Stats().NewChunks)
	}
}
