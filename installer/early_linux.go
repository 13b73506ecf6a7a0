package installer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint is one pseudo file system of the installer's own root or of the
// tree that it installs.
type mountPoint struct {
	source, target, fstype, data string
	flags                        uintptr
}

func pseudo() []mountPoint {
	return []mountPoint{
		{"proc", "/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "devpts", "mode=0620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	}
}

// MountEarly mounts the pseudo file systems of the installer, which runs as
// process 1 of an initramfs: Debian's kernels do not mount /dev themselves.
func MountEarly() error {
	for _, m := range pseudo() {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// Consoles returns a writer to all consoles that the kernel was given
// (console= may be repeated; /dev/console is only the last of them).
func Consoles() io.Writer {
	var out []io.Writer
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	for _, name := range strings.Fields(string(active)) {
		if f, err := os.OpenFile(filepath.Join("/dev", name), os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
			out = append(out, crlf{f})
		}
	}
	if len(out) == 0 {
		return os.Stdout
	}
	return everyWriter(out)
}

// everyWriter writes to all of its writers; a console that is gone is no
// reason to stop an installation.
type everyWriter []io.Writer

func (w everyWriter) Write(p []byte) (int, error) {
	for _, x := range w {
		_, _ = x.Write(p)
	}
	return len(p), nil
}

// crlf adds the carriage return that a raw serial line needs.
type crlf struct{ w io.Writer }

func (c crlf) Write(p []byte) (int, error) {
	if _, err := io.WriteString(c.w, strings.ReplaceAll(string(p), "\n", "\r\n")); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Facts returns what the machine says of itself (DMI: /sys/class/dmi/id).
func Facts() map[string]string {
	facts := map[string]string{"firmware": "bios"}
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		facts["firmware"] = "uefi"
	}
	for key, file := range map[string]string{
		"serial": "product_serial", "uuid": "product_uuid", "vendor": "sys_vendor", "product": "product_name", "bios": "bios_version",
	} {
		if b, err := os.ReadFile("/sys/class/dmi/id/" + file); err == nil {
			facts[key] = strings.TrimSpace(string(b))
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 {
			facts["memory_kib"] = f[1]
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		facts["installer_kernel"] = strings.TrimSpace(string(b))
	}
	return facts
}

// FileSystems are the modules that mounting a new system may need; their
// names are those of the kernel's modules. Loading what is built in is no error.
func FileSystems() []string {
	return []string{"ext4", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1"}
}
