package inventory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Drained says that a node is out of service: its drain hooks have run, or were
// about to, and its undrain hooks have not. It is recorded before the first step
// of a drain, and forgotten after the last one of an undrain.
type Drained struct {
	Node       string
	Deployment int64 // that took it out; 0: an operator did
	By         string
	Since      time.Time
	Why        string // why it stays so until somebody looks; "": a deployment is at it, or was killed
}

// ByHand reports whether an operator took the node out, for whom it stays out.
func (d *Drained) ByHand() bool { return d.Deployment == 0 }

// SetDrained records that a node is out of service, or that it has another
// reason to be. What an operator took out stays his.
func (d *DB) SetDrained(ctx context.Context, n Drained) error {
	_, err := d.db.ExecContext(ctx, `INSERT INTO drained (node, deployment, by_whom, since, why) VALUES (?,?,?,?,?)
		ON CONFLICT (node) DO UPDATE SET deployment=excluded.deployment, by_whom=excluded.by_whom, why=excluded.why
		WHERE excluded.deployment=0 OR drained.deployment<>0`,
		n.Node, n.Deployment, n.By, nanos(d.now()), n.Why)
	if err != nil {
		return fmt.Errorf("record that node %q is drained: %w", n.Node, err)
	}
	return nil
}

// Undrained records that a node is in service again.
func (d *DB) Undrained(ctx context.Context, node string) error {
	if _, err := d.db.ExecContext(ctx, `DELETE FROM drained WHERE node=?`, node); err != nil {
		return fmt.Errorf("record that node %q is in service: %w", node, err)
	}
	return nil
}

const drainedColumns = `node, deployment, by_whom, since, why`

// DrainedNode says whether a node is out of service; nil where it is not.
func (d *DB) DrainedNode(ctx context.Context, node string) (*Drained, error) {
	n, err := scanDrained(d.db.QueryRowContext(ctx, `SELECT `+drainedColumns+` FROM drained WHERE node=?`, node).Scan)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("is node %q drained: %w", node, err)
	}
	return &n, nil
}

// DrainedNodes returns the nodes that are out of service, by name.
func (d *DB) DrainedNodes(ctx context.Context) ([]Drained, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT `+drainedColumns+` FROM drained ORDER BY node`)
	if err != nil {
		return nil, fmt.Errorf("list drained nodes: %w", err)
	}
	defer rows.Close()
	var out []Drained
	for rows.Next() {
		n, err := scanDrained(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list drained nodes: %w", err)
		}
		out = append(out, n)
	}
	return out, rows.Err()
}

func scanDrained(scan func(...any) error) (n Drained, err error) {
	var since int64
	err = scan(&n.Node, &n.Deployment, &n.By, &since, &n.Why)
	n.Since = fromNanos(since)
	return n, err
}

// markDrained notes which nodes of a deployment are out of service because of it.
func (d *DB) markDrained(ctx context.Context, dep *Deployment) error {
	list, err := d.DrainedNodes(ctx)
	out := map[string]bool{}
	for _, n := range list {
		out[n.Node] = n.Deployment == dep.ID
	}
	for i := range dep.Nodes {
		dep.Nodes[i].Drained = out[dep.Nodes[i].Node]
	}
	return err
}
