package health

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// listen makes a server that does as it likes with each connection, after its request was read.
func listen(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					serve(conn)
				}
			}()
		}
	}()
	return l.Addr().String()
}

// closed is an address where nothing listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

// hang holds a connection until the other side closes it.
func hang(conn net.Conn) { io.Copy(io.Discard, conn) }

func say(conn net.Conn, format string, args ...any) { fmt.Fprintf(conn, format, args...) }

func once(t *testing.T, c Check) Result {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second // far from any limit
	}
	c.RetryFor = time.Millisecond
	return (&Runner{}).Run(t.Context(), []Check{c})[0]
}

func TestTCP(t *testing.T) {
	up := listen(t, hang)
	_, port, _ := net.SplitHostPort(up)
	for _, host := range []string{"127.0.0.1", "localhost", "LocalHost.", "x.localhost"} {
		if got := once(t, Check{TCP: net.JoinHostPort(host, port)}); !got.OK || got.Why != "accepts connections" {
			t.Errorf("%s: %+v", host, got)
		}
	}
	if got := once(t, Check{TCP: closed(t)}); got.OK || got.Why != "connection refused" {
		t.Errorf("closed: %+v", got)
	}
	if got := once(t, Check{TCP: "no-such-host.invalid:1", Timeout: 5 * time.Second}); got.OK || got.Why == "" { // DNS may be as slow as it likes
		t.Errorf("no host: %+v", got)
	}
}

func TestLocalhostIsIPv6Too(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		if os.Getenv("INGOT_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip("no IPv6 here: " + err.Error())
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if got := once(t, Check{TCP: "localhost:" + port}); !got.OK {
		t.Errorf("%+v", got)
	}
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	for _, code := range []int{200, 204, 404, 503} {
		mux.HandleFunc(fmt.Sprintf("/%d", code), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	mux.HandleFunc("/hops/", func(w http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscanf(r.URL.Path, "/hops/%d", &n)
		to := "/200"
		if n > 1 {
			to = fmt.Sprintf("/hops/%d", n-1)
		}
		http.Redirect(w, r, to, http.StatusFound)
	})
	var circles atomic.Int32
	mux.HandleFunc("/circle", func(w http.ResponseWriter, r *http.Request) {
		circles.Add(1)
		http.Redirect(w, r, "/circle", http.StatusFound)
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
	})
	plain, secure := httptest.NewServer(mux), httptest.NewUnstartedServer(mux)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are broken off
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	if client(Answer{}, http.MethodGet).Transport.(*http.Transport).Proxy != nil { // net/http asks none for a loopback address in any case
		t.Error("a proxy may be asked")
	}
	for _, tt := range []struct {
		check Check
		ok    bool
		why   string // its beginning
	}{
		{Check{HTTP: plain.URL + "/200"}, true, "status 200"},
		{Check{HTTP: plain.URL + "/204"}, true, "status 204"},
		{Check{HTTP: plain.URL + "/503"}, false, "status 503"},
		{Check{HTTP: plain.URL + "/503", Status: 503}, true, "status 503"},
		{Check{HTTP: plain.URL + "/204", Status: 200}, false, "status 204"},
		{Check{HTTP: plain.URL + "/hops/5"}, true, "status 200 at " + plain.URL + "/200"},
		{Check{HTTP: plain.URL + "/hops/6"}, false, "more than 5 redirects"},
		{Check{HTTP: plain.URL + "/circle"}, false, "more than 5 redirects"},
		{Check{HTTP: plain.URL + "/circle", Status: 302}, true, "status 302"},
		{Check{HTTP: plain.URL + "/hops/1", Status: 301}, false, "status 302"},
		{Check{HTTP: plain.URL + "/file"}, false, "unsupported protocol scheme"},
		{Check{HTTP: secure.URL + "/200"}, false, "tls: failed to verify certificate"},
		{Check{HTTP: secure.URL + "/200", Insecure: true}, true, "status 200"},
		{Check{HTTP: strings.Replace(plain.URL, "http", "https", 1), Insecure: true}, false, "http: server gave HTTP response to HTTPS client"},
		{Check{HTTP: "http://" + closed(t)}, false, "connection refused"},
	} {
		if got := once(t, tt.check); got.OK != tt.ok || !strings.HasPrefix(got.Why, tt.why) {
			t.Errorf("%+v: %v %q", tt.check, got.OK, got.Why)
		}
	}
	if n := circles.Load(); n != maxRedirects+2 {
		t.Errorf("%d requests in a circle, want %d and one that is not followed", n, maxRedirects+1)
	}
}

// Servers that do not behave cost their time limit at most, and no memory.
func TestHostileServers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, tt := range map[string]struct {
		serve func(net.Conn)
		good  bool
		why   string
	}{
		"accepts and hangs":  {hang, false, "not done within 300ms"},
		"hangs up":           {func(net.Conn) {}, false, "EOF"},
		"no HTTP":            {func(c net.Conn) { say(c, "SSH-2.0-x\r\n\x1b[2J\r\n") }, false, "net/http: HTTP/1.x transport connection broken: malformed HTTP response"},
		"half a header":      {func(c net.Conn) { say(c, ok); hang(c) }, false, "not done within 300ms"},
		"endless headers":    {func(c net.Conn) { say(c, ok); repeat(c, "X-A: b\r\n") }, false, "net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded 65536 bytes"},
		"one endless header": {func(c net.Conn) { say(c, ok+"X: "); repeat(c, "yyyyyyyy") }, false, "net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded 65536 bytes"},
		"endless 1xx":        {func(c net.Conn) { repeat(c, "HTTP/1.1 103 Early Hints\r\n\r\n") }, false, "net/http: "},
		"endless body":       {func(c net.Conn) { say(c, ok+"\r\n"); repeat(c, "0123456789") }, true, "status 200"},
		"body that stops":    {func(c net.Conn) { say(c, ok+"Content-Length: 10\r\n\r\nabc") }, false, "status 200, but the response does not end: unexpected EOF"},
		"body that hangs":    {func(c net.Conn) { say(c, ok+"Content-Length: 10\r\n\r\nabc"); hang(c) }, false, "status 200, but the response does not end: not done within 300ms"},
		"body that trickles": {func(c net.Conn) { say(c, ok+"\r\n"); trickle(c) }, false, "status 200, but the response does not end: not done within 300ms"},
		"huge length":        {func(c net.Conn) { say(c, ok+"Content-Length: 9223372036854775807\r\n\r\n"); repeat(c, "x") }, true, "status 200"},
	} {
		t.Run(name, func(t *testing.T) {
			limit := 30 * time.Second
			if strings.Contains(tt.why, "300ms") {
				limit = 300 * time.Millisecond
			}
			begun := time.Now()
			got := once(t, Check{HTTP: "http://" + listen(t, tt.serve) + "/", Timeout: limit})
			if got.OK != tt.good || !strings.HasPrefix(got.Why, tt.why) {
				t.Errorf("%v %q", got.OK, got.Why)
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func repeat(conn net.Conn, text string) {
	text = strings.Repeat(text, 1000)
	for {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
	}
}

// trickle sends a byte now and then, so that the connection is never idle.
func trickle(conn net.Conn) {
	for {
		if _, err := io.WriteString(conn, "."); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
