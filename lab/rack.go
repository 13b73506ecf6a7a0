package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ingot/internal/slogx"
)

// Errors of a rack.
var (
	ErrUnknown = errors.New("no such machine")
	ErrOn      = errors.New("the machine is on")
	ErrOff     = errors.New("the machine is off")
)

// Rack is a running rack. It is safe for concurrent use.
type Rack struct {
	// config
	o   Options
	log *slog.Logger

	// state
	begin  time.Time
	stop   context.CancelFunc // ends the router advertisements
	ra     chan struct{}
	events *os.File
	mu     sync.Mutex
	nodes  map[string]*node
	procs  []*Process
	subs   map[chan Event]bool
}

// Event is something that happened in the rack.
type Event struct {
	Time    time.Time `json:"time"`
	Machine string    `json:"machine,omitempty"`
	Kind    string    `json:"kind"` // on, off, reset, shutdown, fail, link-up, link-down, process
	Text    string    `json:"text,omitempty"`
}

// New makes a rack in the namespaces that the process is in: the bridge with the server's address. Call
// Close when done. It is for those who call Enter; others call Run.
func New(o Options) (*Rack, error) {
	o, err := o.defaults()
	if err != nil {
		return nil, err
	}
	if !Inside() {
		return nil, errors.New("rack: not in namespaces of its own: call Enter first")
	}
	if err := Check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("rack: %w", err)
	}
	if err := makeBridge(o); err != nil {
		return nil, fmt.Errorf("rack: %w", err)
	}
	events, err := os.OpenFile(filepath.Join(o.Dir, eventFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("rack: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Rack{
		o: o, log: slogx.Or(o.Log), begin: time.Now(), stop: stop, ra: make(chan struct{}), events: events,
		nodes: make(map[string]*node), subs: make(map[chan Event]bool),
	}
	go func() {
		defer close(r.ra)
		if o.NoRA {
			return
		}
		if err := advertise(ctx, o.Bridge); err != nil {
			r.log.Warn("no router advertisements: iPXE will wait 16 s for one", slogx.Err, err)
		}
	}()
	return r, nil
}

// Close powers every machine off and ends every program that was started.
func (r *Rack) Close() error {
	r.stop()
	<-r.ra
	var errs []error
	for _, name := range r.Machines() {
		if err := r.PowerOff(name); err != nil && !errors.Is(err, ErrOff) {
			errs = append(errs, err)
		}
	}
	r.mu.Lock()
	procs := slices.Clone(r.procs)
	r.mu.Unlock()
	for _, p := range procs {
		p.Stop()
	}
	return errors.Join(append(errs, r.removeLinks(), r.events.Close())...)
}

// removeLinks takes the bridge and the taps away, so that another rack may be made in the namespaces.
func (r *Rack) removeLinks() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := []error{deleteLink(r.o.Bridge)}
	for _, n := range r.nodes {
		errs = append(errs, deleteLink(n.tap))
	}
	return errors.Join(errs...)
}

// Dir returns the state directory.
func (r *Rack) Dir() string { return r.o.Dir }

// Bridge returns the name of the interface that the server is to serve.
func (r *Rack) Bridge() string { return r.o.Bridge }

// AddMachine puts a machine into the rack, switched off.
func (r *Rack) AddMachine(m Machine) error {
	m, err := m.complete(r.o.Dir)
	if err != nil {
		return fmt.Errorf("add machine %q: %w", m.Name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes[m.Name] != nil {
		return fmt.Errorf("add machine %q: there is one of that name", m.Name)
	}
	n := &node{Machine: m, tap: fmt.Sprintf("%s.%d", shorten(r.o.Bridge, 10), len(r.nodes)), link: true}
	if err := makeTap(r.o.Bridge, n.tap); err != nil {
		return fmt.Errorf("add machine %q: %w", m.Name, err)
	}
	r.nodes[m.Name] = n
	return nil
}

// shorten cuts a name: interface names have 15 bytes at most.
func shorten(s string, n int) string { return s[:min(len(s), n)] }

// Machines returns the names of the machines, sorted.
func (r *Rack) Machines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name := range r.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// node returns the machine called name.
func (r *Rack) node(name string) (*node, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.nodes[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("machine %q: %w", name, ErrUnknown)
}

// Machine returns the machine as it was completed: with its MAC address and the files of its disks.
func (r *Rack) Machine(name string) (Machine, error) {
	n, err := r.node(name)
	if err != nil {
		return Machine{}, err
	}
	return n.Machine, nil
}

// event records that something happened.
func (r *Rack) event(machine, kind, text string) {
	e := Event{Time: time.Now(), Machine: machine, Kind: kind, Text: text}
	r.log.Debug("rack", slogx.Node, machine, "event", kind, "text", text)
	b, err := json.Marshal(e)
	if err != nil {
		panic("BUG: event: " + err.Error())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = r.events.Write(append(b, '\n')) // a full disk does not stop the rack
	for ch := range r.subs {
		select {
		case ch <- e:
		default: // who does not listen misses it; the file has it
		}
	}
}

// Events returns what happens from now on, until ctx ends.
func (r *Rack) Events(ctx context.Context) <-chan Event {
	ch := make(chan Event, 64)
	r.mu.Lock()
	r.subs[ch] = true
	r.mu.Unlock()
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.subs, ch)
		close(ch)
	})
	return ch
}

// path returns a file of a machine or program in the state directory.
func (r *Rack) path(name, suffix string) string { return filepath.Join(r.o.Dir, name+suffix) }

// tail returns the end of text in one line, for errors.
func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}
