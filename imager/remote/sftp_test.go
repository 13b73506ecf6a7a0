package remote

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Packets of draft-ietf-secsh-filexfer-02.
const (
	fxpVersion  = 2
	fxpStatus   = 101
	fxpExtended = 200

	fxFailure     = 4
	fxUnsupported = 8
)

func readPacket(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	p := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(r, p)
	return p, err
}

func writePacket(w io.Writer, p []byte) {
	w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...))
}

func text(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

// serveSFTP keeps files in memory and answers fsync@openssh.com with a
// status; with announced false it does not say that it knows it.
func serveSFTP(ch ssh.Channel, files sftp.Handlers, announced bool, status uint32) {
	toServer, in := io.Pipe()
	out, fromServer := io.Pipe()
	go sftp.NewRequestServer(struct {
		io.Reader
		io.WriteCloser
	}{toServer, fromServer}, files).Serve()
	answers := make(chan []byte)
	go func() {
		for {
			p, err := readPacket(out)
			if err != nil {
				return
			}
			if p[0] == fxpVersion && announced {
				p = append(append(p, text("fsync@openssh.com")...), text("1")...)
			}
			answers <- p
		}
	}()
	go func() {
		for p := range answers {
			writePacket(ch, p)
		}
	}()
	for {
		p, err := readPacket(ch)
		if err != nil {
			in.Close()
			ch.Close()
			return
		}
		if p[0] == fxpExtended && strings.Contains(string(p), "fsync@openssh.com") {
			a := binary.BigEndian.AppendUint32(append([]byte{fxpStatus}, p[1:5]...), status)
			answers <- append(append(a, text("disk on fire")...), text("")...)
			continue
		}
		writePacket(in, p)
	}
}

// An agent that is not on the disk must not take the place of one that is.
func TestUploadIsDurable(t *testing.T) {
	for _, tc := range []struct {
		name      string
		announced bool
		status    uint32
		syncCode  uint32 // of the command sync
		syncs     int
		want      string // of the error
	}{
		{"fsync works", true, 0, 1, 0, ""},
		{"fsync fails", true, fxFailure, 0, 0, "disk on fire"},
		{"fsync is not supported", true, fxUnsupported, 0, 1, ""},
		{"fsync is not announced", false, 0, 0, 1, ""},
		{"neither does sync work", false, 0, 1, 1, "sync"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := sftp.InMemHandler()
			if err := files.FileCmd.Filecmd(sftp.NewRequest("Mkdir", "/.ingot")); err != nil {
				t.Fatal(err)
			}
			syncs, cats := 0, 0
			s := serve(t, func(line string, ch ssh.Channel) uint32 {
				switch {
				case line == "sftp":
					serveSFTP(ch, files, tc.announced, tc.status)
				case line == "sync":
					syncs++
					return tc.syncCode
				case strings.Contains(line, "cat >$t"):
					cats++
				}
				return 0
			})
			c, err := Dial(t.Context(), s.target())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			err = c.Upload(t.Context(), []byte("the agent"))
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Upload: %v, want %q", err, tc.want)
			}
			_, there := files.FileList.Filelist(sftp.NewRequest("Stat", AgentPath))
			if (there == nil) != (tc.want == "") || syncs != tc.syncs || cats != 0 {
				t.Errorf("in its place: %v; %d times sync, %d other uploads", there == nil, syncs, cats)
			}
		})
	}
}

// A host with keys of several types shows the one that the file knows.
func TestKnownHosts(t *testing.T) {
	s := serve(t, nil)
	stranger, _ := newKey(t)
	authorized := strings.TrimSpace(s.key)
	for name, tc := range map[string]struct {
		file string
		want string
	}{
		"one of its keys":     {knownhosts.Line([]string{s.addr}, mustParse(t, s.key)), ""},
		"its name is hashed":  {knownhosts.HashHostname(knownhosts.Normalize(s.addr)) + " " + authorized, ""},
		"another key":         {knownhosts.Line([]string{s.addr}, stranger.PublicKey()), ErrHostKey.Error()},
		"another host":        {knownhosts.Line([]string{"10.0.0.1:22"}, mustParse(t, s.key)), ErrNoPin.Error()},
		"several lines of it": {knownhosts.Line([]string{"10.0.0.1:22"}, stranger.PublicKey()) + "\n" + knownhosts.Line([]string{s.addr}, mustParse(t, s.key)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "known_hosts")
			if err := os.WriteFile(path, []byte(tc.file+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			target := s.target()
			target.Pinned, target.KnownHosts = nil, []string{path}
			c, err := Dial(t.Context(), target)
			if err == nil {
				c.Close()
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Dial: %v, want %q", err, tc.want)
			}
		})
	}
}

// Whom an authority vouches for may show any key.
func TestAuthorityLeavesTheChoice(t *testing.T) {
	key, _ := newKey(t)
	path := filepath.Join(t.TempDir(), "known_hosts")
	line := string(ssh.MarshalAuthorizedKey(key.PublicKey()))
	if err := os.WriteFile(path, []byte("# ours\na.example "+line+"@cert-authority *.b.example "+line), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{"a.example:22": 1, "x.b.example:22": 0, "c.example:22": 0} {
		_, algos, err := Target{Addr: host, KnownHosts: []string{path}}.hostKeyCheck()
		if err != nil || len(algos) != want {
			t.Errorf("%s: %q, %v", host, algos, err)
		}
	}
}
