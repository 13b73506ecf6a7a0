package inventory

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Event is something that happened to a machine. Node is empty for a machine
// that was not known then; MAC may be empty for what concerns the node as such.
type Event struct {
	ID     int64
	Time   time.Time
	Node   string
	MAC    string
	Stage  string // discover offer ... task installed failed login; see docs/BOOT.md
	Detail string
}

// AddEvent appends e; a zero Time means now.
func (d *DB) AddEvent(ctx context.Context, e Event) error {
	if err := d.addEvent(ctx, d.db, e); err != nil {
		return fmt.Errorf("record event %q of %q: %w", e.Stage, e.Node, err)
	}
	return nil
}

// AddEvents appends events in one transaction.
func (d *DB) AddEvents(ctx context.Context, events []Event) error {
	err := d.tx(ctx, func(tx *sql.Tx) error {
		for _, e := range events {
			if err := d.addEvent(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record %d events: %w", len(events), err)
	}
	return nil
}

// ForgetEvents removes the events before a time.
func (d *DB) ForgetEvents(ctx context.Context, before time.Time) error {
	if _, err := d.db.ExecContext(ctx, `DELETE FROM events WHERE time<?`, nanos(before)); err != nil {
		return fmt.Errorf("forget old events: %w", err)
	}
	return nil
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (d *DB) addEvent(ctx context.Context, x execer, e Event) error {
	if e.Time.IsZero() {
		e.Time = d.now()
	}
	_, err := x.ExecContext(ctx, `INSERT INTO events (time, node, mac, stage, detail) VALUES (?,?,?,?,?)`, nanos(e.Time), e.Node, e.MAC, e.Stage, e.Detail)
	return err
}

// Events returns the events of node, or of any of macs, oldest first, from the
// ID after on; limit 0 is no limit, and otherwise the newest ones are returned.
func (d *DB) Events(ctx context.Context, node string, macs []string, after int64, limit int) ([]Event, error) {
	where, args := `(node=? AND node<>'')`, []any{node}
	for _, m := range macs {
		where += ` OR mac=?`
		args = append(args, m)
	}
	q := `SELECT id, time, node, mac, stage, detail FROM events WHERE (` + where + `) AND id>? ORDER BY id DESC`
	args = append(args, after)
	if limit > 0 {
		q += ` LIMIT ?`
		args = append(args, limit)
	}
	rows, err := d.db.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("read events of %q: %w", node, err)
	}
	defer rows.Close()
	var out []Event
	for rows.Next() {
		var e Event
		var t int64
		if err := rows.Scan(&e.ID, &t, &e.Node, &e.MAC, &e.Stage, &e.Detail); err != nil {
			return nil, fmt.Errorf("read events of %q: %w", node, err)
		}
		e.Time = fromNanos(t)
		out = append(out, e)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out, rows.Err()
}

// Machine is a network interface that asked to boot.
type Machine struct {
	MAC      string
	Node     string // empty: unknown
	UUID     string
	Serial   string
	Firmware string
	IP       string
	First    time.Time
	Last     time.Time
}

// SeeMachine records that m was seen now; empty fields keep what was known.
func (d *DB) SeeMachine(ctx context.Context, m Machine) error {
	now := nanos(d.now())
	_, err := d.db.ExecContext(ctx, `INSERT INTO machines (mac, node, uuid, serial, firmware, ip, first, last) VALUES (?,?,?,?,?,?,?,?)
		ON CONFLICT (mac) DO UPDATE SET node=excluded.node, last=excluded.last,
		uuid=CASE excluded.uuid WHEN '' THEN uuid ELSE excluded.uuid END,
		serial=CASE excluded.serial WHEN '' THEN serial ELSE excluded.serial END,
		firmware=CASE excluded.firmware WHEN '' THEN firmware ELSE excluded.firmware END,
		ip=CASE excluded.ip WHEN '' THEN ip ELSE excluded.ip END`,
		m.MAC, m.Node, m.UUID, m.Serial, m.Firmware, m.IP, now, now)
	if err != nil {
		return fmt.Errorf("record machine %s: %w", m.MAC, err)
	}
	return nil
}

// Machines returns all machines ever seen, by MAC.
func (d *DB) Machines(ctx context.Context) ([]Machine, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT mac, node, uuid, serial, firmware, ip, first, last FROM machines ORDER BY mac`)
	if err != nil {
		return nil, fmt.Errorf("read machines: %w", err)
	}
	defer rows.Close()
	var out []Machine
	for rows.Next() {
		var m Machine
		var first, last int64
		if err := rows.Scan(&m.MAC, &m.Node, &m.UUID, &m.Serial, &m.Firmware, &m.IP, &first, &last); err != nil {
			return nil, fmt.Errorf("read machines: %w", err)
		}
		m.First, m.Last = fromNanos(first), fromNanos(last)
		out = append(out, m)
	}
	return out, rows.Err()
}
