package modload

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestParameters(t *testing.T) {
	args, deny := parameters("BOOT_IMAGE=/v.1 console=ttyS0 ipmi-si.trydefaults=1 ipmi_si.type=kcs modprobe.blacklist=a-b,c ip=10.0.0.1 quiet")
	if want := map[string]string{"ipmi_si": "trydefaults=1 type=kcs"}; !reflect.DeepEqual(args, want) {
		t.Errorf("args = %q", args)
	}
	if want := map[string]bool{"a_b": true, "c": true}; !reflect.DeepEqual(deny, want) {
		t.Errorf("deny = %v", deny)
	}
}

func TestModaliasOf(t *testing.T) {
	event := "add@/devices/pci0\x00ACTION=add\x00MODALIAS=virtio:d1\x00SEQNUM=1"
	if got := modaliasOf([]byte(event)); len(got) != 1 || got[0] != "virtio:d1" {
		t.Errorf("got %q", got)
	}
	if got := modaliasOf([]byte("remove@/x\x00MODALIAS=virtio:d1")); got != nil {
		t.Errorf("a removed device: %q", got)
	}
}

// TestLoadFails: a module that the kernel refuses fails those that need it, and the rest goes on.
func TestLoadFails(t *testing.T) {
	dir := t.TempDir()
	x := &Index{Kernel: "1", Modules: []Module{{Name: "a", File: "a.ko", Depends: []string{"b"}}, {Name: "b", File: "b.ko"}}}
	for name, text := range map[string]string{IndexName: string(x.Encode()), "a.ko": "no ELF", "b.ko": "no ELF"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Load(t.Context(), dir, "a"); err == nil {
		t.Error("loaded a text")
	}
	if err := Load(t.Context(), dir, "zz"); !errors.Is(err, ErrMissing) {
		t.Errorf("a module that is not there: %v", err)
	}
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Watch(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("watch that ends: %v", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no index: %v", err)
	}
}
