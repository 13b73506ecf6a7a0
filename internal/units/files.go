package units

import (
	"path"
	"strings"

	"ingot/internal/systemd"
)

// part is what a path is to systemd.
type part struct {
	unit   string // whose file or addition it is; "" for none in particular
	wanted string // the path is a link that makes a unit wanted: by this one
	reload bool   // systemd reads it at a daemon-reload
}

// partOf says what a path is to systemd, by systemd.unit(5) and systemd.generator(7).
func partOf(p string) part {
	p = canonical(p)
	for _, dir := range []string{"etc/systemd/system/", "usr/lib/systemd/system/", "usr/local/lib/systemd/system/"} {
		if rest, ok := strings.CutPrefix(p, dir); ok {
			return inUnitDir(rest)
		}
	}
	for _, file := range []string{"etc/fstab", "etc/crypttab", "etc/systemd/system.conf"} {
		if p == file {
			return part{reload: true}
		}
	}
	for _, dir := range []string{"etc/init.d/", "etc/systemd/system.conf.d/", "etc/systemd/system-generators/",
		"usr/lib/systemd/system-generators/", "usr/local/lib/systemd/system-generators/"} {
		if strings.HasPrefix(p, dir) {
			return part{reload: true}
		}
	}
	return part{}
}

// inUnitDir says what a path in a directory of unit files is: X.service, X.service.d/y.conf, X.target.wants/y.service.
func inUnitDir(p string) part {
	dir, name := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" {
		if strings.HasSuffix(name, ".d") || strings.HasSuffix(name, ".wants") || strings.HasSuffix(name, ".requires") {
			return part{reload: true}
		}
		return part{unit: unitOrNone(name), reload: systemd.Suffix(name) != ""}
	}
	for _, by := range []string{".wants", ".requires"} {
		if unit, ok := strings.CutSuffix(dir, by); ok && systemd.Suffix(name) != "" {
			return part{unit: name, wanted: unit, reload: true}
		}
	}
	if unit, ok := strings.CutSuffix(dir, ".d"); ok && strings.HasSuffix(name, ".conf") {
		return part{unit: unitOrNone(unit), reload: true} // "service.d" is of all services
	}
	return part{}
}

func unitOrNone(name string) string {
	if suffix := systemd.Suffix(name); suffix == "" || suffix == name {
		return ""
	}
	return name
}

// rebootFor says why a change of a path needs a reboot; release is that of the running kernel. "" for other paths.
func rebootFor(c Change, release string) string {
	p := canonical(c.Path)
	modules := "usr/lib/modules/" + release + "/"
	switch {
	case release != "" && c.Kind != Added && strings.HasPrefix(p, modules):
		return "modules of the running kernel " + release + " changed"
	case path.Dir(p) == "boot" && (strings.HasPrefix(path.Base(p), "vmlinu") || strings.HasPrefix(path.Base(p), "Image")):
		return "a kernel changed: /" + c.Path
	case path.Dir(p) == "boot" && (strings.HasPrefix(path.Base(p), "initrd") || strings.HasPrefix(path.Base(p), "initramfs")):
		return "an initramfs changed: /" + c.Path
	}
	return ""
}
