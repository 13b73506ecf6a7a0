package sides

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Share divides what is the node's own, as patterns say it, into directories
// that both sides share and those in them that each side has for itself. What
// is in /etc or /root is neither: it is small, and a push copies it. Logs are
// shared in any case. The error names the pattern that fits none of these.
func Share(owned []string) (trees, own []string, err error) {
	trees = []string{"var/log"}
	for _, p := range owned {
		not := strings.HasPrefix(p, "!")
		dir, whole := strings.CutSuffix(strings.TrimPrefix(p, "!/"), "/**")
		dir = strings.TrimPrefix(dir, "/")
		switch {
		case strings.HasPrefix(dir+"/", "etc/"), strings.HasPrefix(dir+"/", "root/"):
		case strings.ContainsAny(dir, "*?[\\") || dir == "" || strings.HasPrefix(dir, "."):
			return nil, nil, cannot(p)
		case not && !whole:
			own = append(own, path.Dir(dir)) // a file is replaced by a rename, for which its directory must be one
		case not:
			own = append(own, dir)
		case !whole:
			return nil, nil, cannot(p)
		default:
			trees = append(trees, dir)
		}
	}
	slices.Sort(trees)
	var out []string
	for _, t := range slices.Compact(trees) {
		if slices.ContainsFunc(own, func(o string) bool { return within(t, o) }) {
			return nil, nil, fmt.Errorf("node_owned: %q is the node's own, in a directory that is not: two sides cannot share it", "/"+t+"/**")
		}
		if !slices.ContainsFunc(out, func(up string) bool { return within(t, up) }) {
			out = append(out, t)
		}
	}
	own = slices.DeleteFunc(own, func(o string) bool { return !slices.ContainsFunc(out, func(t string) bool { return within(o, t) }) })
	slices.Sort(own)
	return out, slices.Compact(own), nil
}

// within reports whether path is dir or in it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func cannot(p string) error {
	return fmt.Errorf("node_owned: %q is no whole directory, such as /srv/data/**, and not in /etc or /root: two sides cannot share it", p)
}
