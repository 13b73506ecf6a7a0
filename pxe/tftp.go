package pxe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pin/tftp/v3"

	"ingot/internal/slogx"
)

// TFTP settings.
const (
	// maxBlock is the largest block that fits one Ethernet frame: 1500 - 20 (IP) - 8 (UDP) - 4 (TFTP). Firmware cannot put
	// fragments together, so what it asks above this is answered with this (RFC 2348).
	maxBlock     = 1468
	tftpTimeout  = 2 * time.Second // before a block is sent again
	tftpRetries  = 5
	maxTransfers = 512
	drainTime    = 5 * time.Second
)

// A TFTPRequest is what the script of autoexec.ipxe may depend on. Nothing in TFTP tells a MAC.
type TFTPRequest struct {
	Client netip.Addr
	Server netip.Addr // our address that was asked
	Name   string     // as CleanName gives it
}

// TFTP serves boot loaders, read-only, on port 69 of every address.
type TFTP struct {
	Files fs.FS // by lower-case path; usually Loaders
	// Script makes autoexec.ipxe, which an iPXE of 2025 and later fetches from the directory of its own binary, and then from
	// the root, before anything else; stopping at "not found" is what it does in some builds. It is there in every directory.
	// nil: no such file.
	Script func(ctx context.Context, r TFTPRequest) ([]byte, error)
	Addr   netip.Addr // zero: every address
	// SinglePort answers from port 69 itself, for firewalls and NAT between us and the machines; slower.
	SinglePort bool
	Events     Events
	Ready      func() // called when the port is bound; may be nil
	Log        *slog.Logger

	log    *slog.Logger
	active atomic.Int64
}

// Serve binds port 69, then serves until ctx ends, then lets transfers finish for five seconds. A taken port is a *BusyError.
func (s *TFTP) Serve(ctx context.Context) error {
	s.log = slogx.Or(s.Log)
	addr := s.Addr
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	conn, err := listenUDP(ctx, netip.AddrPortFrom(addr, 69), "")
	if err != nil {
		return fmt.Errorf("serve TFTP: %w", err)
	}
	srv := tftp.NewServer(func(name string, to io.ReaderFrom) error { return s.read(ctx, name, to) }, nil)
	srv.SetBlockSize(maxBlock)
	srv.SetTimeout(tftpTimeout)
	srv.SetRetries(tftpRetries)
	if s.SinglePort {
		srv.EnableSinglePort()
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(conn) }()
	if s.Ready != nil {
		s.Ready()
	}
	select {
	case err = <-failed:
		conn.Close()
		return fmt.Errorf("serve TFTP: %w", err)
	case <-ctx.Done():
	}
	return s.drain(srv, conn)
}

// drain waits for transfers, which the library cannot cancel; one whose client went away ends by itself in ten seconds.
func (s *TFTP) drain(srv *tftp.Server, conn io.Closer) error {
	done := make(chan struct{})
	go func() { srv.Shutdown(); conn.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainTime):
		s.log.Warn("TFTP transfers left behind", "transfers", s.active.Load())
	}
	return nil
}

// read is one transfer. What it returns is sent to the client as error 1, so the text is short and without our paths.
func (s *TFTP) read(ctx context.Context, name string, to io.ReaderFrom) error {
	defer s.active.Add(-1)
	if s.active.Add(1) > maxTransfers {
		return errors.New("too many transfers, ask again")
	}
	r := TFTPRequest{Name: CleanName(name)}
	out, _ := to.(tftp.OutgoingTransfer)
	if out != nil {
		peer := out.RemoteAddr()
		r.Client = addr4(peer.IP)
	}
	if pi, ok := to.(tftp.RequestPacketInfo); ok {
		r.Server = addr4(pi.LocalIP())
	}
	log := s.log.With(slogx.IP, r.Client, slogx.Path, r.Name)
	body, size, err := s.open(ctx, r)
	if err != nil {
		log.Info("TFTP file refused", slogx.Err, err)
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New("file not found")
		}
		return errors.New("cannot read file")
	}
	defer body.Close()
	if out != nil {
		out.SetSize(size) // tsize: firmware allocates by it, and some stops when it is missing or 0 (RFC 2349)
	}
	start := time.Now()
	emit(ctx, s.Events, Event{IP: r.Client, Stage: EventLoading, Detail: r.Name})
	n, err := to.ReadFrom(body)
	if err != nil {
		s.broken(log, err, n, size)
		return err
	}
	log.Info("TFTP file sent", slogx.Bytes, n, slogx.Dur, time.Since(start))
	emit(ctx, s.Events, Event{IP: r.Client, Stage: EventLoader, Detail: fmt.Sprintf("%s, %d bytes in %s", r.Name, n, time.Since(start).Round(time.Millisecond))})
	return nil
}

// broken tells a size query from a failure. Firmware asks once with tsize alone, to learn the size, aborts with error 8 or 0
// ("User aborted the transfer", "TFTP Aborted"), and asks again: quite normal.
func (s *TFTP) broken(log *slog.Logger, err error, n, size int64) {
	if n == 0 || strings.Contains(strings.ToLower(err.Error()), "abort") {
		log.Debug("TFTP transfer aborted by the client", slogx.Err, err)
		return
	}
	log.Warn("TFTP transfer broke off", slogx.Bytes, n, "of", size, slogx.Err, err)
}

func (s *TFTP) open(ctx context.Context, r TFTPRequest) (io.ReadCloser, int64, error) {
	if path.Base(r.Name) == "autoexec.ipxe" && s.Script != nil {
		ctx, cancel := context.WithTimeout(ctx, decideTime)
		defer cancel()
		b, err := s.Script(ctx, r)
		return io.NopCloser(bytes.NewReader(b)), int64(len(b)), err
	}
	if s.Files == nil || !fs.ValidPath(r.Name) || r.Name == "." {
		return nil, 0, fs.ErrNotExist
	}
	f, err := s.Files.Open(r.Name)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = s.Files.Open(path.Base(r.Name)) // "boot/ipxe.efi": some ROMs put a directory of their own in front
	}
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}
