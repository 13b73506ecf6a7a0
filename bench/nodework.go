package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// owned are the paths that a push leaves alone or that belong to the node's
// overlay, as rsync's filter rules: rsync gets the same, so that both do the
// same work, and so does the comparison.
func owned() []string {
	return []string{
		"- /.ingot", "- /proc/*", "- /sys/*", "- /dev/*", "- /run/*", "- /tmp/*", "- /lost+found",
		"- /var/tmp/*", "- /var/log/*", "- /var/cache/*",
		"- /etc/hostname", "- /etc/hosts", "- /etc/resolv.conf", "- /etc/machine-id", "- /etc/ssh/ssh_host_*", "- /etc/systemd/network/*",
		"- /home/*", "- /root/.ssh", "- /root/.*_history",
		"+ /var/lib/dpkg/***", "+ /var/lib/apt/", "+ /var/lib/apt/extended_states", "- /var/lib/apt/*", "- /var/lib/*",
	}
}

func (b *bench) ownedFile() (string, error) {
	path := filepath.Join(b.dir, "owned")
	return path, os.WriteFile(path, []byte(strings.Join(owned(), "\n")+"\n"), 0o644)
}

const siteYAML = `state: .ingot/state.db
store: .ingot/store
networks:
  - {name: rack, subnet: 10.9.1.0/24, address: ` + ourAddr + `}
`

const nodeYAML = `nics:
  - {name: eth0, mac: "52:54:00:00:00:01", network: rack, address: ` + nodeAddr + `, boot: true}
`

// rack makes the site of ingot and boots the node.
func (b *bench) rack(ctx context.Context) error {
	a := b.ours()
	if _, err := os.Stat(b.state(a)); err != nil {
		if err := b.fresh(ctx, a); err != nil {
			return err
		}
	}
	site := filepath.Join(b.state(a), "site")
	err := errors.Join(os.MkdirAll(filepath.Dir(b.key()), 0o700), os.MkdirAll(filepath.Join(site, "nodes"), 0o755),
		os.WriteFile(filepath.Join(site, "ingot.yaml"), []byte(siteYAML), 0o644),
		os.WriteFile(filepath.Join(site, "nodes", nodeName+".yaml"), []byte(nodeYAML), 0o644))
	if err != nil {
		return err
	}
	// The example's classes would lay files on top of the image.
	if err := b.sh(ctx, `cd "$SITE"; rm -rf class disk_config files profile scripts templates nodes/n1.yaml
[ -e "$KEY" ] || ssh-keygen -q -t ed25519 -N '' -f "$KEY"`, "SITE="+site, "KEY="+b.key()); err != nil {
		return err
	}
	b.say("making a node")
	b.node, err = b.bootNode(ctx)
	return err
}

// over are the jobs of one work on the node.
type over struct {
	work     string
	from, to string // trees
	nothing  bool   // from and to are the same: no run changes the node
	seen     bool   // ingot has brought the node to from
	tools    []string
	check    bool
}

func (b *bench) onNode(ctx context.Context) error {
	rsyncs := []string{"rsync", "rsync -z --zc=zstd"}
	return b.withNode(ctx,
		over{work: workPush, from: "A", to: "B", seen: true, tools: append(rsyncs, "ingot"), check: true},
		over{work: workFirst, from: "A", to: "B", tools: []string{"ingot"}, check: true},
		over{work: workNothing, from: "B", to: "B", nothing: true, seen: true, tools: append(rsyncs, "ingot", "ssh true")},
		over{work: workFile, from: "A", to: oneFile, seen: true, tools: append(rsyncs, "ingot"), check: true},
		over{work: workRename, from: beforeRename, to: afterRename, seen: true, tools: append(rsyncs, "ingot"), check: true})
}

func (b *bench) backOnNode(ctx context.Context) error {
	return b.withNode(ctx, over{work: workBack, from: "B", to: "A", seen: true, tools: []string{"rsync from a full copy", "ingot rollback", "ingot"}, check: true})
}

// withNode does works on a node of their own.
func (b *bench) withNode(ctx context.Context, works ...over) error {
	if err := b.rack(ctx); err != nil {
		return err
	}
	if _, err := b.ownedFile(); err != nil {
		return err
	}
	for _, o := range works {
		if err := b.overSSH(ctx, o); err != nil {
			return err
		}
	}
	err := b.node.off()
	b.node = nil
	return errors.Join(err, b.sh(ctx, `umount -l "$DIR/node"; rm -rf "$DIR/node"`, "DIR="+b.dir))
}

// overSSH measures one work on the node: seconds, bytes on the wire, and in a
// further run without a clock the memory on the node.
func (b *bench) overSSH(ctx context.Context, o over) error {
	var failed error
	if b.uses("ingot") {
		for _, name := range []string{"A", o.from, o.to} {
			failed = errors.Join(failed, b.ensure(ctx, b.ours(), name))
		}
	}
	if err := b.morph(ctx, o.to); err != nil {
		return err
	}
	var jobs []job
	for _, t := range o.tools {
		j := b.nodeJob(t, o)
		if before := j.before; strings.HasPrefix(t, "ingot") {
			j.before = func(ctx context.Context) error {
				if failed != nil {
					return failed
				}
				return before(ctx)
			}
		}
		jobs = append(jobs, j)
	}
	from := len(b.rows)
	if err := b.measure(ctx, o.work, jobs); err != nil {
		return err
	}
	for i := from; i < len(b.rows); i++ {
		for _, j := range jobs {
			if r := &b.rows[i]; r.Tool == j.tool && r.ok() && j.tool != "ssh true" && o.work != workRename {
				if err := b.memory(ctx, j, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// memory runs a job once more and watches the node's processes.
func (b *bench) memory(ctx context.Context, j job, r *row) error {
	if err := j.before(ctx); err != nil {
		return err
	}
	stop, peak := make(chan struct{}), make(chan int64)
	program := "rsync"
	if strings.HasPrefix(j.tool, "ingot") {
		program = "agent"
	}
	go func() { peak <- b.node.peak(program, stop) }()
	_, _, err := b.timed(ctx, j.run, j.env)
	close(stop)
	r.Node = <-peak
	return err
}

// console runs a command on the node itself: nobody logs in.
const console = `nsenter -t $PID -a `

// nodeJob is what a tool does for a work on the node.
func (b *bench) nodeJob(t string, o over) job {
	env := []string{"TREE=" + b.treeDir(), "OWNED=" + filepath.Join(b.dir, "owned"), "SSH=ssh -F " + b.dir + "/ssh_config", "NODE=" + nodeName, "COPY=" + copyOnNode}
	const rsync = `rsync -aHAX --numeric-ids --delete --exclude-from="$OWNED" `
	env = append(env, "PID="+strconv.Itoa(b.node.cmd.Process.Pid))
	j := job{tool: t, env: env}
	switch t {
	case "rsync":
		j.run = rsync + `-e "$SSH" "$TREE/" $NODE:/`
	case "rsync -z --zc=zstd":
		j.run = rsync + `-z --zc=zstd -e "$SSH" "$TREE/" $NODE:/`
	case "rsync from a full copy":
		j.run = console + `rsync -aHAX --numeric-ids --delete --exclude-from=/run/owned $COPY/ /`
	case "ssh true":
		j.run = `$SSH $NODE true`
	case "ingot":
		if j.run = ingotSite + " push tree:" + o.to + " " + nodeName; o.work == workBack {
			j.run = console + `/.ingot/agent rollback`
		}
	case "ingot rollback":
		j.run = ingotSite + " rollback " + nodeName
	}
	if strings.HasPrefix(t, "ingot") {
		j.env = append(b.envOf(b.ours(), "", "", ""), env...)
	}
	j.before = func(ctx context.Context) error { return b.bring(ctx, o, strings.HasPrefix(t, "ingot")) }
	var was int64
	j.start = func() (err error) {
		if !o.nothing {
			b.node.state = ""
		}
		was, err = wire()
		return err
	}
	j.bytes = func(context.Context) (int64, error) {
		time.Sleep(50 * time.Millisecond) // the last packets of the connection
		n, err := wire()
		return n - was, err
	}
	if o.check {
		want := b.treeDir()
		j.check = func(ctx context.Context) (string, error) {
			return b.compare(ctx, want, b.node.root, "--exclude-from="+filepath.Join(b.dir, "owned"), "--omit-dir-times")
		}
	}
	return j
}

// bring puts the node's tree into the state that a work begins with. Where
// ingot has been there before, it has: a node that is kept by ingot is the
// usual case.
func (b *bench) bring(ctx context.Context, o over, ours bool) error {
	ours = ours && o.seen || o.nothing && b.uses("ingot")
	state := fmt.Sprint(o.from, " ", ours)
	if b.node.state == state {
		return nil
	}
	b.node.state = ""
	first := o.from
	if o.work == workBack {
		first = o.to // so that there is a way back
	}
	if err := b.resetNode(ctx, first); err != nil {
		return fmt.Errorf("bring the node to %s: %w", first, err)
	}
	if ours {
		for _, name := range []string{first, o.from} {
			if err := b.sh(ctx, ingotSite+` push "tree:$NAME" $NODE`, append(b.envOf(b.ours(), "", name, ""), "NODE="+nodeName)...); err != nil {
				return err
			}
			if first == o.from {
				break
			}
		}
	} else if first != o.from {
		if err := b.resetNode(ctx, o.from); err != nil {
			return err
		}
	}
	b.node.state = state
	return nil
}

// resetNode makes the node's tree that of name, and forgets what ingot left there.
func (b *bench) resetNode(ctx context.Context, name string) error {
	source := b.trees.a
	if name == "B" {
		source = b.trees.b
	}
	script := `chattr -R -i "$ROOT/.ingot" 2>/dev/null || true; rm -rf "$ROOT/.ingot"; cp "$OWNED" "/proc/$PID/root/run/owned"
rsync -aHAX --numeric-ids --delete --exclude-from="$OWNED" "$SOURCE/" "$ROOT/"`
	if name == beforeRename {
		script += releaseScript
	}
	return b.sh(ctx, script, "SOURCE="+source, "ROOT="+b.node.root, "TREE="+b.node.root, "RELEASE="+name, "OWNED="+filepath.Join(b.dir, "owned"),
		fmt.Sprintf("PID=%d", b.node.cmd.Process.Pid))
}
