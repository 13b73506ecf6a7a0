package pxe_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"ingot/pxe"
	"ingot/pxe/pxetest"
)

func TestFindLoaders(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"Undionly.KPXE", "ipxe.efi", "notes.txt"} {
		check(t, os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644))
	}
	l, err := pxe.FindLoaders(dir)
	if err == nil || !strings.Contains(err.Error(), `"snponly.efi" is not in "`+dir) || !strings.Contains(err.Error(), "apt install ipxe") {
		t.Errorf("a missing loader: %v", err)
	}
	if !l.Has("undionly.kpxe") || l.Has("notes.txt") {
		t.Error("wrong files")
	}
	if _, err := l.Open("../etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := pxe.FindLoaders(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "apt install ipxe") {
		t.Errorf("a missing folder: %v", err)
	}
}

// TestTFTPManyAndLate: transfers at once, from one port, and the end of the server with a client that went away.
func TestTFTPManyAndLate(t *testing.T) {
	if !inNetns(t) {
		return
	}
	file := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // 3.2 MB in 512-byte blocks
	for _, single := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		up, done := make(chan bool), make(chan error)
		srv := &pxe.TFTP{Files: fstest.MapFS{"big.efi": {Data: file}}, SinglePort: single, Ready: func() { close(up) }, Log: testLog(t)}
		go func() { done <- srv.Serve(ctx) }()
		<-up
		results := make(chan error, 8)
		for range cap(results) {
			go func() {
				f, err := pxetest.Fetch(t.Context(), ip("127.0.0.1"), "BIG.EFI", 1400)
				if err == nil && !bytes.Equal(f.Data, file) {
					err = errors.New("the file differs")
				}
				results <- err
			}()
		}
		for range cap(results) {
			if err := <-results; err != nil {
				t.Errorf("single port %v: %v", single, err)
			}
		}
		gone, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := pxetest.Fetch(gone, ip("127.0.0.1"), "nothing.efi", 1400); !errors.Is(err, pxetest.ErrTFTP) {
			t.Errorf("single port %v: a missing file: %v", single, err)
		}
		stop()
		cancel()
		select {
		case err := <-done:
			check(t, err)
		case <-time.After(7 * time.Second):
			t.Fatalf("single port %v: still serving 7 s after its end", single)
		}
	}
}
