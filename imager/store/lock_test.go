package store

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Whoever has to wait is told for whom.
func TestLockWithin(t *testing.T) {
	root := t.TempDir()
	s := initStore(t, NewDir(root))
	release, err := s.Lock(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	other := openStore(t, NewDir(root))
	var busy *BusyError
	if _, err := other.LockWithin(t.Context(), true, 0, nil); !errors.As(err, &busy) {
		t.Errorf("busy: %v", err)
	}
	told := 0
	if _, err := other.LockWithin(t.Context(), true, time.Millisecond, func(*BusyError) { told++ }); !errors.As(err, &busy) || told != 1 {
		t.Errorf("busy: %v, told %d times", err, told)
	}
	if shared, err := other.LockWithin(t.Context(), false, 0, nil); err != nil {
		t.Errorf("shared: %v", err)
	} else {
		shared()
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := other.LockWithin(ctx, true, time.Hour, func(*BusyError) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	got, err := other.LockWithin(t.Context(), true, time.Hour, func(*BusyError) { release() })
	if err != nil {
		t.Fatal(err)
	}
	got()
}
