package inventory

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// Retire records which generations node keeps itself: all others, but the
// newest and the newest of the whole tree, are retired. They stay in the list,
// and keep no image from being removed.
func (d *DB) Retire(ctx context.Context, node string, keeps []int) error {
	err := d.tx(ctx, func(tx *sql.Tx) error {
		list, err := generations(ctx, tx, node)
		if err != nil {
			return err
		}
		whole := len(list) - 1 // what most of the tree is of, though it may not be kept to go back to
		for whole > 0 && list[whole].Within != "" {
			whole--
		}
		for i, g := range list {
			retired := i < len(list)-1 && i != whole && !slices.Contains(keeps, g.Number)
			if retired == g.Retired {
				continue
			}
			if _, err := tx.ExecContext(ctx, `UPDATE generations SET retired=? WHERE node=? AND number=?`, retired, node, g.Number); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("retire generations of node %q: %w", node, err)
	}
	return nil
}

// How says what a node has to do with an image.
type How string

// What a node has to do with an image: it is in its newest generation of the whole
// tree, or in another one that it keeps, or is being installed.
const (
	Runs     How = "runs"
	Keeps    How = "keeps"
	Installs How = "installs" // armed, claimed or writing
)

// Use is one reason to keep an image.
type Use struct {
	Node       string
	How        How
	Image      string // digest of its manifest
	Ref        string // as the operator named it then
	Generation int    // 0: none yet
}

// Uses returns all that nodes have to do with images, by node and generation.
// An installation that has ended counts until its generation is recorded.
func (d *DB) Uses(ctx context.Context) ([]Use, error) {
	rows, err := d.db.QueryContext(ctx, `
		SELECT node, CASE number WHEN (SELECT MAX(number) FROM generations n WHERE n.node=g.node AND n.within='') THEN 'runs' ELSE 'keeps' END, image, ref, number
		FROM generations g WHERE retired=0
		UNION ALL
		SELECT node, CASE state WHEN 'installed' THEN 'keeps' ELSE 'installs' END, image, ref, 0 FROM installs i
		WHERE state IN ('armed', 'claimed', 'writing')
		OR state='installed' AND NOT EXISTS (SELECT 1 FROM generations g WHERE g.node=i.node AND g.kind='install' AND g.image=i.image)
		ORDER BY 1, 5`)
	if err != nil {
		return nil, fmt.Errorf("read uses of images: %w", err)
	}
	defer rows.Close()
	var out []Use
	for rows.Next() {
		var u Use
		if err := rows.Scan(&u.Node, &u.How, &u.Image, &u.Ref, &u.Generation); err != nil {
			return nil, fmt.Errorf("read uses of images: %w", err)
		}
		out = append(out, u)
	}
	return out, rows.Err()
}

// Facts returns one fact of all nodes that have it.
func (d *DB) Facts(ctx context.Context, key string) (map[string]string, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT node, value FROM facts WHERE key=?`, key)
	if err != nil {
		return nil, fmt.Errorf("facts %q: %w", key, err)
	}
	defer rows.Close()
	out := map[string]string{}
	for rows.Next() {
		var node, value string
		if err := rows.Scan(&node, &value); err != nil {
			return nil, fmt.Errorf("facts %q: %w", key, err)
		}
		out[node] = value
	}
	return out, rows.Err()
}
