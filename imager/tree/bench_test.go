package tree_test

import (
	"context"
	"os"
	"testing"

	"ingot/imager/store"
	"ingot/imager/tree"
	"ingot/internal/manifest"
)

// benchTree is a tree to measure on: INGOT_BENCH_TREE, or this machine's
// /usr/lib/x86_64-linux-gnu or whatever of it is there.
func benchTree(b *testing.B) string {
	b.Helper()
	if dir := os.Getenv("INGOT_BENCH_TREE"); dir != "" {
		return dir
	}
	return "/usr/share"
}

func benchStore(b *testing.B) *store.Store {
	b.Helper()
	s, err := store.Init(b.TempDir() + "/store")
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func captureInto(b *testing.B, s *store.Store, dir string, o tree.CaptureOptions) *manifest.Manifest {
	b.Helper()
	ctx := context.Background()
	w, err := s.NewWriter(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Abort()
	o.Sink, o.OneFileSystem = w, true
	m, _, err := tree.Capture(ctx, dir, o)
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		_, err = s.PutManifest(ctx, m)
	}
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// BenchmarkCaptureFirst is a capture into an empty store.
func BenchmarkCaptureFirst(b *testing.B) {
	dir := benchTree(b)
	for b.Loop() {
		s := benchStore(b)
		m := captureInto(b, s, dir, tree.CaptureOptions{})
		b.SetBytes(m.TotalSize())
	}
}

// BenchmarkCaptureKnown reads everything and stores nothing.
func BenchmarkCaptureKnown(b *testing.B) {
	dir := benchTree(b)
	s := benchStore(b)
	captureInto(b, s, dir, tree.CaptureOptions{})
	for b.Loop() {
		m := captureInto(b, s, dir, tree.CaptureOptions{})
		b.SetBytes(m.TotalSize())
	}
}

// BenchmarkCaptureCached reads nothing.
func BenchmarkCaptureCached(b *testing.B) {
	dir := benchTree(b)
	s := benchStore(b)
	cache, err := tree.OpenCache(b.TempDir() + "/cache")
	if err != nil {
		b.Fatal(err)
	}
	captureInto(b, s, dir, tree.CaptureOptions{Captured: cache.Record})
	if err := cache.Save(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m := captureInto(b, s, dir, tree.CaptureOptions{Cache: cache})
		b.SetBytes(m.TotalSize())
	}
}

// BenchmarkWrite makes the tree again.
func BenchmarkWrite(b *testing.B) {
	dir := benchTree(b)
	s := benchStore(b)
	m := captureInto(b, s, dir, tree.CaptureOptions{})
	b.SetBytes(m.TotalSize())
	for b.Loop() {
		if err := tree.Write(context.Background(), b.TempDir(), m, s, tree.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
