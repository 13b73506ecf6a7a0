// Package lab is a rack without hardware: QEMU machines on a bridge, with the boot server beside them, in
// namespaces of their own.
//
// The program that wants a rack calls Run (or Enter, where it builds the rack itself). Run starts the
// program again, with the same arguments, as process 1 of a new PID namespace with a network and a mount
// namespace of its own, and that one starts it a third time, to reap for it; only there Run goes on and
// calls its function with a Rack. So the rack has one life: when the supervisor ends, killed, crashed or
// done, the kernel ends every machine and server in it and takes the bridge, the taps and the mounts
// away. The host's network is never touched.
//
//	err := lab.Run(ctx, lab.Options{Dir: "/var/lib/ingot-lab/demo"}, func(ctx context.Context, r *lab.Rack) error {
//		err := r.AddMachine(lab.Machine{Name: "n1", Firmware: lab.UEFI, Disks: []lab.Disk{{SizeBytes: 4 << 30}}})
//		...
//		server, err := r.Start("server", "ingot", "serve")
//		err = r.PowerOn("n1")
//		_, err = r.Expect(ctx, "n1", "login:")
//	})
//
// Run may return in any of the three; an *ExitError carries what main is to exit with. Another process
// drives a running rack through its control socket: Dial and Client.
//
// Power off is SIGKILL to QEMU: what the guest had synced is on its disk, what it had not is lost, as
// with the cord. A disk that loses its own cache is modelled by Disk.WriteLog: the log of a disk, replayed
// up to a flush, with any of the writes after it. Each power on begins the log anew. Machines are emulated
// (TCG), which is the same everywhere; INGOT_LAB_KVM=1 uses /dev/kvm.
//
// The state directory holds lock, rack.json, control.sock, events.jsonl, lab.log (of a detached rack),
// NAME.console, NAME.qemu.log, NAME.vars.fd and disks of each machine, and NAME.log of each program.
package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Options say how a rack is to be.
type Options struct {
	Dir    string       // state directory; made when missing; one rack at a time
	Args   []string     // what the program is started again with; nil is os.Args[1:]
	Detach bool         // do not wait: the rack outlives the program, its output goes to lab.log
	Bridge string       // name; "" is "lab0"
	Addr   netip.Prefix // the bridge's address, which is the server's; zero is 10.77.0.1/24
	NoRA   bool         // send no router advertisements; see advertise
	Log    *slog.Logger // nil discards
}

// DefaultDir returns the state directory of the rack called name.
func DefaultDir(name string) string { return filepath.Join("/var/lib/ingot-lab", name) }

// The files of a state directory.
const (
	lockFile    = "lock"
	infoFile    = "rack.json"
	controlFile = "control.sock"
	eventFile   = "events.jsonl"
	logFile     = "lab.log"
)

// defaults fills in what was left open.
func (o Options) defaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("rack: no state directory")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, fmt.Errorf("rack: %w", err)
	}
	o.Dir = dir
	if o.Args == nil {
		o.Args = os.Args[1:]
	}
	if o.Bridge == "" {
		o.Bridge = "lab0"
	}
	if !o.Addr.IsValid() {
		o.Addr = netip.MustParsePrefix("10.77.0.1/24")
	}
	return o, nil
}

// Run makes a rack and calls fn with it, in the namespaces. The rack ends when fn returns, or when ctx or
// a client ends it; then fn's ctx is done. With Detach, Run returns when the rack answers.
func Run(ctx context.Context, o Options, fn func(context.Context, *Rack) error) error {
	inside, err := Enter(ctx, o)
	if err != nil || !inside {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := New(o)
	if err != nil {
		return err
	}
	defer r.Close()
	control, err := r.listen(cancel)
	if err != nil {
		return err
	}
	defer control.close()
	return fn(ctx, r)
}

// ExitError says that the program was run elsewhere, and how that ended.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("the rack ended with exit code %d", e.Code) }

// RunningError says that the state directory has a rack already.
type RunningError struct {
	Dir   string
	PID   int // of its first process
	Since time.Time
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("rack %q is up already: process %d, since %s", e.Dir, e.PID, e.Since.Format(time.DateTime))
}

// ErrDown says that no rack runs in a state directory.
var ErrDown = errors.New("no rack is up")
