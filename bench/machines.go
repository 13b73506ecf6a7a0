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
	fmt.Fprintln(os.Stderr, "bench: machines, for about twenty minutes")
	text, err := figuresOf(ctx, o, "TestSidesFigures", "./e2e/rack")
	if err != nil {
		return nil, err
	}
	return machineRows(text)
}

// figuresOf has a test measure, and returns what it wrote.
func figuresOf(ctx context.Context, o options, test, pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp(o.cache, "run-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "figures.json")
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout", "90m", "-v", "-run", "^"+test+"$", pkg)
	cmd.Env = append(os.Environ(), "INGOT_FIGURES="+out, "INGOT_NO_SKIP=1")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
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

// fleet has e2e measure what a release costs the controller of many nodes.
func fleet(ctx context.Context, o options) ([]row, error) {
	fmt.Fprintln(os.Stderr, "bench: fleet, for about ten minutes")
	text, err := figuresOf(ctx, o, "TestThousand", "./e2e")
	if err != nil {
		return nil, err
	}
	return fleetRows(text)
}

// fleetRows reads what TestThousand wrote.
func fleetRows(text []byte) (rows []row, err error) {
	var all []struct {
		Nodes            int
		What             string
		Seconds, CPU     float64
		Memory, Database int64
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	for _, f := range all {
		rows = append(rows, row{Work: f.What + ", of many nodes", Tool: fmt.Sprintf("%d nodes", f.Nodes), Seconds: []float64{f.Seconds}, CPU: f.CPU, Memory: f.Memory, Bytes: -1,
			Database: f.Database, Nodes: f.Nodes})
	}
	return rows, nil
}

// crowded is the table of a work on many nodes: what it takes for each of them
// is the same, however many there are, where nothing grows faster than they do.
func (r report) crowded(work string) table {
	t := table{head: []string{"", "seconds", "a node", "processor time of ingot", "a node", "of that with the fewest", "its memory", "database"}}
	fewest := 0.0
	for _, row := range r.rows {
		if row.Work != work {
			continue
		}
		n := float64(row.Nodes)
		growth := "-"
		if fewest == 0 {
			fewest = row.CPU / n
		} else {
			growth = fmt.Sprintf("%.2f", row.CPU/n/fewest)
		}
		each := func(s float64) string { return fmt.Sprintf("%.1f ms", 1000*s/n) }
		t.rows = append(t.rows, []string{row.Tool, seconds(row.best()), each(row.best()), seconds(row.CPU), each(row.CPU), growth, size(row.Memory), size(row.Database)})
	}
	return t
}
