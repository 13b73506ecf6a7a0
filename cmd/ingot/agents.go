package main

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"ingot/internal/digest"
)

//go:embed agents
var agents embed.FS

// agentArches are the architectures of nodes, as Go calls them; what is not
// x86_64 or aarch64 there (uname -m) has no agent.
func agentArches() []string { return []string{"amd64", "arm64"} }

// installerArch is the architecture of the machines that the installer boots on.
const installerArch = "amd64"

// archOf is what Go calls a machine of uname -m.
func archOf(machine string) (string, error) {
	switch machine {
	case "x86_64":
		return "amd64", nil
	case "aarch64":
		return "arm64", nil
	}
	return "", fmt.Errorf("the node is a %q: there are agents for x86_64 (amd64) and aarch64 (arm64)", machine)
}

// agentDigests returns the digests of the agents that this ingot carries, for
// remote.AgentCommand: the SHA-256 and the BLAKE2b-256 of each.
func agentDigests() ([]digest.ID, error) {
	var out []digest.ID
	for _, arch := range agentArches() {
		for _, kind := range []string{".sha256", ".b2"} {
			id, err := agentDigest(arch, kind)
			if err != nil {
				return nil, err
			}
			out = append(out, id)
		}
	}
	return out, nil
}

func agentDigest(arch, kind string) (digest.ID, error) {
	b, err := fs.ReadFile(agents, agentFile(arch)+kind)
	if err != nil {
		return digest.ID{}, noAgent(arch)
	}
	id, err := digest.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return id, fmt.Errorf("embedded agent for %s: %w", arch, err)
	}
	return id, nil
}

func agentFile(arch string) string { return "agents/ingot-agent-" + arch }

func noAgent(arch string) error {
	return withHint(fmt.Errorf("this ingot carries no agent for %s", arch), "build it with `make build`")
}

// agentBinary returns the agent for an architecture (GOARCH).
func agentBinary(arch string) ([]byte, error) {
	want, err := agentDigest(arch, ".sha256")
	if err != nil {
		return nil, err
	}
	packed, err := fs.ReadFile(agents, agentFile(arch)+".zst")
	if err != nil {
		return nil, noAgent(arch)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	b, err := dec.DecodeAll(packed, nil)
	if err == nil && digest.Of(b) != want {
		err = fmt.Errorf("is %s, should be %s", digest.Of(b).Short(), want.Short())
	}
	if err != nil {
		return nil, fmt.Errorf("embedded agent for %s: %w", arch, err)
	}
	return b, nil
}

// agent is agentBinary, which unpacks each agent at most once.
func (p *program) agent(arch string) ([]byte, error) {
	p.agentsMu.Lock()
	defer p.agentsMu.Unlock()
	if b := p.agentBytes[arch]; b != nil {
		return b, nil
	}
	b, err := agentBinary(arch)
	if err != nil {
		return nil, err
	}
	if p.agentBytes == nil {
		p.agentBytes = map[string][]byte{}
	}
	p.agentBytes[arch] = b
	return b, nil
}

type lazyAgents struct {
	agentsMu   sync.Mutex
	agentBytes map[string][]byte // by architecture
}
