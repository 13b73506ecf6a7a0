package main

import (
	"fmt"
	"slices"
	"strings"

	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// person is who writes a tree without being root: the user ID, and the groups
// that files may be given to, the own one first.
type person struct {
	uid  uint32
	gids []uint32
}

// reduced returns what of a tree a person who is not root can have, and in
// words what is lost. Owners become the person's own, and set-user-ID and
// set-group-ID go with them, as with cp -p and tar; there are no devices; of
// attributes user.* and POSIX ACLs stay. To reduce it again changes nothing.
func reduced(m *manifest.Manifest, who person) (*manifest.Manifest, []string) {
	out := &manifest.Manifest{Entries: make([]entry.Entry, 0, len(m.Entries))}
	var devices, owners, setIDs int
	attrs := map[string]int{}
	for _, e := range m.Entries {
		if e.Type == entry.CharDevice || e.Type == entry.BlockDevice {
			devices++
			continue
		}
		was := e
		if e.UID != who.uid {
			e.UID = who.uid
			if e.Type == entry.File {
				e.Mode &^= 0o4000
			}
		}
		if !slices.Contains(who.gids, e.GID) {
			e.GID = who.gids[0]
			if e.Type == entry.File {
				e.Mode &^= 0o2000
			}
		}
		if e.UID != was.UID || e.GID != was.GID {
			owners++
		}
		if e.Mode != was.Mode {
			setIDs++
		}
		e.Xattrs = nil
		for _, x := range was.Xattrs {
			if strings.HasPrefix(x.Name, "user.") || strings.HasPrefix(x.Name, "system.posix_acl_") {
				e.Xattrs = append(e.Xattrs, x)
			} else {
				attrs[x.Name]++
			}
		}
		out.Entries = append(out.Entries, e)
	}
	return out, losses(devices, owners, setIDs, attrs)
}

func losses(devices, owners, setIDs int, attrs map[string]int) []string {
	var out []string
	say := func(n int, thing, what string) {
		if n > 0 {
			out = append(out, fmt.Sprintf("%s %s: needs root", count(n, thing), what))
		}
	}
	say(devices, "device node", "not made")
	say(owners, "owner", "not restored, yours instead")
	say(setIDs, "set-user-ID or set-group-ID bit", "not restored, as the owner is another")
	names := make([]string, 0, len(attrs))
	for name := range attrs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		say(attrs[name], "attribute", fmt.Sprintf("%q not restored", name))
	}
	return out
}
