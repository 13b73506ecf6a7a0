// Package inventory keeps what happened to the nodes: leases, installations, events, generations, host keys and facts. It alone speaks SQL.
package inventory

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver; no cgo
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrNotFound says that the inventory holds no such thing.
var ErrNotFound = errors.New("not in the inventory")

// DB is a site's state. Several processes may share one file: SQLite in WAL
// mode, every writing transaction BEGIN IMMEDIATE, waiting up to ten seconds
// for another writer. All methods are safe for concurrent use.
type DB struct {
	db   *sql.DB
	path string
	now  func() time.Time
}

// Open opens the database file at path, creating it (mode 0600, it holds host
// keys) and bringing its schema up to date. A network file system is refused:
// SQLite's locks are not reliable there (sqlite.org/wal.html, "Overview" 2).
func Open(ctx context.Context, path string) (*DB, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open state %q: %w", path, err)
	}
	if name, remote, err := networkFS(dir); err != nil {
		return nil, fmt.Errorf("open state %q: %w", path, err)
	} else if remote {
		return nil, fmt.Errorf("open state %q: it lies on %s, a network file system, where SQLite cannot lock; set state: in ingot.yaml to a local disk", path, name)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, fmt.Errorf("open state %q: %w", path, err)
	}
	db.SetMaxOpenConns(4)
	d := &DB{db: db, path: path, now: time.Now}
	if err := d.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open state %q: %w", path, err), db.Close())
	}
	return d, nil
}

// Close releases the file.
func (d *DB) Close() error { return d.db.Close() }

func (d *DB) migrate(ctx context.Context) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, d.db, sub)
	if err != nil {
		return err
	}
	current, latest, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if current > latest {
		return fmt.Errorf("its schema is version %d, this ingot knows %d: use the newer ingot", current, latest)
	}
	if current == latest {
		return nil
	}
	_, err = p.Up(ctx)
	return err
}

// tx runs fn in one transaction that holds the write lock from the start.
func (d *DB) tx(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := d.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// networkFS reports the type of file system that dir lies on when it is a
// remote one (magic numbers: statfs(2)).
func networkFS(dir string) (name string, remote bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", false, fmt.Errorf("statfs %q: %w", dir, err)
	}
	names := map[int64]string{
		unix.NFS_SUPER_MAGIC: "NFS", unix.SMB_SUPER_MAGIC: "SMB", unix.CIFS_SUPER_MAGIC: "CIFS", 0xFE534D42: "SMB2",
		unix.V9FS_MAGIC: "9p", unix.AFS_SUPER_MAGIC: "AFS", unix.CEPH_SUPER_MAGIC: "CephFS",
	}
	name, remote = names[int64(st.Type)&0xFFFFFFFF]
	return name, remote, nil
}

func nanos(t time.Time) int64 { return t.UnixNano() }

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
