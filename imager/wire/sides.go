package wire

import (
	"fmt"
	"strings"
)

// Sides say what a node with two root file systems is at.
type Sides struct {
	Runs   string `json:"runs"`             // the side
	Starts string `json:"starts,omitempty"` // what the boot loader starts; "": it cannot be read
	Tries  string `json:"tries,omitempty"`  // what it starts once instead, the next time

	// The last side that was tried, or is to be; Side is "" where none ever was.
	Side       string `json:"side,omitempty"`
	Generation int    `json:"generation,omitempty"`
	From       int    `json:"from,omitempty"`   // the generation that ran when it was made
	Started    int    `json:"started"`          // how often it came as far as its init
	Open       bool   `json:"open,omitempty"`   // nothing has become of it yet
	Reason     string `json:"reason,omitempty"` // why it did not stay
	By         string `json:"by,omitempty"`     // who confirmed it
}

// Clean is Plan.Clean for the sides of a node; nil has nothing to be cleaned.
func (s *Sides) Clean() {
	if s == nil {
		return
	}
	for _, text := range []*string{&s.Runs, &s.Starts, &s.Tries, &s.Side, &s.Reason, &s.By} {
		*text = Printable(*text)
	}
}

// String says which side runs, which is next, and what became of the last that
// was tried.
func (s *Sides) String() string {
	text := fmt.Sprintf("side %s runs", s.Runs)
	switch {
	case s.Starts == "":
		text += ", the boot loader's environment cannot be read"
	case s.Tries != "":
		text += fmt.Sprintf(", side %s is tried at the next start, side %s starts after that", s.Tries, s.Starts)
	default:
		text += fmt.Sprintf(", side %s starts next", s.Starts)
	}
	if s.Side == "" {
		return text
	}
	text += fmt.Sprintf("; generation %d on side %s ", s.Generation, s.Side)
	switch {
	case s.Open && s.Started == 0:
		return text + "was not tried yet"
	case s.Open:
		text += "is on trial"
	case s.Reason != "":
		text += "did not stay"
	default:
		text += "was confirmed"
		if s.By != "" {
			text += " by " + s.By
		}
	}
	if text += fmt.Sprintf(", started %d times", s.Started); s.Started == 1 {
		text = strings.TrimSuffix(text, "s")
	}
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}
