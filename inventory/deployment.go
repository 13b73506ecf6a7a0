package inventory

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Deployment is one push to nodes, or one rollback of nodes. It is recorded
// before the first node is touched.
type Deployment struct {
	ID      int64
	Kind    string // push, rollback
	Ref     string // the image as the operator named it; "" for a rollback
	Image   string // digest of its manifest
	Command string // as it was typed, for people
	By      string
	Begun   time.Time
	Ended   time.Time // the zero time: it is under way, or whoever ran it was killed
	Nodes   []DeploymentNode
}

// DeploymentNode is how a node fares in a deployment.
type DeploymentNode struct {
	Node       string
	State      string // waiting, running, done, unchanged, drained, reverted, failed, unreachable, interrupted, not tried
	Was        int    // the generation before; 0: none, or not known
	Generation int    // what it is at, as far as is known; 0: not known
	Changes    int
	Sent       int64    // bytes
	Reason     string   // why it is not done
	Health     []string // what the checks said, a line each
	Sides      string   // what a node with two root file systems was at when it had ended
	Drained    bool     // it is still out of service since this deployment drained it; read only
	Changed    time.Time
}

// NodeWaiting is the state of a node that a deployment has not come to.
const NodeWaiting = "waiting"

// BeginDeployment records a deployment with its nodes, in the order in which
// they are to be done, and returns its number.
func (d *DB) BeginDeployment(ctx context.Context, dep Deployment) (id int64, err error) {
	now := d.now()
	err = d.tx(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, `INSERT INTO deployments (kind, ref, image, command, by_whom, begun) VALUES (?,?,?,?,?,?)`,
			dep.Kind, dep.Ref, dep.Image, dep.Command, dep.By, nanos(now))
		if err != nil {
			return err
		}
		if id, err = r.LastInsertId(); err != nil {
			return err
		}
		for i, n := range dep.Nodes {
			if _, err := tx.ExecContext(ctx, `INSERT INTO deployment_nodes (deployment, node, place, state, changed) VALUES (?,?,?,?,?)`,
				id, n.Node, i, NodeWaiting, nanos(now)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("record the deployment: %w", err)
	}
	return id, nil
}

// SetDeploymentNode records how a node of a deployment fares.
func (d *DB) SetDeploymentNode(ctx context.Context, id int64, n DeploymentNode) error {
	health, err := json.Marshal(append([]string{}, n.Health...))
	if err != nil {
		return fmt.Errorf("record node %q of deployment %d: %w", n.Node, id, err)
	}
	r, err := d.db.ExecContext(ctx, `UPDATE deployment_nodes SET state=?, was=?, generation=?, changes=?, sent=?, reason=?, health=?, sides=?, changed=? WHERE deployment=? AND node=?`,
		n.State, n.Was, n.Generation, n.Changes, n.Sent, n.Reason, string(health), n.Sides, nanos(d.now()), id, n.Node)
	if err == nil {
		err = wanted(r)
	}
	if err != nil {
		return fmt.Errorf("record node %q of deployment %d: %w", n.Node, id, err)
	}
	return nil
}

// wanted is ErrNotFound where an update met no row.
func wanted(r sql.Result) error {
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		err = ErrNotFound
	}
	return err
}

// EndDeployment records that nobody works at a deployment any more.
func (d *DB) EndDeployment(ctx context.Context, id int64) error {
	r, err := d.db.ExecContext(ctx, `UPDATE deployments SET ended=? WHERE id=?`, nanos(d.now()), id)
	if err == nil {
		err = wanted(r)
	}
	if err != nil {
		return fmt.Errorf("end deployment %d: %w", id, err)
	}
	return nil
}

const deploymentColumns = `id, kind, ref, image, command, by_whom, begun, ended`

// Deployments returns the newest deployments, newest first, without their
// nodes' health; most bounds them, 0 is all.
func (d *DB) Deployments(ctx context.Context, most int) ([]Deployment, error) {
	if most <= 0 {
		most = -1 // LIMIT -1 is none (sqlite.org/lang_select.html)
	}
	rows, err := d.db.QueryContext(ctx, `SELECT `+deploymentColumns+` FROM deployments ORDER BY id DESC LIMIT ?`, most)
	if err != nil {
		return nil, fmt.Errorf("list deployments: %w", err)
	}
	defer rows.Close()
	var out []Deployment
	for rows.Next() {
		dep, err := scanDeployment(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list deployments: %w", err)
		}
		out = append(out, dep)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list deployments: %w", err)
	}
	for i := range out {
		if out[i].Nodes, err = d.deploymentNodes(ctx, out[i].ID); err != nil {
			return nil, fmt.Errorf("list deployments: %w", err)
		}
		if err := d.markDrained(ctx, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Deployment returns one deployment, or ErrNotFound.
func (d *DB) Deployment(ctx context.Context, id int64) (Deployment, error) {
	dep, err := scanDeployment(d.db.QueryRowContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE id=?`, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err == nil {
		dep.Nodes, err = d.deploymentNodes(ctx, id)
	}
	if err == nil {
		err = d.markDrained(ctx, &dep)
	}
	if err != nil {
		return dep, fmt.Errorf("deployment %d: %w", id, err)
	}
	return dep, nil
}

func scanDeployment(scan func(...any) error) (dep Deployment, err error) {
	var begun, ended int64
	err = scan(&dep.ID, &dep.Kind, &dep.Ref, &dep.Image, &dep.Command, &dep.By, &begun, &ended)
	dep.Begun = fromNanos(begun)
	if ended != 0 {
		dep.Ended = fromNanos(ended)
	}
	return dep, err
}

func (d *DB) deploymentNodes(ctx context.Context, id int64) ([]DeploymentNode, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT node, state, was, generation, changes, sent, reason, health, sides, changed FROM deployment_nodes WHERE deployment=? ORDER BY place`, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []DeploymentNode
	for rows.Next() {
		var n DeploymentNode
		var health string
		var changed int64
		if err := rows.Scan(&n.Node, &n.State, &n.Was, &n.Generation, &n.Changes, &n.Sent, &n.Reason, &health, &n.Sides, &changed); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(health), &n.Health); err != nil {
			return nil, fmt.Errorf("health of node %q: %w", n.Node, err)
		}
		n.Changed = fromNanos(changed)
		out = append(out, n)
	}
	return out, rows.Err()
}
