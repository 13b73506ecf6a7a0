package rack

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ingot/imager/store"
	"ingot/internal/digest"
	"ingot/lab"
)

// bench is one rack with a site, a server and machines.
type bench struct {
	t      *testing.T
	rack   *lab.Rack
	site   string
	server *lab.Process
}

const siteYAML = `networks:
  - name: rack
    interface: %s
    subnet: 10.77.0.0/24
    address: 10.77.0.1
    range: 10.77.0.100-10.77.0.199
operators:
  ssh_keys: [%q]
store: %q
`

const profileYAML = `boot: image
image: %s
kernel: {from: image, args: ["console=ttyS0,115200"]}
update: live
network: networkd
`

const disksText = `disk_config disk1 disklabel:gpt-bios fstabkey:uuid
primary /boot/efi 64M vfat umask=0077
primary swap 128M swap sw
primary / 2G- ext4 rw
`

// newBench makes a rack and a site with a private copy of the store when the
// test is going to damage it.
func newBench(t *testing.T, ownStore bool, machines ...lab.Machine) *bench {
	t.Helper()
	b := assemble(t, machines)
	b.run("init", b.site)
	b.command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f", filepath.Join(b.site, "operator"))
	for _, old := range []string{"nodes", "profile", "class", "files", "scripts", "disk_config"} {
		b.must(os.RemoveAll(filepath.Join(b.site, old)))
	}
	b.makeSite(ownStore)
	return b
}

// assemble makes a rack.
func assemble(t *testing.T, machines []lab.Machine) *bench {
	t.Helper()
	if why := os.Getenv(skipEnv); why != "" {
		t.Skip(why)
	}
	dir := filepath.Join(os.Getenv("INGOT_RACK_DIR"), t.Name())
	rack, err := lab.New(lab.Options{Dir: dir, NoRA: true, Bridge: "lab0"})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, rack: rack, site: filepath.Join(dir, "site")}
	t.Cleanup(func() {
		if t.Failed() {
			b.explain()
		}
		if err := rack.Close(); err != nil {
			t.Error(err)
		}
		if !t.Failed() {
			os.RemoveAll(dir)
		}
	})
	for _, m := range machines {
		if len(m.Disks) == 0 {
			m.Disks = []lab.Disk{{SizeBytes: 8 << 30}}
		}
		b.must(rack.AddMachine(m))
	}
	return b
}

// makeSite writes the files of the site, and knows all machines of the rack.
func (b *bench) makeSite(ownStore bool) {
	b.t.Helper()
	store := filepath.Join(goldenSite(), ".ingot", "store")
	if ownStore {
		own := filepath.Join(b.site, ".ingot", "store")
		b.must(os.MkdirAll(filepath.Dir(own), 0o700))
		b.command("cp", "-a", store, own)
		store = own
	}
	pub := strings.TrimSpace(b.read("operator.pub"))
	b.write("ingot.yaml", fmt.Sprintf(siteYAML, b.rack.Bridge(), pub, store))
	b.write("profile/DEFAULT.yaml", fmt.Sprintf(profileYAML, image))
	b.write("disk_config/DEFAULT", disksText)
	b.write("class/DEFAULT.var", "RACK=test\n")
	for _, name := range b.rack.Machines() {
		m, err := b.rack.Machine(name)
		b.must(err)
		if _, err := os.Stat(filepath.Join(b.site, "nodes", name+".yaml")); err != nil {
			b.run("node", "add", name, "--mac", m.MAC)
		}
	}
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.site, name)
	b.must(os.MkdirAll(filepath.Dir(path), 0o755))
	b.must(os.WriteFile(path, []byte(text), 0o644))
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// try types one public command; its output is both streams.
func (b *bench) try(args ...string) (string, error) {
	c := exec.Command(binary(), args...)
	c.Env = append(os.Environ(), "INGOT_SITE="+b.site)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err
}

func (b *bench) run(args ...string) string {
	b.t.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.t.Fatalf("ingot %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (b *bench) command(argv ...string) string {
	b.t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// serve starts the boot server and waits until it is ready.
func (b *bench) serve() {
	b.t.Helper()
	ready := func() int {
		var log []byte
		if b.server != nil {
			log, _ = os.ReadFile(b.server.Log)
		}
		return bytes.Count(log, []byte("msg=ready"))
	}
	if b.server != nil { // its log is begun anew
		b.must(os.Remove(b.server.Log))
	}
	var err error
	b.server, err = b.rack.Start("server", binary(), "serve", "--site", b.site)
	b.must(err)
	b.within(30*time.Second, "the server is ready", func() bool {
		select {
		case <-b.server.Done():
			b.t.Fatalf("the server ended: %v", b.server.Err())
		default:
		}
		return ready() > 0
	})
}

// within waits for a condition and fails the test when it does not come.
func (b *bench) within(d time.Duration, what string, ok func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(d)
	for !ok() {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited %s in vain: %s", d, what)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

type event struct {
	Time    time.Time
	Stage   string
	Detail  string
	Seconds float64
}

func (b *bench) events(node string) []event {
	b.t.Helper()
	c := exec.Command(binary(), "node", "timeline", node, "--all", "--json", "--site", b.site)
	out, err := c.Output()
	if err != nil {
		b.t.Fatalf("timeline: %v", err)
	}
	var v struct{ Events []event }
	b.must(json.Unmarshal(out, &v))
	return v.Events
}

// seen waits until a stage has come count times since the test began; bad
// stages end the wait.
func (b *bench) seen(d time.Duration, node, stage, detail string, count int, bad ...string) event {
	b.t.Helper()
	var last event
	b.within(d, fmt.Sprintf("%s: %s %q, %d times", node, stage, detail, count), func() bool {
		n := 0
		for _, e := range b.events(node) {
			if e.Stage == stage && strings.Contains(e.Detail, detail) {
				n++
				last = e
			}
			for _, x := range bad {
				if e.Stage == x {
					b.t.Fatalf("%s: %s: %s", node, e.Stage, e.Detail)
				}
			}
		}
		return n >= count
	})
	return last
}

// hostKeys are the host keys that the server keeps of a node, without the
// names and addresses that they are for.
func (b *bench) hostKeys(name string) string {
	b.t.Helper()
	var keys strings.Builder
	for line := range strings.Lines(b.run("node", "keys", name)) {
		_, key, _ := strings.Cut(line, " ")
		keys.WriteString(key)
	}
	if keys.Len() == 0 {
		b.t.Fatalf("%s has no host keys", name)
	}
	return keys.String()
}

// node is what `ingot node show` says.
type node struct {
	Address string
	State   string `json:"install_state"`
	Task    string
	Reason  string
	Done    int64 `json:"done_bytes"`
	Total   int64 `json:"total_bytes"`
}

func (b *bench) node(name string) node {
	b.t.Helper()
	c := exec.Command(binary(), "node", "show", name, "--json", "--site", b.site)
	out, err := c.Output()
	if err != nil {
		b.t.Fatalf("node show: %v", err)
	}
	var n node
	b.must(json.Unmarshal(out, &n))
	return n
}

// ssh logs in as the operator, with the host key that the server keeps and no other.
func (b *bench) ssh(name, script string) string {
	b.t.Helper()
	out, err := b.trySSH(name, script)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// trySSH is ssh that may fail.
func (b *bench) trySSH(name, script string) (string, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "ssh", append(b.sshOptions(name), "root@"+b.node(name).Address, "--", script)...)
	var errOut bytes.Buffer
	c.Stderr = &errOut
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("ssh %s %q: %w: %s", name, script, err, errOut.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// sshOptions are those of an operator who knows the host key and no other.
func (b *bench) sshOptions(name string) []string {
	b.t.Helper()
	known := filepath.Join(b.site, "known."+name)
	b.must(os.WriteFile(known, []byte(b.run("node", "keys", name)), 0o600))
	return []string{"-i", filepath.Join(b.site, "operator"), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes",
		"-o", "UserKnownHostsFile=" + known, "-o", "HostKeyAlias=" + name, "-o", "ConnectTimeout=10"}
}

// upload copies a file to a node.
func (b *bench) upload(name, file, dir string) {
	b.t.Helper()
	args := append([]string{"scp", "-q"}, b.sshOptions(name)...)
	b.command(append(args, file, "root@"+b.node(name).Address+":"+dir)...)
}

// explain shows what a failed test needs to be understood.
func (b *bench) explain() {
	for _, n := range b.rack.Machines() {
		out, _ := b.try("node", "timeline", n, "--all")
		b.t.Logf("timeline of %s:\n%s", n, out)
		lines, _ := b.rack.Lines(n)
		var text strings.Builder
		for _, l := range lines[max(0, len(lines)-40):] {
			fmt.Fprintln(&text, l)
		}
		b.t.Logf("console of %s:\n%s", n, text.String())
	}
	if b.server != nil {
		log, _ := os.ReadFile(b.server.Log)
		b.t.Logf("server:\n%s", log[max(0, len(log)-8000):])
	}
}

func (b *bench) read(name string) string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.site, name))
	b.must(err)
	return string(text)
}

// damagePack flips a byte in the middle of the largest pack of the test's own
// store that the image needs; the function that it returns flips it back.
func (b *bench) damagePack() func() {
	b.t.Helper()
	pack := b.largestPack()
	found, err := filepath.Glob(filepath.Join(b.site, ".ingot", "store", "packs", "*", pack.Pack.String()))
	b.must(err)
	if len(found) != 1 {
		b.t.Fatalf("pack %s: %q", pack.Pack, found)
	}
	flip := func() {
		f, err := os.OpenFile(found[0], os.O_RDWR, 0)
		b.must(err)
		one := make([]byte, 1)
		at := pack.FrameOff + int64(pack.FrameLen)/2
		_, err = f.ReadAt(one, at)
		b.must(err)
		one[0] ^= 0x10
		_, err = f.WriteAt(one, at)
		b.must(errors.Join(err, f.Close()))
	}
	flip()
	return flip
}

// largestPack is a frame in the middle of it of which the image needs all: the
// store may hold other images, too.
func (b *bench) largestPack() store.Location {
	b.t.Helper()
	images, err := store.Open(filepath.Join(b.site, ".ingot", "store"))
	b.must(err)
	id, err := images.Resolve(b.t.Context(), image)
	b.must(err)
	m, err := images.Manifest(b.t.Context(), id)
	b.must(err)
	places, err := images.Locate(b.t.Context(), store.Chunks(m))
	b.must(err)
	type frame struct {
		pack digest.ID
		off  int64
	}
	needed := map[frame]int64{}
	for _, l := range places {
		needed[frame{l.Pack, l.FrameOff}] += int64(l.Chunk.Size)
	}
	places = slices.DeleteFunc(places, func(l store.Location) bool { return needed[frame{l.Pack, l.FrameOff}] != int64(l.FrameRaw) })
	if len(places) == 0 {
		b.t.Fatal("no frame is the image's alone")
	}
	middle := func(l store.Location) int64 { return max(l.FrameOff-l.PackSize/2, l.PackSize/2-l.FrameOff) }
	return slices.MaxFunc(places, func(x, y store.Location) int {
		return cmp.Or(cmp.Compare(x.PackSize, y.PackSize), cmp.Compare(middle(y), middle(x)))
	})
}
