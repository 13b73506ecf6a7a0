package main

import (
	"io"
	"strings"
	"testing"
)

// That a machine fell silent when it was started anew is no news once it has
// said what became of it.
func TestSilentAndBack(t *testing.T) {
	s := &agentSession{}
	s.silent.Store(true)
	for _, back := range []error{&revertedError{reason: "check web", now: 5}, &unswitchedError{4}} {
		if got := s.explain(back); got != back {
			t.Errorf("a node that came back: %v", got)
		}
	}
	if got := s.explain(io.EOF); !strings.Contains(got.Error(), "fell silent") {
		t.Errorf("a node that did not: %v", got)
	}
}
