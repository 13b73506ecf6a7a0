package inventory

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// State is how far the installation of a node has come.
type State string

// The states. A node without an Install has never been armed.
const (
	Armed     State = "armed"     // the next network boot installs
	Claimed   State = "claimed"   // an installer holds the profile; nothing is written yet
	Writing   State = "writing"   // the disk is being changed
	Installed State = "installed" // boots its disk
	Failed    State = "failed"    // boots its disk, until armed again
)

// MaxAttempts is how many network boots one arming pays for: the first and three retries.
const MaxAttempts = 4

// Kinds of refusal; errors.Is tells them apart.
var (
	ErrNotArmed = errors.New("the node is not armed for installation")
	ErrStale    = errors.New("this boot attempt has been superseded")
	ErrClaimed  = errors.New("another installer has claimed this boot attempt")
	ErrForeign  = errors.New("the boot attempt belongs to another address")
)

// Install is the state of a node's installation.
type Install struct {
	Node    string
	State   State
	Ref     string // the image as the operator named it
	Image   string // digest of its manifest
	Netboot string // key of the kernel and initramfs that install it
	Attempt int    // network boots used since it was armed
	Nonce   string // names the current boot attempt; part of the boot script
	Client  string // chosen at random by the installer that claimed it
	Token   string // session of that installer
	IP      string
	Task    string
	Done    int64 // bytes
	Total   int64 // bytes
	Rate    int64 // bytes a second, lately; 0: not known
	Dirty   bool  // an attempt since the arming has begun to write the disk
	Reason  string
	By      string
	Changed time.Time
}

const installCols = `node, state, ref, image, netboot, attempt, nonce, client, token, ip, task, done, total, rate, dirty, reason, by_whom, changed`

func scanInstall(row interface{ Scan(...any) error }) (Install, error) {
	var in Install
	var changed int64
	err := row.Scan(&in.Node, &in.State, &in.Ref, &in.Image, &in.Netboot, &in.Attempt, &in.Nonce, &in.Client, &in.Token, &in.IP,
		&in.Task, &in.Done, &in.Total, &in.Rate, &in.Dirty, &in.Reason, &in.By, &changed)
	in.Changed = fromNanos(changed)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return in, err
}

// Install returns the installation of node; ErrNotFound when it was never armed.
func (d *DB) Install(ctx context.Context, node string) (Install, error) {
	in, err := scanInstall(d.db.QueryRowContext(ctx, `SELECT `+installCols+` FROM installs WHERE node=?`, node))
	if err != nil {
		return Install{}, fmt.Errorf("installation of node %q: %w", node, err)
	}
	return in, nil
}

// Installs returns all installations by node name.
func (d *DB) Installs(ctx context.Context) (map[string]Install, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT `+installCols+` FROM installs`)
	if err != nil {
		return nil, fmt.Errorf("read installations: %w", err)
	}
	defer rows.Close()
	out := map[string]Install{}
	for rows.Next() {
		in, err := scanInstall(rows)
		if err != nil {
			return nil, fmt.Errorf("read installations: %w", err)
		}
		out[in.Node] = in
	}
	return out, rows.Err()
}

// Arm makes the next network boot of node install the image.
func (d *DB) Arm(ctx context.Context, node, ref, image, netboot, by string) error {
	err := d.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO installs (node, state, ref, image, netboot, by_whom, changed) VALUES (?,?,?,?,?,?,?)
			ON CONFLICT (node) DO UPDATE SET state=excluded.state, ref=excluded.ref, image=excluded.image, netboot=excluded.netboot, by_whom=excluded.by_whom,
			changed=excluded.changed, attempt=0, nonce='', client='', token='', task='', done=0, total=0, dirty=0, reason=''`,
			node, Armed, ref, image, netboot, by, nanos(d.now()))
		if err != nil {
			return err
		}
		return d.addEvent(ctx, tx, Event{Node: node, Stage: "armed", Detail: fmt.Sprintf("to install %s (%.12s) by %s", ref, image, by)})
	})
	if err != nil {
		return fmt.Errorf("arm node %q: %w", node, err)
	}
	return nil
}

// Disarm makes node boot its disk again: its installation is forgotten. It
// fails with ErrNotArmed when none was ordered, or when any of its attempts has
// begun to write: such a disk does not boot.
func (d *DB) Disarm(ctx context.Context, node, by string) error {
	err := d.tx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM installs WHERE node=? AND dirty=0 AND state IN (?,?)`, node, Armed, Claimed)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrNotArmed)
		}
		return d.addEvent(ctx, tx, Event{Node: node, Stage: "disarmed", Detail: "by " + by})
	})
	if err != nil {
		return fmt.Errorf("disarm node %q: %w", node, err)
	}
	return nil
}

// BeginAttempt starts a network boot of node: it returns the Install with a
// fresh nonce when the node shall install now. ip is the address that the claim
// has to come from; empty: any. When the attempts are used up
// the state becomes Failed, which the returned Install shows.
func (d *DB) BeginAttempt(ctx context.Context, node, ip string) (Install, error) {
	var out Install
	err := d.change(ctx, node, func(in *Install) (Event, error) {
		defer func() { out = *in }()
		switch in.State {
		case Armed, Claimed, Writing:
		default:
			return Event{}, ErrNotArmed
		}
		if in.Attempt >= MaxAttempts {
			in.Reason = fmt.Sprintf("given up after %d attempts; the last one stopped at %s", in.Attempt, orNone(in.Task))
			in.State, in.Token, in.Nonce = Failed, "", ""
			return Event{Stage: "failed", Detail: in.Reason}, nil
		}
		prev := in.State
		in.Attempt++
		in.State, in.Nonce, in.Client, in.Token, in.IP, in.Done, in.Total = Armed, secret(), "", "", ip, 0, 0
		detail := fmt.Sprintf("attempt %d of %d", in.Attempt, MaxAttempts)
		if in.Attempt > 1 {
			detail += fmt.Sprintf("; the one before stopped in state %s at %s", prev, orNone(in.Task))
		}
		in.Task = ""
		return Event{Stage: "attempt", Detail: detail}, nil
	})
	return out, err
}

// Claim binds the boot attempt named by nonce to one installer. The first
// claim yields a session token; the same client gets the same one again; a
// second client is refused with ErrClaimed, and one that does not come from the
// address that fetched the boot script, where one is known, with ErrForeign.
// Both are recorded as alarms.
func (d *DB) Claim(ctx context.Context, node, nonce, client, ip string) (Install, error) {
	var out Install
	var refused error
	err := d.change(ctx, node, func(in *Install) (Event, error) {
		defer func() { out = *in }()
		switch {
		case in.State == Failed || in.State == Installed:
			return Event{}, ErrNotArmed
		case nonce == "" || client == "" || in.Nonce != nonce:
			return Event{}, ErrStale
		case in.IP != "" && in.IP != ip:
			refused = ErrForeign
			return Event{Stage: "alarm", Detail: fmt.Sprintf("%s tried to claim the profile of the boot attempt of %s", ip, in.IP)}, nil
		case in.Client == client:
			return Event{}, nil
		case in.Client != "":
			refused = ErrClaimed
			return Event{Stage: "alarm", Detail: fmt.Sprintf("a second machine at %s tried to claim the profile that %s holds", ip, in.IP)}, nil
		}
		in.State, in.Client, in.Token, in.IP = Claimed, client, secret(), ip
		return Event{Stage: "claim", Detail: "from " + ip}, nil
	})
	if err == nil && refused != nil {
		return Install{}, fmt.Errorf("claim node %q: %w", node, refused)
	}
	return out, err
}

// Fail ends the boot attempt named by nonce before it was claimed: its profile
// cannot be made.
func (d *DB) Fail(ctx context.Context, node, nonce, reason string) error {
	return d.change(ctx, node, func(in *Install) (Event, error) {
		if nonce == "" || in.Nonce != nonce || in.State == Installed || in.State == Failed {
			return Event{}, ErrStale
		}
		in.State, in.Reason, in.Token, in.Nonce = Failed, reason, "", ""
		return Event{Stage: "failed", Detail: reason}, nil
	})
}

// Session returns the installation whose session token is token.
func (d *DB) Session(ctx context.Context, token string) (Install, error) {
	if token == "" {
		return Install{}, fmt.Errorf("session: %w", ErrNotFound)
	}
	in, err := scanInstall(d.db.QueryRowContext(ctx, `SELECT `+installCols+` FROM installs WHERE token=?`, token))
	if err != nil {
		return Install{}, fmt.Errorf("session: %w", err)
	}
	return in, nil
}

// Step is how far an installer says that it is.
type Step struct {
	Task    string
	Detail  string
	Done    int64 // bytes
	Total   int64 // bytes; 0: unknown
	Rate    int64 // bytes a second; 0: unknown
	Writing bool  // the disk is being changed from now on
}

// Progress records where the session's installer is. A new task becomes an event.
func (d *DB) Progress(ctx context.Context, token string, p Step) error {
	return d.session(ctx, token, func(in *Install) (Event, error) {
		if in.State != Claimed && in.State != Writing {
			return Event{}, ErrNotArmed
		}
		if p.Writing {
			in.State, in.Dirty = Writing, true
		}
		in.Done, in.Total, in.Rate = p.Done, p.Total, p.Rate
		if in.Task == p.Task {
			return Event{}, nil
		}
		in.Task = p.Task
		return Event{Stage: "task", Detail: joinDetail(p.Task, p.Detail)}, nil
	})
}

// Finish ends the session's installation: well when reason is empty. A repeat
// of the same ending is not an error, since its answer may have been lost.
func (d *DB) Finish(ctx context.Context, token, reason string) error {
	return d.session(ctx, token, func(in *Install) (Event, error) {
		want, stage, detail := Installed, "installed", fmt.Sprintf("%s, attempt %d", in.Ref, in.Attempt)
		if reason != "" {
			want, stage, detail = Failed, "failed", reason
		}
		if in.State == want {
			return Event{}, nil
		}
		if in.State == Installed || in.State == Failed {
			return Event{}, fmt.Errorf("already %s: %w", in.State, ErrNotArmed)
		}
		in.State, in.Reason = want, reason
		return Event{Stage: stage, Detail: detail}, nil
	})
}

func (d *DB) session(ctx context.Context, token string, fn func(*Install) (Event, error)) error {
	in, err := d.Session(ctx, token)
	if err != nil {
		return err
	}
	return d.change(ctx, in.Node, func(cur *Install) (Event, error) {
		if cur.Token != token {
			return Event{}, ErrStale
		}
		return fn(cur)
	})
}

// change reads node's Install, lets fn alter it and writes it back with fn's
// event (none when its Stage is empty), all in one transaction.
func (d *DB) change(ctx context.Context, node string, fn func(*Install) (Event, error)) error {
	err := d.tx(ctx, func(tx *sql.Tx) error {
		in, err := scanInstall(tx.QueryRowContext(ctx, `SELECT `+installCols+` FROM installs WHERE node=?`, node))
		if err != nil {
			return err
		}
		ev, err := fn(&in)
		if err != nil {
			return err
		}
		in.Changed = d.now()
		_, err = tx.ExecContext(ctx, `UPDATE installs SET state=?, attempt=?, nonce=?, client=?, token=?, ip=?, task=?, done=?, total=?, rate=?, dirty=?, reason=?, changed=? WHERE node=?`,
			in.State, in.Attempt, in.Nonce, in.Client, in.Token, in.IP, in.Task, in.Done, in.Total, in.Rate, in.Dirty, in.Reason, nanos(in.Changed), node)
		if err != nil || ev.Stage == "" {
			return err
		}
		ev.Node = node
		return d.addEvent(ctx, tx, ev)
	})
	if err != nil {
		return fmt.Errorf("installation of node %q: %w", node, err)
	}
	return nil
}

// secret returns 128 random bits in hexadecimal.
func secret() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand.Read
	return hex.EncodeToString(b[:])
}

func orNone(s string) string {
	if s == "" {
		return "no task yet"
	}
	return s
}

func joinDetail(a, b string) string {
	if b == "" {
		return a
	}
	return a + ": " + b
}
