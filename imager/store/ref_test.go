package store

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNamesAndUsage(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		s := initStore(t, open())
		ctx := t.Context()
		common := content(1, 20)
		a, err := publish(ctx, s, "web:a", common)
		if err != nil {
			t.Fatal(err)
		}
		b, err := publish(ctx, s, "web:b", slices.Concat(common, content(2, 20)))
		if err != nil {
			t.Fatal(err)
		}
		use, err := s.Usage(ctx, nil)
		if err != nil || len(use) != 2 {
			t.Fatalf("usage %v, %v", use, err)
		}
		if use[0].Unique != 0 || use[1].Unique == 0 || use[1].Stored <= use[0].Stored || use[0].Bytes == 0 {
			t.Errorf("usage %+v", use)
		}
		when := time.Date(2026, 11, 20, 1, 2, 3, 0, time.UTC)
		web := Ref{"web", DefaultTag}
		want := Image{Digest: b, Created: when, Parent: a, Arch: "arm64", Kernel: "6.1", Notes: "n\n", Size: 5, Entries: 6, Sealed: []string{"/etc/x"}}
		for _, img := range []Image{{Digest: a}, want} { // tags move
			if err := s.SetRef(ctx, web, img); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.Ref(ctx, web); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ref %+v, %v", got, err)
		}
		if err := s.RemoveRef(ctx, Ref{"web", "a"}); err != nil {
			t.Error(err)
		}
		refs, err := s.Refs(ctx)
		if err != nil || len(refs) != 2 || refs[0].String() != "web:b" || refs[1].String() != "web:latest" {
			t.Errorf("refs %v, %v", refs, err)
		}
	})
}

func TestParseRef(t *testing.T) {
	for in, want := range map[string]Ref{
		"web": {"web", "latest"}, "web:1": {"web", "1"}, "debian-12:stable": {"debian-12", "stable"},
		"A.b_c-d:2026-11-20": {"A.b_c-d", "2026-11-20"},
	} {
		if got, err := ParseRef(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ":", "web:", ":1", ".:x", "..:x", "../x", "a/b", "-rf", "a:b:c", "a:.tmp-x", "a b", "ä", "a\x00",
		strings.Repeat("x", 129), "a:_"} {
		if got, err := ParseRef(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestLock(t *testing.T) {
	backends(t, func(t *testing.T, open func() Backend) {
		initStore(t, open())
		a, b := openStore(t, open()), openStore(t, open())
		one, err := a.Lock(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		two, err := b.Lock(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := b.Lock(short, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("exclusive beside shared: %v", err)
		}
		time.AfterFunc(5*time.Millisecond, func() { one(); two() })
		release, err := b.Lock(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		release()
	})
}
