package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/imager/store"
	"ingot/internal/durable"
	"ingot/internal/sshkey"
	"ingot/inventory"
	"ingot/site"
)

// world is an open site: what is written, what happened, and the images.
type world struct {
	*site.Site
	state  *inventory.DB
	images *store.Store
}

// openSite reads the site that the command line names.
func openSite(c *cli.Context) (*site.Site, error) {
	s, err := site.Load(siteDir(c))
	if errors.Is(err, site.ErrNotSite) {
		return nil, withHint(coded{err, exitNotFound}, "begin one with `ingot init DIR`, or name it with --site DIR or INGOT_SITE")
	}
	return s, err
}

// openWorld opens site, state and store; Close closes them.
func openWorld(c *cli.Context) (*world, error) {
	s, err := openSite(c)
	if err != nil {
		return nil, err
	}
	return openWorldOf(c.Context, s)
}

func openWorldOf(ctx context.Context, s *site.Site) (*world, error) {
	db, err := inventory.Open(ctx, s.State)
	if err != nil {
		return nil, err
	}
	st, err := store.OpenOrInit(s.Store)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &world{Site: s, state: db, images: st}, nil
}

func (w *world) Close() error { return w.state.Close() }

// shareImages keeps a prune away until release is called, and waits for one
// that runs: whoever reads an image or refers to one holds it from before it
// looks up the name until it is done and its record written.
func (p *program) shareImages(ctx context.Context, w *world) (release func(), err error) {
	return p.lockImages(ctx, w, false, math.MaxInt64)
}

// lockImages locks the image store, and says for whom it waits.
func (p *program) lockImages(ctx context.Context, w *world, exclusive bool, wait time.Duration) (release func(), err error) {
	return w.images.LockWithin(ctx, exclusive, wait, func(busy *store.BusyError) { p.say("waiting: %v", busy) })
}

// private is the directory of the site that people do not edit.
func (w *world) private(elem ...string) string {
	return filepath.Join(append([]string{w.Dir, ".ingot"}, elem...)...)
}

// siteKey returns the path of the site's own SSH key, making it at first use.
// Its public half is put into root's authorized_keys by every install.
func (w *world) siteKey() (string, error) {
	path := w.private("keys", "id_ed25519")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	pair, err := sshkey.New("ed25519", "ingot@"+filepath.Base(w.Dir))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("make the site's key: %w", err)
	}
	// The public half first: the private one is what says that both are there.
	if err := durable.WriteFile(path+".pub", []byte(pair.Public+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("make the site's key: %w", err)
	}
	if err := durable.WriteFile(path, []byte(pair.Private), 0o600); err != nil {
		return "", fmt.Errorf("make the site's key: %w", err)
	}
	return path, nil
}

// hostKeys returns the SSH host keys kept for a node, making them at first use.
func (w *world) hostKeys(ctx context.Context, node string) ([]inventory.HostKey, error) {
	keys, err := w.state.HostKeys(ctx, node)
	if err != nil {
		return nil, err
	}
	if len(keys) == len(sshkey.Types()) {
		return keys, nil
	}
	for _, kind := range sshkey.Types() {
		p, err := sshkey.New(kind, "root@"+node)
		if err != nil {
			return nil, err
		}
		if err := w.state.AddHostKey(ctx, node, inventory.HostKey{Type: p.Type, Private: p.Private, Public: p.Public}); err != nil {
			return nil, err
		}
	}
	return w.state.HostKeys(ctx, node)
}

// openNodes opens the world and selects the nodes of the first argument.
func openNodes(c *cli.Context) (*world, []*site.Node, error) {
	w, err := openWorld(c)
	if err != nil {
		return nil, nil, err
	}
	nodes, err := selectNodes(w.Site, c.Args().First())
	if err != nil {
		return nil, nil, errors.Join(err, w.Close())
	}
	return w, nodes, nil
}

// justOne refuses a NODES expression that names several where one is wanted.
func justOne(c *cli.Context, nodes []*site.Node) error {
	if len(nodes) == 1 {
		return nil
	}
	verb := strings.TrimPrefix(c.Command.HelpName, "ingot ")
	return usagef("%s: %q names %d nodes, want one", verb, c.Args().First(), len(nodes))
}

// selectNodes resolves a NODES expression.
func selectNodes(s *site.Site, expr string) ([]*site.Node, error) {
	nodes, err := s.Select(expr)
	var missing *site.NotFoundError
	if errors.As(err, &missing) {
		return nil, withHint(coded{err, exitNotFound}, "`ingot node list` shows the nodes of this site")
	}
	if err != nil {
		return nil, usageError{err.Error()}
	}
	return nodes, nil
}
