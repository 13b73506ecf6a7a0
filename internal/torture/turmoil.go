package torture

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Turmoil has, until the test ends, two hands at work below dir: directories
// come and go with all that is in them, files grow and shrink, and one name
// becomes a thing of one type after another.
func Turmoil(t testing.TB, dir string) {
	t.Helper()
	var hands sync.WaitGroup
	done := make(chan struct{})
	t.Cleanup(func() { close(done); hands.Wait() })
	for i := range 2 {
		at := filepath.Join(dir, fmt.Sprint("hand", i))
		must(t, os.MkdirAll(at, 0o755))
		hands.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if err := stir(at, n); err != nil {
					t.Errorf("turmoil: %v", err)
					return
				}
			}
		})
	}
}

// stir is one move of a hand, after which all is gone but one file.
func stir(at string, n int) error {
	name, dir, file := filepath.Join(at, "name"), filepath.Join(at, "dir"), filepath.Join(at, "file")
	var err error
	switch n % 4 {
	case 0:
		err = os.Symlink("nowhere", name)
	case 1:
		err = os.WriteFile(name, Noise(uint64(n), 5000), 0o644)
	case 2:
		err = os.Mkdir(name, 0o755)
	case 3:
		var l *net.UnixListener
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: name}); err == nil {
			l.SetUnlinkOnClose(false)
			err = l.Close()
		}
	}
	return errors.Join(err,
		os.WriteFile(file, Noise(uint64(n), n%3*30_000), 0o644), // cuts it off first
		os.MkdirAll(dir+"/a/b", 0o755), os.WriteFile(dir+"/a/c", []byte("c"), 0o644), os.RemoveAll(dir),
		os.Remove(name))
}
