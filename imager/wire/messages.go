package wire

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"ingot/internal/digest"
	"ingot/internal/health"
	"ingot/internal/units"
)

// Verb is what a request asks for.
type Verb string

// The verbs. Each is one exchange over one stream; docs/ARCHITECTURE.md draws
// them. Pushes, rollbacks and repairs are answered with Kept and then, as a blob, the
// Plan.
const (
	VerbPush     Verb = "push"     // the target's manifest follows only where the agent does not have it
	VerbRollback Verb = "rollback" // needs no bytes from us, unless undo copies are damaged
	VerbDrift    Verb = "drift"    // ends with the plan
	VerbRepair   Verb = "repair"   // as a rollback: chunks that the node lost come from what it was given
	VerbConfirm  Verb = "confirm"  // a generation on trial counts, or goes back
	VerbCapture  Verb = "capture"  // chunks and then the manifest come back
)

// Request is what the controller asks of the agent.
type Request struct {
	Verb Verb   `json:"verb"`
	Dir  string `json:"dir"` // top of the tree; "/" on a node
	By   string `json:"by"`

	DryRun bool `json:"dry_run,omitempty"`

	// push and rollback: how long the node waits to be told, over another
	// connection, that it may stay as it is; 0: it need not be told.
	Confirm time.Duration `json:"confirm,omitempty"`

	NoReboot bool `json:"no_reboot,omitempty"` // push and rollback of a node with two sides: not now

	// push
	Ref       string    `json:"ref,omitempty"`     // the image as the operator named it
	Image     digest.ID `json:"image,omitzero"`    // of its manifest
	Overlay   digest.ID `json:"overlay,omitzero"`  // of the overlay's manifest
	Manifest  digest.ID `json:"manifest,omitzero"` // of the target's manifest: image and overlay, merged
	Arch      string    `json:"arch,omitempty"`    // what the image's programs run on, as Go calls it; "" for anything
	Full      bool      `json:"full,omitempty"`    // read every file, whatever its inode says
	Within    string    `json:"within,omitempty"`  // the path that alone is changed, with what is in it; "" for all
	NodeOwned []string  `json:"node_owned,omitempty"`
	Laid      []string  `json:"laid,omitempty"` // the first push of a node leaves what was made for its machine (pattern.Derived), but for these paths, as patterns
	Never     []string  `json:"never_roll_back,omitempty"`
	Usual     Local     `json:"usual"`          // what the profile says of local changes
	Keep      []string  `json:"keep,omitempty"` // local changes that stay
	Take      []string  `json:"take,omitempty"` // local changes that the image replaces

	Retention Keep `json:"retention"` // push and rollback

	// push and rollback: what is done and looked at after the switch
	Checks []health.Check `json:"checks,omitempty"` // a push that fails one goes back
	Units  units.Policy   `json:"units"`

	// rollback: the generation to go to, 0 is the one before; confirm: the one on trial
	To int `json:"to,omitempty"`
	// rollback, instead: to the newest generation before of an image, by digest or, where that is not known, by name
	ToImage digest.ID `json:"to_image,omitzero"`
	ToRef   string    `json:"to_ref,omitempty"`

	// confirm
	Reason string `json:"reason,omitempty"` // why it has to go back; "": it stays

	// capture
	Exclude      []string `json:"exclude,omitempty"`
	AllowChanged []string `json:"allow_changed,omitempty"` // what may change meanwhile
	Seal         bool     `json:"seal,omitempty"`          // leave out what makes a node itself
	CrossMounts  bool     `json:"cross_mounts,omitempty"`
	Snapshot     string   `json:"snapshot,omitempty"`     // how: SnapshotAuto, SnapshotNone, SnapshotBtrfs or a command
	SnapshotEnd  string   `json:"snapshot_end,omitempty"` // a command that releases it
}

// Keep is what a node keeps to go back to: so many generations (0: as the
// agent does), and of their undo copies at most so many bytes (0: any).
type Keep struct {
	Generations int   `json:"generations,omitempty"`
	Bytes       int64 `json:"bytes,omitempty"`
}

// Local says which local changes stay, which the image replaces, and which
// files that both changed are merged, by patterns.
type Local struct {
	Keep  []string `json:"keep,omitempty"`
	Take  []string `json:"take,omitempty"`
	Merge []Merge  `json:"merge,omitempty"`
}

// Merge is a pattern, and the command that makes one file of three.
type Merge struct {
	Path    string `json:"path"`
	Command string `json:"command"`
}

// Made names the target of a push and says what it was made of.
type Made struct {
	Target  digest.ID `json:"target"` // of the manifest
	Image   digest.ID `json:"image"`
	Overlay digest.ID `json:"overlay"`
}

// Kept is what the agent says of the node before anything else.
type Kept struct {
	Generations []Generation `json:"generations"`     // oldest first
	Has         bool         `json:"has,omitempty"`   // push: the target that is asked for
	Knows       *Made        `json:"knows,omitempty"` // push, when it has not: another target that it has
	Runs        *Made        `json:"runs,omitempty"`  // push: the target of its current generation
	Sides       *Sides       `json:"sides,omitempty"` // of a node that has two
}

// Clean is Plan.Clean for what a node keeps.
func (k *Kept) Clean() {
	for i := range k.Generations {
		k.Generations[i].Clean()
	}
	k.Sides.Clean()
}

// Base says what the manifest that follows is: whole, or a delta
// (manifest.Delta) against the target that the agent has.
type Base struct {
	Delta bool `json:"delta"`
}

// Plan is what a push, a rollback or a repair would do to the node.
type Plan struct {
	Changes   []Change `json:"changes"`
	Notes     []string `json:"notes,omitempty"` // what is left alone, and why
	Conflicts []Change `json:"conflicts,omitempty"`
	Drift     []Drift  `json:"drift,omitempty"` // of a repair: what is not what was given
	Need      int      `json:"need"`            // chunks to send
	NeedBytes int64    `json:"need_bytes"`      // before compression
	// LocalBytes of what is to be staged are on the node already.
	LocalBytes int64  `json:"local_bytes"`
	From       int    `json:"from"`              // generation that runs now
	Next       int    `json:"next"`              // that the switch would make
	To         int    `json:"to,omitempty"`      // rollback: the one that it goes back to
	Boots      bool   `json:"boots,omitempty"`   // the node starts anew for it, from its other side
	Leaves     bool   `json:"leaves,omitempty"`  // From is on trial and given up: the node starts anew as To, and says so with a revert
	Refused    *Error `json:"refused,omitempty"` // why it will not be carried out
}

// SendPlan sends p as a blob: a change of everything does not fit a frame.
func (c *Conn) SendPlan(p Plan) error { return c.sendLarge(p, "the plan", maxPlan) }

// PlanAfter receives what SendPlan sent, whose first frame has been received.
// It is fit to be shown.
func (c *Conn) PlanAfter(first Frame, progress func(Progress)) (Plan, error) {
	var p Plan
	if err := c.largeAfter(first, &p, "the plan", maxPlan, progress); err != nil {
		return p, err
	}
	p.Clean()
	return p, nil
}

// SendKept sends k as a blob: small, as most of it repeats.
func (c *Conn) SendKept(k Kept) error { return c.sendLarge(k, "what is kept", maxKept) }

// RecvKept receives what SendKept sent, fit to be shown.
func (c *Conn) RecvKept(progress func(Progress)) (Kept, error) {
	var k Kept
	f, err := c.Next(progress)
	if err == nil {
		err = c.largeAfter(f, &k, "what is kept", maxKept, progress)
	}
	k.Clean()
	return k, err
}

func (c *Conn) sendLarge(v any, what string, most int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("send %s: %w", what, err)
	}
	if len(b) > most {
		return fmt.Errorf("send %s: %d bytes, the limit is %d", what, len(b), most)
	}
	return c.SendBlob(b)
}

func (c *Conn) largeAfter(first Frame, v any, what string, most int, progress func(Progress)) error {
	b, err := c.blob(first, most, progress)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("receive %s: %w", what, err)
	}
	return nil
}

// Drift is a path that is not what the node was given.
type Drift struct {
	Path string `json:"path"`           // see PathText
	Kind string `json:"kind"`           // such as "changed", "added"
	Why  string `json:"why"`            // what differs: from what it was given to what is there
	Left string `json:"left,omitempty"` // why a repair leaves it as it is; "": it puts it back
}

// PathText is a path in JSON: as it is, or quoted as in Go when it is not UTF-8.
func PathText(path string) string {
	if utf8.ValidString(path) && !strings.HasPrefix(path, `"`) {
		return path
	}
	return strconv.QuoteToASCII(path)
}

// PathOf is the path of a PathText.
func PathOf(text string) string {
	if path, err := strconv.Unquote(text); err == nil && strings.HasPrefix(text, `"`) {
		return path
	}
	return text
}

// Change is one entry that differs.
type Change struct {
	Path string `json:"path"`
	Kind string `json:"kind"` // add replace delete meta
	Why  string `json:"why,omitempty"`
	// Sizes of the content before and after, in bytes.
	OldSize int64 `json:"old_size,omitempty"`
	NewSize int64 `json:"new_size,omitempty"`
}

// Done is the ending of a push or a rollback.
type Done struct {
	Generation Generation `json:"generation"`
	Unchanged  bool       `json:"unchanged,omitempty"`
	Notes      []string   `json:"notes,omitempty"`
	// Reused bytes were staged by a push that was interrupted.
	Reused int64 `json:"reused_bytes,omitempty"`
	// Trial says that the node goes back unless it is told in time to stay.
	Trial bool `json:"trial,omitempty"`
	// NextBoot says that the generation is on the node's other side, which is
	// tried when the machine starts the next time.
	NextBoot bool `json:"next_boot,omitempty"`
	// Sides are what a node that has two is at then.
	Sides *Sides `json:"sides,omitempty"`
	// Reverted says why the node has gone back; Generation is what it is then.
	Reverted string `json:"reverted,omitempty"`
	// Health is what was looked at after the switch, a line each.
	Health []string `json:"health,omitempty"`
	// SwitchSeconds is how long the node was between two generations.
	SwitchSeconds float64 `json:"switch_seconds"`
}

// Generation is one state that the node was brought to.
type Generation struct {
	Number  int       `json:"number"`
	Kind    string    `json:"kind"` // install push rollback revert repair
	Ref     string    `json:"ref"`
	Image   digest.ID `json:"image"`
	Overlay digest.ID `json:"overlay,omitzero"`
	Within  string    `json:"within,omitempty"` // the path that alone was pushed
	Mode    string    `json:"mode"`
	By      string    `json:"by"`
	Time    int64     `json:"time"` // Unix seconds
	Current bool      `json:"current,omitempty"`
	Pinned  bool      `json:"pinned,omitempty"`
	Trial   int64     `json:"trial,omitempty"`  // it goes back at this time unless it is confirmed; Unix seconds
	Reason  string    `json:"reason,omitempty"` // of a revert
}

// Captured is the ending of a capture; the manifest follows as a blob.
type Captured struct {
	Entries int       `json:"entries"`
	Bytes   int64     `json:"bytes"`
	Sent    int64     `json:"sent"` // bytes of chunks that the store did not have
	Notes   []string  `json:"notes,omitempty"`
	Sealed  []string  `json:"sealed,omitempty"` // what makes a node itself and was left out
	Parent  digest.ID `json:"parent,omitzero"`  // image that the node runs
}

// Clean makes the texts fit for a terminal: the node that wrote them may be
// hostile. Paths are quoted where they are shown.
func (p *Plan) Clean() {
	printable(p.Notes)
	if p.Refused != nil {
		p.Refused.Clean()
	}
	for i := range p.Drift {
		d := &p.Drift[i]
		d.Kind, d.Why, d.Left = Printable(d.Kind), Printable(d.Why), Printable(d.Left)
	}
	for _, list := range [][]Change{p.Changes, p.Conflicts} {
		for i := range list {
			list[i].Kind, list[i].Why = Printable(list[i].Kind), Printable(list[i].Why)
		}
	}
}

// Clean is Plan.Clean for the ending.
func (d *Done) Clean() {
	printable(d.Notes)
	printable(d.Health)
	d.Reverted = Printable(d.Reverted)
	d.Generation.Clean()
	d.Sides.Clean()
}

// Clean is Plan.Clean for a generation.
func (g *Generation) Clean() {
	for _, s := range []*string{&g.Kind, &g.Ref, &g.Within, &g.Mode, &g.By, &g.Reason} {
		*s = Printable(*s)
	}
}

// Clean is Plan.Clean for a capture.
func (c *Captured) Clean() {
	printable(c.Notes)
	printable(c.Sealed)
}

func printable(list []string) {
	for i := range list {
		list[i] = Printable(list[i])
	}
}
