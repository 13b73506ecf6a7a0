package installer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"ingot/rollback/sides"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ingot/internal/digest"
)

func TestBootArgsRoundTrip(t *testing.T) {
	mac, _ := net.ParseMAC("52:54:00:12:34:56")
	want := Boot{Server: "http://10.0.0.1:8080", Node: "n1", Nonce: "abc", MAC: mac, Shell: true, Patience: 20 * time.Second}
	got, err := ParseBoot("initrd=x quiet " + strings.Join(want.Args(), " ") + " console=ttyS0\n")
	if err != nil || got.Server != want.Server || got.Node != want.Node || got.Nonce != want.Nonce || got.MAC.String() != want.MAC.String() || !got.Shell || got.Patience != want.Patience {
		t.Errorf("ParseBoot = %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "ingot.server=http://h ingot.node=n ingot.nonce=x", "ingot.server=ftp://h ingot.node=n ingot.nonce=x ingot.mac=52:54:00:12:34:56",
		"ingot.server=http://h ingot.node=n ingot.nonce=x ingot.mac=zz"} {
		if b, err := ParseBoot(bad); err == nil {
			t.Errorf("ParseBoot(%q) = %+v, want an error", bad, b)
		}
	}
}

func TestGrubConfigIsValidShell(t *testing.T) {
	check, err := exec.LookPath("grub-script-check")
	if err != nil {
		t.Skip("grub-script-check (package grub-common) is not installed")
	}
	for _, c := range []bootConfig{
		{name: "n1", rootUUID: "1234", args: []string{"console=ttyS0,115200n8", "quiet"}},
		{name: "n 2", rootUUID: "1234", bootSep: true, args: []string{`foo="a b"`, "x=$y;z"}},
	} {
		two := sidesConfig(c, map[string]sides.Device{sides.A: {UUID: "12"}, sides.B: {UUID: "12", Subvol: "@b"}})
		for _, text := range []string{grubConfig(c), two, sidesEmbedded("56", two)} {
			f := filepath.Join(t.TempDir(), "grub.cfg")
			if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(check, f).CombinedOutput(); err != nil {
				t.Errorf("grub-script-check of %+v: %v\n%s\n%s", c, err, out, text)
			}
		}
	}
}

func TestGrubTerminalFollowsTheConsole(t *testing.T) {
	for in, want := range map[string]string{
		"console=ttyS0":          "--unit=0 --speed=115200",
		"console=ttyS1,9600n8":   "--unit=1 --speed=9600",
		"console=ttyS0,115200":   "--unit=0 --speed=115200",
		"console=tty0":           "",
		"console=ttyS0,57600o81": "--unit=0 --speed=57600",
	} {
		got := grubTerminal([]string{"quiet", in})
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("grubTerminal(%q) = %q, want %q in it", in, got, want)
		}
	}
}

// memDisk is a disk in memory.
type memDisk []byte

func (m memDisk) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

func TestGrubEmbedKeepsThePartitionTable(t *testing.T) {
	disk := make(memDisk, 4<<20)
	mbr := bytes.Repeat([]byte{0xAB}, sector)
	boot := bytes.Repeat([]byte{0x11}, sector)
	core := bytes.Repeat([]byte{0x22}, 3*sector+7)
	if err := grubEmbed(disk, mbr, boot, core, 1<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk[bootPartTable:510], mbr[bootPartTable:510]) || !bytes.Equal(disk[3:bootBPBEnd], mbr[3:bootBPBEnd]) {
		t.Error("the partition table or the parameter block was overwritten")
	}
	if disk[0] != 0x11 || disk[510] != 0x11 {
		t.Error("the code of boot.img is not there")
	}
	if got := binary.LittleEndian.Uint64(disk[bootKernelSector:]); got != 2048 {
		t.Errorf("boot.img loads sector %d, want 2048", got)
	}
	if got := binary.LittleEndian.Uint64(disk[1<<20+coreBlockStart:]); got != 2049 {
		t.Errorf("the core image goes on at sector %d, want 2049", got)
	}
	if got := binary.LittleEndian.Uint16(disk[1<<20+coreBlockLen:]); got != 3 {
		t.Errorf("the core image has %d more sectors, want 3", got)
	}
	if err := grubEmbed(disk, mbr, boot, core, 1<<20, 1024); err == nil {
		t.Error("a core image that does not fit was written")
	}
}

func TestPlaceholderKeepsThePartitionTable(t *testing.T) {
	mbr := bytes.Repeat([]byte{0xAB}, sector)
	got := placeholder(mbr)
	if len(got) != sector || !bytes.Equal(got[bootPartTable:sector-2], mbr[bootPartTable:sector-2]) {
		t.Error("the partition table was overwritten")
	}
	if got[510] != 0x55 || got[511] != 0xAA || bytes.IndexByte(got[25:], 0) < 0 || !bytes.Contains(got[25:bootPartTable], []byte("does not boot")) {
		t.Errorf("no boot sector that says why: %q", got)
	}
}

func TestClientOutlivesAServerThatRestarts(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := calls.Add(1); {
		case n%3 == 1: // down
			panic(http.ErrAbortHandler)
		case n%3 == 2: // dies in the middle
			w.Header().Set("Content-Length", "1000000")
			w.Header().Set("Content-Range", "bytes 0-0/1")
			w.WriteHeader(http.StatusPartialContent)
			var off int
			if _, err := stringsToInt(r.Header.Get("Range"), &off); err == nil {
				w.Write(content[off : off+1000])
			}
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "pack", time.Time{}, bytes.NewReader(content))
	}))
	defer srv.Close()
	c := NewClient(srv.URL, nil)
	r, err := c.ReadPack(t.Context(), digest.ID{1}, 100, 500000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, content[100:500100]) {
		t.Errorf("read %d bytes, %v; want 500000 equal ones", len(got), err)
	}
	if calls.Load() < 3 {
		t.Errorf("only %d requests: the test's faults did not happen", calls.Load())
	}
}

func stringsToInt(s string, v *int) (int, error) {
	s = strings.TrimPrefix(s, "bytes=")
	s, _, _ = strings.Cut(s, "-")
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, errors.New("not a number")
		}
		n = 10*n + int(c-'0')
	}
	*v = n
	return n, nil
}

func TestClientTakesARefusalAsFinal(t *testing.T) {
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		http.Error(w, "the node is not armed", http.StatusConflict)
	}))
	defer srv.Close()
	_, err := NewClient(srv.URL, nil).Claim(t.Context(), Claim{Node: "n1"})
	var se *StatusError
	if !errors.As(err, &se) || se.Code != http.StatusConflict || calls.Load() != 1 {
		t.Errorf("Claim = %v after %d requests, want one refusal", err, calls.Load())
	}
}

func TestClientGivesUpWhenPatienceEnds(t *testing.T) {
	c := NewClient("http://127.0.0.1:1", nil)
	c.Patience = 300 * time.Millisecond
	if _, err := c.Get(context.Background(), PathIndex); err == nil || !strings.Contains(err.Error(), "no answer from http://127.0.0.1:1") {
		t.Errorf("Get = %v, want a message that names the server", err)
	}
}
