package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// machines has e2e/rack measure what a release costs real machines.
func machines(ctx context.Context, o options) ([]row, error) {
	dir, err := os.MkdirTemp(o.cache, "run-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "machines.json")
	fmt.Fprintln(os.Stderr, "bench: machines, for about twenty minutes")
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout", "90m", "-v", "-run", "TestSidesFigures", "./e2e/rack")
	cmd.Env = append(os.Environ(), "INGOT_FIGURES="+out, "INGOT_NO_SKIP=1")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	return machineRows(text)
}

// machineRows reads what TestSidesFigures wrote.
func machineRows(text []byte) (rows []row, err error) {
	var all []struct {
		Mode, What     string
		Seconds        float64
		Moved, Written int64
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	names := map[string]string{"slots": workSlots, "btrfs": workSubvols}
	for _, f := range all {
		rows = append(rows, row{Work: names[f.Mode], Tool: f.What, Seconds: []float64{f.Seconds}, Bytes: f.Moved, Disk: f.Written})
	}
	return rows, nil
}
