package sides

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ingot/internal/durable"
)

// Trial is a side that is started once, and what became of it. It is on the
// shared file system, since either side may be the one that runs next.
type Trial struct {
	Side       string          `json:"side"`
	Generation int             `json:"generation"`
	From       int             `json:"from"`             // the generation that ran, of the other side
	Window     time.Duration   `json:"window"`           // to be confirmed in, once the system is up; 0: its checks decide
	Asked      json.RawMessage `json:"asked,omitempty"`  // what is to be looked at; the agent's
	Later      bool            `json:"later,omitempty"`  // the machine is not started anew for it
	Made       time.Time       `json:"made"`             // when the boot loader was told
	Starts     []time.Time     `json:"starts,omitempty"` // when its agent ran before init
	Up         time.Time       `json:"up,omitzero"`      // when its system had started
	Looked     time.Time       `json:"looked,omitzero"`  // when everything that is to be looked at had been
	Ended      time.Time       `json:"ended,omitzero"`   // when it was confirmed, or given up
	Reason     string          `json:"reason,omitempty"` // given up: why
	By         string          `json:"by,omitempty"`     // confirmed: by whom
}

// Open reports whether nothing has become of the trial yet.
func (t *Trial) Open() bool { return t != nil && t.Ended.IsZero() }

// Waits reports whether the trial is of a side that was never started, and for
// which nobody starts the machine: it can be given up for another one.
func (t *Trial) Waits() bool { return t.Open() && t.Later && len(t.Starts) == 0 }

// Act is what a side does about a trial when it starts.
type Act uint8

// The acts.
const (
	Nothing  Act = iota
	Guard        // this is the side on trial: it goes unless it is confirmed
	Finish       // this is the side on trial, and the boot loader starts it from now on: only the record is missing
	CameBack     // the other side was tried, or was to be, and this one runs
)

// AtStart decides what the side that has started does about a trial, and, when
// it came back from that, why.
func (t *Trial) AtStart(side string, env Env) (Act, string) {
	switch {
	case !t.Open():
		return Nothing, ""
	case t.Side == side && env.Side == side:
		return Finish, ""
	case t.Side == side:
		return Guard, ""
	case env.Try == t.Side:
		return CameBack, fmt.Sprintf("the boot loader did not start side %s: it could not note on its file system that it tries", t.Side)
	case t.Reason != "":
		return CameBack, t.Reason
	case len(t.Starts) == 0:
		return CameBack, fmt.Sprintf("side %s did not come as far as its init, or the machine went down before the boot loader was told of it", t.Side)
	case t.Up.IsZero():
		return CameBack, fmt.Sprintf("side %s came as far as its init, and not to the end of its start", t.Side)
	}
	return CameBack, fmt.Sprintf("side %s had started, and stopped or was reset before it was confirmed", t.Side)
}

// ReadTrial reads the last trial from the shared file system at dir; nil when
// there was none.
func ReadTrial(dir string) (*Trial, error) {
	b, err := os.ReadFile(filepath.Join(dir, trialFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t := &Trial{}
	if err := json.Unmarshal(b, t); err != nil || t.Side != A && t.Side != B {
		return nil, fmt.Errorf("%s: not the record of a trial: %w", filepath.Join(dir, trialFile), errors.Join(err, fs.ErrInvalid))
	}
	return t, nil
}

// Write puts the trial onto the shared file system at dir, durably.
func (t *Trial) Write(dir string) error {
	b, err := json.MarshalIndent(t, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(trialFile)), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, trialFile), append(b, '\n'), 0o600)
}

// Change changes the trial at dir while nobody else does. Where there is none,
// or it is over, fn is not called and the error is ErrOver.
func Change(dir string, fn func(*Trial) error) (*Trial, error) {
	lock, err := os.OpenFile(filepath.Join(dir, trialFile+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // there never was one
		return nil, ErrOver
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	t, err := ReadTrial(dir)
	if err == nil && !t.Open() {
		err = ErrOver
	}
	if err == nil {
		err = fn(t)
	}
	if err != nil {
		return t, err
	}
	return t, t.Write(dir)
}

// ErrOver says that no side is on trial.
var ErrOver = errors.New("no side is on trial")
