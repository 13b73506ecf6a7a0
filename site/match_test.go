package site

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func rack() *Site {
	s := &Site{}
	for i := 1; i <= 12; i++ {
		s.Nodes = append(s.Nodes, &Node{Name: fmt.Sprintf("n%02d", i), Classes: []string{"WEB"}})
	}
	s.Nodes[11].Classes = []string{"DB"}
	s.Nodes[0].UUID, s.Nodes[0].Serial = "00112233-4455-6677-8899-aabbccddee00", "S1"
	s.Nodes[1].NICs = []NIC{{MAC: "52:54:00:00:00:01"}}
	return s
}

func TestSelect(t *testing.T) {
	tests := []struct{ expr, want string }{
		{"n01", "n01"},
		{"n02,n01", "n01 n02"},
		{"n[01-03]", "n01 n02 n03"},
		{"n[01,03-04],n01", "n01 n03 n04"},
		{"n[0-1]1", "n01 n11"},
		{"@DB", "n12"},
		{"@db, n01", "n01 n12"},
		{"@n03", "n03"},
		{"@DEFAULT,n01", "n01 n02 n03 n04 n05 n06 n07 n08 n09 n10 n11 n12"},
	}
	for _, tt := range tests {
		nodes, err := rack().Select(tt.expr)
		var got []string
		for _, n := range nodes {
			got = append(got, n.Name)
		}
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("Select(%q) = %v, %v; want %s", tt.expr, got, err, tt.want)
		}
	}
}

func TestSelectErrors(t *testing.T) {
	tests := []struct {
		expr, want string
		missing    bool
	}{
		{"n0l", `no node "n0l" (did you mean "n01"?)`, true},
		{"n[11-14]", `no node "n13" (did you mean "n03"?); no node "n14"`, true},
		{"@WBE", `no node is in class "WBE" (did you mean "WEB"?)`, true},
		{"", "an empty name", false},
		{"n01,,n02", "an empty name", false},
		{"n[01", "brackets", false},
		{"n]01[", "brackets", false},
		{"n[[1]]", "brackets", false},
		{"n[3-1]", "not a range", false},
		{"n[a-b]", "not a range", false},
		{"n[+1-2]", "not a range", false},
		{"n[1-999999999]", "more than", false},
		{"n[1-9999][1-9999]", "more than", false},
	}
	for _, tt := range tests {
		_, err := rack().Select(tt.expr)
		var nf *NotFoundError
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.As(err, &nf) != tt.missing {
			t.Errorf("Select(%q) = %v; want %q", tt.expr, err, tt.want)
		}
	}
}

func TestMatch(t *testing.T) {
	s := rack()
	tests := []struct{ mac, serial, uuid, want, how string }{
		{"52:54:00:00:00:01", "S1", "", "n02", "mac"},
		{"52-54-00-00-00-02", "S1", "", "n01", "serial"},
		{"", "Default string", "00112233-4455-6677-8899-AABBCCDDEE00", "n01", "uuid"},
		{"", "", "{33221100-5544-7766-8899-aabbccddee00}", "n01", "uuid"},
		{"", "", "ffffffff-ffff-ffff-ffff-ffffffffffff", "", ""},
		{"junk", "none", "", "", ""},
	}
	for _, tt := range tests {
		n, how := s.Match([]string{tt.mac}, tt.serial, tt.uuid)
		name := ""
		if n != nil {
			name = n.Name
		}
		if name != tt.want || how != tt.how {
			t.Errorf("Match(%q) = %q by %q", tt, name, how)
		}
	}
}

func TestCompareNames(t *testing.T) {
	order := []string{"a", "n1", "n2", "n02", "n10", "n10a", "n99999999999999999999999", "x"}
	for i, a := range order {
		for j, b := range order {
			if i < j && compareNames(a, b) >= 0 && a != "n2" {
				t.Errorf("%s is not before %s", a, b)
			}
			if compareNames(a, b) != -compareNames(b, a) {
				t.Errorf("compare %s %s is not symmetric", a, b)
			}
		}
	}
}

func FuzzSelect(f *testing.F) {
	for _, s := range []string{"n01", "n[1-3]", "@web,all", "n[1,2]x[3]", "[", "]", ",", "n[]", "a]b["} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, expr string) {
		nodes, err := rack().Select(expr)
		if err == nil && len(nodes) == 0 {
			t.Errorf("Select(%q) is nothing and no error", expr)
		}
	})
}
