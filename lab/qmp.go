package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// qmp speaks QEMU's machine protocol (docs/interop/qmp-spec.txt): JSON in both directions, one command at
// a time, events in between.
type qmp struct {
	conn    *os.File
	answers chan answer
	mu      sync.Mutex // one command at a time
}

// answer is what QEMU says.
type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Reason string `json:"reason"`
	} `json:"data"`
}

// newQMP reads from conn until QEMU ends.
func newQMP(conn *os.File, onEvent func(event, text string)) *qmp {
	q := &qmp{conn: conn, answers: make(chan answer, 1)}
	go q.read(onEvent)
	// Commands are refused before this one. It is not waited for: QEMU answers when it runs.
	_ = json.NewEncoder(conn).Encode(map[string]string{"execute": "qmp_capabilities", "id": "hello"})
	return q
}

// read takes in answers and events.
func (q *qmp) read(onEvent func(event, text string)) {
	defer close(q.answers)
	defer q.conn.Close()
	dec := json.NewDecoder(q.conn)
	hello := true
	for {
		var a answer
		if err := dec.Decode(&a); err != nil {
			return // QEMU has ended
		}
		switch {
		case a.Event == "RESET" || a.Event == "SHUTDOWN" || a.Event == "WATCHDOG":
			onEvent(strings.ToLower(a.Event), a.Data.Reason)
		case a.Return == nil && a.Error == nil: // the greeting, or an event
		case hello:
			hello = false
		default:
			q.answers <- a
		}
	}
}

// execute gives a command and waits for the answer.
func (q *qmp) execute(command string, args map[string]any) error { return q.ask(command, args, nil) }

// ask is execute that keeps what the answer returns, unless into is nil.
func (q *qmp) ask(command string, args map[string]any, into any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	msg := map[string]any{"execute": command}
	if args != nil {
		msg["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(msg); err != nil {
		return fmt.Errorf("monitor command %q: %w", command, err)
	}
	select {
	case a, ok := <-q.answers:
		if !ok {
			return fmt.Errorf("monitor command %q: %w", command, ErrOff)
		}
		if a.Error != nil {
			return fmt.Errorf("monitor command %q: %s", command, a.Error.Desc)
		}
		if into == nil {
			return nil
		}
		return json.Unmarshal(a.Return, into)
	case <-time.After(30 * time.Second):
		return fmt.Errorf("monitor command %q: %w", command, errors.New("no answer in 30 s"))
	}
}
