package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

// Memory is a Backend in memory, for tests.
type Memory struct {
	mu      sync.Mutex
	objects map[string]memObject
	writes  int
	lock    sync.RWMutex
}

type memObject struct {
	data  []byte
	when  time.Time
	stamp string
}

// NewMemory returns an empty Backend.
func NewMemory() *Memory { return &Memory{objects: map[string]memObject{}} }

// Put implements Backend.
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	m.objects[name] = memObject{bytes.Clone(data), time.Now(), fmt.Sprint(m.writes)}
	return nil
}

// Create implements Backend.
func (m *Memory) Create(ctx context.Context) (Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &memUpload{ctx: context.WithoutCancel(ctx), m: m}, nil
}

type memUpload struct {
	bytes.Buffer
	ctx  context.Context
	m    *Memory
	done bool
}

func (u *memUpload) Commit(name string) error {
	if u.done {
		return fmt.Errorf("commit %q: %w", name, os.ErrClosed)
	}
	u.done = true
	return u.m.Put(u.ctx, name, u.Bytes())
}

func (u *memUpload) Abort() { u.done = true }

// Open implements Backend.
func (m *Memory) Open(ctx context.Context, name string) (Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, ErrMissing)
	}
	return &memReader{bytes.NewReader(o.data), o}, nil
}

type memReader struct {
	*bytes.Reader
	o memObject
}

func (r *memReader) ModTime() time.Time { return r.o.when }

func (r *memReader) Stamp() string { return r.o.stamp }

func (r *memReader) Close() error { return nil }

// List implements Backend.
func (m *Memory) List(ctx context.Context, dir string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[string]bool{}
	for name := range m.objects {
		rest, ok := strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/")
		if !ok {
			continue
		}
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			rest = rest[:i+1]
		}
		seen[rest] = true
	}
	var names []string
	for n := range seen {
		names = append(names, n)
	}
	sort.Strings(names)
	return names, nil
}

// Remove implements Backend.
func (m *Memory) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; !ok {
		return fmt.Errorf("%s: %w", name, ErrMissing)
	}
	delete(m.objects, name)
	return nil
}

// Lock implements Backend.
func (m *Memory) Lock(ctx context.Context, exclusive bool) (func(), error) {
	try, release := m.lock.TryRLock, m.lock.RUnlock
	if exclusive {
		try, release = m.lock.TryLock, m.lock.Unlock
	}
	for !try() {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return release, nil
}
