package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

const (
	maxRedirects = 5
	maxBody      = 64 << 10 // of a response that is read, in bytes: what comes after it does not matter
	maxHeader    = 64 << 10
)

// connect says whether something accepts connections.
func connect(ctx context.Context, c Check) (string, error) {
	conn, err := dial(ctx, "tcp", c.TCP)
	if err != nil {
		return "", reason(ctx, err)
	}
	conn.Close()
	return "accepts connections", nil
}

// get says whether an URL answers as it should.
func get(ctx context.Context, c Check) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.HTTP, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", "ingot-check")
	return Ask(req, Answer{Status: c.Status, Insecure: c.Insecure}, io.Discard)
}

// Answer is what Ask takes for a right answer.
type Answer struct {
	Status   int  // 0: any from 200 to 299
	Insecure bool // any TLS certificate will do
}

func (a Answer) good(status int) bool {
	if a.Status != 0 {
		return status == a.Status
	}
	return status >= 200 && status <= 299
}

// redirects reports whether the answer of a request leads to another one: not
// where that is what is asked for, nor where the request changes something.
func (a Answer) redirects(method string) bool {
	return method == http.MethodGet && (a.Status < 300 || a.Status > 399)
}

// Ask sends a request and says how it was answered; the error says why that is not
// right. No proxy is asked; the response has to be complete, or longer than what
// is read of it, which body gets.
func Ask(req *http.Request, want Answer, body io.Writer) (said string, err error) {
	ctx := req.Context()
	resp, err := client(want, req.Method).Do(req)
	if err != nil {
		return "", reason(ctx, err)
	}
	defer resp.Body.Close()
	said = fmt.Sprintf("status %d", resp.StatusCode)
	if at := resp.Request.URL; at.String() != req.URL.String() {
		said += " at " + at.Redacted()
	}
	good := want.good(resp.StatusCode)
	if good || body != io.Discard {
		_, err = io.CopyN(body, resp.Body, maxBody)
	}
	switch {
	case !good:
		return "", errors.New(said)
	case err != nil && err != io.EOF:
		return "", fmt.Errorf("%s, but the response does not end: %w", said, reason(ctx, err))
	}
	return said, nil
}

// client makes one that is used once.
func client(want Answer, method string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: want.Insecure},
		},
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			switch {
			case !want.redirects(method):
				return http.ErrUseLastResponse
			case len(via) > maxRedirects:
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			return nil
		},
	}
}

// dial knows where localhost is without asking anybody, as a node may have lost /etc/hosts: RFC 6761, section 6.3.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Resolver: &net.Resolver{PreferGo: true}}
	host, port, err := net.SplitHostPort(address)
	if err != nil || !isLocalhost(host) {
		return d.DialContext(ctx, network, address)
	}
	conn, err := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	if six, err := d.DialContext(ctx, network, net.JoinHostPort("::1", port)); err == nil {
		return six, nil
	}
	return nil, err
}

// reason takes from an error of the network what the check's own text says already: the URL, the address.
func reason(ctx context.Context, err error) error {
	var errno syscall.Errno
	var dns *net.DNSError
	var ue *url.Error
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &errno):
		return errno
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &ue):
		return ue.Err
	}
	return err
}
