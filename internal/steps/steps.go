package steps

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// What a Fault does to its step.
const (
	Kill = "kill" // the program is killed before the call does anything
	Tear = "tear" // of a write, half is done; then, as of other calls at once, the program is killed
	Fail = "fail" // the call does nothing and returns Errno
	Stay = "stay" // so do all later steps that Errno is plausible for: a disk that is full stays full
)

// A Fault is what happens to one step. A step is a system call that changes a
// file system, in or below one of the directories Within; or that writes to
// standard output.
type Fault struct {
	Within []string
	At     int    // 1 is the first step; 0 none, to count them
	Prefix string // or the first step whose String begins so
	Do     string
	Errno  int
	Report string   // file for the Result
	Argv   []string // the program
}

// A Step is one system call.
type Step struct {
	Call, Path string
}

func (s Step) String() string { return s.Call + " " + s.Path }

// A Result says what the program did.
type Result struct {
	Steps []Step // up to the end
	Hit   int    // the step that was broken; 0: it was not reached
	Code  int    // exit status; 128+n where a signal ended it

	Memory int64 // the most that the program had resident, in bytes
}

const switchOn = "INGOT_TEST_STEPS"

// Command returns the command that runs a program with a fault. The test's
// TestMain has to begin with Main.
func Command(f Fault) (*exec.Cmd, error) {
	raw, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), switchOn+"="+string(raw))
	return cmd, nil
}

// Read returns what a command reported.
func (f Fault) Read() (Result, error) {
	var r Result
	raw, err := os.ReadFile(f.Report)
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	return r, err
}

// Main is the process that watches over the program. The process of the test
// itself gets false; any other has to end with the exit status.
func Main() (status int, mine bool) {
	raw := os.Getenv(switchOn)
	if raw == "" {
		return 0, false
	}
	os.Unsetenv(switchOn)
	var f Fault
	err := json.Unmarshal([]byte(raw), &f)
	var r Result
	if err == nil {
		r, err = watch(f)
	}
	if err == nil {
		raw, _ := json.Marshal(r)
		err = os.WriteFile(f.Report, raw, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "steps:", err)
		return 125, true
	}
	return r.Code, true
}

// counts says whether a path is one whose changes are steps.
func (f Fault) counts(path string) bool {
	for _, dir := range f.Within {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return path == stdout
}

const stdout = "(standard output)"
