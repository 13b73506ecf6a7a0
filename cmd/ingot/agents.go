package main

import (
	"embed"
	"fmt"
	"io/fs"
	"sync"

	"github.com/klauspost/compress/zstd"
)

//go:embed agents
var agents embed.FS

// agentBinary returns the agent for an architecture (GOARCH).
func agentBinary(arch string) ([]byte, error) {
	name := "agents/ingot-agent-" + arch + ".zst"
	packed, err := fs.ReadFile(agents, name)
	if err != nil {
		return nil, withHint(fmt.Errorf("this ingot carries no agent for %s", arch), "build it with `make build`")
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	b, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("embedded agent %q: %w", name, err)
	}
	return b, nil
}

// agentOnce unpacks the amd64 agent at most once.
func (p *program) agent() ([]byte, error) {
	p.agentOnce.Do(func() { p.agentBytes, p.agentErr = agentBinary("amd64") })
	return p.agentBytes, p.agentErr
}

type lazyAgent struct {
	agentOnce  sync.Once
	agentBytes []byte
	agentErr   error
}
