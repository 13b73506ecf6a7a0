package imager

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"strings"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

// Arch returns the architecture that the programs of a tree are for, as Go
// calls it; empty where there are none. It reads the ELF header of a program
// that every system has, else of one of those that there are.
func Arch(ctx context.Context, m *manifest.Manifest, src Source) (string, error) {
	for _, e := range programs(m) {
		arch := ""
		err := src.Fetch(ctx, []digest.ID{e.Chunks[0].ID}, func(_ digest.ID, data []byte) error {
			arch = archOf(data)
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("find the architecture of %q: %w", e.Path, err)
		}
		if arch != "" {
			return arch, nil
		}
	}
	return "", nil
}

// programs are files worth a look: a few, the surest first.
func programs(m *manifest.Manifest) []*entry.Entry {
	const most = 32
	var out []*entry.Entry
	add := func(e *entry.Entry) {
		if e.Type == entry.File && len(e.Chunks) > 0 && (len(e.Holes) == 0 || e.Holes[0].Off > 0) {
			out = append(out, e)
		}
	}
	for _, path := range []string{"usr/bin/dpkg", "usr/bin/rpm", "usr/bin/bash", "bin/bash", "usr/bin/dash", "bin/dash", "bin/busybox", "usr/lib/systemd/systemd", "sbin/init"} {
		if e, ok := m.Lookup(path); ok {
			add(e)
		}
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if len(out) == most {
			break
		}
		if e.Mode&0o111 != 0 && (strings.HasPrefix(e.Path, "bin/") || strings.HasPrefix(e.Path, "sbin/") || strings.HasPrefix(e.Path, "usr/bin/") || strings.HasPrefix(e.Path, "usr/sbin/")) {
			add(e)
		}
	}
	return out
}

// archOf reads e_machine of an ELF header (elf(5)).
func archOf(head []byte) string {
	if len(head) < 20 || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return ""
	}
	little := elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2LSB
	machine := elf.Machine(uint16(head[18]) | uint16(head[19])<<8)
	if !little {
		machine = elf.Machine(uint16(head[19]) | uint16(head[18])<<8)
	}
	switch machine {
	case elf.EM_X86_64:
		return "amd64"
	case elf.EM_AARCH64:
		return "arm64"
	case elf.EM_RISCV:
		return "riscv64"
	case elf.EM_S390:
		return "s390x"
	case elf.EM_386:
		return "386"
	case elf.EM_ARM:
		return "arm"
	case elf.EM_PPC64:
		if little {
			return "ppc64le"
		}
		return "ppc64"
	}
	return ""
}
