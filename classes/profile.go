package classes

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"ingot/internal/health"
	"ingot/internal/hooks"
	"ingot/internal/pattern"
	"ingot/internal/problem"
	"ingot/internal/strict"
	"ingot/internal/units"
)

// Profile is profile/CLASS.yaml, merged in class order: maps deeply, lists replaced, and
// an empty value takes back what lower classes said.
type Profile struct {
	Boot      string    `yaml:"boot"`            // image | local
	Image     string    `yaml:"image"`           // NAME:TAG
	Kernel    Kernel    `yaml:"kernel"`          // of the installed system
	Update    string    `yaml:"update"`          // live | slots | btrfs
	Sides     Sides     `yaml:"sides"`           // of update: slots and btrfs
	NodeOwned []string  `yaml:"node_owned"`      // patterns, after the built-in ones
	Never     []string  `yaml:"never_roll_back"` // patterns of what a rollback leaves as it is
	Local     Local     `yaml:"local_changes"`   // of files that the node changed
	Retention Retention `yaml:"generations"`     // what a node keeps to go back to
	Network   string    `yaml:"network"`         // networkd: its files are written from nodes/NAME.yaml; none: the image's
	HostKeys  string    `yaml:"hostkeys"`        // generate: new SSH host keys at install; image: those of the image
	Loader    string    `yaml:"loader"`          // grub, systemd-boot: ingot installs and owns it; none
	Finish    string    `yaml:"finish"`          // after an installation: reboot | poweroff

	Check         []health.Check `yaml:"check"`          // what must hold after a push
	Restart       string         `yaml:"restart"`        // report | reload | restart: units that a push concerns
	RestartExcept []string       `yaml:"restart_except"` // patterns of units that are left alone, besides the built-in ones

	Drain   []hooks.Step `yaml:"drain"`   // on the server, before the switch of a push or rollback
	Undrain []hooks.Step `yaml:"undrain"` // after it, once the node is right
}

// Sides are the mount points in the disk_config of what a node with two root
// file systems has besides / (package rollback/sides).
type Sides struct {
	Other  string `yaml:"other"`  // slots: the second root
	Shared string `yaml:"shared"` // slots: what is the node's own, for both
	Env    string `yaml:"env"`    // the boot loader's environment: ext2 or vfat
}

// TwoSides reports whether a push goes to another root than the one that runs.
func (p *Profile) TwoSides() bool { return p.Update == "slots" || p.Update == "btrfs" }

// places are the mount points by their keys.
func (s Sides) places() [3]struct{ key, at string } {
	return [...]struct{ key, at string }{{"sides.other", s.Other}, {"sides.shared", s.Shared}, {"sides.env", s.Env}}
}

// check judges what one file says of sides.
func (s Sides) check(d *strict.Decoded) {
	seen := map[string]string{"/": "the first root"}
	for _, x := range s.places() {
		switch {
		case x.at == "":
		case path.Clean(x.at) != x.at || !path.IsAbs(x.at):
			d.Bad(x.key, "%q is not a mount point such as /shared", x.at)
		case seen[x.at] != "":
			d.Bad(x.key, "%s is %s already", x.at, seen[x.at])
		}
		seen[x.at] = x.key
	}
}

// complete judges what all files say together of the sides of a mode.
func (s Sides) complete(d *strict.Decoded, mode string) {
	s.check(d)
	for _, x := range s.places() {
		of := mode == "slots" || x.key == "sides.env"
		if of && x.at == "" {
			d.Bad("update", "update: %s needs %s: the mount point of a partition of the disk_config", mode, x.key)
		} else if !of && x.at != "" {
			d.Bad(x.key, "update: btrfs makes a subvolume of / for it, and no partition: remove %s", x.key)
		}
	}
}

// Kernel is how the installed system boots.
type Kernel struct {
	From string   `yaml:"from"` // image
	Args []string `yaml:"args"`
}

// Local says, by patterns, which files that a node changed stay as they are,
// which become what is pushed, and which get both changes. Others refuse the
// push. The operator's --keep and --take come first.
type Local struct {
	Keep  []string `yaml:"keep"`
	Take  []string `yaml:"take"`
	Merge []Merge  `yaml:"merge"`
}

// Merge is a command for /bin/sh on the node that makes one file of three,
// which BASE, LOCAL and NEW in its environment name, and prints it.
type Merge struct {
	Path    string `yaml:"path"` // a pattern
	Command string `yaml:"command"`
}

// Retention says what a node keeps to go back to: so many generations, pinned
// ones aside, and of these what takes no more than so much of its disks. The
// present one and the one before are kept in any case.
type Retention struct {
	Keep  int    `yaml:"keep"`  // 0: 3
	Space string `yaml:"space"` // such as 5G; "": no limit
}

// Bytes is Space, 0 for no limit.
func (r Retention) Bytes() (int64, error) {
	if r.Space == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(r.Space)
	if err != nil || n == 0 || n > 1<<60 || strings.Trim(r.Space, "0123456789.") == "" {
		return 0, fmt.Errorf("%q is not a size such as 500M or 5G", r.Space)
	}
	return int64(n), nil
}

// setting is a key that takes one of some words.
type setting struct {
	key    string
	value  *string
	now    []string // accepted; the first is the default
	notYet []string // understood, not built yet
}

func (p *Profile) settings() []setting {
	return []setting{
		{"boot", &p.Boot, []string{"image", "local"}, []string{"packages", "template", "live", "rescue"}},
		{"update", &p.Update, []string{"live", "slots", "btrfs"}, nil},
		{"kernel.from", &p.Kernel.From, []string{"image"}, nil},
		{"network", &p.Network, []string{"networkd", "none"}, nil},
		{"hostkeys", &p.HostKeys, []string{"generate", "image"}, nil},
		{"loader", &p.Loader, []string{"grub", "systemd-boot", "none"}, nil},
		{"finish", &p.Finish, []string{"reboot", "poweroff"}, nil},
		{"restart", &p.Restart, units.Modes(), nil},
	}
}

// defaults fills in what no class says. A node without an image boots its disk.
func (p *Profile) defaults() {
	if p.Boot == "" && p.Image == "" {
		p.Boot = "local"
	}
	for _, s := range p.settings() {
		if *s.value == "" {
			*s.value = s.now[0]
		}
	}
}

// check judges what one file, or all together, say.
func (p *Profile) check(d *strict.Decoded) {
	for _, s := range p.settings() {
		switch v := *s.value; {
		case v == "" || slices.Contains(s.now, v):
		case slices.Contains(s.notYet, v):
			d.Bad(s.key, "%s: %s is not supported yet: use %s", s.key, v, strings.Join(s.now, " or "))
		default:
			all := append(slices.Clone(s.now), s.notYet...)
			d.Bad(s.key, "%s: %q is not one of %s%s", s.key, v, strings.Join(all, ", "), problem.Hint(v, all))
		}
	}
	if p.Image != "" && !imageName(p.Image) {
		d.Bad("image", "%q is not the name of an image, such as debian-12:stable", p.Image)
	}
	for i, a := range p.Kernel.Args {
		if a == "" || strings.ContainsAny(a, "\n\r\t\x00") {
			d.Bad(fmt.Sprintf("kernel.args[%d]", i), "%q is not a kernel argument", a)
		}
	}
	for key, list := range map[string][]string{"node_owned": p.NodeOwned, "never_roll_back": p.Never, "local_changes.keep": p.Local.Keep, "local_changes.take": p.Local.Take} {
		for i, o := range list {
			if _, err := pattern.Parse([]string{o}); err != nil {
				d.Bad(fmt.Sprintf("%s[%d]", key, i), "%v", err)
			}
		}
	}
	for i, m := range p.Local.Merge {
		if _, err := pattern.Parse([]string{m.Path}); err != nil || m.Path == "" {
			d.Bad(fmt.Sprintf("local_changes.merge[%d].path", i), "%q is not a pattern such as /etc/ssh/sshd_config", m.Path)
		}
		if strings.TrimSpace(m.Command) == "" || strings.ContainsRune(m.Command, 0) {
			d.Bad(fmt.Sprintf("local_changes.merge[%d].command", i), `a command is missing, such as diff3 -m "$LOCAL" "$BASE" "$NEW"`)
		}
	}
	if p.Retention.Keep != 0 && p.Retention.Keep < 2 {
		d.Bad("generations.keep", "%d generations: the least is 2, the present one and the one before", p.Retention.Keep)
	}
	if _, err := p.Retention.Bytes(); err != nil {
		d.Bad("generations.space", "%v", err)
	}
	p.Sides.check(d)
	p.checkAfter(d)
	p.checkHooks(d)
}

// imageName: NAME, NAME:TAG, or with @DIGEST.
func imageName(s string) bool {
	const ok = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/"
	name, digest, _ := strings.Cut(s, "@")
	name, tag, has := strings.Cut(name, ":")
	return strings.Trim(name, ok) == "" && name != "" && strings.Trim(tag, ok) == "" && (tag != "") == has &&
		strings.Trim(digest, ok+":") == "" && !strings.HasPrefix(name, "/") && !strings.Contains(name, "..")
}

// layer is what one class says at some place.
type layer struct {
	class string
	node  *strict.Node
}

// profile merges the profiles of a node's classes.
func (s *Space) profile(r *Resolved, probs *problem.List) error {
	var layers []layer
	before := len(*probs)
	for _, class := range r.Classes {
		root, err := s.parseYAML(profileFile(class), probs)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		checkProfile(root, probs)
		if root.Kind != strict.Null {
			layers = append(layers, layer{class, root})
		}
	}
	if len(layers) == 0 || len(*probs) > before {
		r.Profile.defaults()
		return nil
	}
	merged := r.merge("", layers)
	d := strict.Decode(merged, &r.Profile, probs)
	r.Profile.defaults()
	r.Profile.pairHooks(d)
	if r.Profile.Boot == "image" && r.Profile.Image == "" {
		d.Bad("boot", "boot: image needs image: NAME:TAG in a profile of the node's classes (%s)", strings.Join(r.Classes, " "))
	}
	switch {
	case !r.Profile.TwoSides() && r.Profile.Sides != Sides{}:
		d.Bad("sides", "only nodes with update: slots or btrfs have two sides")
	case r.Profile.TwoSides():
		r.Profile.Sides.complete(d, r.Profile.Update)
		if r.Profile.Loader == "none" {
			d.Bad("update", "update: %s needs loader: grub or systemd-boot", r.Profile.Update)
		}
	case r.Profile.Loader == "systemd-boot":
		d.Bad("loader", "loader: systemd-boot is for nodes with update: slots or btrfs; use grub")
	}
	return nil
}

func profileFile(class string) string { return "profile/" + class + ".yaml" }

// checkProfile judges one file on its own.
func checkProfile(root *strict.Node, probs *problem.List) {
	var p Profile
	p.check(strict.Decode(root, &p, probs))
}

// merge puts layers together, the last one winning, and notes the values.
func (r *Resolved) merge(path string, layers []layer) *strict.Node {
	for i := len(layers) - 1; i >= 0; i-- {
		if layers[i].node.Kind == strict.Null { // takes back what is below
			layers = layers[i:]
			break
		}
	}
	top := layers[len(layers)-1]
	if top.node.Kind != strict.Map {
		r.value(path, layers)
		return top.node
	}
	layers = slices.DeleteFunc(slices.Clone(layers), func(l layer) bool { return l.node.Kind != strict.Map })
	out := *top.node
	out.Fields = nil
	for _, l := range layers {
		for _, f := range l.node.Fields {
			if out.Field(f.Key) != nil {
				continue
			}
			var at []layer
			for _, o := range layers {
				if n := o.node.Field(f.Key); n != nil {
					at = append(at, layer{o.class, n})
				}
			}
			f.Node = r.merge(strings.TrimPrefix(path+"."+f.Key, "."), at)
			out.Fields = append(out.Fields, f)
		}
	}
	return &out
}

func (r *Resolved) value(path string, layers []layer) {
	var chain []Value
	for _, l := range slices.Backward(layers) {
		chain = append(chain, Value{Kind: "profile", Key: path, Value: text(l.node), Class: l.class, File: l.node.Source.Name, Line: l.node.Line})
	}
	chain[0].Overridden = chain[1:]
	r.Values = append(r.Values, chain[0])
}

// text shows a value on one line, as YAML does in its flow style.
func text(n *strict.Node) string {
	switch n.Kind {
	case strict.Scalar:
		return strings.ReplaceAll(strings.TrimSpace(n.Text), "\n", `\n`) // of a block, such as a check's script
	case strict.List:
		var items []string
		for _, i := range n.Items {
			items = append(items, text(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case strict.Map:
		var items []string
		for _, f := range n.Fields {
			items = append(items, f.Key+": "+text(f.Node))
		}
		return "{" + strings.Join(items, ", ") + "}"
	}
	return ""
}
