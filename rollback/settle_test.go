package rollback

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A boot loader reads the file system without its journal. So all is brought
// to its place before a switch that changes what a loader reads, after it and
// before it counts, and after a way back and before that counts.
func TestFreeze(t *testing.T) {
	forward := []string{"freeze", "journal", "exchange", "freeze", "commit"}
	back := append(slices.Clone(forward), "exchange", "freeze", "forget")
	for _, tt := range []struct {
		path   string
		failed bool // the commit
		want   []string
	}{
		{"boot/vmlinuz-1", false, forward},
		{"boot/vmlinuz-1", true, back},
		{"vmlinuz", false, forward},
		{"initrd.img.old", false, forward},
		{"etc/vmlinuz", false, []string{"journal", "exchange", "commit"}},
		{"bootlog", true, []string{"journal", "exchange", "commit", "exchange", "forget"}},
	} {
		t.Run(tt.path, func(t *testing.T) {
			n, src, target := mountedNode(t, tt.path)
			var got []string
			n.sys.hook = func(call, what string, after bool) error {
				switch {
				case after:
				case call == "freeze":
					got = append(got, call)
					return unix.EOPNOTSUPP // as tmpfs itself would say
				case call == "exchange":
					got = append(got, call)
				case call == "rename" && what == in("journal.tmp"):
					got = append(got, "journal")
				case call == "unlink" && what == in("journal"):
					got = append(got, "forget")
				case call == "write" && what == "journal":
					got = append(got, "commit")
					if tt.failed {
						return unix.EIO
					}
				}
				return nil
			}
			if _, err := push(n, target, src); (err != nil) != tt.failed {
				t.Fatal(err)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// mountedNode is a node that is a file system of its own, and a target that
// has something else at one path.
func mountedNode(t *testing.T, path string) (*Node, Source, Target) {
	t.Helper()
	top := t.TempDir()
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, "mode=755"); err != nil {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip("mount: ", err)
	}
	t.Cleanup(func() { unix.Unmount(top, unix.MNT_DETACH) })
	next := scratch(t)
	plot(t, top, map[string]string{path: "old"})
	plot(t, next, map[string]string{path: "new"})
	m := snapshot(t, next)
	n := open(t, top)
	n.Boots = true
	return n, chunked(t, next, m, 3000), Target{Manifest: m, Image: "next:1", Policy: Policy{Default: Take}}
}
