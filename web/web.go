// Package web is the HTTP side of the boot server: boot scripts, netboot files, and the sessions of installers.
package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ingot/installer"
	"ingot/internal/digest"
	"ingot/internal/slogx"
	"ingot/inventory"
)

// maxBody bounds what a client may send, in bytes; the log of an installation is the largest.
const maxBody = 8 << 20

// Boots decides what a machine that runs a loader does next, and renders jobs.
type Boots interface {
	// Script returns the iPXE script for a machine.
	Script(ctx context.Context, m Machine) (string, error)
	// Job renders the profile of an installation that has just been claimed.
	Job(ctx context.Context, in inventory.Install) (installer.Job, error)
	// Installed is called after an installation has ended well, perhaps more than once.
	Installed(ctx context.Context, in inventory.Install, end installer.Ending) error
}

// Images is the part of the image store that installers read.
type Images interface {
	RawManifest(ctx context.Context, image digest.ID) ([]byte, error)
	RawIndex(ctx context.Context, image digest.ID) ([]byte, error)
	// OpenPack opens a pack that image needs; any other is refused: a session
	// is for one image.
	OpenPack(ctx context.Context, image, pack digest.ID) (io.ReadSeekCloser, error)
}

// Machine is what a loader says of the machine that it runs on.
type Machine struct {
	MAC    net.HardwareAddr
	IP     string
	UUID   string
	Serial string
	Server string // http://HOST:PORT as the machine reaches us
}

// Server serves installers and loaders. All fields but Log and Loaders are needed.
type Server struct {
	State  *inventory.DB
	Boots  Boots
	Images Images
	// Netboot is the directory that holds KEY/vmlinuz and KEY/initrd.
	Netboot string
	// Logs is the directory that keeps the logs of installations, NODE/TIME.log.
	Logs string
	// Loaders are served to firmware that boots by HTTP; nil: none.
	Loaders fs.FS
	Log     *slog.Logger
}

// Handler returns the server's routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /boot/{mac}", s.boot)
	mux.HandleFunc("GET /netboot/{key}/{file}", s.netboot)
	mux.HandleFunc("POST "+installer.PathClaim, s.claim)
	mux.HandleFunc("POST "+installer.PathProgress, s.session(s.progress))
	mux.HandleFunc("POST "+installer.PathEnd, s.session(s.end))
	mux.HandleFunc("GET "+installer.PathArmed, s.armed)
	mux.HandleFunc("GET "+installer.PathManifest, s.session(running(s.manifest)))
	mux.HandleFunc("GET "+installer.PathIndex, s.session(running(s.index)))
	mux.HandleFunc("GET "+installer.PathPack+"{id}", s.session(running(s.pack)))
	mux.HandleFunc("GET /loader/{name}", s.loader)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	return mux
}

// Serve serves on l until ctx ends, then lets running requests finish for five seconds.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(slogx.Or(s.Log).Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve http on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return errors.Join(srv.Close(), err)
	}
	return nil
}

// boot answers a loader. The script goes out with a Content-Length and without
// redirects, since some firmware understands nothing else (edk2#9920, edk2#9714).
func (s *Server) boot(w http.ResponseWriter, r *http.Request) {
	mac, err := net.ParseMAC(strings.TrimSuffix(r.PathValue("mac"), ".ipxe"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q := r.URL.Query()
	m := Machine{MAC: mac, IP: clientIP(r), UUID: q.Get("uuid"), Serial: q.Get("serial"), Server: "http://" + localAddr(r)}
	script, err := s.Boots.Script(r.Context(), m)
	if err != nil {
		s.log().Error("no boot script", slogx.MAC, mac.String(), slogx.Err, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", fmt.Sprint(len(script)))
	io.WriteString(w, script)
}

// localAddr is the address of ours that the client reached: the one to name
// in what it is told, whatever else this host is called.
func localAddr(r *http.Request) string {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if ap, err := netip.ParseAddrPort(a.String()); err == nil {
			return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
		}
	}
	return r.Host
}

func clientIP(r *http.Request) string {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return ap.Addr().Unmap().String()
}

// netboot serves the kernel and the initramfs and records who fetched them.
func (s *Server) netboot(w http.ResponseWriter, r *http.Request) {
	key, file := r.PathValue("key"), r.PathValue("file")
	if file != "vmlinuz" && file != "initrd" || key != filepath.Base(key) || strings.HasPrefix(key, ".") {
		http.NotFound(w, r)
		return
	}
	f, err := os.Open(filepath.Join(s.Netboot, key, file))
	if err != nil {
		s.log().Error("netboot file", slogx.Path, file, slogx.Err, err)
		http.Error(w, "netboot file is gone: run `ingot installer build`", http.StatusNotFound)
		return
	}
	defer f.Close()
	start := time.Now()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
	if mac, err := net.ParseMAC(r.URL.Query().Get("mac")); err == nil && r.Method == http.MethodGet {
		stage := map[string]string{"vmlinuz": "kernel", "initrd": "initrd"}[file]
		detail := fmt.Sprintf("sent to %s in %s", clientIP(r), time.Since(start).Round(time.Millisecond))
		if r.Context().Err() != nil {
			stage, detail = "broken-off", stage+" to "+clientIP(r)
		}
		s.event(r.Context(), inventory.Event{Node: r.URL.Query().Get("node"), MAC: mac.String(), Stage: stage, Detail: detail})
	}
}

func (s *Server) log() *slog.Logger { return slogx.Or(s.Log) }

// loader serves UEFI HTTP boot: no redirect, no chunks, the type that UEFI
// 2.10 24.7 asks for.
func (s *Server) loader(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if s.Loaders == nil {
		http.NotFound(w, r)
		return
	}
	b, err := fs.ReadFile(s.Loaders, strings.ToLower(name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/efi")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (s *Server) event(ctx context.Context, e inventory.Event) {
	if err := s.State.AddEvent(context.WithoutCancel(ctx), e); err != nil {
		s.log().Error("event lost", slogx.Stage, e.Stage, slogx.Err, err)
	}
}

func readJSON(r *http.Request, v any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return err
	}
	if len(b) > maxBody {
		return fmt.Errorf("the request is over %d bytes", maxBody)
	}
	return json.Unmarshal(b, v)
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.Write(b)
}
