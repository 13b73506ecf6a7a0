package steps

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A call is how a system call names the file that it changes: by the argument
// fd, or by the path in the argument after the directory at.
type call struct {
	name     string
	fd       int  // number of the argument, or none
	at, path int  // of the directory, and of the path
	full     bool // needs room on the disk
}

const none = -1

// calls are the system calls that change files.
func calls() map[uint64]call {
	byFd := func(name string, full bool) call { return call{name, 0, none, none, full} }
	return map[uint64]call{
		unix.SYS_WRITE: byFd("write", true), unix.SYS_PWRITE64: byFd("pwrite64", true), unix.SYS_WRITEV: byFd("writev", true),
		unix.SYS_PWRITEV: byFd("pwritev", true), unix.SYS_FTRUNCATE: byFd("ftruncate", true), unix.SYS_FALLOCATE: byFd("fallocate", true),
		unix.SYS_COPY_FILE_RANGE: {"copy_file_range", 2, none, none, true}, unix.SYS_FSYNC: byFd("fsync", true), unix.SYS_FDATASYNC: byFd("fdatasync", true),
		unix.SYS_SYNCFS: byFd("syncfs", true), unix.SYS_FCHMOD: byFd("fchmod", false), unix.SYS_FCHOWN: byFd("fchown", false),
		unix.SYS_FSETXATTR: byFd("fsetxattr", true), unix.SYS_FREMOVEXATTR: byFd("fremovexattr", false),
		unix.SYS_OPENAT: {"openat", none, 0, 1, true}, unix.SYS_OPEN: {"open", none, none, 0, true}, unix.SYS_TRUNCATE: {"truncate", none, none, 0, true},
		unix.SYS_RENAME: {"rename", none, none, 1, true}, unix.SYS_RENAMEAT: {"renameat", none, 2, 3, true}, unix.SYS_RENAMEAT2: {"renameat2", none, 2, 3, true},
		unix.SYS_LINK: {"link", none, none, 1, true}, unix.SYS_LINKAT: {"linkat", none, 2, 3, true},
		unix.SYS_SYMLINK: {"symlink", none, none, 1, true}, unix.SYS_SYMLINKAT: {"symlinkat", none, 1, 2, true},
		unix.SYS_UNLINK: {"unlink", none, none, 0, false}, unix.SYS_UNLINKAT: {"unlinkat", none, 0, 1, false}, unix.SYS_RMDIR: {"rmdir", none, none, 0, false},
		unix.SYS_MKDIR: {"mkdir", none, none, 0, true}, unix.SYS_MKDIRAT: {"mkdirat", none, 0, 1, true}, unix.SYS_MKNODAT: {"mknodat", none, 0, 1, true},
		unix.SYS_CHMOD: {"chmod", none, none, 0, false}, unix.SYS_FCHMODAT: {"fchmodat", none, 0, 1, false}, unix.SYS_LCHOWN: {"lchown", none, none, 0, false},
		unix.SYS_FCHOWNAT: {"fchownat", none, 0, 1, false}, unix.SYS_UTIMENSAT: {"utimensat", none, 0, 1, false},
		unix.SYS_SETXATTR: {"setxattr", none, none, 0, true}, unix.SYS_LSETXATTR: {"lsetxattr", none, none, 0, true},
		unix.SYS_REMOVEXATTR: {"removexattr", none, none, 0, false}, unix.SYS_LREMOVEXATTR: {"lremovexattr", none, none, 0, false},
	}
}

// info is struct ptrace_syscall_info (ptrace(2)).
type info struct {
	op     uint8
	_      [3]byte
	arch   uint32
	ip, sp uint64
	nr     uint64 // at the exit: the result
	args   [6]uint64
	_      [4]uint64
}

const (
	getSyscallInfo = 0x420e
	opEntry        = 1
	opExit         = 2
)

type watcher struct {
	// config
	f     Fault
	calls map[uint64]call

	// state
	leader int
	r      Result
	seen   map[int]bool   // threads that have begun
	after  map[int]func() // what is done at the end of the call that a thread is in
}

// watch runs the program of f to its end.
func watch(f Fault) (Result, error) {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	path, err := filepath.Abs(f.Argv[0])
	if err != nil {
		return Result{}, err
	}
	p, err := os.StartProcess(path, f.Argv, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return Result{}, err
	}
	w := &watcher{f: f, calls: calls(), leader: p.Pid, seen: map[int]bool{p.Pid: true}, after: map[int]func(){}}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(p.Pid, &ws, unix.WALL, nil); err != nil || !ws.Stopped() {
		return Result{}, fmt.Errorf("wait for %s: %v, %#x", path, err, ws)
	}
	options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACEEXIT | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(p.Pid, options); err != nil {
		return Result{}, fmt.Errorf("ptrace: %w", err)
	}
	unix.PtraceSyscall(p.Pid, 0)
	for {
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			return w.r, nil
		case err != nil:
			return w.r, fmt.Errorf("wait: %w", err)
		case ws.Stopped():
			unix.PtraceSyscall(tid, w.stopped(tid, ws)) // it may be dead by now
		case tid == w.leader && ws.Exited():
			w.r.Code = ws.ExitStatus()
		case tid == w.leader && ws.Signaled():
			w.r.Code = 128 + int(ws.Signal())
		}
	}
}

// stopped looks at a thread that stands still, and returns the signal that it gets.
func (w *watcher) stopped(tid int, ws unix.WaitStatus) int {
	first := !w.seen[tid]
	w.seen[tid] = true
	switch sig := ws.StopSignal(); {
	case sig == unix.SIGTRAP|0x80:
		w.atCall(tid)
		return 0
	case sig == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_EXIT:
		w.r.Memory = max(w.r.Memory, memory(tid))
		return 0
	case sig == unix.SIGTRAP, sig == unix.SIGSTOP && first:
		return 0
	default:
		return int(sig)
	}
}

// memory returns the most that a process had resident: rusage has that of the
// process that started it, too.
func memory(tid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kilobytes int64
	fmt.Sscan(rest, &kilobytes)
	return kilobytes << 10
}

func (w *watcher) atCall(tid int) {
	var i info
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(i), uintptr(unsafe.Pointer(&i)), 0, 0)
	if errno != 0 {
		return // it has been killed
	}
	if i.op == opExit {
		if do := w.after[tid]; do != nil {
			delete(w.after, tid)
			do()
		}
		return
	}
	c, ok := w.calls[i.nr]
	if i.op != opEntry || !ok || c.name[:4] == "open" && i.args[c.path+1]&(unix.O_CREAT|unix.O_TRUNC) == 0 {
		return
	}
	path := pathOf(tid, c, i.args)
	if !w.f.counts(path) {
		return
	}
	step := Step{c.name, path}
	w.r.Steps = append(w.r.Steps, step)
	switch n := len(w.r.Steps); {
	case w.r.Hit == 0 && (n == w.f.At || w.f.Prefix != "" && strings.HasPrefix(step.String(), w.f.Prefix)):
		w.r.Hit = n
		w.fault(tid, c)
	case w.r.Hit > 0 && w.f.Do == Stay && c.full && path != stdout:
		w.fail(tid)
	}
}

func (w *watcher) fault(tid int, c call) {
	switch {
	case w.f.Do == Tear && strings.Contains(c.name, "write"):
		var regs unix.PtraceRegs
		if unix.PtraceGetRegs(tid, &regs) == nil {
			regs.Rdx /= 2
			unix.PtraceSetRegs(tid, &regs)
		}
		w.after[tid] = w.kill
	case w.f.Do == Kill, w.f.Do == Tear:
		w.kill()
	default:
		w.fail(tid)
	}
}

func (w *watcher) kill() { unix.Kill(w.leader, unix.SIGKILL) }

// fail makes the call that a thread begins do nothing and return the error.
func (w *watcher) fail(tid int) {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) != nil {
		return
	}
	regs.Orig_rax = ^uint64(0)
	unix.PtraceSetRegs(tid, &regs)
	w.after[tid] = func() {
		if unix.PtraceGetRegs(tid, &regs) == nil {
			regs.Rax = uint64(-w.f.Errno)
			unix.PtraceSetRegs(tid, &regs)
		}
	}
}

// pathOf finds out which file a call changes.
func pathOf(tid int, c call, args [6]uint64) string {
	link := func(name string) string {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/%s", tid, name))
		return to
	}
	if c.fd != none {
		if fd := int32(args[c.fd]); fd != 1 || c.name != "write" {
			return link(fmt.Sprintf("fd/%d", fd))
		}
		return stdout
	}
	path := stringAt(tid, args[c.path])
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	dir := "cwd"
	if c.at != none {
		if fd := int32(args[c.at]); fd != unix.AT_FDCWD {
			dir = fmt.Sprintf("fd/%d", fd)
		}
	}
	return filepath.Join(link(dir), path)
}

func stringAt(tid int, addr uint64) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, unix.PathMax)
	n, _ := f.ReadAt(b, int64(addr)) // less, at the end of a mapping
	s, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(s)
}
