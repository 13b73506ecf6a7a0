package installer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"ingot/internal/digest"
	"ingot/internal/slogx"
)

// Patience is how long an installer goes on trying to reach its server before
// it gives up: long enough for a server to be restarted or a cable to be put back.
const Patience = 5 * time.Minute

// maxAnswer bounds what the client takes into memory from one answer, in bytes.
const maxAnswer = 1 << 30

// StatusError is an answer that is not a success and that no repeat will change.
type StatusError struct {
	Code int
	Text string
}

func (e *StatusError) Error() string { return fmt.Sprintf("the server says %d: %s", e.Code, e.Text) }

// Client talks to the boot server. Every request is repeated with growing
// pauses, for Patience at most, when the network or the server fails; refusals
// (4xx) are final.
type Client struct {
	// config
	Base     string // http://HOST:PORT
	Log      *slog.Logger
	Patience time.Duration // 0: the constant Patience

	// state
	token atomic.Pointer[string] // of the session, once the profile is claimed
	http  *http.Client
}

// NewClient returns a client of the server at base.
func NewClient(base string, log *slog.Logger) *Client {
	tr := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		ResponseHeaderTimeout: 20 * time.Second,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true,
	}
	return &Client{Base: strings.TrimSuffix(base, "/"), Log: slogx.Or(log), http: &http.Client{Transport: tr}}
}

// Claim claims the profile and opens the session.
func (c *Client) Claim(ctx context.Context, cl Claim) (Job, error) {
	var got Claimed
	if err := c.call(ctx, PathClaim, cl, &got); err != nil {
		return Job{}, fmt.Errorf("claim the profile of %q: %w", cl.Node, err)
	}
	c.token.Store(&got.Token)
	return got.Job, nil
}

// Claimed reports whether there is a session.
func (c *Client) Claimed() bool { return c.token.Load() != nil }

// Report sends progress once, without repeats: the next one supersedes it.
func (c *Client) Report(ctx context.Context, p Progress) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, err = c.once(ctx, http.MethodPost, PathProgress, body)
	return err
}

// Begin tells the server that the disk is being written from now on, and
// returns once the server has agreed.
func (c *Client) Begin(ctx context.Context, p Progress) error {
	p.Writing = true
	if err := c.call(ctx, PathProgress, p, nil); err != nil {
		return fmt.Errorf("ask the server before the first write: %w", err)
	}
	return nil
}

// End reports the ending and returns once the server has it.
func (c *Client) End(ctx context.Context, e Ending) error {
	if err := c.call(ctx, PathEnd, e, nil); err != nil {
		return fmt.Errorf("report the ending: %w", err)
	}
	return nil
}

// Armed asks whether the node has been armed for another attempt.
func (c *Client) Armed(ctx context.Context, node string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	b, err := c.once(ctx, http.MethodGet, PathArmed+"?node="+url.QueryEscape(node), nil)
	if err != nil {
		return false, err
	}
	var armed bool
	if err := json.Unmarshal(b, &armed); err != nil {
		return false, fmt.Errorf("ask whether the node is armed: %w", err)
	}
	return armed, nil
}

// Get fetches a small object of the image (manifest, index) whole.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	b, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", path, err)
	}
	return b, nil
}

func (c *Client) call(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	b, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// do repeats once until it succeeds, is refused or patience ends.
func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	var b []byte
	err := c.retry(ctx, path, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		b, err = c.once(ctx, method, path, body)
		return err
	})
	return b, err
}

func (c *Client) retry(ctx context.Context, what string, fn func(context.Context) error) error {
	patience := c.Patience
	if patience == 0 {
		patience = Patience
	}
	start, pause := time.Now(), 250*time.Millisecond
	for {
		err := fn(ctx)
		var refused *StatusError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &refused):
			return err
		case time.Since(start)+pause > patience:
			return fmt.Errorf("no answer from %s for %s: %w", c.Base, time.Since(start).Round(time.Second), err)
		}
		c.Log.Warn("the server does not answer; trying again", "what", what, slogx.Err, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 4*time.Second)
	}
}

func (c *Client) once(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	resp, err := c.send(ctx, method, path, body, "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(b) > maxAnswer {
		err = fmt.Errorf("the answer is over %d bytes", maxAnswer)
	}
	return b, err
}

// send makes one request; a status that is not 2xx is an error.
func (c *Client) send(ctx context.Context, method, path string, body []byte, byteRange string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if t := c.token.Load(); t != nil {
		req.Header.Set("Authorization", "Bearer "+*t)
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode/100 == 4 {
		return nil, &StatusError{resp.StatusCode, strings.TrimSpace(string(text))}
	}
	return nil, fmt.Errorf("the server says %s: %s", resp.Status, strings.TrimSpace(string(text)))
}

// ReadPack returns n bytes of a pack from off on. The reader goes on where it
// was when the connection breaks, for as long as patience lasts.
func (c *Client) ReadPack(ctx context.Context, pack digest.ID, off, n int64) (io.ReadCloser, error) {
	return &packReader{c: c, ctx: ctx, path: PathPack + pack.String(), off: off, end: off + n}, nil
}

type packReader struct {
	c        *Client
	ctx      context.Context // of the one transfer that this reader is
	path     string
	off, end int64
	body     io.ReadCloser
	idle     *time.Timer
}

// stall is how long a transfer may stand still before it is begun anew.
const stall = 20 * time.Second

func (r *packReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.end-r.off)]
	var n int
	err := r.c.retry(r.ctx, r.path, func(ctx context.Context) (err error) {
		if r.body == nil {
			if err := r.open(ctx); err != nil {
				return err
			}
		}
		r.idle.Reset(stall)
		if n, err = r.body.Read(p); n > 0 {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		r.Close()
		return err
	})
	if err != nil {
		return 0, err
	}
	r.off += int64(n)
	return n, nil
}

func (r *packReader) open(ctx context.Context) error {
	resp, err := r.c.send(ctx, http.MethodGet, r.path, nil, fmt.Sprintf("bytes=%d-%d", r.off, r.end-1))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return &StatusError{resp.StatusCode, "a range was asked for, the whole was sent"}
	}
	body := resp.Body
	r.body, r.idle = body, time.AfterFunc(stall, func() { body.Close() })
	return nil
}

// Close ends the transfer.
func (r *packReader) Close() error {
	if r.body == nil {
		return nil
	}
	r.idle.Stop()
	err := r.body.Close()
	r.body = nil
	return err
}
