package site

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func read(t *testing.T, dir, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAddNode(t *testing.T) {
	dir := newSite(t, map[string]string{"ingot.yaml": config})
	n := Node{Name: "c01", Serial: "0012", Classes: []string{"WEB"}, Vars: map[string]string{"ON": "yes: #no"},
		NICs: []NIC{{MAC: "52:54:00:00:00:01", Network: "rack", Address: Address{Addr: netip.MustParseAddr("10.77.0.9")}, Boot: true}}}
	if err := AddNode(dir, n); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Node("c01")
	if got.Serial != "0012" || got.Vars["ON"] != "yes: #no" || got.NICs[0].Address.String() != "10.77.0.9" || got.NICs[0].Name != "eth0" {
		t.Errorf("read back %+v from\n%s", got, read(t, dir, "nodes/c01.yaml"))
	}
	if strings.Contains(read(t, dir, "nodes/c01.yaml"), "gateway") {
		t.Errorf("empty values were written:\n%s", read(t, dir, "nodes/c01.yaml"))
	}
	if err := AddNode(dir, n); !errors.Is(err, ErrExists) {
		t.Errorf("second add: %v", err)
	}
	n.Name = "c02"
	var probs Problems
	if err := AddNode(dir, n); !errors.As(err, &probs) || !strings.Contains(err.Error(), "already that of node \"c01\"") {
		t.Errorf("the same MAC: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "nodes/c02.yaml")); err == nil {
		t.Error("a refused node was written")
	}
	for _, bad := range []string{"", "../x", "A", "a b", "all"} {
		if err := AddNode(dir, Node{Name: bad}); err == nil {
			t.Errorf("name %q was accepted", bad)
		}
	}
	if err := AddNode(dir, Node{Name: "bare"}); err != nil {
		t.Errorf("a node without anything: %v", err)
	}
}

const commented = `# the first machine
classes: [WEB, OLD]   # roles

nics:
  # the left port
  - name: eth0
    mac: 52:54:00:12:34:56  # card of 2024
    boot: false
    network: rack

# about vars
vars:
  A: one # a
# the end
`

func TestSetNodeKeepsComments(t *testing.T) {
	tests := []struct {
		name      string
		change    func(n *Node)
		old, want string // the only replacement
	}{
		{"mac", func(n *Node) { n.NICs[0].MAC = "52:54:00:99:99:99" }, "52:54:00:12:34:56", "52:54:00:99:99:99"},
		{"class", func(n *Node) { n.Classes[1] = "NEW" }, "OLD", "NEW"},
		{"fewer classes", func(n *Node) { n.Classes = n.Classes[:1] }, "classes: [WEB, OLD]   # roles\n", "classes:\n  - WEB\n"},
		{"no vars", func(n *Node) { n.Vars = nil }, "vars:\n  A: one # a\n", ""},
		{"var", func(n *Node) { n.Vars["A"] = "two" }, "one", "two"},
		{"serial", func(n *Node) { n.Serial = "S1" }, "# the end\n", "# the end\nserial: S1\n"},
		{"nothing", func(*Node) {}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := newSite(t, map[string]string{"ingot.yaml": config, "nodes/n1.yaml": commented})
			s, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			n := *s.Node("n1")
			tt.change(&n)
			if err := SetNode(dir, n); err != nil {
				t.Fatal(err)
			}
			if got, want := read(t, dir, "nodes/n1.yaml"), strings.Replace(commented, tt.old, tt.want, 1); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestSetNodeRefuses(t *testing.T) {
	dir := newSite(t, map[string]string{"ingot.yaml": config, "nodes/n1.yaml": commented})
	if err := SetNode(dir, Node{Name: "n9"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown node: %v", err)
	}
	if err := SetNode(dir, Node{Name: "n1", UUID: "zz"}); err == nil {
		t.Error("a bad UUID was accepted")
	}
	if read(t, dir, "nodes/n1.yaml") != commented {
		t.Error("a refused change was written")
	}
}

func TestRemoveNode(t *testing.T) {
	dir := newSite(t, map[string]string{"ingot.yaml": config, "nodes/n1.yaml": commented})
	if err := RemoveNode(dir, "n1"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"n1", "../ingot"} {
		if err := RemoveNode(dir, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("remove %q: %v", name, err)
		}
	}
}

func FuzzEdit(f *testing.F) {
	seeds := []string{commented, "{}", "", "classes: [A]", "vars: {a: b}\n", "nics:\n- mac: 52:54:00:12:34:56\n", "vars: &x\n  a: 'q'\nserial: |\n  # x\n"}
	for _, s := range seeds {
		f.Add([]byte(s), "S1")
	}
	f.Fuzz(func(t *testing.T, text []byte, serial string) {
		n, _, ok := decodeNode(text)
		if !ok {
			return
		}
		n.Serial = serial
		want, err := marshal(n)
		if err != nil {
			return
		}
		if _, _, ok := decodeNode(want); !ok {
			return // what cannot be written at all, such as control characters
		}
		out, err := edit(text, n)
		if err != nil {
			t.Fatal(err)
		}
		back, _, ok := decodeNode(out)
		if again, _ := marshal(back); !ok || string(again) != string(want) {
			t.Errorf("edit %q gives %q\nmeans %q\nwant  %q", text, out, again, want)
		}
	})
}
