package pxe

import (
	"net"
	"sync"
	"time"
)

// Limits of the memory.
const (
	memoryAge  = 5 * time.Minute
	memorySize = 1 << 14 // machines; a flood of invented MACs must not eat the server
	maxLoads   = 6       // loaders in a row that did not lead to iPXE
	perLoader  = 2       // boots that one loader gets before the next kind is tried
)

// memory is what we remember of a machine between two packets: what it said in its DISCOVER, because some clients do not
// say it again in the REQUEST (4.9), and how often it was given a loader that never came back as iPXE (4.25, 4.28).
type memory struct {
	mu sync.Mutex
	m  map[[6]byte]*trace
}

type trace struct {
	discover Request
	seen     time.Time
	loads    int
	loadXID  uint32
}

func (m *memory) of(mac net.HardwareAddr, now time.Time) *trace {
	if m.m == nil {
		m.m = map[[6]byte]*trace{}
	}
	k := macKey(mac)
	t := m.m[k]
	if t == nil || now.Sub(t.seen) > memoryAge {
		if len(m.m) >= memorySize {
			m.forget(now)
		}
		t = &trace{}
		m.m[k] = t
	}
	t.seen = now
	return t
}

// forget makes room: the old ones, and any one when nothing is old.
func (m *memory) forget(now time.Time) {
	for k, t := range m.m {
		if now.Sub(t.seen) > memoryAge {
			delete(m.m, k)
		}
	}
	for k := range m.m {
		if len(m.m) < memorySize {
			return
		}
		delete(m.m, k)
	}
}

// complete remembers a DISCOVER and gives a REQUEST of the same exchange what it leaves out.
func (m *memory) complete(r *Request, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.of(r.MAC, now)
	d := &t.discover
	if r.XID != d.XID || len(d.MAC) == 0 || len(r.ClientArchRaw) > 0 || !d.Boots() || r.Stage == StageInstaller {
		if r.Boots() && (r.Arch != ArchNone || len(d.MAC) == 0) {
			t.discover = *r
		}
		return
	}
	r.note("options of the DISCOVER are missing: remembered")
	r.Stage, r.Arch, r.Firmware, r.NoHTTP = d.Stage, d.Arch, d.Firmware, d.NoHTTP
	r.VendorClass, r.UserClass = firstOf(r.VendorClass, d.VendorClass), firstOf(r.UserClass, d.UserClass)
	if len(r.MachineID) == 0 {
		r.MachineID, r.UUID = d.MachineID, d.UUID
	}
}

// loads says how many loaders in a row a machine was given without coming back as iPXE.
func (m *memory) loads(mac net.HardwareAddr, now time.Time) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.of(mac, now).loads
}

// gaveLoader counts an ACK that names a loader. Repeats of one exchange, with the same xid, count once.
func (m *memory) gaveLoader(mac net.HardwareAddr, xid uint32, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.of(mac, now)
	if t.loads > 0 && t.loadXID == xid {
		return
	}
	t.loads, t.loadXID = t.loads+1, xid
}

// reachedScript ends the count: the loader works.
func (m *memory) reachedScript(mac net.HardwareAddr, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(mac, now).loads = 0
}
