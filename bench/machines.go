package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// figuresFile is what the machines of the rack came to in this run.
func figuresFile(cache string) string { return filepath.Join(cache, "machines.json") }

// measureMachines has e2e/rack measure what a release costs real machines. It
// needs namespaces of its own, and packages for its image: it runs before ours.
func measureMachines(ctx context.Context, cache string) error {
	out := figuresFile(cache)
	if err := os.Remove(out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fmt.Fprintln(os.Stderr, "bench: machines, for about twenty minutes")
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout", "60m", "-v", "-run", "TestSidesFigures", "./e2e/rack")
	cmd.Env = append(os.Environ(), "INGOT_FIGURES="+out, "INGOT_NO_SKIP=1")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// machines takes in what was measured of machines.
func (b *bench) machines(context.Context) error {
	text, err := os.ReadFile(figuresFile(b.o.cache))
	if errors.Is(err, fs.ErrNotExist) {
		for _, work := range []string{workSlots, workSubvols} {
			b.rows = append(b.rows, row{Work: work, Tool: "ingot push", Bytes: -1, Failed: "the machines of the rack were not measured"})
		}
		return nil
	}
	if err != nil {
		return err
	}
	var all []struct {
		Mode, What     string
		Seconds        float64
		Moved, Written int64
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	names := map[string]string{"slots": workSlots, "btrfs": workSubvols}
	for _, f := range all {
		b.rows = append(b.rows, row{Work: names[f.Mode], Tool: f.What, Seconds: []float64{f.Seconds}, Bytes: f.Moved, Disk: f.Written})
	}
	return nil
}
