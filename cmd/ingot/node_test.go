package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"ingot/site"
)

// nodeContext parses args with the flags of `node set`.
func nodeContext(t *testing.T, fn func(c *cli.Context) error, args ...string) error {
	t.Helper()
	app := (&program{Stdout: io.Discard, Stderr: io.Discard}).app()
	cmd := findCommand(findCommand(app.Commands, "node").Subcommands, "set")
	cmd.Action = fn
	return app.RunContext(context.Background(), append([]string{"ingot", "node", "set"}, args...))
}

func TestApplyNodeFlags(t *testing.T) {
	card := func(n *site.Node) {
		n.NICs = []site.NIC{{Name: "eth0", MAC: "52:54:00:00:00:01"}, {Name: "eth1", MAC: "52:54:00:00:00:02", Boot: true}}
	}
	tests := []struct {
		name string
		args string
		make func(n *site.Node)
		want func(n *site.Node) bool // nil: refused as usage
	}{
		{"address without a card", "--address 10.0.0.1", nil, nil},
		{"no address", "--address x", card, nil},
		{"prefix of nothing", "--address 10.0.0.1/0", card, nil},
		{"variable without a value", "--var A", nil, nil},
		{"variable without a name", "--var =b", nil, nil},
		{"nothing said, nothing changed", "", func(n *site.Node) { n.Serial, n.Classes = "s", []string{"A"} }, func(n *site.Node) bool {
			return n.Serial == "s" && slices.Equal(n.Classes, []string{"A"}) && n.Vars == nil
		}},
		{"the boot card gets the address", "--address 10.0.0.1/24", card, func(n *site.Node) bool {
			return !n.NICs[0].Address.IsValid() && n.NICs[1].Address.String() == "10.0.0.1/24"
		}},
		{"an empty address is none", "--address=", func(n *site.Node) {
			card(n)
			if err := n.NICs[1].Address.UnmarshalText([]byte("10.0.0.9")); err != nil {
				panic(err)
			}
		}, func(n *site.Node) bool { return !n.NICs[1].Address.IsValid() }},
		{"classes replace", "--class B --class A", func(n *site.Node) { n.Classes = []string{"X"} }, func(n *site.Node) bool {
			return slices.Equal(n.Classes, []string{"B", "A"})
		}},
		{"variables are added", "--var A=1=2 --var B= --var C=a,b", func(n *site.Node) { n.Vars = map[string]string{"A": "0", "Z": "9"} }, func(n *site.Node) bool {
			return maps.Equal(n.Vars, map[string]string{"A": "1=2", "B": "", "C": "a,b", "Z": "9"})
		}},
		{"identity", "--serial S --uuid U", nil, func(n *site.Node) bool { return n.Serial == "S" && n.UUID == "U" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &site.Node{Name: "n1"}
			if tt.make != nil {
				tt.make(n)
			}
			err := nodeContext(t, func(c *cli.Context) error { return applyNodeFlags(c, n) }, append(strings.Fields(tt.args), "n1")...)
			var usage usageError
			switch {
			case tt.want == nil && !errors.As(err, &usage):
				t.Errorf("not refused: %v", err)
			case tt.want != nil && (err != nil || !tt.want(n)):
				t.Errorf("%v; %+v", err, n)
			}
		})
	}
}

func TestReplaceNIC(t *testing.T) {
	for _, bad := range []string{"", "=", "eth0", "eth0=", "eth0=zz", "eth9=52:54:00:00:00:09", "=52:54:00:00:00:09", "eth0=ff:ff:ff:ff:ff:ff", "eth0=00:00:00:00:00:00", "ETH0=52:54:00:00:00:09"} {
		n := &site.Node{Name: "n1", NICs: []site.NIC{{Name: "eth0", MAC: "52:54:00:00:00:01"}}}
		var usage usageError
		if err := replaceNIC(n, bad); !errors.As(err, &usage) || n.NICs[0].MAC != "52:54:00:00:00:01" {
			t.Errorf("%q: %v, %+v", bad, err, n.NICs)
		}
	}
	n := &site.Node{NICs: []site.NIC{{Name: "eth0", MAC: "52:54:00:00:00:01", Boot: true, MTU: 9000}, {Name: "eth1"}}}
	if err := replaceNIC(n, "eth0=52-54-00-00-00-AA"); err != nil || n.NICs[0] != (site.NIC{Name: "eth0", MAC: "52:54:00:00:00:aa", Boot: true, MTU: 9000}) {
		t.Errorf("%v, %+v", err, n.NICs)
	}
}

func TestIDsOf(t *testing.T) {
	got := idsOf(strings.NewReader("root:x:0:0:root:/root:/bin/sh\n\n# no\nshort:x\nbad:x:many:0\nneg:x:-1:0\nbig:x:4294967296:0\nlast:x:4294967295:\ngroup:x:7:a,b"))
	want := map[string]uint32{"root": 0, "last": 4294967295, "group": 7}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNodeStateInWords(t *testing.T) {
	for _, tt := range []struct {
		v    nodeView
		want string
	}{
		{nodeView{}, ""},
		{nodeView{State: "armed"}, "armed"},
		{nodeView{State: "writing", Task: "image", Done: 1, Total: 3}, "writing: image 33%"},
		{nodeView{State: "writing", Task: "image", Done: 100e6, Total: 400e6, Rate: 50e6}, "writing: image 25%, 50 MB/s, 6s left"},
		{nodeView{State: "claimed", Task: "partition"}, "claimed: partition"},
	} {
		if got := tt.v.state(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
