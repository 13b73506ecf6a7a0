package netboot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"ingot/installer/netboot/modload"
)

// ko makes a module: an ELF file with nothing but the section .modinfo.
func ko(fields ...string) []byte {
	info := strings.Join(fields, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const head, sect = 64, 64
	data := head + 3*sect
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1,
		Shoff: head, Ehsize: head, Shentsize: sect, Shnum: 3, Shstrndx: 2,
	})
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: uint64(data), Size: uint64(len(info))})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(data + len(info)), Size: uint64(len(names))})
	b.WriteString(info)
	b.WriteString(names)
	return b.Bytes()
}

// pack compresses by the extension.
func pack(t *testing.T, name string, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch path.Ext(name) {
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	case ".gz":
		w = gzip.NewWriter(&b)
	default:
		return body
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// kernelTree makes a kernel of the modules, by path below kernel/.
func kernelTree(t *testing.T, mods map[string][]byte) *kernel {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "boot/vmlinuz-1.2", "x")
	write(t, dir, "lib/modules/1.2/modules.builtin", "kernel/fs/fuse/fuse.ko\nkernel/lib/in-side.ko\n")
	for name, body := range mods {
		write(t, dir, "lib/modules/1.2/kernel/"+name, string(pack(t, name, body)))
	}
	write(t, dir, "lib/firmware/card/fw.bin.xz", "compressed")
	k, err := findKernel(Dir(dir), "")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestModules(t *testing.T) {
	k := kernelTree(t, map[string][]byte{
		"drivers/net/card.ko.xz":    ko("alias=pci:v1*", "alias=of:N*T*", "depends=bus-lib,in-side", "softdep=pre: crc32c gone post: late", "firmware=card/fw.bin", "firmware=card/none.bin"),
		"lib/bus-lib.ko.zst":        ko("depends=", "softdep=pre: card"), // a cycle
		"drivers/late.ko.gz":        ko("depends=fuse"),
		"crypto/crc32c_generic.ko":  ko("alias=crc32c", "alias=crypto-crc32c"),
		"arch/x86/crc32c-intel.ko":  ko("alias=crc32c", "alias=cpu:type:x86*"),
		"drivers/net/unwanted.ko":   ko("alias=pci:v2*"),
		"drivers/net/broken.ko":     ko("depends=nowhere"),
		"drivers/net/not-an-elf.ko": []byte("text"),
	})
	set, err := newModuleSet(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.add(t.Context(), []string{"card", "fuse", "absent"}, false); err != nil {
		t.Fatal(err)
	}
	x := set.index()
	var names []string
	for _, m := range x.Modules {
		names = append(names, m.Name)
	}
	if want := strings.Fields("bus_lib card crc32c_generic crc32c_intel late"); !slices.Equal(names, want) {
		t.Errorf("modules %q, want %q", names, want)
	}
	card := x.Modules[1]
	if !slices.Equal(card.Depends, []string{"bus_lib"}) || !slices.Equal(card.Pre, []string{"crc32c_generic", "crc32c_intel"}) ||
		!slices.Equal(card.Post, []string{"late"}) || !slices.Equal(card.Aliases, []string{"pci:v1*"}) || card.File != "kernel/drivers/net/card.ko" {
		t.Errorf("card: %+v", card)
	}
	if !slices.Equal(set.missing, []string{"absent"}) {
		t.Errorf("missing %q", set.missing)
	}
	l := make(layout)
	if err := set.writeTo(l); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(l["lib/modules/1.2/kernel/drivers/net/card.ko"].body, []byte(elf.ELFMAG)) {
		t.Error("a module was not decompressed")
	}
	if string(l["lib/firmware/card/fw.bin.xz"].body) != "compressed" {
		t.Error("no firmware")
	}
	for name, want := range map[string]string{"absent": `module "absent"`, "broken": `module "broken" needs: module "nowhere"`, "not_an_elf": "not-an-elf.ko"} {
		err := set.add(t.Context(), []string{name}, true)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
		if missing := errors.Is(err, modload.ErrMissing); missing != (name != "not_an_elf") {
			t.Errorf("%q: ErrMissing is %v", name, missing)
		}
	}
}

// FuzzModinfo: no module, however damaged, stops the build with a panic.
func FuzzModinfo(f *testing.F) {
	f.Add(ko("alias=a", "depends=b,c", "softdep=pre: d post: e"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := readModinfo(b)
		for _, name := range info.depends {
			if err != nil || name == "" || strings.Contains(name, "-") {
				t.Errorf("depends %q, %v", info.depends, err)
			}
		}
	})
}
