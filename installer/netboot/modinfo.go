package netboot

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"ingot/installer/netboot/modload"
)

// modinfo is what a module says of itself in its section .modinfo, as modinfo(8) shows it.
type modinfo struct {
	depends  []string
	pre      []string // softdep
	post     []string
	aliases  []string
	firmware []string
}

// readModinfo reads the section of a decompressed module. A signature after the ELF file does no harm.
func readModinfo(ko []byte) (modinfo, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return modinfo{}, err
	}
	sec := f.Section(".modinfo")
	if sec == nil {
		return modinfo{}, fmt.Errorf("no section .modinfo")
	}
	text, err := sec.Data()
	if err != nil {
		return modinfo{}, err
	}
	var m modinfo
	for _, field := range bytes.Split(text, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		m.field(key, value)
	}
	return m, nil
}

// field takes in one key=value.
func (m *modinfo) field(key, value string) {
	switch key {
	case "depends":
		for _, name := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' }) {
			m.depends = append(m.depends, modload.Normal(name))
		}
	case "alias":
		// Device tree and character device aliases are not looked up on the machines that ingot installs.
		if value != "" && !strings.HasPrefix(value, "of:") && !strings.ContainsAny(value, " \n") {
			m.aliases = append(m.aliases, value)
		}
	case "firmware":
		if value != "" {
			m.firmware = append(m.firmware, value)
		}
	case "softdep":
		m.softdep(value)
	}
}

// softdep takes in "pre: a b post: c", modprobe.d(5).
func (m *modinfo) softdep(value string) {
	var list *[]string
	for _, word := range strings.Fields(value) {
		switch {
		case word == "pre:":
			list = &m.pre
		case word == "post:":
			list = &m.post
		case list != nil:
			*list = append(*list, modload.Normal(word))
		}
	}
}

// moduleName returns the name of the module in a file, and false for other files.
func moduleName(file string) (string, bool) {
	base := path.Base(file)
	for _, ext := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(base, ext); ok && name != "" {
			return modload.Normal(name), true
		}
	}
	return "", false
}

// plainName takes the compression off a module's file name.
func plainName(file string) string {
	dir, base := path.Split(file)
	name, _, _ := strings.Cut(base, ".ko")
	return dir + name + ".ko"
}

// expand decompresses a module by the extension of its file: in the environment the modules are plain,
// because the whole is compressed once more and better.
func expand(file string, b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch path.Ext(file) {
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(b))
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(b)); err == nil {
			defer d.Close()
			r = d
		}
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(b))
	default:
		return b, nil
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
