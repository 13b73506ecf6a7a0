package site

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const config = `server: {http: 8080}
networks:
  - name: rack
    interface: eth1
    subnet: 10.77.0.0/24
    address: 10.77.0.1
    range: 10.77.0.100-10.77.0.199
    router: 10.77.0.1
`

// newSite writes files (name -> text) into a new directory.
func newSite(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if err := Init(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	n, nic := s.NodeByMAC("52-54-00-12-34-56")
	if n == nil || n.Name != "n1" || nic.Address.String() != "10.77.0.11" || s.Prefix(nic.IP()).String() != "10.77.0.11/24" {
		t.Errorf("node by MAC: %+v %+v", n, nic)
	}
	if s.Store != filepath.Join(dir, ".ingot/store") || !s.Server.TFTP || s.Networks[0].DHCP != "full" {
		t.Errorf("site %+v", s)
	}
	info, err := os.Stat(filepath.Join(dir, "scripts/WEB/10-motd"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("script: %v %v", info, err)
	}
	if ignore, _ := os.ReadFile(filepath.Join(dir, ".gitignore")); string(ignore) != "/.ingot/\n" {
		t.Errorf(".gitignore: %q", ignore)
	}
	if err := Init(dir); !errors.Is(err, ErrExists) {
		t.Errorf("second init: %v", err)
	}
}

func TestInitRefusesOtherPeoplesFiles(t *testing.T) {
	dir := newSite(t, map[string]string{"thesis.tex": "x", ".git/HEAD": "y"})
	if err := Init(dir); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("init: %v", err)
	}
	dir = newSite(t, map[string]string{".git/HEAD": "y", ".gitignore": "mine\n"})
	if err := Init(dir); err != nil {
		t.Error(err)
	}
	if ignore, _ := os.ReadFile(filepath.Join(dir, ".gitignore")); string(ignore) != "mine\n" {
		t.Errorf(".gitignore was replaced: %q", ignore)
	}
}

func TestLoadNotASite(t *testing.T) {
	if _, err := Load(t.TempDir()); !errors.Is(err, ErrNotSite) {
		t.Errorf("load: %v", err)
	}
}

func TestLoadProblems(t *testing.T) {
	nic := func(rest string) string { return "nics:\n  - {mac: '52:54:00:00:00:01', " + rest + "}\n" }
	tests := []struct{ name, conf, n1, n2, want string }{
		{"unknown key", "sevrer: {}\n", "", "", `ingot.yaml:1:1: unknown key "sevrer" (did you mean "server"?)`},
		{"port", "server: {http: 0}\n", "", "", "ingot.yaml:1:16: 0 is not a TCP port"},
		{"no subnet", "networks: [{name: a}]\n", "", "", "needs its subnet"},
		{"host bits", "networks: [{name: a, subnet: 10.0.0.5/24}]\n", "", "", "the network is 10.0.0.0/24"},
		{"v6", "networks: [{name: a, subnet: 'fd00::/64'}]\n", "", "", "only IPv4"},
		{"overlap", "networks: [{name: a, subnet: 10.0.0.0/24}, {name: b, subnet: 10.0.0.128/25}]\n", "", "", `overlaps 10.0.0.0/24 of network "a"`},
		{"server outside", "networks: [{name: a, subnet: 10.0.0.0/24, address: 10.0.1.1}]\n", "", "", "10.0.1.1 is not in 10.0.0.0/24"},
		{"broadcast", "networks: [{name: a, subnet: 10.0.0.0/24, address: 10.0.0.255}]\n", "", "", "broadcast"},
		{"range backwards", "networks: [{name: a, subnet: 10.0.0.0/24, range: 10.0.0.9-10.0.0.1}]\n", "", "", "ends before it begins"},
		{"range with server", "networks: [{name: a, subnet: 10.0.0.0/24, address: 10.0.0.5, range: 10.0.0.1-10.0.0.9}]\n", "", "", "contains 10.0.0.5"},
		{"no address", "networks: [{name: a, subnet: 10.0.0.0/24, interface: eth0}]\n", "", "", "needs address"},
		{"interface twice", "networks: [{name: a, subnet: 10.0.0.0/24, interface: e, address: 10.0.0.1}, {name: b, subnet: 10.1.0.0/24, interface: e, address: 10.1.0.1}]\n", "", "", "the interface e is already that of"},
		{"private key", "operators: {ssh_keys: [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]}\n", "", "", "private key"},
		{"cut key", "operators: {ssh_keys: [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA\"]}\n", "", "", "damaged"},
		{"not a key", "operators: {ssh_keys: [\"hello world\"]}\n", "", "", "is not a type of SSH key"},
		{"name", config, "name: other\n", "", "nodes/n1.yaml:1:7: the file's name says"},
		{"group MAC", config, "nics: [{mac: '01:00:5e:00:00:01'}]\n", "", "group address"},
		{"MAC twice", config, nic("network: rack"), nic("name: x"), `nodes/n2.yaml:2:11: the MAC 52:54:00:00:00:01 is already that of node "n1" (nodes/n1.yaml:2)`},
		{"address twice", config, nic("address: 10.77.0.5"), "nics: [{mac: '52:54:00:00:00:02', address: 10.77.0.5}]\n", "address 10.77.0.5 is already that of node \"n1\""},
		{"server's address", config, nic("address: 10.77.0.1"), "", "already that of the server on network rack"},
		{"in the range", config, nic("address: 10.77.0.150"), "", "is in the range"},
		{"outside", config, nic("network: rack, address: 10.78.0.5"), "", "10.78.0.5 is not in 10.77.0.0/24"},
		{"no network", config, nic("address: 192.168.1.1"), "", "write its prefix length too"},
		{"network name", config, nic("network: rakc"), "", `no network is called "rakc" (did you mean "rack"?)`},
		{"junk uuid", config, "uuid: 03000200-0400-0500-0006-000700080009\n", "", "shared by many boards"},
		{"bad uuid", config, "uuid: hello\n", "", "is not a UUID"},
		{"uuid twice, swapped", config, "uuid: 00112233-4455-6677-8899-aabbccddee00\n", "uuid: 33221100-5544-7766-8899-aabbccddee00\n", "the UUID"},
		{"junk serial", config, "serial: To Be Filled By O.E.M.\n", "", "cannot tell machines apart"},
		{"serial twice", config, "serial: X1\n", "serial: X1\n", "the serial number X1"},
		{"class twice", config, "classes: [A, A]\n", "", `nodes/n1.yaml:1:14: "A" is in the list twice`},
		{"class LAST", config, "classes: [LAST]\n", "", "by itself"},
		{"class path", config, "classes: [../x]\n", "", "cannot be a class"},
		{"two boot cards", config, "nics: [{mac: '52:54:00:00:00:01', boot: true}, {mac: '52:54:00:00:00:02', boot: true}]\n", "", "boot card already"},
		{"bond", config, "bonds: [{name: bond0, nics: [eth7], mode: lacp}]\n", "", "no card is called"},
		{"bond mode", config, nic("name: a") + "bonds: [{name: bond0, nics: [a], mode: 802.3da}]\n", "", `(did you mean "802.3ad"?)`},
		{"vlan", config, nic("name: a") + "vlans: [{on: b, id: 5}]\n", "", "not \"b\""},
		{"vlan id", config, nic("name: a") + "vlans: [{on: a, id: 4095}]\n", "", "from 1 to 4094"},
		{"gateway", config, nic("address: 10.77.0.5") + "gateway: 10.78.0.1\n", "", "on no network of this node"},
		{"var", config, "vars: {a-b: x}\n", "", "cannot be a variable"},
		{"dhcp and address", config, nic("address: 10.77.0.5, dhcp: true"), "", "either dhcp or address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"ingot.yaml": tt.conf, "nodes/n1.yaml": tt.n1}
			if tt.n2 != "" {
				files["nodes/n2.yaml"] = tt.n2
			}
			_, err := Load(newSite(t, files))
			var probs Problems
			if !errors.As(err, &probs) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %q", err, tt.want)
			}
		})
	}
}

func TestLoadReportsEverything(t *testing.T) {
	_, err := Load(newSite(t, map[string]string{
		"ingot.yaml":       "server: {http: x}\nfoo: 1\n",
		"nodes/n1.yaml":    "nics: 5\n",
		"nodes/N2.yaml":    "",
		"nodes/n3.yml":     "",
		"nodes/n4.yaml":    "a: [\n",
		"nodes/.hidden":    "not read",
		"nodes/README.txt": "not read",
	}))
	var probs Problems
	if !errors.As(err, &probs) || len(probs) != 6 {
		t.Fatalf("%d problems of 6:\n%v", len(probs), err)
	}
	if want := "ingot.yaml:1:16: wants a number, found \"x\"\n    server: {http: x}\n                   ^"; probs[0].Error() != want {
		t.Errorf("got %s\nwant %s", probs[0], want)
	}
}

func TestKeyIsAccepted(t *testing.T) {
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA3YKTuI9JvHjGwS9vY0Y3yNn0H5M5BsoOH9v8h6hGkQ me@here"
	if err := checkKey(key); err != nil {
		t.Error(err)
	}
}
