package remote

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// breaking is a connection whose peer closes it while a write is under way:
// reads end, writes go on as those to a socket do until it knows.
type breaking struct {
	net.Conn
	armed          atomic.Bool
	writing, write chan struct{}
}

func (b *breaking) Write(p []byte) (int, error) {
	if !b.armed.CompareAndSwap(true, false) {
		return b.Conn.Write(p)
	}
	close(b.writing)
	<-b.write
	return len(p), nil
}

func (b *breaking) Read(p []byte) (int, error) {
	k, err := b.Conn.Read(p)
	if err != nil {
		err = io.EOF
	}
	return k, err
}

// Who opens a channel when the connection has just broken learns of it.
func TestChannelOfABrokenConnection(t *testing.T) {
	s := serve(t, nil)
	for range 20 { // most of them meet the moment
		var b *breaking
		target := s.target()
		target.Dial = func(_ context.Context, network, addr string) (net.Conn, error) {
			nc, err := net.Dial(network, addr)
			b = &breaking{Conn: nc, writing: make(chan struct{}), write: make(chan struct{})}
			return b, err
		}
		c, err := Dial(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		b.armed.Store(true)
		ended := make(chan error, 1)
		go func() {
			_, _, _ = c.client.SendRequest("something@example.com", false, nil)
			_, err := c.Output(t.Context(), "true") // before the writers are told, who wait for the write above
			ended <- err
		}()
		<-b.writing
		b.Conn.(*net.TCPConn).CloseRead()
		time.Sleep(10 * time.Millisecond) // the channels are dropped
		close(b.write)
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a command over a broken connection: no error")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a command over a broken connection never ends")
		}
		c.Close()
	}
}
