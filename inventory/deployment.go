package inventory

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Deployment is one change of nodes: a push, a rollback, a repair. It is
// recorded before the first node is touched.
type Deployment struct {
	ID      int64
	Kind    string // push, rollback, repair
	Ref     string // the image as the operator named it; "" for a rollback
	Image   string // digest of its manifest
	Command string // as it was typed, for people
	Plan    string // JSON of who runs it: what is asked of each node, and how they are gone about
	Undoes  int64  // the deployment that it takes back; 0: none
	Holder  string // what the process that works at it has locked
	By      string
	Begun   time.Time
	Ended   time.Time // the zero time: it is under way, or whoever ran it was killed
	Stopped string    // why it ended before all nodes were begun
	Nodes   []DeploymentNode
}

// DeploymentNode is how a node fares in a deployment.
type DeploymentNode struct {
	Node       string
	Wave       int    // in which it is done, from 0
	State      string // waiting, running, done, unchanged, reverted, failed, unreachable, interrupted, not tried
	Was        int    // the generation before; 0: none, or not known
	Target     int    // of a rollback: the generation to go to; 0: not known
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

// Hold is a node that a deployment which is under way has in hand.
type Hold struct {
	Node       string
	Deployment int64
	Kind, Ref  string
	By         string
	Since      time.Time
}

// HeldError says that nodes are in somebody else's hands.
type HeldError struct{ Holds []Hold }

func (e *HeldError) Error() string {
	var out []string
	for i, h := range e.Holds {
		if i == 5 && len(e.Holds) > 6 {
			out = append(out, fmt.Sprintf("and %d more", len(e.Holds)-i))
			break
		}
		what := strings.TrimSpace(h.Kind + " " + h.Ref)
		out = append(out, fmt.Sprintf("node %q is in the hands of %s since %s: deployment %d, %s", h.Node, h.By, h.Since.Local().Format(time.DateTime), h.Deployment, what))
	}
	return strings.Join(out, "; ")
}

// BeginDeployment records a deployment with its nodes, in the order in which
// they are to be done, and returns its number. Where one of the nodes is in a
// deployment that has not ended, and whose holder is alive, it is a *HeldError.
func (d *DB) BeginDeployment(ctx context.Context, dep Deployment, alive func(holder string) bool) (id int64, err error) {
	now := d.now()
	err = d.tx(ctx, func(tx *sql.Tx) error {
		if err := heldBy(ctx, tx, dep.Nodes, alive); err != nil {
			return err
		}
		r, err := tx.ExecContext(ctx, `INSERT INTO deployments (kind, ref, image, command, plan, undoes, holder, by_whom, begun) VALUES (?,?,?,?,?,?,?,?,?)`,
			dep.Kind, dep.Ref, dep.Image, dep.Command, dep.Plan, dep.Undoes, dep.Holder, dep.By, nanos(now))
		if err != nil {
			return err
		}
		if id, err = r.LastInsertId(); err != nil {
			return err
		}
		for i, n := range dep.Nodes {
			if _, err := tx.ExecContext(ctx, `INSERT INTO deployment_nodes (deployment, node, place, wave, target, state, changed) VALUES (?,?,?,?,?,?,?)`,
				id, n.Node, i, n.Wave, n.Target, NodeWaiting, nanos(now)); err != nil {
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

// TakeDeployment makes holder the one that works at a deployment, which is
// under way again then. It is a *HeldError where somebody else works at it, or
// has one of these nodes in hand.
func (d *DB) TakeDeployment(ctx context.Context, id int64, nodes []DeploymentNode, holder string, alive func(holder string) bool) error {
	err := d.tx(ctx, func(tx *sql.Tx) error {
		if err := heldBy(ctx, tx, nodes, alive); err != nil {
			return err
		}
		r, err := tx.ExecContext(ctx, `UPDATE deployments SET holder=?, ended=0, stopped='' WHERE id=?`, holder, id)
		if err != nil {
			return err
		}
		return wanted(r)
	})
	if err != nil {
		return fmt.Errorf("take up deployment %d: %w", id, err)
	}
	return nil
}

// heldBy looks for nodes in the deployments that are under way.
func heldBy(ctx context.Context, tx *sql.Tx, nodes []DeploymentNode, alive func(holder string) bool) error {
	rows, err := tx.QueryContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE ended=0`)
	if err != nil {
		return err
	}
	open, err := scanDeployments(rows)
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, n := range nodes {
		ours[n.Node] = true
	}
	held := &HeldError{}
	for _, dep := range open {
		if !alive(dep.Holder) {
			continue
		}
		list, err := deploymentNodes(ctx, tx, dep.ID)
		if err != nil {
			return err
		}
		for _, n := range list {
			if ours[n.Node] {
				held.Holds = append(held.Holds, Hold{n.Node, dep.ID, dep.Kind, dep.Ref, dep.By, dep.Begun})
			}
		}
	}
	if len(held.Holds) > 0 {
		return held
	}
	return nil
}

// Superseded lists those of the nodes of a deployment that a later one has
// begun to change, by the number of that one.
func (d *DB) Superseded(ctx context.Context, id int64) (map[string]int64, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT n.node, MAX(l.deployment) FROM deployment_nodes n JOIN deployment_nodes l ON l.node=n.node AND l.deployment>n.deployment
		WHERE n.deployment=? AND l.was>0 AND l.state<>'unchanged' GROUP BY n.node`, id)
	if err != nil {
		return nil, fmt.Errorf("what came after deployment %d: %w", id, err)
	}
	defer rows.Close()
	out := map[string]int64{}
	for rows.Next() {
		var node string
		var later int64
		if err := rows.Scan(&node, &later); err != nil {
			return nil, fmt.Errorf("what came after deployment %d: %w", id, err)
		}
		out[node] = later
	}
	return out, rows.Err()
}

// SetDeploymentNode records how a node of a deployment fares.
func (d *DB) SetDeploymentNode(ctx context.Context, id int64, n DeploymentNode) error {
	health, err := json.Marshal(append([]string{}, n.Health...))
	if err != nil {
		return fmt.Errorf("record node %q of deployment %d: %w", n.Node, id, err)
	}
	r, err := d.db.ExecContext(ctx, `UPDATE deployment_nodes SET state=?, was=?, target=?, generation=?, changes=?, sent=?, reason=?, health=?, sides=?, changed=? WHERE deployment=? AND node=?`,
		n.State, n.Was, n.Target, n.Generation, n.Changes, n.Sent, n.Reason, string(health), n.Sides, nanos(d.now()), id, n.Node)
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

// EndDeployment records that nobody works at a deployment any more; stopped
// says why not all of its nodes were begun.
func (d *DB) EndDeployment(ctx context.Context, id int64, stopped string) error {
	r, err := d.db.ExecContext(ctx, `UPDATE deployments SET ended=?, stopped=?, holder='' WHERE id=?`, nanos(d.now()), stopped, id)
	if err == nil {
		err = wanted(r)
	}
	if err != nil {
		return fmt.Errorf("end deployment %d: %w", id, err)
	}
	return nil
}

const deploymentColumns = `id, kind, ref, image, command, plan, undoes, holder, by_whom, begun, ended, stopped`

// Deployments returns the newest deployments, newest first, without their
// nodes' health; most bounds them, 0 is all.
func (d *DB) Deployments(ctx context.Context, most int) ([]Deployment, error) {
	if most <= 0 {
		most = -1 // LIMIT -1 is none (sqlite.org/lang_select.html)
	}
	out, err := d.selectDeployments(ctx, `ORDER BY id DESC LIMIT ?`, most)
	if err != nil {
		return nil, fmt.Errorf("list deployments: %w", err)
	}
	return out, nil
}

// Undone returns the deployments that take back a given one, oldest first,
// without their nodes.
func (d *DB) Undone(ctx context.Context, id int64) ([]Deployment, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE undoes=? ORDER BY id`, id)
	if err != nil {
		return nil, fmt.Errorf("what takes back deployment %d: %w", id, err)
	}
	return scanDeployments(rows)
}

func (d *DB) selectDeployments(ctx context.Context, rest string, args ...any) ([]Deployment, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT `+deploymentColumns+` FROM deployments `+rest, args...)
	if err != nil {
		return nil, err
	}
	out, err := scanDeployments(rows)
	for i := range out {
		if err == nil {
			out[i].Nodes, err = deploymentNodes(ctx, d.db, out[i].ID)
		}
		if err == nil {
			err = d.markDrained(ctx, &out[i])
		}
	}
	return out, err
}

func scanDeployments(rows *sql.Rows) (out []Deployment, err error) {
	defer rows.Close()
	for rows.Next() {
		dep, err := scanDeployment(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, dep)
	}
	return out, rows.Err()
}

// Deployment returns one deployment, or ErrNotFound.
func (d *DB) Deployment(ctx context.Context, id int64) (Deployment, error) {
	dep, err := scanDeployment(d.db.QueryRowContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE id=?`, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err == nil {
		dep.Nodes, err = deploymentNodes(ctx, d.db, id)
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
	err = scan(&dep.ID, &dep.Kind, &dep.Ref, &dep.Image, &dep.Command, &dep.Plan, &dep.Undoes, &dep.Holder, &dep.By, &begun, &ended, &dep.Stopped)
	dep.Begun = fromNanos(begun)
	if ended != 0 {
		dep.Ended = fromNanos(ended)
	}
	return dep, err
}

func deploymentNodes(ctx context.Context, q queryer, id int64) ([]DeploymentNode, error) {
	rows, err := q.QueryContext(ctx, `SELECT node, wave, state, was, target, generation, changes, sent, reason, health, sides, changed FROM deployment_nodes WHERE deployment=? ORDER BY place`, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []DeploymentNode
	for rows.Next() {
		var n DeploymentNode
		var health string
		var changed int64
		if err := rows.Scan(&n.Node, &n.Wave, &n.State, &n.Was, &n.Target, &n.Generation, &n.Changes, &n.Sent, &n.Reason, &health, &n.Sides, &changed); err != nil {
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
