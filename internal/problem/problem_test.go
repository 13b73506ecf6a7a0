package problem

import "testing"

func TestErrorShowsPlace(t *testing.T) {
	src := &Source{Name: "a.yaml", Data: []byte("x: 1\n\ty: 2\r\n")}
	tests := []struct {
		p    Problem
		want string
	}{
		{src.At(2, 2, "bad %q", "y"), "a.yaml:2:2: bad \"y\"\n    \ty: 2\n    \t^"},
		{src.At(0, 0, "empty"), "a.yaml: empty"},
		{src.At(9, 1, "past the end"), "a.yaml:9:1: past the end"},
		{Problem{File: "f", Line: 1, Col: 1, Text: "esc", Code: "a\x1b[2J"}, "f:1:1: esc\n    a?[2J\n    ^"},
	}
	for _, tt := range tests {
		if got := tt.p.Error(); got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}

func TestListSortsAndDropsRepetitions(t *testing.T) {
	var l List
	if l.Err() != nil {
		t.Fatal("an empty list is an error")
	}
	l.Add(Problem{File: "b", Text: "x"}, Problem{File: "a", Line: 10, Text: "x"}, Problem{File: "a", Line: 9, Text: "x"}, Problem{File: "b", Text: "x"})
	if got, want := l.Err().Error(), "a:9: x\na:10: x\nb: x"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"networks", "operators", "server", "nics"}
	for word, want := range map[string]string{"network": "networks", "sevrer": "server", "zzz": "", "nisc": "nics", "Server": "server"} {
		if got := Nearest(word, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
