package imager

import (
	"context"
	"encoding/binary"
	"testing"

	"ingot/internal/digest"
	"ingot/internal/entry"
	"ingot/internal/manifest"
)

type chunkMap map[digest.ID][]byte

func (m chunkMap) Fetch(_ context.Context, ids []digest.ID, fn func(digest.ID, []byte) error) error {
	for _, id := range ids {
		if err := fn(id, m[id]); err != nil {
			return err
		}
	}
	return nil
}

func elfHead(machine uint16, big bool) []byte {
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	binary.LittleEndian.PutUint16(b[18:], machine)
	if big {
		b[5] = 2
		binary.BigEndian.PutUint16(b[18:], machine)
	}
	return b
}

func TestArch(t *testing.T) {
	tests := map[string]struct {
		files map[string][]byte
		want  string
	}{
		"amd64":            {map[string][]byte{"usr/bin/bash": elfHead(62, false)}, "amd64"},
		"arm64":            {map[string][]byte{"usr/bin/aaa": elfHead(183, false)}, "arm64"},
		"s390x":            {map[string][]byte{"bin/dash": elfHead(22, true)}, "s390x"},
		"scripts":          {map[string][]byte{"usr/bin/a": []byte("#!/bin/sh"), "usr/bin/b": elfHead(243, false)}, "riscv64"},
		"dpkg is the word": {map[string][]byte{"usr/bin/aqemu": elfHead(183, false), "usr/bin/dpkg": elfHead(62, false)}, "amd64"},
		"no programs":      {map[string][]byte{"srv/www/index.html": []byte("<html>"), "usr/bin/short": []byte("\x7fELF")}, ""},
		"unknown":          {map[string][]byte{"usr/bin/x": elfHead(9999, false)}, ""},
	}
	for name, tt := range tests {
		src := chunkMap{}
		m := &manifest.Manifest{Entries: []entry.Entry{{Path: ".", Type: entry.Dir}}}
		for p, data := range tt.files {
			src[digest.Of(data)] = data
			m.Entries = append(m.Entries, entry.Entry{Path: p, Type: entry.File, Mode: 0o755, Size: int64(len(data)), Chunks: []entry.Chunk{{ID: digest.Of(data), Size: uint32(len(data))}}})
		}
		m.Sort()
		got, err := Arch(t.Context(), m, src)
		if err != nil || got != tt.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
