package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Exec runs one command with an input and returns what it printed.
type Exec func(ctx context.Context, argv []string, stdin string) ([]byte, error)

// Command is the Exec of a real machine. Programs are asked for messages in English and
// get no terminal to ask questions on.
func Command(ctx context.Context, argv []string, stdin string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

// StepError says which step of a plan failed. Nothing after it was run.
type StepError struct {
	Step   Step
	Output string // what the command printed
	Err    error
}

func (e *StepError) Error() string {
	text := fmt.Sprintf("%s: %v", e.Step.What, e.Err)
	if len(e.Step.Argv) > 0 {
		text = fmt.Sprintf("%s: %q: %v", e.Step.What, strings.Join(e.Step.Argv, " "), e.Err)
	}
	if e.Output != "" {
		text += "\n" + e.Output
	}
	return text
}

func (e *StepError) Unwrap() error { return e.Err }

// ErrNoDevice says that a partition's device file did not appear.
var ErrNoDevice = errors.New("the device file did not appear")

// waitTime is how long the kernel (and udev) may take to make device files.
const waitTime = 15 * time.Second

// Run does what a plan says, step by step, and stops at the first failure (*StepError).
// run is Command on a real machine.
func Run(ctx context.Context, plan *Plan, run Exec) error {
	for _, s := range plan.Steps {
		if len(s.Argv) > 0 {
			if out, err := run(ctx, s.Argv, s.Stdin); err != nil {
				return &StepError{s, strings.TrimSpace(string(out)), err}
			}
		}
		for _, dev := range s.Wait {
			if err := appear(ctx, dev); err != nil {
				return &StepError{s, dev, err}
			}
		}
	}
	return nil
}

func appear(ctx context.Context, dev string) error {
	ctx, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	for {
		if _, err := os.Stat(dev); err == nil {
			return nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ErrNoDevice
			}
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
