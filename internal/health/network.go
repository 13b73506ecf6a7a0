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

// get says whether an URL answers as it should. No proxy is asked; the response has to be complete, or longer than what is read of it.
func get(ctx context.Context, c Check) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.HTTP, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", "ingot-check")
	resp, err := client(c).Do(req)
	if err != nil {
		return "", reason(ctx, err)
	}
	defer resp.Body.Close()
	said := fmt.Sprintf("status %d", resp.StatusCode)
	if at := resp.Request.URL; at.String() != req.URL.String() {
		said += " at " + at.Redacted()
	}
	if !good(c, resp.StatusCode) {
		return "", errors.New(said)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, maxBody); err != nil && err != io.EOF {
		return "", fmt.Errorf("%s, but the response does not end: %w", said, reason(ctx, err))
	}
	return said, nil
}

func good(c Check, status int) bool {
	if c.Status != 0 {
		return status == c.Status
	}
	return status >= 200 && status <= 299
}

// client makes one that is used once. A check for a status of redirection looks at the first answer.
func client(c Check) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: c.Insecure},
		},
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			switch {
			case c.Status >= 300 && c.Status <= 399:
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
