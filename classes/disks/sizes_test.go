package disks

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestSizesAreThoseOfSetupStorage compares with the byte offsets that setup-storage 6.0.3
// prints (testdata/sizes.txt): the alignment of one sector is its default.
func TestSizesAreThoseOfSetupStorage(t *testing.T) {
	f, err := os.Open("testdata/sizes.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layouts := map[string]*Layout{}
	cases := 0
	var text, name string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		fields := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "layout "):
			name, text = fields[1], ""
		case strings.HasPrefix(line, "    "):
			text += strings.TrimSpace(line) + "\n"
			l, err := Parse(name, []byte(text))
			if err == nil {
				layouts[name] = l
			}
		case strings.HasPrefix(line, "on "):
			cases++
			checkSizes(t, layouts[fields[1]], fields)
		}
	}
	if cases < 40 {
		t.Errorf("only %d cases were read", cases)
	}
}

func checkSizes(t *testing.T, l *Layout, fields []string) {
	t.Helper()
	size, err := strconv.ParseUint(fields[2], 10, 64)
	if l == nil || err != nil {
		t.Fatalf("%v: no layout or size", fields)
	}
	extents, err := l.Disks[0].sizes(size, 512, 0, 512)
	var got []string
	for _, e := range extents {
		got = append(got, fmt.Sprintf("%d:%d-%d", e.num, e.start, e.start+e.size-1))
	}
	if err != nil {
		got = []string{"refused"}
	}
	want := map[string]bool{}
	for _, w := range fields[3:] {
		want[w] = true
	}
	for _, g := range got {
		if !want[g] {
			t.Errorf("%s on %s bytes: %s is not in %v (%v)", fields[1], fields[2], g, fields[3:], err)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s on %s bytes: %d partitions, want %d", fields[1], fields[2], len(got), len(want))
	}
}
