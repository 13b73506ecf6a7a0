package rollback

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/slogx"
)

// Generation is one state that a node was brought to.
type Generation struct {
	Number   int       `json:"number"`
	Image    string    `json:"image,omitempty"`        // name:tag
	ImageID  digest.ID `json:"image_digest,omitzero"`  // of the image's manifest
	Overlay  digest.ID `json:"overlay,omitzero"`       // of the overlay
	Manifest digest.ID `json:"manifest"`               // of the as-done manifest
	Target   digest.ID `json:"target,omitzero"`        // of the target that is kept beside it, see Known
	Within   Path      `json:"within,omitempty"`       // a part was pushed: which; Image and Overlay say where it is from
	Exact    bool      `json:"exact,omitempty"`        // the whole tree was the target's: no node-owned and volatile paths
	Covers   []Path    `json:"covers,omitempty"`       // what the record speaks of; empty: the whole tree
	Volumes  []Volume  `json:"volumes,omitempty"`      // the file systems of the record besides that of the top, in tree order
	Mode     string    `json:"mode"`                   // live, slots, btrfs
	When     time.Time `json:"when"`                   // when it was switched to
	By       string    `json:"by,omitempty"`           // who asked
	Result   string    `json:"result,omitempty"`       // installed, found, switched, rolled back, reverted, repaired
	Reason   string    `json:"reason,omitempty"`       // reverted: why
	Trial    *Trial    `json:"trial,omitempty"`        // it counts once it is confirmed; nil: at once
	Health   []Health  `json:"health,omitempty"`       // what was looked at after the switch
	Note     string    `json:"note,omitempty"`         // for people: "rollback of 3 to 2"
	From     int       `json:"from,omitempty"`         // the generation before
	Of       int       `json:"rollback_of,omitempty"`  // rolled back: which one
	To       int       `json:"rollback_to,omitempty"`  // rolled back: to which one
	Aside    []Path    `json:"aside,omitempty"`        // mount points of file systems that the record does not speak of, though it might
	Derived  []Path    `json:"derived,omitempty"`      // what the installation itself made on this node
	Pinned   bool      `json:"pinned,omitempty"`       // never retired
	Changes  int       `json:"changes,omitempty"`      // steps of the switch that made it
	Kept     []Path    `json:"kept_changes,omitempty"` // local changes that were kept by policy
	Local    []Path    `json:"local,omitempty"`        // where the record is what the node made, not what its target gave: merged, or brought back
	Before   []Path    `json:"local_before,omitempty"` // what the node had changed of the generation before
	Owned    []string  `json:"node_owned,omitempty"`   // the profile's node-owned patterns
	Never    []string  `json:"never_roll_back,omitempty"`

	KeptAs    []KeptState `json:"kept_as,omitempty"`  // what is at each of Kept since then
	Retention Retention   `json:"retention,omitzero"` // of what is kept beside it
}

// Retention is what a node keeps to go back to: so many generations, pinned
// ones aside (0: UsualKeep), and of these as many as have undo copies that fit
// into so many bytes (0: any). The present one and the one before are kept in
// any case. It is part of the record: who goes back with nobody to ask keeps no less.
type Retention struct {
	Keep  int   `json:"keep,omitempty"`
	Space int64 `json:"space,omitempty"`
}

// UsualKeep is how many generations are kept where nothing is said.
const UsualKeep = 3

// retention is that of a generation which follows g.
func (n *Node) retention(g *Generation) Retention {
	if n.Retention != (Retention{}) {
		return n.Retention
	}
	return g.Retention
}

// Path is a path of the tree in JSON: as it is, or quoted as in Go when it is not UTF-8.
type Path string

// MarshalText implements encoding.TextMarshaler.
func (p Path) MarshalText() ([]byte, error) {
	if s := string(p); !utf8.ValidString(s) || s != "" && s[0] == '"' {
		return []byte(strconv.QuoteToASCII(s)), nil
	}
	return []byte(p), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Path) UnmarshalText(b []byte) error {
	if len(b) == 0 || b[0] != '"' {
		*p = Path(b)
		return nil
	}
	s, err := strconv.Unquote(string(b))
	if err != nil {
		return fmt.Errorf("path %q: %w", b, err)
	}
	*p = Path(s)
	return nil
}

func genDir(num int, parts ...string) string {
	return in(append([]string{"generations", strconv.Itoa(num)}, parts...)...)
}

// Generations returns the generations that the node keeps, oldest first.
func (n *Node) Generations() ([]Generation, error) {
	nums, err := n.numbers()
	if err != nil {
		return nil, err
	}
	gens := make([]Generation, 0, len(nums))
	for _, num := range nums {
		g, err := n.generation(num)
		if err != nil {
			return nil, err
		}
		gens = append(gens, g)
	}
	return gens, nil
}

// Current returns the generation that the node is, or ErrNoGeneration.
func (n *Node) Current() (Generation, error) {
	nums, err := n.numbers()
	if err != nil {
		return Generation{}, err
	}
	if len(nums) == 0 {
		return Generation{}, fmt.Errorf("current generation: %w", ErrNoGeneration)
	}
	return n.generation(nums[len(nums)-1])
}

// Manifest returns the as-done manifest of a generation, checked against its
// digest. It must not be changed.
func (n *Node) Manifest(num int) (*manifest.Manifest, error) {
	g, err := n.generation(num)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	read := n.read
	n.mu.Unlock()
	if read.m != nil && read.id == g.Manifest {
		return read.m, nil
	}
	b, err := n.readManifest(g) // not under the lock: two are read at once
	if err != nil {
		return nil, err
	}
	m, err := manifest.DecodeKnown(b)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w: %w", genDir(num, "manifest"), ErrCorrupt, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.read = memo{g.Manifest, m}
	return m, nil
}

// Entries returns how many entries the current generation has, without reading them.
func (n *Node) Entries() (int, error) {
	g, err := n.Current()
	if err != nil {
		return 0, err
	}
	f, err := n.openFile(genDir(g.Number, "manifest"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	head := make([]byte, manifest.HeadSize)
	k, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, fmt.Errorf("read %q: %w", genDir(g.Number, "manifest"), err)
	}
	return manifest.Count(head[:k])
}

// forget lets go of the manifest that was read last.
func (n *Node) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.read = memo{}
}

func (n *Node) readManifest(g Generation) ([]byte, error) {
	b, err := n.readState(genDir(g.Number, "manifest"))
	if err != nil {
		return nil, err
	}
	if id := digest.Of(b); id != g.Manifest {
		return nil, fmt.Errorf("manifest of generation %d: is %s, should be %s: %w", g.Number, id.Short(), g.Manifest.Short(), ErrCorrupt)
	}
	return b, nil
}

// checked reports whether m is the manifest that was read last, which then was valid.
func (n *Node) checked(m *manifest.Manifest) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return m == n.read.m
}

// Left returns the tree as it was when the generation was left, local changes
// included; for the current one and where nothing differed, its manifest.
func (n *Node) Left(num int) (*manifest.Manifest, error) {
	b, err := n.readLeft(num)
	if notThere(err) {
		return n.Manifest(num)
	}
	if err != nil {
		return nil, err
	}
	return manifest.DecodeKnown(b)
}

func (n *Node) readLeft(num int) ([]byte, error) {
	path := genDir(num, "left")
	b, err := n.readState(path)
	if err != nil {
		return nil, err
	}
	var id digest.ID
	if len(b) < len(id) || digest.ID(b[:len(id)]) != digest.Of(b[len(id):]) {
		return nil, fmt.Errorf("read %q: does not have its digest: %w", path, ErrCorrupt)
	}
	return b[len(id):], nil
}

// leftPart is Left for some paths, and what they are hard links to, without
// the rest in memory.
func (n *Node) leftPart(num int, paths map[string]bool) (*manifest.Manifest, error) {
	b, err := n.readLeft(num)
	if notThere(err) {
		var g Generation
		if g, err = n.generation(num); err == nil {
			b, err = n.readManifest(g)
		}
	}
	if err != nil {
		return nil, err
	}
	return manifest.Pick(b, paths)
}

// Pin keeps a generation, and those after it that a rollback to it needs, from being retired.
func (n *Node) Pin(num int, pinned bool) error {
	unlock, err := n.lockIdle("pin")
	if err != nil {
		return fmt.Errorf("pin generation %d: %w", num, err)
	}
	defer unlock()
	g, err := n.generation(num)
	if err != nil {
		return fmt.Errorf("pin generation %d: %w", num, err)
	}
	g.Pinned = pinned
	return n.writeState(genDir(num, "meta.json"), encodeMeta(g))
}

// Record notes the tree as it is as a new generation, made by other means: the
// installer's as-installed manifest, which becomes generation 1. target is what
// it was made from, see Known; it may be nil. stats, by path, may be nil; they
// say which inodes hold the manifest's content, so that a later plan need not
// read them.
func (n *Node) Record(ctx context.Context, g Generation, m, target *manifest.Manifest, stats map[string]entry.Stat) error {
	unlock, err := n.lockIdle("record")
	if err != nil {
		return fmt.Errorf("record generation: %w", err)
	}
	defer unlock()
	if err := m.Validate(); err != nil {
		return fmt.Errorf("record generation: %w", err)
	}
	nums, err := n.numbers()
	if err != nil {
		return fmt.Errorf("record generation: %w", err)
	}
	g.Number = 1
	if len(nums) > 0 {
		g.From = nums[len(nums)-1]
		g.Number = g.From + 1
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if g.Volumes, err = n.recorded(m); err != nil {
		return fmt.Errorf("record generation %d: %w", g.Number, err)
	}
	id, err := n.record(g, m, target)
	if err != nil {
		return fmt.Errorf("record generation %d: %w", g.Number, err)
	}
	return n.writeCache(g.Number, id, m, trustable(m, stats, n.now()))
}

// record writes a generation beside the others and moves it among them. It
// returns the digest of m.
func (n *Node) record(g Generation, m, target *manifest.Manifest) (digest.ID, error) {
	tmp := in("generations", "new")
	id, err := n.recordIn(tmp, g, m, target)
	if err != nil {
		return id, err
	}
	if err := n.sys.syncfs(n.top); err != nil {
		return id, err
	}
	if err := n.sys.move(n.top, tmp, n.top, genDir(g.Number)); err != nil {
		return id, err
	}
	n.log().Info("generation recorded", slogx.Gen, g.Number, slogx.Image, g.Image)
	return id, n.sys.fsyncDir(n.top, in("generations"))
}

func (n *Node) recordIn(dir string, g Generation, m, target *manifest.Manifest) (id digest.ID, err error) {
	if err := n.remove(dir); err != nil {
		return id, err
	}
	if err := n.sys.mkdir(n.top, dir, 0o700); err != nil {
		return id, err
	}
	if target != nil {
		if g.Target, err = n.putTarget(dir, m, target); err != nil {
			return id, err
		}
	}
	return n.writeGeneration(dir, g, m)
}

// writeGeneration writes meta.json and manifest into the directory of a new
// generation. It returns the digest of the manifest.
func (n *Node) writeGeneration(dir string, g Generation, m *manifest.Manifest) (digest.ID, error) {
	if g.When.IsZero() {
		g.When = n.now().UTC()
	}
	if g.Mode == "" {
		g.Mode = "live"
	}
	var err error
	if g.Manifest, err = n.putManifest(dir+"/manifest", nil, m); err != nil {
		return g.Manifest, err
	}
	return g.Manifest, n.putState(dir+"/meta.json", encodeMeta(g))
}

func encodeMeta(g Generation) []byte {
	b, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		panic("BUG: encode generation: " + err.Error())
	}
	return append(b, '\n')
}

func (n *Node) generation(num int) (Generation, error) {
	var g Generation
	path := genDir(num, "meta.json")
	b, err := n.readState(path)
	if notThere(err) {
		return g, fmt.Errorf("generation %d: %w", num, ErrNoGeneration)
	}
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(b, &g); err != nil {
		return g, fmt.Errorf("read %q: %w: %w", path, ErrCorrupt, err)
	}
	if g.Number != num {
		return g, fmt.Errorf("read %q: says that it is generation %d: %w", path, g.Number, ErrCorrupt)
	}
	return g, nil
}

// numbers returns the numbers of the complete generations in order.
func (n *Node) numbers() ([]int, error) {
	names, err := n.list(in("generations"))
	if err != nil {
		return nil, err
	}
	var nums []int
	for _, name := range names {
		num, err := strconv.Atoi(name)
		if err == nil && num > 0 && strconv.Itoa(num) == name && n.exists(genDir(num, "meta.json")) {
			nums = append(nums, num)
		}
	}
	slices.Sort(nums)
	return nums, nil
}

// retire removes what retention does not keep, oldest first. A generation
// that is kept keeps all after it: a rollback to it takes from their undo copies.
func (n *Node) retire() error {
	gens, err := n.Generations()
	if err != nil || len(gens) == 0 {
		return err
	}
	if err := n.sweep(gens); err != nil {
		return err
	}
	says := gens[len(gens)-1].Retention
	keep := cmp.Or(says.Keep, UsualKeep)
	fit, err := n.fitting(gens, says.Space)
	if err != nil {
		return err
	}
	for i, g := range gens {
		if left := len(gens) - i; g.Pinned || left <= keep && left <= fit || left <= 2 {
			return nil
		}
		// meta.json goes first: without it the rest is no generation.
		if err := n.remove(genDir(g.Number, "meta.json")); err != nil {
			return err
		}
		if err := n.remove(genDir(g.Number)); err != nil {
			return err
		}
		n.log().Info("generation retired", slogx.Gen, g.Number)
	}
	return nil
}

// fitting is how many of the newest generations have undo copies that fit into
// the space for them, in bytes; 0: any.
func (n *Node) fitting(gens []Generation, space int64) (int, error) {
	if space <= 0 {
		return len(gens), nil
	}
	total := int64(0)
	for i, g := range slices.Backward(gens) {
		homes := []string{genDir(g.Number, "undo")}
		for _, v := range g.Volumes {
			homes = append(homes, string(v.At)+"/"+genDir(g.Number, "undo"))
		}
		for _, dir := range homes {
			bytes, err := n.diskUse(dir)
			if err != nil {
				return 0, err
			}
			total += bytes
		}
		if total > space {
			return len(gens) - 1 - i, nil
		}
	}
	return len(gens), nil
}

// diskUse is what the files in a directory take, in bytes.
func (n *Node) diskUse(dir string) (bytes int64, err error) {
	names, err := n.list(dir)
	if err != nil || len(names) == 0 {
		return 0, err
	}
	fd, err := entry.OpenBeneath(n.top, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, fmt.Errorf("look at %q: %w", dir, err)
	}
	defer unix.Close(fd)
	here := map[uint64]uint64{} // names of an inode
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue
		}
		// What has a name elsewhere, too, would not be gained.
		if here[st.Ino]++; st.Mode&unix.S_IFMT == unix.S_IFDIR || here[st.Ino] == uint64(st.Nlink) {
			bytes += st.Blocks * 512
		}
	}
	return bytes, nil
}

// sweep removes what an interrupted retirement left.
func (n *Node) sweep(gens []Generation) error {
	names, err := n.list(in("generations"))
	if err != nil || len(gens) == 0 {
		return err
	}
	for _, name := range names {
		if num, err := strconv.Atoi(name); err == nil && num < gens[0].Number {
			if err := n.remove(genDir(num)); err != nil {
				return err
			}
		}
	}
	return nil
}
