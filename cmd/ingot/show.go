package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"ingot/fleet"
	"ingot/imager/wire"
)

// show tells how a deployment fares: to people, and with --json to machines, a
// line of JSON for each event: deployment, progress, node, wave, end.
type show struct {
	p      *program
	screen *screen
	json   *lines // nil: people
	dry    bool
	only   bool // one node: its error is left for the end
	canary bool
	quiet  bool // what goes well is told by somebody else
}

// lines writes values as lines of JSON.
type lines struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func newLines(w io.Writer) *lines { return &lines{enc: json.NewEncoder(w)} }

func (l *lines) put(v any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.enc.Encode(v) // whoever listens has gone: the work goes on, and is recorded
}

type event struct {
	Event      string    `json:"event"`
	Deployment int64     `json:"deployment,omitempty"`
	Time       time.Time `json:"time"`
}

type nodeEvent struct {
	Event      string `json:"event"`
	Deployment int64  `json:"deployment,omitempty"`
	outcome
}

func (p *program) newShow(c *cli.Context, d *deployment) *show {
	s := &show{p: p, screen: p.screen(), dry: d.plan.Work.DryRun, only: len(d.nodes) == 1, canary: d.plan.Policy.Canary > 0}
	if c.Bool("json") {
		s.json = newLines(p.Stdout)
		s.screen.progress = func(node string, w wire.Progress, rate int64) {
			s.json.put(struct {
				event
				Node     string        `json:"node"`
				Progress wire.Progress `json:"progress"`
				Rate     int64         `json:"bytes_per_second,omitempty"`
			}{event{"progress", d.id, time.Now()}, node, w, rate})
		}
	}
	return s
}

func (s *show) begin(d *deployment) {
	if s.json != nil {
		s.json.put(struct {
			event
			Work  string `json:"work"`
			Nodes int    `json:"nodes"`
			Waves int    `json:"waves"`
		}{event{"deployment", d.id, time.Now()}, d.plan.Work.String(), len(d.nodes), d.rows[len(d.rows)-1].Wave + 1})
		return
	}
	if !s.only && !s.quiet {
		s.screen.say("%s", d.summary())
	}
}

// node says how one fared, as soon as it is known.
func (s *show) node(id int64, out outcome) {
	if s.quiet && out.err == nil {
		return
	}
	s.p.report(s.screen, out, reporting{json: s.json != nil, dry: s.dry, only: s.only})
	if s.json != nil {
		s.json.put(nodeEvent{"node", id, out})
	}
}

// wave says what a wave came to, and how long the next one waits.
func (s *show) wave(d *deployment, wave int, done fleet.WaveDone, wait time.Duration) {
	n := map[string]int{}
	for state, k := range map[string]int{stateDone: done.Done, stateUnchanged: done.Skipped, stateFailed: done.Failed, stateNotTried: done.Nodes - done.Done - done.Skipped - done.Failed} {
		if k > 0 {
			n[state] = k
		}
	}
	if s.json != nil {
		s.json.put(struct {
			event
			Wave   int            `json:"wave"`
			Nodes  int            `json:"nodes"`
			States map[string]int `json:"states"`
			Pause  float64        `json:"pause_seconds,omitempty"`
		}{event{"wave", d.id, time.Now()}, wave, done.Nodes, n, wait.Seconds()})
		return
	}
	last := d.rows[len(d.rows)-1].Wave
	if last == 0 || s.dry || s.quiet {
		return
	}
	name := fmt.Sprintf("wave %d of %d", wave+1, last+1)
	if s.canary && wave == 0 {
		name += " (canary)"
	}
	s.screen.say("%s: %s", name, tally(n))
	if wait > 0 {
		s.screen.say("pause until %s; Ctrl-C stops here, and `ingot deployment resume %d` goes on", time.Now().Add(wait).Format(time.TimeOnly), d.id)
	}
}

// end says how all ended.
func (s *show) end(d *deployment, results []outcome, stop fleet.Stop, back int64) {
	s.screen.end()
	n := map[string]int{}
	for _, r := range results {
		n[r.State]++
	}
	if s.json == nil {
		if n[stateNotTried] > 0 && d.id != 0 {
			s.p.say("stopped: %s; `ingot deployment resume %d` goes on, `ingot deployment undo %d` takes back what is done", stop.Reason, d.id, d.id)
		}
		return
	}
	for _, r := range results {
		if r.State == stateNotTried {
			s.json.put(nodeEvent{"node", d.id, r})
		}
	}
	s.json.put(struct {
		event
		States  map[string]int `json:"states"`
		Stopped string         `json:"stopped,omitempty"`
		Undone  int64          `json:"taken_back_by,omitempty"`
	}{event{"end", d.id, time.Now()}, n, stop.Reason, back})
}
