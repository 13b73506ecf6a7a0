package rollback

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// kernels are a node that boots one pair, and a target with another one.
func kernels(t *testing.T) (*Node, Source, Target, string) {
	t.Helper()
	n, _, _ := mountedNode(t, "etc/issue")
	next := scratch(t)
	for dir, version := range map[string]string{n.path: "1", next: "2"} {
		plot(t, dir, map[string]string{"boot/vmlinuz-" + version: "kernel " + version, "boot/initrd.img-" + version: "initramfs " + version, "etc/issue": version})
		ok(t, os.Symlink("boot/vmlinuz-"+version, filepath.Join(dir, "vmlinuz")))
		ok(t, os.Symlink("/boot/initrd.img-"+version, filepath.Join(dir, "initrd.img"))) // absolute: in the tree all the same
	}
	n.sys.hook = func(call, _ string, _ bool) error {
		if call == "freeze" {
			return unix.EOPNOTSUPP
		}
		return nil
	}
	m := snapshot(t, next)
	return n, chunked(t, next, m, 3000), Target{Manifest: m, Image: "next:1", Policy: Policy{Default: Take}}, next
}

// pairOf is what the boot entry of the generation before starts, and whether
// the usual one starts it, too.
func pairOf(t *testing.T, n *Node) (kernel, initramfs string, usual bool) {
	t.Helper()
	text := func(name string) string {
		b, err := os.ReadFile(filepath.Join(n.path, ".ingot/boot", name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
	return text("vmlinuz"), text("initrd.img"), text("trial") != ""
}

func wantPair(t *testing.T, n *Node, what, version string, usual bool) {
	t.Helper()
	k, i, u := pairOf(t, n)
	if k != "kernel "+version || i != "initramfs "+version || u != usual {
		t.Errorf("%s: kept %q and %q, the usual one: %v; want those of %s, %v", what, k, i, u, version, usual)
	}
}

// The pair that is replaced is kept, and is the usual one while the generation
// is on trial.
func TestPairBefore(t *testing.T) {
	n, src, target, _ := kernels(t)
	trial := func() *Plan {
		t.Helper()
		p, err := n.Plan(bg(), target)
		ok(t, err)
		p.Try(1e9)
		ok(t, n.Stage(bg(), p, src))
		if !p.TouchesBoot() {
			t.Error("the plan does not change the boot loader's files")
		}
		_, err = n.Switch(bg(), p)
		ok(t, err)
		return p
	}
	p := trial()
	if p.Bytes < int64(len("kernel 1initramfs 1")) {
		t.Errorf("a plan of %d bytes has no room for the pair", p.Bytes)
	}
	wantPair(t, n, "on trial", "1", true)
	ok(t, n.Confirm(2, "test"))
	wantPair(t, n, "confirmed", "1", false)
	ok(t, n.Confirm(2, "test"))

	_, _, err := n.TakeBack(bg(), "test")
	ok(t, err)
	wantPair(t, n, "taken back", "2", false)
	trial()
	wantPair(t, n, "on trial again", "1", true)
	_, _, err = n.Revert(bg(), 4, "test")
	ok(t, err)
	wantPair(t, n, "reverted", "2", false)

	// Whoever confirmed died before he told the loader.
	trial()
	ok(t, os.WriteFile(filepath.Join(n.path, "mark"), nil, 0o600))
	ok(t, n.Confirm(6, "test"))
	ok(t, os.Rename(filepath.Join(n.path, "mark"), filepath.Join(n.path, ".ingot/boot/trial")))
	out, err := n.Recover(bg())
	ok(t, err)
	wantPair(t, n, "recovered", "1", false)
	if !out.Boot {
		t.Error("the loader started the pair before, and the recovery does not say so")
	}
	if out, err = n.Recover(bg()); err != nil || out.Boot {
		t.Errorf("a second recovery: %+v, %v", out, err)
	}
}

// A switch that fails, or dies, anywhere leaves the usual entry with what the
// tree has.
func TestPairWhenTheSwitchFails(t *testing.T) {
	for _, inject := range []error{unix.EIO, nil} {
		for at := 1; ; at++ {
			n, src, target, _ := kernels(t)
			p, err := n.Plan(bg(), target)
			ok(t, err)
			p.Try(1e9)
			ok(t, n.Stage(bg(), p, src))
			quiet := n.sys.hook
			f := &fate{at: at, err: inject}
			lived := true
			func() {
				defer func() {
					if r := recover(); r != nil {
						if _, is := r.(death); !is {
							panic(r)
						}
						lived = false
					}
				}()
				n.sys.hook = func(call, what string, after bool) error {
					if err := f.hook(call, what, after); err != nil {
						return err
					}
					return quiet(call, what, after)
				}
				_, err = n.Switch(bg(), p)
			}()
			n.sys.hook = quiet
			if lived && err == nil && f.call == "" {
				if at < 30 {
					t.Fatalf("only %d points", at)
				}
				break
			}
			out, err := n.Recover(bg())
			ok(t, err)
			cur, err := n.Current()
			ok(t, err)
			_, _, usual := pairOf(t, n)
			if on := cur.OnTrial(); usual != on {
				t.Fatalf("point %d, %s, injected %v: the generation is on trial: %v, the usual entry starts the pair before: %v (%v)", at, f.call, inject, on, usual, out)
			} else if on {
				wantPair(t, n, "after the recovery", "1", true)
			}
		}
	}
}
