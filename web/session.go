package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ingot/installer"
	"ingot/internal/digest"
	"ingot/internal/durable"
	"ingot/internal/slogx"
	"ingot/inventory"
)

// claim opens the session of an installer (SECURITY.md tells what it proves).
func (s *Server) claim(w http.ResponseWriter, r *http.Request) {
	var c installer.Claim
	if err := readJSON(r, &c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	job, err := s.job(r.Context(), c)
	if err != nil {
		s.refuse(w, c.Node, err)
		return
	}
	in, err := s.State.Claim(r.Context(), c.Node, c.Nonce, c.Client, clientIP(r))
	if err != nil {
		s.refuse(w, c.Node, err)
		return
	}
	for k, v := range c.Facts {
		if err := s.State.SetFact(r.Context(), c.Node, k, v); err != nil {
			s.refuse(w, c.Node, err)
			return
		}
	}
	s.log().Info("profile claimed", slogx.Node, c.Node, slogx.IP, clientIP(r), slogx.Image, in.Ref)
	writeJSON(w, installer.Claimed{Token: in.Token, Job: job})
}

// errProfile says that a profile cannot be made: a repeat will not make it.
var errProfile = errors.New("the profile cannot be made")

// job makes the profile before the claim is bound: a profile that is broken
// ends the attempt, with the reason.
func (s *Server) job(ctx context.Context, c installer.Claim) (installer.Job, error) {
	in, err := s.State.Install(ctx, c.Node)
	if err != nil {
		return installer.Job{}, err
	}
	if c.Nonce == "" || in.Nonce != c.Nonce {
		return installer.Job{}, nil // no work for strangers: the claim is about to be refused
	}
	job, err := s.Boots.Job(ctx, in)
	if err == nil || ctx.Err() != nil {
		return job, err
	}
	err = fmt.Errorf("%w: %w", errProfile, err)
	return job, errors.Join(err, s.State.Fail(ctx, c.Node, c.Nonce, err.Error()))
}

// refuse maps the kinds of errors to statuses: 4xx where a repeat is useless.
func (s *Server) refuse(w http.ResponseWriter, node string, err error) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, errProfile):
		code = http.StatusUnprocessableEntity
	case errors.Is(err, inventory.ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, inventory.ErrClaimed), errors.Is(err, inventory.ErrForeign):
		code = http.StatusForbidden
	case errors.Is(err, inventory.ErrNotArmed), errors.Is(err, inventory.ErrStale):
		code = http.StatusConflict
	}
	s.log().Warn("installer refused", slogx.Node, node, slogx.Err, err)
	http.Error(w, err.Error(), code)
}

type sessionHandler func(w http.ResponseWriter, r *http.Request, in inventory.Install)

// session lets only requests through that show the token of a session.
func (s *Server) session(h sessionHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			http.Error(w, "a session is needed: claim the profile first", http.StatusUnauthorized)
			return
		}
		in, err := s.State.Session(r.Context(), token)
		if errors.Is(err, inventory.ErrNotFound) {
			http.Error(w, "the session has ended: the node was armed again, or another attempt began", http.StatusConflict)
			return
		}
		if err != nil {
			s.refuse(w, "", err)
			return
		}
		h(w, r, in)
	}
}

func (s *Server) progress(w http.ResponseWriter, r *http.Request, in inventory.Install) {
	var p installer.Progress
	if err := readJSON(r, &p); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := s.State.Progress(r.Context(), in.Token, inventory.Step(p)); err != nil {
		s.refuse(w, in.Node, err)
	}
}

// end records how an installation ended: its log first, so that a reason never
// stands without it.
func (s *Server) end(w http.ResponseWriter, r *http.Request, in inventory.Install) {
	var e installer.Ending
	if err := readJSON(r, &e); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx := context.WithoutCancel(r.Context())
	if err := s.keepLog(in.Node, e.Log); err != nil {
		s.refuse(w, in.Node, err)
		return
	}
	if err := s.State.Finish(ctx, in.Token, e.Reason); err != nil {
		s.refuse(w, in.Node, err)
		return
	}
	if e.Reason == "" { // also for a repeat: the server may have died in between
		if err := s.Boots.Installed(ctx, in, e); err != nil {
			s.refuse(w, in.Node, err)
			return
		}
	}
	if e.Reason != "" {
		s.log().Error("installation failed", slogx.Node, in.Node, "reason", e.Reason)
		return
	}
	s.log().Info("installed", slogx.Node, in.Node, slogx.Image, in.Ref)
}

func (s *Server) keepLog(node, text string) error {
	dir := filepath.Join(s.Logs, node)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, time.Now().UTC().Format("20060102T150405Z")+".log"), []byte(text), 0o600)
}

// armed tells an installer that has failed whether to try again: whether the
// node has been armed and no network boot has used that yet. It asks by name,
// since arming has ended its session, and learns one bit that the next boot
// would tell anybody.
func (s *Server) armed(w http.ResponseWriter, r *http.Request) {
	in, err := s.State.Install(r.Context(), r.URL.Query().Get("node"))
	if err != nil {
		s.refuse(w, r.URL.Query().Get("node"), err)
		return
	}
	writeJSON(w, in.State == inventory.Armed && in.Attempt == 0)
}

// running lets only sessions through whose installation is under way: packs
// hold /etc/shadow.
func running(h sessionHandler) sessionHandler {
	return func(w http.ResponseWriter, r *http.Request, in inventory.Install) {
		if in.State != inventory.Claimed && in.State != inventory.Writing {
			http.Error(w, "the installation has ended: "+string(in.State), http.StatusConflict)
			return
		}
		h(w, r, in)
	}
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request, in inventory.Install) {
	s.object(w, r, in, s.Images.RawManifest)
}

func (s *Server) index(w http.ResponseWriter, r *http.Request, in inventory.Install) {
	s.object(w, r, in, s.Images.RawIndex)
}

func (s *Server) object(w http.ResponseWriter, r *http.Request, in inventory.Install, get func(context.Context, digest.ID) ([]byte, error)) {
	id, err := digest.Parse(in.Image)
	if err == nil {
		var b []byte
		if b, err = get(r.Context(), id); err == nil {
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(b)))
			return
		}
	}
	s.log().Error("image object", slogx.Node, in.Node, slogx.Image, in.Ref, slogx.Err, err)
	http.Error(w, err.Error(), http.StatusGone)
}

func (s *Server) pack(w http.ResponseWriter, r *http.Request, in inventory.Install) {
	id, err := digest.Parse(r.PathValue("id"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	image, err := digest.Parse(in.Image)
	if err != nil {
		http.Error(w, err.Error(), http.StatusGone)
		return
	}
	f, err := s.Images.OpenPack(r.Context(), image, id)
	if err != nil {
		s.log().Error("pack", slogx.Node, in.Node, "pack", id.Short(), slogx.Err, err)
		http.Error(w, err.Error(), http.StatusGone)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}
