package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ingot/internal/sshkey"
	"ingot/lab"
	"ingot/site"
)

// makeLabSite begins a site for a rack: the example of `ingot init` with the
// rack's network, an operator key in SITE/operator, a node a machine, and the
// classes that the demo shows. store, when not empty, is a directory that
// outlives the rack.
func makeLabSite(r *lab.Rack, dir, store, image string) error {
	if err := site.Init(dir); err != nil {
		return err
	}
	key, err := sshkey.New("ed25519", "operator@lab")
	if err != nil {
		return err
	}
	files := map[string]string{
		"operator":                                   key.Private,
		"operator.pub":                               key.Public + "\n",
		"ingot.yaml":                                 labYAML(r.Bridge(), store, key.Public),
		"profile/DEFAULT.yaml":                       labProfile(image),
		"class/DEFAULT.var":                          "GREETING='hello from ingot'\n",
		"disk_config/DEFAULT":                        labDisks,
		"files/etc/motd/WEB":                         "This is a web server.\n",
		"files/etc/motd/DB":                          "This is a database server.\n",
		"files/srv/www/index.html/WEB":               "web\n",
		"files/srv/www/index.html/DB":                "db\n",
		"files/etc/systemd/system/hello.service/WEB": helloUnit("the web service", 80),
		"files/etc/systemd/system/hello.service/DB":  helloUnit("the database service", 5432),
		"scripts/DEFAULT/20-hello":                   "#!/bin/sh -e\nsystemctl enable hello.service\n",
	}
	for _, old := range []string{"nodes/n1.yaml", "scripts/WEB", "profile/WEB.yaml", "files/etc/motd", "class"} {
		if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
			return err
		}
	}
	for name, text := range files {
		mode := os.FileMode(0o644)
		if name == "operator" {
			mode = 0o600
		} else if strings.HasPrefix(name, "scripts/") {
			mode = 0o755
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			return err
		}
	}
	for i, name := range r.Machines() {
		m, err := r.Machine(name)
		if err != nil {
			return err
		}
		mac, err := site.ParseMAC(m.MAC)
		if err != nil {
			return err
		}
		class := []string{"WEB", "DB"}[i%2]
		n := site.Node{Name: name, Classes: []string{class}, NICs: []site.NIC{{Name: "eth0", MAC: mac, Boot: true}}}
		if err := site.AddNode(dir, n); err != nil {
			return err
		}
	}
	return nil
}

func labYAML(bridge, store, key string) string {
	text := fmt.Sprintf(`# The site of a virtual rack.
server:
  http: 8080
networks:
  - name: rack
    interface: %s
    subnet: 10.77.0.0/24
    address: 10.77.0.1
    range: 10.77.0.100-10.77.0.199
operators:
  ssh_keys:
    - %q
`, bridge, key)
	if store != "" {
		text += fmt.Sprintf("store: %q\n", store)
	}
	return text
}

func labProfile(image string) string {
	if image == "" {
		image = "debian:12"
	}
	return fmt.Sprintf(`# What all nodes of the lab have in common.
boot: image
image: %s
kernel:
  from: image
  args: ["console=ttyS0,115200"]
update: live
network: networkd
restart: restart # units that a push concerns
check: # what must hold after a push: else the node goes back
  - {name: hello, unit: hello.service}
`, image)
}

// labDisks boots under both firmwares.
const labDisks = `disk_config disk1 disklabel:gpt-bios fstabkey:uuid
primary /boot/efi 64M vfat umask=0077
primary swap 256M swap sw
primary / 2G- ext4 rw,errors=remount-ro
`

// helloUnit is a service that answers on a port: which one, the classes say.
func helloUnit(what string, port int) string {
	return fmt.Sprintf(`[Unit]
Description=%s
After=network.target

[Service]
ExecStart=/usr/bin/busybox httpd -f -p %d -h /srv/www

[Install]
WantedBy=multi-user.target
`, what, port)
}
