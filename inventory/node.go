package inventory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// HostKey is an SSH host key that the server keeps for a node, so that a
// reinstalled node answers with the key that people have pinned.
type HostKey struct {
	Type    string // ed25519, ecdsa, rsa
	Private string // OpenSSH private key, PEM
	Public  string // one line as in ssh_host_*_key.pub
}

// HostKeys returns the keys kept for node.
func (d *DB) HostKeys(ctx context.Context, node string) ([]HostKey, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT type, private, public FROM hostkeys WHERE node=? ORDER BY type`, node)
	if err != nil {
		return nil, fmt.Errorf("read host keys of %q: %w", node, err)
	}
	defer rows.Close()
	var out []HostKey
	for rows.Next() {
		var k HostKey
		if err := rows.Scan(&k.Type, &k.Private, &k.Public); err != nil {
			return nil, fmt.Errorf("read host keys of %q: %w", node, err)
		}
		out = append(out, k)
	}
	return out, rows.Err()
}

// AddHostKey keeps k for node unless a key of its type is kept already: the
// first one stays for good.
func (d *DB) AddHostKey(ctx context.Context, node string, k HostKey) error {
	if _, err := d.db.ExecContext(ctx, `INSERT OR IGNORE INTO hostkeys (node, type, private, public) VALUES (?,?,?,?)`, node, k.Type, k.Private, k.Public); err != nil {
		return fmt.Errorf("keep host key of %q: %w", node, err)
	}
	return nil
}

// DropHostKeys forgets the keys kept for node: its image brings its own.
func (d *DB) DropHostKeys(ctx context.Context, node string) error {
	if _, err := d.db.ExecContext(ctx, `DELETE FROM hostkeys WHERE node=?`, node); err != nil {
		return fmt.Errorf("forget host keys of %q: %w", node, err)
	}
	return nil
}

// Generation is one state that a node was brought to, as the server knows it;
// the node keeps its own, authoritative list.
type Generation struct {
	Node    string
	Number  int
	Ref     string
	Image   string
	Overlay string
	Within  string // the path that alone was pushed, relative to the top; "" for all
	Mode    string
	Kind    string // install, push, rollback or revert
	By      string
	Reason  string // of a revert
	Time    time.Time
	Retired bool // the node does not keep it any more
}

// detail is what the timeline says of a generation.
func (g Generation) detail() string {
	text := fmt.Sprintf("%d: %s of %s (%.12s) by %s", g.Number, g.Kind, g.Ref, g.Image, g.By)
	if g.Reason != "" {
		text += ": " + g.Reason
	}
	return text
}

// AddGeneration records g. An install begins the node's numbering anew, so the
// generations of the tree that it replaced are forgotten.
func (d *DB) AddGeneration(ctx context.Context, g Generation) error {
	if g.Time.IsZero() {
		g.Time = d.now()
	}
	err := d.tx(ctx, func(tx *sql.Tx) error {
		if g.Kind == "install" {
			if _, err := tx.ExecContext(ctx, `DELETE FROM generations WHERE node=?`, g.Node); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO generations (node, number, ref, image, overlay, within, mode, kind, by_whom, reason, time) VALUES (?,?,?,?,?,?,?,?,?,?,?)`,
			g.Node, g.Number, g.Ref, g.Image, g.Overlay, g.Within, g.Mode, g.Kind, g.By, g.Reason, nanos(g.Time))
		if err != nil {
			return err
		}
		return d.addEvent(ctx, tx, Event{Node: g.Node, Stage: "generation", Detail: g.detail()})
	})
	if err != nil {
		return fmt.Errorf("record generation %d of node %q: %w", g.Number, g.Node, err)
	}
	return nil
}

// Generations returns the generations of node, oldest first.
func (d *DB) Generations(ctx context.Context, node string) ([]Generation, error) {
	out, err := generations(ctx, d.db, node)
	if err != nil {
		return nil, fmt.Errorf("read generations of %q: %w", node, err)
	}
	return out, nil
}

type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func generations(ctx context.Context, q queryer, node string) ([]Generation, error) {
	rows, err := q.QueryContext(ctx, `SELECT node, number, ref, image, overlay, within, mode, kind, by_whom, reason, time, retired FROM generations WHERE node=? ORDER BY number`, node)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Generation
	for rows.Next() {
		var g Generation
		var t int64
		if err := rows.Scan(&g.Node, &g.Number, &g.Ref, &g.Image, &g.Overlay, &g.Within, &g.Mode, &g.Kind, &g.By, &g.Reason, &t, &g.Retired); err != nil {
			return nil, err
		}
		g.Time = fromNanos(t)
		out = append(out, g)
	}
	return out, rows.Err()
}

// SetFact stores one fact about node: a thing that it, or its installer, said.
func (d *DB) SetFact(ctx context.Context, node, key, value string) error {
	if _, err := d.db.ExecContext(ctx, `INSERT OR REPLACE INTO facts (node, key, value) VALUES (?,?,?)`, node, key, value); err != nil {
		return fmt.Errorf("store fact %q of %q: %w", key, node, err)
	}
	return nil
}

// Fact returns one fact about node, or ErrNotFound.
func (d *DB) Fact(ctx context.Context, node, key string) (string, error) {
	var v string
	err := d.db.QueryRowContext(ctx, `SELECT value FROM facts WHERE node=? AND key=?`, node, key).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("fact %q of %q: %w", key, node, err)
	}
	return v, nil
}

// Forget removes all that is kept about node, except its events.
func (d *DB) Forget(ctx context.Context, node string) error {
	err := d.tx(ctx, func(tx *sql.Tx) error {
		for _, table := range []string{"installs", "hostkeys", "generations", "facts"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE node=?`, node); err != nil {
				return err
			}
		}
		return d.addEvent(ctx, tx, Event{Node: node, Stage: "removed"})
	})
	if err != nil {
		return fmt.Errorf("forget node %q: %w", node, err)
	}
	return nil
}
