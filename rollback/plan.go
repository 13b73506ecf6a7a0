package rollback

import (
	"errors"
	"fmt"
	"strings"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
	"ingot/internal/pattern"
)

// Target is what a node is to be brought to.
type Target struct {
	Manifest  *manifest.Manifest // image and overlay, merged
	ID        digest.ID          // of the manifest, where it is known; spares work where the generation has the same
	NodeOwned pattern.List       // the profile's, after the built-in ones
	Derived   pattern.List       // first push of a node: what was made for its machine, and stays
	Never     pattern.List       // what a rollback from here leaves as it is: rotated passwords, authorized keys
	Seed      pattern.List       // node-owned paths that are made where neither the node nor its generation has them
	Policy    Policy

	// Within limits the change to one path and all that is in it, such as
	// "srv/www"; "" is the whole tree. The rest stays as it is, on the disk and in
	// the record. Of its parents those that are missing are made.
	Within string

	// Exact says that the whole tree is the target's, as that of a directory
	// which no system runs from: there are no built-in node-owned and volatile paths.
	Exact bool

	Image   string    // name:tag
	ImageID digest.ID // of the image's manifest
	Overlay digest.ID // of the overlay
	Mode    string    // "" means live
	By      string    // who asks

	Full bool // read every file; do not trust unchanged inodes
}

// Policy says what happens to files that the node changed since its
// generation was made, where the target wants something else.
type Policy struct {
	Keep    pattern.List // stay as they are; wins over Take
	Take    pattern.List // become what the target says; the local version stays in the generation
	Merge   []Merger     // changed by both sides: become what a command makes of them; by the node alone: stay
	Usual   *Policy      // of the others, such as what a profile says; nil: Default decides
	Default Action       // the zero value refuses
}

// Action is a decision about a local change.
type Action uint8

// The decisions.
const (
	Refuse Action = iota
	Keep
	Take
	Merge
)

func (a Action) String() string { return [...]string{"refuse", "keep", "take", "merge"}[a] }

// decide says what becomes of a path, and of one to be merged by what command.
func (p Policy) decide(path string) (Action, string) {
	switch {
	case p.Keep.Match(path):
		return Keep, ""
	case p.Take.Match(path):
		return Take, ""
	}
	for _, m := range p.Merge {
		if m.Paths.Match(path) {
			return Merge, m.Command
		}
	}
	if p.Usual != nil {
		return p.Usual.decide(path)
	}
	return p.Default, ""
}

// unmerged is the policy without merging: the way back leads to what was.
func (p Policy) unmerged() Policy {
	p.Merge = nil
	if p.Usual != nil {
		usual := p.Usual.unmerged()
		p.Usual = &usual
	}
	return p
}

// Kind is what a step does.
type Kind uint8

// The kinds of steps, in the order in which a switch carries them out.
const (
	Delete  Kind = iota + 1 // the entry moves to its slot
	Replace                 // the entry and its slot are exchanged
	Add                     // the slot moves to the path
	Meta                    // owner, xattrs, mode, times
	Times                   // a directory's modification time
)

func (k Kind) String() string {
	if k < Delete || k > Times {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"", "delete", "replace", "add", "meta", "times"}[k]
}

// Step is one change to one path.
type Step struct {
	Kind Kind
	Path string
	Old  *entry.Entry // nil for Add
	New  *entry.Entry // nil for Delete

	slot    int          // Delete, Replace, Add: the name in undo/
	vol     int          // number of its volume in the plan
	link    int          // slot of the first name of its hard-link group; own slot when alone
	content *entry.Entry // New's holes and chunks
	like    *entry.Entry // what is replaced and probably much like it, as it was given to the node; nil: nothing
	oldKey  digest.ID    // content key of the displaced file
	stat    entry.Stat   // of Old, when it was scanned
	keep    bool         // Times: what the directory has when the switch begins
}

// ConflictKind says what the node did to a file.
type ConflictKind string

// What the node did.
const (
	LocalChange ConflictKind = "changed"
	LocalAdd    ConflictKind = "added"
	LocalDelete ConflictKind = "deleted"
	LocalType   ConflictKind = "made something else"
	LocalMeta   ConflictKind = "changed in metadata"
)

// Conflict is a local change where the target wants something else.
type Conflict struct {
	Path   string
	Kind   ConflictKind
	Both   bool   // the target changed it too; otherwise only the node did
	Action Action // what the policy says
	Why    string // refused although it is to be merged: why

	Base, Now, Target *entry.Entry // what it was given, has, is to get; nil for nothing
}

// Does is the action, and why not the one that was asked for.
func (c Conflict) Does() string {
	return c.Action.String() + c.unmerged()
}

func (c Conflict) unmerged() string {
	if c.Why == "" {
		return ""
	}
	return " (cannot be merged: " + c.Why + ")"
}

func (c Conflict) String() string {
	who := "by the node only"
	if c.Both {
		who = "by the node and by the target"
	}
	return fmt.Sprintf("%q %s %s: %s", c.Path, c.Kind, who, c.Does())
}

// Note is something that a person should know about a plan.
type Note struct {
	Path string
	Why  string
}

func (n Note) String() string { return fmt.Sprintf("%q: %s", n.Path, n.Why) }

// Plan is what Stage and Switch will do. It is a value: making it changed nothing.
type Plan struct {
	Base       int        // generation that the node is; 0 when ingot has none of it yet
	To         int        // rollback: the generation to go back to; otherwise 0
	Generation Generation // what will be recorded; Number and When are set by Switch

	Repair bool // the tree is to become again what the generation Base was given

	Here bool // of a plan for the other side: the one that runs is what was asked for already

	Steps     []Step
	Conflicts []Conflict // local changes, with what the policy says about them
	Blocked   []Note     // why the plan cannot be carried out; empty when it can
	Notes     []Note     // kept, left alone, busy

	Need      []digest.ID // chunks that are not on the node
	NeedBytes int64       // their size
	Reused    int64       // bytes taken over from an interrupted stage
	Bytes     int64       // of disk that staging takes
	Inodes    int64       // of inodes that staging takes
	Damaged   []Note      // undo copies that are not what they were; their chunks are in Need

	drift  []Drift            // of a repair
	waits  error              // why it has to wait, with all else in order; nil: nothing
	shown  []Change           // what a person is shown instead of the steps
	vols   volumes            // the top's and those that steps are on
	room   []room             // what staging takes of each
	target *manifest.Manifest // to be kept beside the generation; nil for a part and for a rollback

	to     int                       // number of the generation, where it is not the next one of the tree
	goals  func() *manifest.Manifest // what the tree will be, whatever is recorded
	goal   *manifest.Manifest        // the same, where what is recorded is another one (PlanSide)
	record func()                    // makes done and left: an empty plan mostly needs none
	done   *manifest.Manifest        // the tree as it will be recorded
	doneID digest.ID                 // its digest; set by Switch
	left   *manifest.Manifest        // the tree as it is
	base   *index
	live   *live // what the scan found
	scan   *scanner
	known  states               // of the inodes that hold what done says
	afresh []int32              // entries of done that the switch makes or changes: their states are to be looked up
	links  map[int]undoFile     // slot -> undo copy that becomes the file
	undo   *undoIndex           // what the generations keep; nil when nothing was looked for
	used   []undoFile           // undo copies that are no longer such afterwards
	local  map[digest.ID]place  // where chunks are found on the node
	adopt  map[int]leftover     // slot -> file of an interrupted stage that becomes it
	merges []*merging           // files that Stage has commands make
	made   map[digest.ID][]byte // chunks of these
	// of the other side: the plan of the tree that runs, where that has files to be merged (MergeSide)
	mergesHere *Plan
	id         string // of the stage; set by Stage
}

// Empty reports whether the tree is already what the plan wants.
func (p *Plan) Empty() bool { return len(p.Steps) == 0 }

// Err says why the plan must not be carried out, or nil.
func (p *Plan) Err() error {
	var errs []error
	if len(p.Blocked) > 0 {
		errs = append(errs, &BlockedError{Notes: p.Blocked})
	}
	var open []Conflict
	for _, c := range p.Conflicts {
		if c.Action == Refuse {
			open = append(open, c)
		}
	}
	if len(open) > 0 {
		errs = append(errs, &ConflictError{Conflicts: open})
	}
	return errors.Join(append(errs, p.waits)...)
}

// ConflictError lists local changes that no policy decided. errors.Is(err, ErrConflict).
type ConflictError struct{ Conflicts []Conflict }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%d paths changed on the node and the policy keeps or takes none of them: %s",
		len(e.Conflicts), some(e.Conflicts, func(c Conflict) string { return fmt.Sprintf("%q %s%s", c.Path, c.Kind, c.unmerged()) }))
}

// Is makes it an ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// BlockedError lists what stands in the way. errors.Is(err, ErrBlocked).
type BlockedError struct{ Notes []Note }

func (e *BlockedError) Error() string {
	return "the tree is in the way: " + some(e.Notes, Note.String)
}

// Is makes it an ErrBlocked.
func (e *BlockedError) Is(target error) bool { return target == ErrBlocked }

// DamagedError lists content on the node that is not what it was. errors.Is(err, ErrDamaged).
type DamagedError struct{ Notes []Note }

func (e *DamagedError) Error() string {
	return "damaged on the node, needed from the store: " + some(e.Notes, Note.String)
}

// Is makes it an ErrDamaged.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged }

// SpaceError says what staging needs and what there is. errors.Is(err, ErrNoSpace).
type SpaceError struct {
	Path                                 string // of the file system
	Bytes, FreeBytes, Inodes, FreeInodes int64
}

func (e *SpaceError) Error() string {
	where := ""
	if e.Path != "" {
		where = fmt.Sprintf(" on the file system of %q", e.Path)
	}
	return fmt.Sprintf("not enough space to stage%s: %d bytes and %d inodes needed, %d bytes and %d inodes free",
		where, e.Bytes, e.Inodes, e.FreeBytes, e.FreeInodes)
}

// Is makes it an ErrNoSpace.
func (e *SpaceError) Is(target error) bool { return target == ErrNoSpace }

// some lists the first few of a list.
func some[T any](list []T, text func(T) string) string {
	const most = 5
	var out []string
	for i, x := range list {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(list)-most))
			break
		}
		out = append(out, text(x))
	}
	return strings.Join(out, ", ")
}
