// Package hooks are the steps around a change of a node, such as those that take it out of service and back:
// commands and HTTP requests, carried out by the server.
package hooks

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"ingot/internal/command"
	"ingot/internal/health"
)

// Defaults and bounds of a step.
const (
	Timeout = time.Minute
	Longest = 24 * time.Hour // that a step may ask for
)

// Address and Name stand for the node's in the parts of a request.
const (
	Address = health.Address
	Name    = "{node}"
)

// Step is one step: exactly one of Run, Until and HTTP.
type Step struct {
	Name string `yaml:"name"` // of the step, for people; "" is what it does

	Run   string   `yaml:"run"`   // command line of /bin/sh that must exit with 0
	Until string   `yaml:"until"` // command line of /bin/sh that is run again and again until it exits with 0
	HTTP  *Request `yaml:"http"`

	Timeout time.Duration `yaml:"timeout"` // of the step, for Until with all its tries; 0 is the constant
}

// Request is an HTTP request. Name and Address may stand in its URL, its header and its body.
type Request struct {
	URL      string            `yaml:"url"`
	Method   string            `yaml:"method"` // "" is GET, and POST where there is a body
	Header   map[string]string `yaml:"header"`
	Body     string            `yaml:"body"`
	Expect   int               `yaml:"expect"`   // status that must be answered; 0 is any from 200 to 299
	Insecure bool              `yaml:"insecure"` // any TLS certificate will do
}

// Node is what steps are told of a node.
type Node struct {
	Name    string
	Address string // IP address or host name; "": not known
}

// For puts a node into a step. The error is that its address is not known, and needed.
func (s Step) For(n Node) (Step, error) {
	if s.HTTP == nil {
		return s, nil // commands have it in their environment
	}
	if n.Address == "" && s.HTTP.says(Address) {
		return s, fmt.Errorf("%s: node %q has no address, which it needs", s, n.Name)
	}
	q := *s.HTTP
	plain := func(text string) string { return replaced(text, n, asIs, asIs) }
	q.URL, q.Body, q.Header = urlFor(q.URL, n), plain(q.Body), maps.Clone(q.Header)
	for k, v := range q.Header {
		q.Header[k] = plain(v)
	}
	s.HTTP = &q
	return s, nil
}

// says reports whether a placeholder stands in a request.
func (q *Request) says(what string) bool {
	return slices.ContainsFunc(append(slices.Collect(maps.Values(q.Header)), q.URL, q.Body), func(s string) bool { return strings.Contains(s, what) })
}

func asIs(s string) string { return s }

// replaced puts a node into a text, escaped as that needs it.
func replaced(text string, n Node, name, address func(string) string) string {
	return strings.NewReplacer(Name, name(n.Name), Address, address(n.Address)).Replace(text)
}

// urlFor puts a node into an URL, escaped as each part needs it: host, path and
// query (RFC 3986, section 3).
func urlFor(raw string, n Node) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return raw
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	path, query, asks := strings.Cut(rest[end:], "?")
	out := scheme + "://" + replaced(rest[:end], n, asIs, health.HostInURL) + replaced(path, n, url.PathEscape, url.PathEscape)
	if asks {
		out += "?" + replaced(query, n, url.QueryEscape, url.QueryEscape)
	}
	return out
}

// method is that of a request.
func (q *Request) method() string {
	switch {
	case q.Method != "":
		return q.Method
	case q.Body != "":
		return http.MethodPost
	}
	return http.MethodGet
}

// String is the name of the step, or what it does, on one line.
func (s Step) String() string {
	switch {
	case s.Name != "":
		return s.Name
	case s.HTTP != nil:
		return s.HTTP.method() + " " + s.HTTP.URL
	case s.Until != "":
		return "until " + firstLine(s.Until)
	}
	return firstLine(s.Run)
}

func firstLine(text string) string {
	line, _, more := strings.Cut(strings.TrimSpace(text), "\n")
	if line = command.Line(line); more {
		line += " ..."
	}
	return line
}

// timeout is how long a step may take.
func (s Step) timeout() time.Duration {
	if s.Timeout == 0 {
		return Timeout
	}
	return s.Timeout
}

// Faults judges a step; none means that it can be run.
func (s Step) Faults() []health.Fault {
	var f []health.Fault
	add := func(wrong bool, key, format string, args ...any) {
		if wrong {
			f = append(f, health.Fault{Key: key, Text: fmt.Sprintf(format, args...)})
		}
	}
	n := 0
	for _, has := range []bool{s.Run != "", s.Until != "", s.HTTP != nil} {
		if has {
			n++
		}
	}
	add(n != 1, "", "a step is one of {run: COMMAND}, {until: COMMAND}, {http: {url: URL}}")
	for key, text := range map[string]string{"run": s.Run, "until": s.Until} {
		add(text != "" && strings.TrimSpace(text) == "" || strings.Contains(text, "\x00"), key, "%q is not a command", text)
	}
	add(s.Timeout < 0 || s.Timeout > Longest, "timeout", "timeout: %s is not a time between 0 and %s", s.Timeout, Longest)
	add(strings.TrimSpace(s.Name) != s.Name || strings.ContainsFunc(s.Name, func(r rune) bool { return !unicode.IsPrint(r) }), "name",
		"%q is not a name: printable, no space at its ends", s.Name)
	if s.HTTP != nil {
		s.HTTP.faults(add)
	}
	return f
}

// token are the characters of a header's name besides letters and digits (RFC 9110, section 5.6.2).
const token = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func (q *Request) faults(add func(bool, string, string, ...any)) {
	sample := urlFor(q.URL, Node{Name: "node", Address: "192.0.2.1"}) // RFC 5737
	if err := health.CheckURL(sample); err != nil {
		add(true, "http.url", "%v", err)
	} else {
		add(strings.ContainsAny(sample, "{}"), "http.url", "%q: only %s and %s are replaced; write other braces as %%7B and %%7D", q.URL, Name, Address)
		add(strings.Contains(sample, "#"), "http.url", "%q: what comes after # is not sent", q.URL)
	}
	methods := []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
	add(q.Method != "" && !slices.Contains(methods, q.Method), "http.method", "method: %q is not one of %s", q.Method, strings.Join(methods, ", "))
	add(q.Body != "" && q.Method == http.MethodGet, "http.body", "a GET has no body: say method: POST")
	for _, k := range slices.Sorted(maps.Keys(q.Header)) {
		key := "http.header." + k
		add(k == "" || strings.Trim(k, token) != "", key, "%q is not the name of a header", k)
		add(strings.EqualFold(k, "Host"), key, "the host is that of the url")
		add(strings.ContainsAny(q.Header[k], "\r\n\x00"), key, "the header %s has more than one line", k)
	}
	add(q.Expect != 0 && (q.Expect < 200 || q.Expect > 599), "http.expect", "%d is not a status that a request ends with, 200 to 599 (RFC 9110, section 15)", q.Expect)
	add(q.Insecure && !strings.HasPrefix(q.URL, "https://"), "http.insecure", "insecure belongs to an URL that begins with https://")
}
